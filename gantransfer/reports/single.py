"""The report of one run: what it made, how it was measured, how it got there, what was trained."""

from collections import defaultdict
from typing import Any, NamedTuple

from gantransfer.reports.curves import is_wide, line_chart, short
from gantransfer.reports.parts import (
    Cell,
    best_of,
    cell,
    data_name,
    direction,
    duration,
    evenly,
    in_brackets,
    in_words,
    inline,
    kimg_text,
    measured,
    protocol_notes,
    protocol_of,
    protocols,
    source_name,
    text_of,
    titled,
    trained,
)
from gantransfer.reports.records import Run, is_number

MOST_GRIDS = 8
# Metrics that lie between 0 and 1 and are read together.
SHARES = ("precision", "recall", "density", "coverage")
FIRST_GROUPS = ("loss", "logits")
NOT_CURVES = {"images_seen", "kimg", "tick", "time", "seconds"}


class Fact(NamedTuple):
    """A line of the header."""

    name: str
    value: str


class Tile(NamedTuple):
    """A number that is read first, where it came from, and whether it got better (1) or worse (-1)."""

    name: str
    cell: Cell
    note: str
    change: int = 0


class Group(NamedTuple):
    """A parameter group of one network: sizes, and the rules that decided about its leaves."""

    role: str
    name: str
    leaves: int
    parameters: int
    trained: int
    why: str

    @property
    def percent(self) -> float:
        """Share of the group's parameters that train."""
        return 100 * self.trained / self.parameters if self.parameters else 0.0


def sections(run: Run) -> dict[str, Any]:
    """Everything that the template shows of one run."""
    shown = evenly(list(run.grids), MOST_GRIDS)
    first_curves, other_curves = training_curves(run)
    return {
        "run": run,
        "facts": facts(run),
        "tiles": tiles(run),
        "reals": inline(run.reals) if run.reals else None,
        "fakes": inline(run.grids[shown[-1]]) if shown else None,
        "fakes_kimg": kimg_text(shown[-1] / 1000) if shown else "",
        "sequence": [(kimg_text(seen / 1000), inline(run.grids[seen], widest=540, room=270)) for seen in shown],
        "evaluation_rows": evaluation_rows(run),
        "protocol_notes": protocol_notes(run.evaluations),
        "evaluation_charts": evaluation_charts(run),
        "any_brackets": any(
            in_brackets(name, record["metrics"]) for record in run.evaluations for name in record["metrics"]
        ),
        "curves": first_curves,
        "more_curves": other_curves,
        "speed": speed_chart(run),
        "groups": groups(run),
        "settings": {name: text_of(value) for name, value in sorted(run.config.items())},
        "versions": versions(run),
    }


def facts(run: Run) -> list[Fact]:
    """The header: where from, what, on what, how far."""
    source = source_name(run)
    if family := run.source.get("family"):
        source += f" ({family})"
    data = data_name(run) or "not said"
    if "images" in run.data:
        classes = len(run.data.get("classes", []))
        data += f": {run.data['images']:,} images, {classes} class{'' if classes == 1 else 'es'}"
    if "resolution" in run.data:
        side = run.data["resolution"]
        data += f", {side}×{side}, {'grey' if run.data.get('channels') == 1 else 'colour'}"
    length = f"{kimg_text(run.kimg)}\u00a0kimg"
    planned = run.config.get("kimg")
    if is_number(planned) and planned > run.kimg:
        length += f" of {kimg_text(planned)} planned"
    found = [Fact("Source", source), Fact("Mode", text_of(run.config.get("mode", "not said"))), Fact("Data", data)]
    found.append(Fact("Trained", length))
    found += [
        Fact(key.capitalize(), text_of(run.config[key]))
        for key in ("batch", "methods", "seed")
        if run.config.get(key) not in (None, [])
    ]
    if run.timing and (written := run.timing[-1].get("time")):
        found.append(Fact("Last record", str(written).replace("T", " ")))
    return found


def tiles(run: Run) -> list[Tile]:
    """The numbers that are read first: the last of up to four metrics, then cost."""
    found = []
    for metric in sorted(run.metric_names, key=lambda name: direction(name) == 0)[:4]:
        found += [metric_tile(run, metric)] if measured(run, metric) else []
    if run.seconds is not None and run.kimg:
        found.append(Tile("training time", Cell(duration(run.seconds)), f"{short(run.seconds / run.kimg)} s per kimg"))
    if (counts := trained(run)) is not None:
        share = f"{100 * counts[0] / counts[1]:.3g} %" if counts[1] else "none"
        found.append(Tile("trained parameters", Cell(f"{counts[0]:,}", str(counts[0])), f"{share} of {counts[1]:,}"))
    return found


def metric_tile(run: Run, metric: str) -> Tile:
    """A metric's last number on its curve, and its first."""
    (first_kimg, first), *_ = points = measured(run, metric)
    last_kimg, last = points[-1]
    shown = Cell(short(last), repr(last))
    if len(points) == 1:
        return Tile(in_words(metric), shown, f"at {kimg_text(last_kimg)}\u00a0kimg")
    gain = (last - first) * direction(metric)
    note = f"from {short(first)} at {kimg_text(first_kimg)}\u00a0kimg"
    return Tile(in_words(metric), shown, note, (gain > 0) - (gain < 0))


def evaluation_rows(run: Run) -> list[tuple[str, str, int, list[Cell]]]:
    """One row an evaluation: kimg, time of training until then, number of its protocol, a cell for each metric."""
    found = protocols(run.evaluations)
    all_metrics = [record["metrics"] for record in run.evaluations]
    best = {name: best_of(name, all_metrics) if len(found) == 1 else None for name in run.metric_names}
    rows = []
    for record in run.evaluations:
        metrics = record["metrics"]
        cells = [cell(name, metrics, best[name]) for name in run.metric_names]
        at = run.seconds_at(record["kimg"])
        rows.append(
            (
                kimg_text(record["kimg"]),
                duration(at) if at is not None else "–",
                found.index(protocol_of(record)) + 1,
                cells,
            )
        )
    return rows


def evaluation_charts(run: Run) -> list[str]:
    """A chart for each metric over kimg, shares of one together in one chart; none before there are two points."""
    lines = {name: points for name in run.metric_names if len(points := measured(run, name)) > 1}
    shares = {name: points for name, points in lines.items() if any(share in name for share in SHARES)}
    charts = []
    for name, points in lines.items():
        if name not in shares:
            log_y = direction(name) < 0 and is_wide(y for _, y in points)
            words, title = in_words(name), titled(name)
            charts.append(line_chart({words: points}, x_label="kimg", y_label=words, title=title, log_y=log_y))
    if shares:
        words = " and ".join(in_words(name) for name in shares) if len(shares) < 3 else "quality and variety"
        named = {in_words(name): points for name, points in shares.items()}
        title = f"{words.capitalize()} (higher is better)"
        charts.append(line_chart(named, x_label="kimg", y_label="share", title=title))
    return charts


def training_curves(run: Run) -> tuple[list[str], list[str]]:
    """Charts of losses and logits, and of everything else that was measured at ticks, one for each prefix."""
    found: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for tick in run.ticks:
        for key, value in tick.items():
            if key not in NOT_CURVES and is_number(value):
                prefix, _, name = key.rpartition("/")
                found[prefix or key][name].append((float(tick["kimg"]), float(value)))
    charts = {
        group: line_chart(lines, x_label="kimg", y_label=in_words(group), title=in_words(group).capitalize())
        for group, lines in found.items()
    }
    return [charts.pop(group) for group in FIRST_GROUPS if group in charts], list(charts.values())


def speed_chart(run: Run) -> str | None:
    """Seconds per kimg at each tick."""
    points = [
        (float(line["kimg"]), float(line["seconds_per_kimg"])) for line in run.timing if "seconds_per_kimg" in line
    ]
    if not points:
        return None
    wide = is_wide((y for _, y in points), 5)
    return line_chart(
        {"seconds per kimg": points}, x_label="kimg", y_label="seconds", title="Seconds per kimg", log_y=wide
    )


def groups(run: Run) -> list[Group]:
    """The partition, summed over each group of each network."""
    leaves: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for leaf in run.partition:
        leaves[leaf["role"], leaf["group"]].append(leaf)
    return [
        Group(
            role,
            name,
            len(members),
            sum(leaf["parameters"] for leaf in members),
            sum(leaf["parameters"] for leaf in members if leaf["trained"]),
            "; ".join(dict.fromkeys(str(leaf["why"]) for leaf in members)),
        )
        for (role, name), members in leaves.items()
    ]


def versions(run: Run) -> dict[str, str]:
    """Library versions that the run or its last evaluation wrote down."""
    protocol = run.evaluations[-1].get("protocol", {}) if run.evaluations else {}
    found = run.environment.get("versions", {})
    return {name: str(version) for name, version in (found or protocol.get("versions", {})).items()}
