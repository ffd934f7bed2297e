"""The conversion report: what became of every entry of a published file and of every leaf of ours."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gantransfer.pretrained.source import SourceInfo

# Who decided an option, from the strongest to the weakest.
DECIDED = {
    "weights": "names and shapes in the file",
    "given": "the user",
    "config": "the configuration beside the weights",
    "assumed": "the original code's value; the file does not tell",
    "default": "the family's default; the file does not tell",
}
SHOWN = 6


@dataclass(frozen=True)
class Entry:
    """What became of one entry of the file, or of one leaf that the file lacks.

    Attributes:
      state: which of the file's states it is in, such as `G_ema`.
      name: in the file; empty where the file has nothing of the kind.
      leaf: ours, with the network in front (`ema/params/...`); empty where it was dropped.
      fate: mapped, transposed, reshaped (or several of these), dropped or missing.
      shape, dtype: in the file, or of our leaf where the file lacks it.
      why: the reason, where it was dropped, is missing or was rounded.
    """

    state: str
    name: str
    leaf: str
    fate: str
    shape: tuple[int, ...]
    dtype: str
    why: str = ""


@dataclass(frozen=True)
class Report:
    """What a conversion did.

    Attributes:
      info: the source that came out.
      format: of the files.
      layout: whose names and shapes they have.
      files: SHA-256 of each original file, by name.
      options: every architecture option: its value and who decided it (a key of `DECIDED`).
      entries: what became of every entry and leaf.
      notes: whatever else a user must know, such as terms of the release.
      folder: where the converted source is; None where it was converted in memory only.
    """

    info: SourceInfo
    format: str
    layout: str
    files: Mapping[str, str]
    options: Mapping[str, tuple[Any, str]]
    entries: tuple[Entry, ...]
    notes: tuple[str, ...] = ()
    folder: Path | None = None

    @property
    def counts(self) -> dict[str, int]:
        """How many entries met each fate."""
        return dict(sorted(Counter(entry.fate for entry in self.entries).items()))

    def of(self, fate: str) -> tuple[Entry, ...]:
        """The entries that met one fate, such as "dropped"."""
        return tuple(entry for entry in self.entries if entry.fate == fate)

    def decided_by(self, who: str) -> dict[str, Any]:
        """Options with their values that one of `DECIDED` has set."""
        return {name: value for name, (value, by) in self.options.items() if by == who}

    def summary(self) -> str:
        """The report in some lines, for people."""
        info = self.info
        networks = ("a generator" if info.has_generator else "", "its average" if info.has_ema else "")
        there = [name for name in (*networks, "a discriminator" if info.has_discriminator else "") if name]
        counts = ", ".join(f"{count} {fate}" for fate, count in self.counts.items())
        lines = [
            f"{', '.join(self.files)}: {self.layout} ({self.format}), holds {', '.join(there)}",
            f"  family {info.family}, {info.resolution} px, {info.num_classes} class{'es' * (info.num_classes > 1)}",
            f"  entries: {counts}",
        ]
        for fate in ("dropped", "missing"):
            reasons: dict[str, list[str]] = {}
            for entry in self.of(fate):
                reasons.setdefault(entry.why, []).append(entry.name or entry.leaf)
            lines += [f"  {fate}: {_some(names)}: {why}" for why, names in reasons.items()]
        rounded = [entry.name for entry in self.entries if entry.why and entry.fate not in ("dropped", "missing")]
        lines += [f"  other type in the file: {_some(rounded)}"] if rounded else []
        if assumed := self.decided_by("assumed"):
            words = ", ".join(f"{name}={value}" for name, value in assumed.items())
            lines.append(f"  assumed, since weights cannot tell: {words} (--option NAME=VALUE sets another)")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])

    __str__ = summary

    def to_json(self) -> dict[str, Any]:
        """The whole report as JSON, as `report.json` holds it."""
        return {
            "family": self.info.family,
            "format": self.format,
            "layout": self.layout,
            "sha256": dict(self.files),
            "options": {name: {"value": value, "decided_by": by} for name, (value, by) in self.options.items()},
            "counts": self.counts,
            "notes": list(self.notes),
            "entries": [vars(entry) | {"shape": list(entry.shape)} for entry in self.entries],
        }

    def table(self) -> str:
        """The whole report as Markdown, as `report.md` holds it."""
        lines = [f"# Conversion of {self.info.name}", "", "```", self.summary(), "```", "", "## Options", ""]
        lines += ["| option | value | decided by |", "| --- | --- | --- |"]
        lines += [f"| `{name}` | `{value}` | {DECIDED[by]} |" for name, (value, by) in self.options.items()]
        lines += ["", "## Entries", "", "| state | entry | shape | fate | leaf | why |"]
        lines += ["| --- | --- | --- | --- | --- | --- |"]
        for entry in self.entries:
            shape = f"{entry.dtype}[{', '.join(map(str, entry.shape))}]"
            lines.append(
                f"| {entry.state} | `{entry.name}` | {shape} | {entry.fate} | `{entry.leaf}` | {entry.why} |".replace(
                    "`` ", " "
                )
            )
        return "\n".join(lines) + "\n"


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
