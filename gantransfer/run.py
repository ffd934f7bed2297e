"""A run's folder as users see it, and what else may stand where a source is asked for."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gantransfer.errors import UserError
from gantransfer.pretrained.load import load
from gantransfer.pretrained.source import Source


@dataclass(frozen=True)
class Run:
    """A run folder, finished or not.

    Attributes:
      path: the folder.
    """

    path: str | Path

    def __post_init__(self) -> None:
        # A run can be named by text too, and by "~".
        object.__setattr__(self, "path", Path(self.path).expanduser())

    @property
    def snapshot(self) -> Path | None:
        """The newest snapshot's folder."""
        found = sorted(
            (path for path in (self.path / "snapshots").glob("*") if path.name.isdigit()),
            key=lambda path: int(path.name),
        )
        return found[-1] if found else None

    @property
    def source(self) -> Source:
        """The networks of the newest snapshot."""
        return load(str(self.path))

    @property
    def images_seen(self) -> int:
        """Real images shown to the discriminator, as far as the newest snapshot tells."""
        return int(self.snapshot.name) if self.snapshot else 0

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One record per tick."""
        return _lines(self.path / "metrics.jsonl")

    @property
    def partition(self) -> list[dict[str, Any]]:
        """One record per leaf: role, path, group, whether it trains and why, parameters."""
        return json.loads((self.path / "partition.json").read_text("utf-8"))

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """One record per evaluation."""
        return _lines(self.path / "evaluations.jsonl")


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line] if path.is_file() else []


def opened(source: str | Path | Run | Source) -> Source:
    """The source that a run, a name or a source itself means."""
    if isinstance(source, Run):
        return source.source
    return source if isinstance(source, Source) else load(str(source))


def run_at(name: str | Path) -> Run | None:
    """The run that a source's name means (`RUN` or `RUN@SNAPSHOT`), or None."""
    places = (Path(name), Path(str(name).rpartition("@")[0]))
    found = [place for place in places if (place / "snapshots").is_dir() and (place / "data.json").is_file()]
    return Run(found[0]) if found else None


def check_truncation(truncation: float) -> None:
    """Raises `UserError` unless the truncation is above 0, and at most 1."""
    if not 0 < truncation <= 1:
        raise UserError("--truncation", truncation, "above 0, up to 1")
