"""What a number was measured under, one JSON line per number with stable keys, and whether two of them compare."""

import json
import statistics
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gantransfer.errors import UserError

Record = dict[str, Any]

# What may differ between two numbers that compare: the number itself, whose it is, and where it was computed.
FREE = (
    "value",
    "spread",
    "details",
    "seed",
    "source",
    "generator_fingerprint",
    "images_seen",
    "kimg",
    "wall_seconds",
    "seconds",
    "device_kind",
    "device_count",
    "versions",
)
# Not part of a protocol, but of what was measured.
RESULT = ("metric", "value", "spread", "details", "source", "images_seen", "wall_seconds", "kimg")


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The protocol's keys in which two records differ, with both values; empty: the numbers compare."""
    keys = [key for key in (*a, *(key for key in b if key not in a)) if key not in FREE]
    return {key: (a.get(key), b.get(key)) for key in keys if a.get(key) != b.get(key)}


def over_seeds(runs: Sequence[Sequence[Record]]) -> list[Record]:
    """The records of one evaluation out of those of its repetitions with other seeds.

    The value is the mean and the spread the range, from the least to the largest; `details` have all `values` with
    their `seeds` (and what was the `spreads` of each), beside what the first repetition tells. A number that one
    repetition could not compute has none.
    """
    if len(runs) == 1:
        return list(runs[0])
    merged = []
    for same in zip(*runs, strict=True):
        values, spreads = ([record[key] for record in same] for key in ("value", "spread"))
        details = {**same[0]["details"], "values": values, "seeds": [record["seed"] for record in same]}
        if any(spread is not None for spread in spreads):
            details["spreads"] = spreads
        own = (statistics.fmean(values), max(values) - min(values)) if None not in values else (None, None)
        number = dict(zip(("value", "spread"), own, strict=True))
        merged.append({**same[0], **number, "details": details, "repeats": len(runs)})
    return merged


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """The numbers of an evaluation for people, a line each; of several seeds the mean with its range."""
    rows = [("metric", "value", "spread", "samples", "real", "network", "pixels")]
    for record in records:
        values, value = record["details"].get("values"), record["value"]
        spread = "" if record["spread"] is None else f"{record['spread']:.4g}"
        if values and value is not None:
            spread = f"{min(values):.6g} to {max(values):.6g}, {len(values)} seeds"
        pixels = (record["pipeline"] or {}).get("pipeline") or ""
        told = ("not finite" if value is None else f"{value:.6g}", spread, record["n_generated"], record["n_real"])
        rows.append(
            (record["metric"], *("" if part is None else str(part) for part in told), record["network"] or "", pixels)
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def compare(
    a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]], *, warn: bool = True
) -> list[dict[str, Any]]:
    """Puts the numbers of two evaluations side by side; warns where they were measured by different protocols.

    Args:
      a, b: records.
      warn: whether to warn; see `warnings_of`.

    Returns:
      For each metric that both have (its newest record): `metric`, `a`, `b`, `difference` (b minus a), and
      `protocol_differences`, the keys of the protocol that are not the same, each with both values.

    Raises:
      UserError: where no metric is in both.
    """
    ours, theirs = ({record["metric"]: record for record in records} for records in (a, b))
    shared = [name for name in ours if name in theirs]
    if not shared:
        value = f"{', '.join(ours) or 'none'} and {', '.join(theirs) or 'none'}"
        raise UserError("records", value, "two evaluations with a metric in common")
    rows = [
        {
            "metric": name,
            "a": ours[name]["value"],
            "b": theirs[name]["value"],
            "difference": _difference(ours[name]["value"], theirs[name]["value"]),
            "protocol_differences": differences(ours[name], theirs[name]),
        }
        for name in shared
    ]
    if warn:
        for line in warnings_of(rows):
            warnings.warn(line, stacklevel=2)
    return rows


def _difference(a: Any, b: Any) -> float | None:
    return None if a is None or b is None else b - a


def warnings_of(compared: Iterable[Mapping[str, Any]]) -> list[str]:
    """A line for each metric whose numbers were not measured alike."""
    lines = []
    for row in compared:
        if found := row["protocol_differences"]:
            told = ", ".join(f"{key} {ours!r} and {theirs!r}" for key, (ours, theirs) in found.items())
            lines.append(f"{row['metric']}: the numbers do not compare: {told}")
    return lines


def read_records(path: Path) -> list[Record]:
    """The records of a file of JSON lines, or of a run: flat, one for each number.

    Raises:
      UserError: where there are none, or a line is no record.
    """
    path = path / "evaluations.jsonl" if path.is_dir() else path
    if not path.is_file():
        raise UserError("records", str(path), "a file of JSON lines that `gantransfer evaluate` printed, or a run")
    records: list[Record] = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        try:
            content = json.loads(line)
            records += flat_records(content) if "metrics" in content else [content]
            if not all({"metric", "value"} <= set(record) for record in records[-1:]):
                raise ValueError("no metric and value")
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError("records", f"{path}:{number}", f"a JSON record of an evaluation ({error})") from error
    return records


def flat_records(evaluation: Mapping[str, Any]) -> list[Record]:
    """The records of a line of a run's evaluations.jsonl."""
    above = {
        key: value for key, value in evaluation.items() if key not in ("metrics", "protocol", "details", "spreads")
    }
    protocol = evaluation.get("protocol", {})
    return [{"metric": name, "value": value, **protocol, **above} for name, value in evaluation["metrics"].items()]


def evaluations(records: Sequence[Mapping[str, Any]]) -> list[Record]:
    """Records as lines of evaluations.jsonl: one for each protocol among them, `{"metrics": ..., "protocol": ...}`.

    Nothing in them tells the clock, so a run that was resumed writes the same lines.
    """
    lines: dict[str, Record] = {}
    for record in records:
        protocol = {key: value for key, value in record.items() if key not in RESULT}
        key = json.dumps(protocol, sort_keys=True, default=str)
        line = lines.setdefault(key, {"metrics": {}, "spreads": {}, "details": {}, "protocol": protocol})
        line["metrics"][record["metric"]] = record["value"]
        if record["spread"] is not None:
            line["spreads"][record["metric"]] = record["spread"]
        if record["details"]:
            line["details"][record["metric"]] = record["details"]
    return list(lines.values())


def append(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Adds JSON lines to a file, each as a whole."""
    with path.open("a", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps(line, allow_nan=False) + "\n")
