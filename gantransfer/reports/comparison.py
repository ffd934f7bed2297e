"""The report of several runs side by side: one table, curves over one another, grids at the same point of training.

Runs that differ in nothing but their seed and folder are one *arm*: its curve is the mean, with a band from the lowest
to the highest run.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from gantransfer.reports.curves import is_wide, line_chart, short
from gantransfer.reports.parts import (
    Cell,
    Picture,
    best_of,
    cell,
    data_name,
    differences,
    direction,
    duration,
    evenly,
    in_words,
    inline,
    kimg_text,
    measured,
    protocol_notes,
    protocol_of,
    protocols,
    source_name,
    text_of,
    time_unit,
    titled,
    trained,
)
from gantransfer.reports.records import Record, Run, is_number

MOST_POINTS = 5
MOST_CHARTS_OF_TICKS = 8
SAME_ARM = {"seed", "workdir"}

Line = Sequence[tuple[float, float]]


class Arm(NamedTuple):
    """Runs that differ in their seed only."""

    name: str
    runs: list[Run]

    @property
    def label(self) -> str:
        """Its name, with the number of seeds where there are several."""
        return self.name if len(self.runs) == 1 else f"{self.name} ({len(self.runs)} seeds)"


class Row(NamedTuple):
    """A row of the table: a run's evaluation, or the mean of an arm."""

    name: str
    time: str
    protocol: int
    cells: list[Cell]
    is_mean: bool


def sections(runs: Sequence[Run]) -> dict[str, Any]:
    """Everything that the template shows of several runs."""
    arms = arms_of(runs)
    names = list(dict.fromkeys(name for run in runs for name in run.metric_names))
    found = protocols(record for run in runs for record in run.evaluations)
    seen = sorted({record["images_seen"] for run in runs for record in run.evaluations})
    tables = {images: table(runs, arms, images, names, found) for images in seen}
    shown = evenly(seen, MOST_POINTS)
    real = next((run.reals for run in runs if run.reals), None)
    return {
        "runs": runs,
        "facts": [facts(run) for run in runs],
        "arms": [arm.label for arm in arms if len(arm.runs) > 1],
        "metric_names": names,
        "tables": [(kimg_text(images / 1000), tables[images]) for images in shown],
        "all_tables": [(kimg_text(images / 1000), tables[images]) for images in seen] if len(shown) < len(seen) else [],
        "protocol_notes": protocol_notes([record for run in runs for record in run.evaluations]),
        "protocol_differences": differences(found) if len(found) > 1 else {},
        "any_brackets": any(c.bracketed for rows in tables.values() for row in rows for c in row.cells),
        "charts": [pair for name in names if (pair := metric_charts(arms, name))],
        "untimed": [run.name for run in runs if run.evaluations and not run.timing],
        "tick_charts": tick_charts(arms),
        "grid_arms": [arm.runs[0].name for arm in arms if arm.runs[0].grids],
        "grids": grids_at_same_points(arms),
        "reals": inline(real, widest=720, room=360) if real else None,
        "config_differences": differences([{k: v for k, v in run.config.items() if k != "workdir"} for run in runs]),
    }


def facts(run: Run) -> dict[str, str]:
    """A run's line of the overview."""
    counts = trained(run)
    speed = f"{short(run.seconds / run.kimg)}" if run.seconds is not None and run.kimg else "–"
    return {
        "Run": run.name,
        "Source": source_name(run),
        "Mode": text_of(run.config.get("mode", "not said")),
        "Data": data_name(run) or "not said",
        "Seed": text_of(run.config.get("seed", "not said")),
        "kimg": kimg_text(run.kimg),
        "Training time": duration(run.seconds),
        "s per kimg": speed,
        "Trained parameters": f"{counts[0]:,} of {counts[1]:,}" if counts else "–",
    }


def arms_of(runs: Sequence[Run]) -> list[Arm]:
    """Runs by what they share but for seed and folder, in order of appearance, named by how their names begin."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        key = repr(sorted((name, text_of(value)) for name, value in run.config.items() if name not in SAME_ARM))
        found.setdefault(key, []).append(run)
    arms = []
    for members in found.values():
        name = members[0].name
        if len(members) > 1:
            name = os.path.commonprefix([run.name for run in members]).removesuffix("seed").rstrip("-_/. ") or name
        arms.append(Arm(name, members))
    return arms


def table(
    runs: Sequence[Run], arms: Sequence[Arm], images: int, names: list[str], found: list[dict[str, Any]]
) -> list[Row]:
    """The rows at one evaluation point: runs in their order, an arm's mean after its last run."""
    at = {run.name: [r for r in run.evaluations if r["images_seen"] == images] for run in runs}
    # Among arms of several seeds the best single run would be luck: their means compete.
    rivals = [mean_of([record for run in arm.runs for record in at[run.name]], names) for arm in arms]
    best = {name: best_of(name, rivals) if len(found) == 1 else None for name in names}
    rows = []
    for arm in arms:
        alone = len(arm.runs) == 1
        for run in arm.runs:
            for record in at[run.name]:
                metrics = record["metrics"]
                cells = [cell(name, metrics, best[name] if alone else None) for name in names]
                time = run.seconds_at(record["kimg"])
                number = found.index(protocol_of(record)) + 1
                rows.append(Row(run.name, "–" if time is None else duration(time), number, cells, False))
        records = [record for run in arm.runs for record in at[run.name]]
        if len(records) > 1 and len(protocols(records)) == 1:
            rows.append(mean_row(arm, records, names, found, best))
    return rows


def mean_of(records: Sequence[Record], names: list[str]) -> dict[str, float]:
    """The mean of each metric that is a number in all of the records."""
    values = {name: [record["metrics"].get(name) for record in records] for name in names}
    return {name: float(np.mean(v)) for name, v in values.items() if v and all(is_number(value) for value in v)}


def mean_row(
    arm: Arm, records: Sequence[Record], names: list[str], found: list[dict[str, Any]], best: dict[str, float | None]
) -> Row:
    """The mean over an arm's evaluations at one point, with the lowest and highest."""
    means = mean_of(records, names)
    cells = []
    for name in names:
        mean = cell(name, means, best[name])
        if name in means:
            values = [record["metrics"][name] for record in records]
            mean = mean._replace(extra=f"{short(min(values))} to {short(max(values))}")
        cells.append(mean)
    return Row(f"{arm.name}, mean of {len(records)}", "", found.index(protocol_of(records[0])) + 1, cells, True)


def metric_charts(arms: Sequence[Arm], metric: str) -> tuple[str, str] | None:
    """The metric over kimg and over seconds of training; None where no arm has two points."""
    over_kimg = {arm.label: arm_line(arm, lambda run: measured(run, metric)) for arm in arms}
    over_kimg = {label: line for label, line in over_kimg.items() if line}
    if max((len(line) for line in over_kimg.values()), default=0) < 2:
        return None
    ends = [run.seconds for arm in arms for run in arm.runs if run.seconds is not None]
    length, unit = time_unit(max(ends, default=0.0))
    over_time = {
        arm.label: [
            (seconds / length, *rest) for kimg, *rest in line if (seconds := arm_seconds(arm, kimg)) is not None
        ]
        for arm in arms
        if (line := over_kimg.get(arm.label))
    }
    log_y = direction(metric) < 0 and is_wide(point[1] for line in over_kimg.values() for point in line)
    words, title = in_words(metric), titled(metric)
    return (
        line_chart(over_kimg, x_label="kimg", y_label=words, title=title, log_y=log_y),
        line_chart(over_time, x_label=f"{unit} of training", y_label=words, title=title, log_y=log_y),
    )


def arm_line(arm: Arm, line_of: Callable[[Run], Line]) -> list[tuple[float, ...]]:
    """A run's own line, or the mean over an arm's runs with the lowest and highest, where all of them were measured."""
    lines = [dict(line_of(run)) for run in arm.runs]
    if len(lines) == 1:
        return list(lines[0].items())
    points = []
    for kimg in sorted(set.intersection(*(set(line) for line in lines))):
        values = [line[kimg] for line in lines]
        points.append((kimg, float(np.mean(values)), min(values), max(values)))
    return points


def arm_seconds(arm: Arm, kimg: float) -> float | None:
    """Seconds of training until `kimg`, the mean over the arm; None where a run has no timing that far."""
    seconds = [run.seconds_at(kimg) for run in arm.runs]
    known = [value for value in seconds if value is not None]
    return float(np.mean(known)) if len(known) == len(seconds) else None


def tick_charts(arms: Sequence[Arm]) -> list[str]:
    """Each loss and logit over kimg, one line an arm."""
    runs = [run for arm in arms for run in arm.runs]
    keys = dict.fromkeys(
        key for run in runs for tick in run.ticks[:1] for key in tick if key.startswith(("loss/", "logits/"))
    )
    charts = []
    for key in list(keys)[:MOST_CHARTS_OF_TICKS]:

        def line_of(run: Run, key: str = key) -> Line:
            return [(float(tick["kimg"]), float(tick[key])) for tick in run.ticks if is_number(tick.get(key))]

        lines = {arm.label: line for arm in arms if (line := arm_line(arm, line_of))}
        charts.append(line_chart(lines, x_label="kimg", y_label=in_words(key), title=in_words(key)))
    return charts


def grids_at_same_points(arms: Sequence[Arm]) -> list[tuple[str, list[Picture]]]:
    """Grids of each arm's first run at the first, middle and last point that all of them have; empty where none is."""
    runs = [arm.runs[0] for arm in arms if arm.runs[0].grids]
    if not runs:
        return []
    common = sorted(set.intersection(*(set(run.grids) for run in runs)))
    return [
        (kimg_text(images / 1000), [inline(run.grids[images], widest=720, room=360) for run in runs])
        for images in evenly(common, 3)
    ]
