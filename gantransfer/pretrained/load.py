"""A source by its name or path, whatever it is: from the catalogue, of a run, converted, or as it was published."""

import os
import sys
from pathlib import Path

from gantransfer.errors import UserError
from gantransfer.pretrained import catalogue, convert, converted, folder
from gantransfer.pretrained.source import Source, with_info


def load(name: str | Path, check: bool = False) -> Source:
    """Loads a source: a catalogue name, a run, a source folder or snapshot, a converted folder, or a checkpoint as it
    was published, which is converted in memory and says on standard error what became of it.

    What a catalogue name stands for is downloaded the first time (`gantransfer.pretrained.catalogue.fetch`).

    A run's folder means its newest snapshot; `RUN@best` means the snapshot folder of that name, `RUN@12800` the
    snapshot after 12,800 images. A catalogue name wins over a folder of the same name (write `./glyphs` for the
    folder).

    Args:
      name: of the source.
      check: whether to make the samples of a converted folder's fingerprint again and to compare them. The weights of
        every folder are compared with their SHA-256 in any case.

    Raises:
      UserError: nothing of the kind is there, naming the nearest catalogue name, or what is there cannot be read.
    """
    if name in catalogue.CATALOGUE:
        entry = catalogue.CATALOGUE[str(name)]
        if entry.layout is None:
            raise UserError("source", entry.name, f"a source that can be read here; {entry.about} ({entry.page})")
        found = load(catalogue.fetch(entry), check)
        known = {"licence": entry.licence, "origin": entry.page, "trained_on": entry.trained_on}
        return found if entry.folder else with_info(found, name=entry.name, **known)
    # os.path answers no, where Path raises, for names that cannot be paths at all.
    place, at, which = str(name).rpartition("@")
    if not at or os.path.exists(name):
        place, which = str(name), ""
    if os.path.isdir(os.path.join(place, "snapshots")):
        return folder.read_source(folder.find_snapshot(Path(place), which or None))
    if not which and converted.is_converted(place):
        return converted.read_converted(place, check)
    if not which and folder.is_source(place):
        return folder.read_source(place)
    if not which and (os.path.isfile(place) or (os.path.isdir(place) and os.listdir(place))):
        source, report = convert.open_checkpoint(place)
        print(report.summary(), file=sys.stderr)
        return source
    kinds = (
        "a catalogue name ({}), a source folder or snapshot, a converted folder, a run, RUN@IMAGES or RUN@SNAPSHOT, or "
        "a published checkpoint"
    )
    raise UserError("source", str(name), kinds.format(catalogue.near(str(name))))
