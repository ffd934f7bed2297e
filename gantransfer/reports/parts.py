"""Small parts that both kinds of report are put together from: pictures, numbers, cells of a table, protocols."""

import base64
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, UnidentifiedImageError

from gantransfer.errors import UserError
from gantransfer.metrics.records import FREE
from gantransfer.reports.curves import short
from gantransfer.reports.grids import png_bytes
from gantransfer.reports.records import Record, Run, flattened, is_number

LOWER_IS_BETTER = {"fid", "ifid", "kid", "fd", "frechet", "kernel", "ppl"}
HIGHER_IS_BETTER = {"precision", "recall", "density", "coverage", "accuracy", "is", "inception", "agreement"}

# Below this precision a wide scatter of pictures that look like nothing reaches many real ones: recall says little.
LEAST_PRECISION = 0.5

LONGEST_VALUE = 24


class Picture(NamedTuple):
    """A picture inside the page: its data, its width in CSS pixels, whether pixels are to stay sharp, and a remark."""

    src: str
    width: int
    sharp: bool
    note: str


class Cell(NamedTuple):
    """A number in a table: as shown, in full, whether in brackets, and whether it is the best of its kind."""

    text: str
    full: str = ""
    bracketed: bool = False
    best: bool = False
    extra: str = ""


def inline(picture: Path | Image.Image, *, widest: int = 1100, room: int = 560) -> Picture:
    """A picture as a `data:` address.

    Args:
      picture: a PNG file, or a picture in memory.
      widest: a wider picture is made smaller (Lanczos), and the note says so.
      room: CSS pixels at hand; a smaller picture is shown enlarged by the whole number that comes nearest.
    """
    if isinstance(picture, Path):
        content = picture.read_bytes()
        try:
            picture = Image.open(io.BytesIO(content))
        except UnidentifiedImageError as error:
            raise UserError("report.runs", str(picture), "a PNG picture") from error
    else:
        content = png_bytes(picture)
    note = ""
    if picture.width > widest:
        note = f"made smaller, from {picture.width} to {widest} pixels"
        picture = picture.resize(
            (widest, max(1, round(picture.height * widest / picture.width))), Image.Resampling.LANCZOS
        )
        content = png_bytes(picture)
    times = min(4, max(1, round(room / picture.width)))
    src = "data:image/png;base64," + base64.b64encode(content).decode("ascii")
    return Picture(src, picture.width * times, times > 1, note)


def evenly(items: Sequence[Any], most: int) -> list[Any]:
    """At most `most` of the items, the first and the last among them, evenly spaced."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def duration(seconds: float | None) -> str:
    """Seconds in words.

    >>> [duration(s) for s in (4.26, 200, 7500, 100_000)]
    ['4.3 s', '3 min 20 s', '2 h 05 min', '1 d 3 h']
    """
    if seconds is None:
        return "not timed"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, hours, days = int(seconds) // 60, int(seconds) // 3600, int(seconds) // 86400
    if hours == 0:
        return f"{minutes} min {int(seconds) % 60:02d} s"
    if days == 0:
        return f"{hours} h {minutes % 60:02d} min"
    return f"{days} d {hours % 24} h"


def time_unit(seconds: float) -> tuple[float, str]:
    """The unit that an axis up to `seconds` reads best in: how many seconds it has, and its name."""
    if seconds < 600:
        return 1.0, "seconds"
    return (60.0, "minutes") if seconds < 3 * 3600 else (3600.0, "hours")


def text_of(value: Any) -> str:
    """A setting for people: JSON, but text without quotation marks, and lists of text without brackets."""
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return ", ".join(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def in_words(name: str) -> str:
    """A metric's name for people: underscores become spaces."""
    return name.replace("_", " ").replace("frechet", "Fréchet")


def direction(metric: str) -> int:
    """1 where more is better, -1 where less is, 0 where it depends."""
    words = set(re.findall(r"[a-z]+", metric.lower()))
    return (1 if words & HIGHER_IS_BETTER else 0) - (1 if words & LOWER_IS_BETTER else 0)


def titled(metric: str) -> str:
    """A metric as the title of its chart, with the direction that is better."""
    hint = {1: " (higher is better)", -1: " (lower is better)", 0: ""}[direction(metric)]
    words = in_words(metric)
    return words[:1].upper() + words[1:] + hint


def in_brackets(metric: str, metrics: Mapping[str, Any]) -> bool:
    """Whether this is a recall beside a precision below one half."""
    if "recall" not in metric:
        return False
    precision = metrics.get(metric.replace("recall", "precision"))
    return is_number(precision) and precision < LEAST_PRECISION


def cell(metric: str, metrics: Mapping[str, Any], best: float | None = None) -> Cell:
    """A metric's cell: empty where it was not measured, in brackets where it is a recall that says little.

    `best` is the value that is marked, see `best_of`.
    """
    value = metrics.get(metric)
    if value is None:
        return Cell("–")
    if not is_number(value):
        return Cell(text_of(value), repr(value))
    text = short(value)
    bracketed = in_brackets(metric, metrics)
    return Cell(f"({text})" if bracketed else text, repr(value), bracketed, best is not None and value == best)


def best_of(metric: str, rows: Sequence[Mapping[str, Any]]) -> float | None:
    """The best number among several; None where that depends, or where there is nothing to choose from."""
    values = [row[metric] for row in rows if is_number(row.get(metric)) and not in_brackets(metric, row)]
    values = [value for value in values if math.isfinite(value)]
    if len(values) < 2 or min(values) == max(values) or direction(metric) == 0:
        return None
    return max(values) if direction(metric) > 0 else min(values)


def protocols(records: Iterable[Record]) -> list[dict[str, Any]]:
    """The different protocols of some evaluations, flat, in order of appearance; see `protocol_of`."""
    found: list[dict[str, Any]] = []
    for record in records:
        if (protocol := protocol_of(record)) not in found:
            found.append(protocol)
    return found


def protocol_notes(records: Sequence[Record]) -> list[dict[str, tuple[str, str]]]:
    """What to print about each of `protocols(records)`: by key, its values as shown and in full.

    A key that is not compared, such as the seed, may have several values under one protocol.
    """
    notes = []
    for protocol in protocols(records):
        values: dict[str, dict[str, None]] = {}
        for record in records:
            if protocol_of(record) == protocol:
                for key, value in flattened(record.get("protocol", {})).items():
                    values.setdefault(key, {})[text_of(value)] = None
        notes.append(
            {key: (", ".join(_cut(text) for text in texts), ", ".join(texts)) for key, texts in values.items()}
        )
    return notes


def protocol_of(record: Record) -> dict[str, Any]:
    """What decides whether two evaluations may be compared: all of the protocol but what differs from run to run."""
    flat = flattened(record.get("protocol", {}))
    return {key: value for key, value in flat.items() if key.split(".")[0] not in FREE}


def measured(run: Run, metric: str) -> list[tuple[float, float]]:
    """`(kimg, value)` of each evaluation with a number for `metric`, by the protocol that was used most often.

    Numbers by different protocols never stand on one line, and what a table puts in brackets stands on none.
    """
    records = [
        record
        for record in run.evaluations
        if is_number(record["metrics"].get(metric)) and not in_brackets(metric, record["metrics"])
    ]
    found = [protocol_of(record) for record in records]
    usual = max(found, key=found.count, default=None)
    return [
        (float(record["kimg"]), float(record["metrics"][metric]))
        for record, protocol in zip(records, found, strict=True)
        if protocol == usual
    ]


def differences(trees: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """The keys that do not have the same value in all trees, with the value in each ("not set" where it has none)."""
    keys = dict.fromkeys(key for tree in trees for key in tree)
    return {
        key: [text_of(tree[key]) if key in tree else "not set" for tree in trees]
        for key in keys
        if any(key not in tree or tree[key] != trees[0].get(key) for tree in trees)
    }


def trained(run: Run) -> tuple[int, int] | None:
    """How many parameters train, and how many there are; None where the partition is not there."""
    if not run.partition:
        return None
    return sum(leaf["parameters"] for leaf in run.partition if leaf["trained"]), sum(
        leaf["parameters"] for leaf in run.partition
    )


def source_name(run: Run) -> str:
    """Where the networks came from, in a word."""
    return str(run.source.get("name") or run.config.get("source") or "from scratch")


def data_name(run: Run) -> str:
    """What was trained on, in a word; empty where the run does not say."""
    return str(run.data.get("name") or run.config.get("data.path") or "")


def kimg_text(kimg: float) -> str:
    """Thousands of images, without needless digits."""
    return f"{kimg:,.6g}" if kimg < 1e6 else f"{kimg:,.0f}"


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE // 2] + "…"
