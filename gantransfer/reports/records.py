"""What a run left in its folder, read back for a report.

Everything but `config.json` may be missing: a run that has just begun has neither grids nor evaluations.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gantransfer.errors import UserError

Record = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A run folder's content.

    Attributes:
      folder: where it is.
      name: what the report calls it; different for different runs of one report.
      config: every setting, by dotted name.
      source, data: what `source.json` and `data.json` say; empty where they are missing.
      environment: what `environment.json` says of versions and devices; empty where it is missing.
      partition: one record a leaf; empty where it is missing.
      ticks, timing, evaluations: records by images seen. Where a restart repeated some, the later ones count.
      grids: PNG file of each grid of fakes, by images seen.
      reals: the grid of reals, if there is one.
      snapshots: images seen at each snapshot that is kept.
      card: text of the newest snapshot's model card.
      cut_off: names of files whose last line is not complete, because the run is being written.
    """

    folder: Path
    name: str
    config: Mapping[str, Any]
    source: Mapping[str, Any]
    data: Mapping[str, Any]
    environment: Mapping[str, Any]
    partition: Sequence[Record]
    ticks: Sequence[Record]
    timing: Sequence[Record]
    evaluations: Sequence[Record]
    grids: Mapping[int, Path]
    reals: Path | None
    snapshots: Sequence[Path]
    card: str | None
    cut_off: tuple[str, ...]

    @property
    def kimg(self) -> float:
        """Thousands of real images that the run has been trained on, as far as its records tell."""
        return max((float(last["kimg"]) for last in (*self.ticks[-1:], *self.timing[-1:])), default=0.0)

    @property
    def seconds(self) -> float | None:
        """Seconds of training so far, over all restarts; None where nothing was timed."""
        return float(self.timing[-1]["seconds"]) if self.timing else None

    def seconds_at(self, kimg: float) -> float | None:
        """Seconds of training until `kimg`, linear between ticks; None where the timing does not reach that far."""
        if not self.timing or kimg > self._clock[0][-1] + 1e-6:
            return None
        return float(np.interp(kimg, *self._clock))

    @cached_property
    def _clock(self) -> tuple[list[float], list[float]]:
        points = [(0.0, 0.0), *((float(line["kimg"]), float(line["seconds"])) for line in self.timing)]
        kimg, seconds = zip(*points, strict=True)
        return list(kimg), list(seconds)

    @cached_property
    def metric_names(self) -> list[str]:
        """Every metric that was ever evaluated, in order of appearance."""
        return list(dict.fromkeys(name for record in self.evaluations for name in record["metrics"]))


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Reads runs and names each by the shortest end of its path that no other has.

    Raises:
      UserError: for no folder at all, the same one twice, a folder that is no run, or a file that cannot be understood.
    """
    if not folders:
        raise UserError("report.runs", [], "at least one run folder")
    paths = [folder.absolute() for folder in folders]
    if len(set(paths)) < len(paths):
        raise UserError("report.runs", [str(folder) for folder in folders], "each run once")
    for parts in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-parts:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return [read_run(folder, name) for folder, name in zip(folders, names, strict=True)]


def read_run(folder: Path, name: str) -> Run:
    """Reads one run folder; see `Run` and `read_runs`."""
    if not (folder / "config.json").is_file():
        raise UserError("report.runs", str(folder), "a run's folder, which holds config.json")
    lines, cut_off = {}, []
    for file, needed in (("metrics", ()), ("timing", ("seconds",)), ("evaluations", ("metrics",))):
        lines[file], whole = _read_lines(folder / f"{file}.jsonl", ("images_seen", "kimg", *needed))
        if not whole:
            cut_off.append(f"{file}.jsonl")
    grids = {int(path.stem.removeprefix("fakes_")): path for path in _numbered(folder / "grids", r"fakes_\d+\.png")}
    snapshots = _numbered(folder / "snapshots", r"\d+")
    cards = [snapshots[-1] / file for file in ("README.md", "model_card.md")] if snapshots else []
    reals = folder / "grids" / "reals.png"
    return Run(
        folder=folder,
        name=name,
        config=flattened(_read_json(folder / "config.json", {})),
        source=_read_json(folder / "source.json", {}),
        data=_read_json(folder / "data.json", {}),
        environment=_read_json(folder / "environment.json", {}),
        partition=_read_json(folder / "partition.json", []),
        ticks=_latest(lines["metrics"], lambda record: record["images_seen"]),
        timing=_latest(lines["timing"], lambda record: record["images_seen"]),
        evaluations=_merged(lines["evaluations"]),
        grids=grids,
        reals=reals if reals.is_file() else None,
        snapshots=snapshots,
        card=next((card.read_text("utf-8") for card in cards if card.is_file()), None),
        cut_off=tuple(cut_off),
    )


def flattened(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested dicts as one, with dotted names.

    >>> flattened({"a": {"b": 1, "c": {}}, "d": [2]})
    {'a.b': 1, 'a.c': {}, 'd': [2]}
    """
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        nested = isinstance(value, Mapping) and value
        flat |= flattened(value, f"{above}{key}.") if nested else {f"{above}{key}": value}
    return flat


def is_number(value: Any) -> bool:
    """Whether a JSON value is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _numbered(folder: Path, pattern: str) -> list[Path]:
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if re.fullmatch(pattern, path.name)]
    return sorted(found, key=lambda path: int(re.sub(r"\D", "", path.name)))


def _read_json(path: Path, missing: Any) -> Any:
    if not path.is_file():
        return missing
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError("report.runs", str(path), f"a JSON file ({error})") from error
    if type(content) is not type(missing):
        raise UserError("report.runs", str(path), f"a JSON {type(missing).__name__}")
    return content


def _read_lines(path: Path, needed: Sequence[str]) -> tuple[list[Record], bool]:
    """The records of a JSON-lines file, each with the keys that are needed, and whether its last line is complete."""
    if not path.is_file():
        return [], True
    *whole, rest = path.read_text("utf-8").split("\n")
    records = []
    for number, line in enumerate(whole, 1):
        try:
            record = json.loads(line)
            if missing := [key for key in needed if key not in record]:
                raise ValueError(f"no {', '.join(missing)}")
        except (ValueError, TypeError) as error:
            allowed = f"a JSON object on each line, with {', '.join(needed)} ({error})"
            raise UserError("report.runs", f"{path}:{number}", allowed) from error
        records.append(record)
    return records, not rest


def _latest(records: Sequence[Record], key: Any) -> list[Record]:
    """One record for each key, the last one written, in order of images seen."""
    kept = {key(record): record for record in records}
    return sorted(kept.values(), key=lambda record: record["images_seen"])


def _merged(records: Sequence[Record]) -> list[Record]:
    """Evaluations of one state by one protocol as one record, since metrics may be asked for one after the other."""
    kept: dict[tuple[int, str], Record] = {}
    for record in records:
        key = (record["images_seen"], json.dumps(record.get("protocol", {}), sort_keys=True))
        earlier = kept.get(key, {"metrics": {}, "protocol": {}})
        kept[key] = {**earlier, **record, "metrics": {**earlier["metrics"], **record["metrics"]}}
    return sorted(kept.values(), key=lambda record: record["images_seen"])
