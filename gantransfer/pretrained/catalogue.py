"""Sources by name: what can be had, under which licence, and where it is."""

import difflib
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

ASSETS = Path(__file__).parent / "assets"


@dataclass(frozen=True)
class Entry:
    """One source of the catalogue.

    Attributes:
      name: what `load` takes.
      family: model family.
      resolution: of its images, in pixels.
      num_classes: number of classes.
      licence: of the weights, an SPDX identifier.
      commercial_use: whether the licence allows it.
      has_discriminator: whether there is a discriminator to finetune with.
      kilobytes: size of the weights, in thousands of bytes.
      folder: where it is.
      about: one line.
    """

    name: str
    family: str
    resolution: int
    num_classes: int
    licence: str
    commercial_use: bool
    has_discriminator: bool
    kilobytes: int
    folder: Path
    about: str


CATALOGUE: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry(
            name="glyphs",
            family="biggan",
            resolution=16,
            num_classes=37,
            licence="Apache-2.0",
            commercial_use=True,
            has_discriminator=True,
            kilobytes=645,
            folder=ASSETS / "glyphs",
            about="37 letters in handwriting-like shapes, grey, 80 k parameters; comes with the package",
        ),
    )
}


def list_sources(pattern: str = "*") -> list[Entry]:
    """Returns the entries whose name matches a shell pattern (`*`, `?`, `[ab]`), in alphabetical order."""
    return [CATALOGUE[name] for name in sorted(CATALOGUE) if fnmatchcase(name, pattern)]


def near(name: str) -> str:
    """Returns the names of the catalogue in words, with the one that was probably meant."""
    names = sorted(CATALOGUE)
    close = difflib.get_close_matches(name, names, n=1)
    return ", ".join(names) + (f"; did you mean {close[0]}?" if close else "")
