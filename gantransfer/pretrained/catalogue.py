"""Sources by name: what can be had, under which licence, and where it is published.

What others published is a table, `catalogue.json`: a list of groups, each with fields that its entries share. Nothing
in it is a guess: a size or checksum is there only where the page named in `documented_at` states it or where it was
counted from the file at that commit. `licence` is what that page says of the weights, and `commercial_use` is "unknown"
wherever it does not clearly say yes or no.
"""

import difflib
import json
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from gantransfer.errors import UserError, one_of
from gantransfer.pretrained.download import Log, PublishedFile, cache_folder, download, to_stderr, unpack

ASSETS = Path(__file__).parent / "assets"
TABLE = Path(__file__).parent / "catalogue.json"
Commercial = Literal["yes", "no", "unknown"]


@dataclass(frozen=True)
class Entry:
    """One source of the catalogue.

    Attributes:
      name: what `load` takes.
      about: one line.
      family: model family.
      layout: name of the published layout (`gantransfer.pretrained.layouts`); "source folder" for one of ours; None
        where nothing here reads the format.
      format: of the files, in words.
      resolution: of its images, in pixels; None where no page says it.
      num_classes: number of classes; 1 for an unconditional generator.
      trained_on: the data set.
      licence: of the weights, an SPDX identifier or in words.
      commercial_use: whether the licence allows it.
      has_generator, has_ema, has_discriminator: what is there: G without averaging, averaged G, D.
      paper: the paper, as an arXiv number where it has one.
      page: where it is published, for people.
      files: the files to download; none where the page has no address of a file, or where nothing needs downloading.
      unpack: patterns of the members to take out of the one file, a zip; none where nothing is packed.
      documented_at: pages that state what is said here.
      folder: where a source that comes with the package is.
    """

    name: str
    about: str
    family: str
    layout: str | None
    format: str
    resolution: int | None
    num_classes: int
    trained_on: str
    licence: str
    commercial_use: Commercial
    has_generator: bool
    has_ema: bool
    has_discriminator: bool
    paper: str
    page: str
    files: tuple[PublishedFile, ...] = ()
    unpack: tuple[str, ...] = ()
    documented_at: tuple[str, ...] = field(default_factory=tuple)
    folder: Path | None = None

    @property
    def megabytes(self) -> float | None:
        """Size of all files in millions of bytes; None where one of them is not documented."""
        if self.folder is not None:
            return sum(path.stat().st_size for path in self.folder.iterdir()) / 1e6
        sizes = [file.bytes / 1e6 if file.bytes is not None else file.megabytes for file in self.files]
        known = [float(size) for size in sizes if size is not None]
        return sum(known) if sizes and len(known) == len(sizes) else None

    def __str__(self) -> str:
        """One line for people."""
        size = "" if self.megabytes is None else f", {self.megabytes:.3g} MB"
        parts = [
            name
            for name, there in (("G", self.has_generator), ("EMA", self.has_ema), ("D", self.has_discriminator))
            if there
        ]
        classes = "unconditional" if self.num_classes == 1 else f"{self.num_classes} classes"
        pixels = f"{self.resolution} px" if self.resolution else "resolution not stated"
        what = f"{self.family}, {pixels}, {self.trained_on}, {classes}, {'+'.join(parts)}{size}"
        use = {"yes": "commercial use allowed", "no": "no commercial use", "unknown": "commercial use unknown"}
        read = "" if self.layout else "; not read here"
        return f"{self.name}: {what}; {self.licence}; {use[self.commercial_use]}{read}; {self.about}"


GLYPHS = Entry(
    name="glyphs",
    about="37 letters in handwriting-like shapes, grey, 80 k parameters; comes with the package",
    family="biggan",
    layout="source folder",
    format="source folder",
    resolution=16,
    num_classes=37,
    trained_on="glyphs",
    licence="Apache-2.0",
    commercial_use="yes",
    has_generator=False,
    has_ema=True,
    has_discriminator=True,
    paper="arXiv:1809.11096",
    page="docs/results/glyphs.md",
    documented_at=("docs/results/glyphs.md",),
    folder=ASSETS / "glyphs",
)


def read_table(path: Path) -> list[Entry]:
    """Reads a table of published sources; a field that is unknown or missing is a `TypeError` naming it."""
    entries = []
    for group in json.loads(path.read_text("utf-8"))["groups"]:
        for own in group["entries"]:
            fields: dict[str, Any] = group["shared"] | own
            listed = {name: tuple(fields.get(name, ())) for name in ("unpack", "documented_at")}
            files = tuple(PublishedFile(**file) for file in fields["files"])
            entries.append(Entry(**fields | listed | {"files": files}))
    return entries


CATALOGUE: dict[str, Entry] = {entry.name: entry for entry in (GLYPHS, *read_table(TABLE))}


def list_sources(
    pattern: str = "*",
    *,
    family: str | None = None,
    resolution: int | None = None,
    commercial: bool = False,
    with_discriminator: bool = False,
) -> list[Entry]:
    """Returns the entries that fit everything asked, in alphabetical order.

    Args:
      pattern: shell pattern of the name (`*`, `?`, `[ab]`).
      family: model family.
      resolution: of the images, in pixels.
      commercial: only where commercial use is clearly allowed.
      with_discriminator: only where there is a discriminator to finetune with.

    Raises:
      UserError: a family or resolution that no entry has, with those that there are.
    """
    if family is not None:
        one_of("--family", family, {entry.family for entry in CATALOGUE.values()})
    sizes = sorted({entry.resolution for entry in CATALOGUE.values() if entry.resolution})
    if resolution is not None and resolution not in sizes:
        raise UserError("--resolution", resolution, ", ".join(map(str, sizes)))
    return [
        entry
        for name, entry in sorted(CATALOGUE.items())
        if fnmatchcase(name, pattern)
        and family in (None, entry.family)
        and resolution in (None, entry.resolution)
        and (entry.commercial_use == "yes" or not commercial)
        and (entry.has_discriminator or not with_discriminator)
    ]


def near(name: str) -> str:
    """Returns in words what the catalogue has, with the names that were probably meant."""
    close = difflib.get_close_matches(name, CATALOGUE, n=3, cutoff=0.5)
    return "see `gantransfer list sources`" + (f"; did you mean {' or '.join(close)}?" if close else "")


def fetch(entry: Entry, log: Log = to_stderr) -> Path:
    """Returns where an entry's files are on this machine, after downloading what is missing.

    Returns:
      The file; the folder where there are several files or where they came packed.

    Raises:
      UserError: there is nothing to download, no connection, no room, or not the file that the catalogue describes;
        it names the file and where to put it by hand.
    """
    if entry.folder is not None:
        return entry.folder
    if not entry.files:
        raise UserError("source", entry.name, f"files that you have: get them from {entry.page} and give their path")
    place = cache_folder() / "sources" / entry.name
    for file in entry.files:
        download(file, place / file.name, page=entry.page, log=log)
    if entry.unpack:
        return unpack(place / entry.files[0].name, entry.unpack)
    return place if len(entry.files) > 1 else place / entry.files[0].name
