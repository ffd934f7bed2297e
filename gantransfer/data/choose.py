"""Few-shot draws: a seeded part of a set, by number or by number per class, or the part that a list of files names."""

import difflib
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from gantransfer.data.image_set import ImageSet
from gantransfer.data.order import shuffled
from gantransfer.errors import UserError


def choose(
    image_set: ImageSet, *, images: int | None = None, per_class: int | None = None, files: str | None = None, seed: int
) -> ImageSet:
    """Draws a part of a set; with none of the three wishes, the set itself.

    Each class has its own seeded order, of which a draw takes the beginning: so a smaller draw lies inside a larger one
    of the same seed. Classes that are left without an image are dropped and the rest is renumbered in the same order,
    with a note, since a class that is never shown cannot be trained; `ImageSet.with_classes` numbers another set alike.

    Args:
      image_set: what to draw from.
      images: how many in all, spread evenly over the classes; where the number does not divide, or a class has too few,
        a seeded order of the classes tells which give one more.
      per_class: how many of each class.
      files: a text file with one name per line, a JSON list of names, or `FILE.json:KEY` for a list inside a JSON
        object. Names are those of the set, or those below its common folder.
      seed: of the draw; not used for `files`.

    Raises:
      UserError: more than there is, a name that is not in the set or comes twice, or two wishes at once.
    """
    wishes = {"data.images": images, "data.per_class": per_class, "data.files": files}
    given = {field: value for field, value in wishes.items() if value is not None}
    if not given:
        return image_set
    if len(given) > 1:
        raise UserError(" and ".join(given), list(given.values()), "one of them at a time")
    if files is not None:
        chosen = _listed(image_set, files)
    elif images is not None:
        if not 1 <= images <= len(image_set):
            raise UserError("data.images", images, f"1 to {len(image_set)}, the images of {image_set.name}")
        chosen = _drawn(image_set, _quotas(image_set, images, seed), seed)
    else:
        least = min(image_set.counts)
        if not 1 <= per_class <= least:
            poorest = image_set.class_names[image_set.counts.index(least)]
            raise UserError("data.per_class", per_class, f"1 to {least}, the images of class {poorest}")
        chosen = _drawn(image_set, np.full(len(image_set.class_names), per_class), seed)
    part = image_set.subset(np.sort(chosen))
    field, value = next(iter(given.items()))
    how = f"{field}={value}" + ("" if files is not None else f" with seed {seed}")
    part = replace(part, notes=(*part.notes, f"{len(part)} of {len(image_set)} images, chosen by {how}"))
    return _without_empty_classes(part)


def _quotas(image_set: ImageSet, images: int, seed: int) -> np.ndarray:
    """How many each class gives: round after round one of every class that still has some, in a seeded order."""
    counts = np.array(image_set.counts)
    # The largest level at which every class gives min(level, count) and the sum does not exceed the wish.
    level = next(k for k in range(images, -1, -1) if np.minimum(counts, k).sum() <= images)
    quotas = np.minimum(counts, level)
    richer = [label for label in shuffled(len(counts), seed, stream=0) if counts[label] > level]
    quotas[richer[: images - quotas.sum()]] += 1
    return quotas


def _drawn(image_set: ImageSet, quotas: np.ndarray, seed: int) -> np.ndarray:
    chosen = []
    for label, quota in enumerate(quotas):
        members = np.flatnonzero(image_set.labels == label)
        if quota:
            chosen.append(members[shuffled(len(members), seed, stream=label + 1)[:quota]])
    return np.concatenate(chosen)


def _listed(image_set: ImageSet, path: str) -> np.ndarray:
    """The indices that a list of files names."""
    names = _names(path)
    where = {name: i for i, name in enumerate(image_set.files)}
    parts = [name.split("/")[:-1] for name in image_set.files]
    base = "".join(part + "/" for part in os.path.commonprefix(parts))
    for name, i in list(where.items()):
        where.setdefault(name[len(base) :], i)
    unknown = [name for name in names if name not in where]
    if unknown:
        near = difflib.get_close_matches(unknown[0], image_set.files, n=1)
        nearest = f"; the nearest is {near[0]}" if near else ""
        allowed = f"files of {image_set.name} ({len(unknown)} are not){nearest}"
        raise UserError("data.files", f"{path}: {unknown[0]}", allowed)
    chosen = [where[name] for name in names]
    times = Counter(chosen)
    twice = [name for name in names if times[where[name]] > 1]
    if twice:
        raise UserError("data.files", f"{path}: {twice[0]}", "each file once")
    return np.array(chosen)


def _names(path: str) -> Sequence[str]:
    place, colon, key = path.rpartition(":")
    place, key = (path, None) if not colon or os.path.exists(path) else (place, key)
    try:
        text = Path(place).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        allowed = f"a text file with one name per line, or JSON; it cannot be read: {error}"
        raise UserError("data.files", path, allowed) from error
    if not place.endswith(".json"):
        names = [line.strip() for line in text.splitlines() if line.strip()]
    else:
        try:
            names = json.loads(text)
        except ValueError as error:
            raise UserError("data.files", path, f"valid JSON; this file does not parse: {error}") from error
        lists = [k for k, v in names.items() if isinstance(v, list)] if isinstance(names, dict) else []
        if isinstance(names, dict):
            if key not in lists:
                raise UserError(
                    "data.files", path, "one list of it: " + " or ".join(f"{place}:{name}" for name in lists)
                )
            names = names[key]
    if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
        raise UserError("data.files", path, "a list of at least one file name")
    return names


def _without_empty_classes(image_set: ImageSet) -> ImageSet:
    present = [name for name, count in zip(image_set.class_names, image_set.counts, strict=True) if count]
    missing = len(image_set.class_names) - len(present)
    if not missing:
        return image_set
    note = f"{missing} classes have no image in this draw and are dropped; the others are renumbered"
    return replace(image_set.with_classes(present), notes=(*image_set.notes, note))
