"""What everything above the data floor sees of a set: numbered images, labels, class names and a fingerprint."""

import hashlib
import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32, UInt8

from gantransfer.data.decode import CorruptImage
from gantransfer.errors import UserError

# Raised whenever a rule of decoding changes, so that what was cached under an old fingerprint is not used.
RULES = 1

# Images that a thread takes at once: handing over a single small one costs as much as decoding it.
THREAD_SHARE = 32


@runtime_checkable
class Pixels(Protocol):
    """Where the images of a set come from: numbered from 0, picklable, and readable from several threads."""

    def read(self, row: int) -> UInt8[np.ndarray, "h w c"]:
        """Decodes one image, all of one size; raises CorruptImage."""
        ...

    def content(self, row: int) -> str:
        """A short text that changes when the bytes of the image do."""
        ...

    @property
    def rules(self) -> str:
        """How the bytes become pixels (size, channels, fit), for the fingerprint."""
        ...


@dataclass(frozen=True, eq=False)
class ArrayPixels:
    """Images that are in memory from the start."""

    images: UInt8[np.ndarray, "n h w c"]

    def read(self, row: int) -> UInt8[np.ndarray, "h w c"]:
        """One image of the array."""
        return self.images[row]

    def content(self, row: int) -> str:
        """SHA-256 of the pixels."""
        return hashlib.sha256(np.ascontiguousarray(self.images[row]).tobytes()).hexdigest()

    @property
    def rules(self) -> str:
        """The shape of an image."""
        return f"array {self.images.shape[1:]}"


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Numbered images, all of one size, with class labels. Immutable and picklable.

    Attributes:
      name: what the set was opened by.
      resolution, channels: height and width in pixels, colour channels (1 or 3).
      class_names: by label; an unconditional set has the one class "all".
      labels: int32 `(n,)`, in [0, len(class_names)).
      files: names of the images inside the set, for messages and few-shot lists.
      pixels, rows: where images are read from, and the row there of each image of this set.
      numbering: where the numbering of the classes comes from, in words.
      notes: what was converted, resized, left aside or renumbered while opening, a line each, to be printed once.
      skipped: (name, why) of each damaged file that was left out.
    """

    name: str
    resolution: int
    channels: int
    class_names: tuple[str, ...]
    labels: Int32[np.ndarray, " n"]
    files: tuple[str, ...]
    pixels: Pixels
    rows: Int32[np.ndarray, " n"]
    numbering: str
    notes: tuple[str, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    # All images decoded, by row of `pixels`, where the set is small enough to keep; worker processes go without.
    decoded: UInt8[np.ndarray, "m h w c"] | None = None

    def __post_init__(self) -> None:
        for array in (self.labels, self.rows, self.decoded):
            if array is not None:
                array.flags.writeable = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "decoded": None}

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, i: int) -> tuple[UInt8[np.ndarray, "h w c"], int]:
        """Image `i`, uint8 `(h, w, channels)`, and its label; UserError if its file has gone bad since opening."""
        return self._image(i), int(self.labels[i])

    def arrays(self) -> tuple[UInt8[np.ndarray, "n h w c"], Int32[np.ndarray, " n"]]:
        """All images, uint8 `(n, h, w, channels)`, and all labels, int32 `(n,)`."""
        if self.decoded is not None:
            return self.decoded[self.rows], self.labels
        images = np.empty((len(self), self.resolution, self.resolution, self.channels), np.uint8)

        def fill(i: int) -> None:
            images[i] = self._image(i)

        in_threads(fill, len(self))
        return images, self.labels

    def _image(self, i: int) -> UInt8[np.ndarray, "h w c"]:
        row = int(self.rows[i])
        if self.decoded is not None:
            return self.decoded[row]
        try:
            return self.pixels.read(row)
        except CorruptImage as damage:
            raise refused(self.name, [(self.files[i], damage.why)]) from damage

    @property
    def counts(self) -> tuple[int, ...]:
        """Images of each class."""
        return tuple(int(n) for n in np.bincount(self.labels, minlength=len(self.class_names)))

    def class_table(self) -> str:
        """The classes as text: a line on the whole set, then index, name and number of images of each class."""
        width = len(str(max(self.counts)))
        lines = [
            f"{i:>5}  {count:>{width}}  {name}"
            for i, (name, count) in enumerate(zip(self.class_names, self.counts, strict=True))
        ]
        kind = "grey" if self.channels == 1 else "colour"
        size = f"{self.resolution}x{self.resolution}"
        classes = f"{len(self.class_names)} class{'es' if len(self.class_names) > 1 else ''}"
        return "\n".join([f"{self.name}: {len(self)} images, {size}, {kind}; {classes}, {self.numbering}", *lines])

    @property
    def fingerprint(self) -> str:
        """A hash of class names, labels, contents of the files and the rules by which they become pixels.

        Names of files and the place of the set do not count: a folder and the zip of it have one fingerprint. Checksums
        are those of the bytes at opening; they are at hand, since opening reads every file.
        """
        digest = hashlib.sha256(
            repr((RULES, self.resolution, self.channels, self.pixels.rules, self.class_names)).encode()
        )
        digest.update(self.labels.astype("<i4").tobytes())
        for row in self.rows:
            digest.update(self.pixels.content(int(row)).encode() + b"\n")
        return digest.hexdigest()

    def subset(self, indices: Sequence[int] | np.ndarray) -> "ImageSet":
        """The images at these indices, in this order, with class names and numbering unchanged."""
        indices = np.asarray(indices, np.int64).reshape(-1)
        if len(indices) == 0 or indices.min() < 0 or indices.max() >= len(self):
            raise UserError("indices", indices.tolist()[:5], f"at least one of 0 to {len(self) - 1}")
        files = tuple(self.files[i] for i in indices)
        return replace(self, labels=self.labels[indices], rows=self.rows[indices], files=files)

    def with_classes(self, class_names: Sequence[str]) -> "ImageSet":
        """The images of these classes, numbered in this order: how a set is compared with another one's numbering.

        Raises:
          UserError: a class is not in this set.
        """
        unknown = [name for name in class_names if name not in self.class_names]
        if unknown:
            raise UserError("class", unknown[0], f"a class of {self.name}: " + ", ".join(self.class_names[:20]))
        number = np.full(len(self.class_names), -1, np.int32)
        number[[self.class_names.index(name) for name in class_names]] = np.arange(len(class_names), dtype=np.int32)
        kept = self.subset(np.flatnonzero(number[self.labels] >= 0))
        return replace(kept, class_names=tuple(class_names), labels=number[kept.labels])


def in_threads(work: Callable[[int], Any], count: int) -> list[Any]:
    """Runs `work` on 0 to count - 1 in threads (decoders and files run outside Python's lock); results in order."""

    def some(start: int) -> list[Any]:
        return [work(i) for i in range(start, min(start + THREAD_SHARE, count))]

    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        return list(itertools.chain.from_iterable(pool.map(some, range(0, count, THREAD_SHARE))))


def refused(name: str, damaged: Sequence[tuple[str, str]]) -> UserError:
    """The error that names damaged files: the first with its reason, and how many more there are."""
    more = f"; {len(damaged) - 1} more: " + ", ".join(file for file, _ in damaged[1:6]) if len(damaged) > 1 else ""
    more += ", ..." if len(damaged) > 6 else ""
    file, why = damaged[0]
    return UserError(
        "data", f"{name}: {file}", f"files that decode as images (this one: {why}{more}), or data.on_corrupt=skip"
    )
