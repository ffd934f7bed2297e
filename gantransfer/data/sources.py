"""Opens a data set by what `--data` says: a folder, a zip, `tfds:NAME[:split]`, `digits` or `glyphs`."""

import logging
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import UInt8

from gantransfer.data.archives import Archive, open_archive
from gantransfer.data.builtin import is_builtin, open_builtin
from gantransfer.data.decode import FITS, MAX_PIXELS, CorruptImage, Header, decode_with_header, read_header
from gantransfer.data.image_set import ImageSet, in_threads, refused
from gantransfer.data.layout import Layout, find_layout, refuse_empty
from gantransfer.data.prepared import open_prepared
from gantransfer.errors import UserError, one_of

# Sets of up to this many bytes stay decoded in memory after they have been checked.
KEEP_BYTES = 2**29

SMALLEST_RESOLUTION = 4


@dataclass(frozen=True)
class Rules:
    """How the images of a set are decoded: the arguments of `decode`, of which resolution and channels may be open."""

    resolution: int | None
    channels: int | None
    fit: str
    background: int
    max_pixels: int

    def decode(self, data: bytes, name: str) -> tuple[Header, UInt8[np.ndarray, "h w c"]]:
        """Decodes one file by these rules."""
        return decode_with_header(data, name, **self.__dict__)


class EncodedPixels:
    """Image files of an archive (or records of a prepared set), decoded when they are read."""

    def __init__(self, archive: Archive, files: tuple[str, ...], settled: Rules):
        self.archive, self.files, self.settled = archive, files, settled

    def read(self, row: int) -> UInt8[np.ndarray, "h w c"]:
        """Reads and decodes one file."""
        return self.read_all(row)[1]

    def read_all(self, row: int) -> tuple[Header, UInt8[np.ndarray, "h w c"]]:
        """Reads one file: its header, and its pixels decoded."""
        name = self.files[row]
        return self.settled.decode(self.archive.read(name), f"{self.archive.path}: {name}")

    def content(self, row: int) -> str:
        """CRC-32 and size of the file."""
        return self.archive.content(self.files[row])

    @property
    def rules(self) -> str:
        """Fit and background."""
        return f"{self.settled.fit} {self.settled.background}"


def open_images(
    path: str,
    *,
    resolution: int | None = None,
    channels: int | None = None,
    fit: str = "crop",
    on_corrupt: str = "refuse",
    background: int = 0,
    max_pixels: int = MAX_PIXELS,
    check: str = "pixels",
    classes: int | None = None,
) -> ImageSet:
    """Opens a set of images. Nothing is unpacked or written.

    Args:
      path: a folder or a zip (see `gantransfer.data.layout` for classes; `PATH:FOLDER` takes a part of it, such as a
        split), `tfds:NAME[:split][@DIR]`, `digits` or `glyphs`, these also with `:train` or `:test`.
      resolution: height and width of the images; None takes the common size where all images are square and alike, else
        the largest power of two that is not above the shortest edge in the set, so that nothing is enlarged.
      channels: 1 or 3; None takes 1 if every image is grey, else 3.
      fit: what happens to images of another shape or size, as in `decode`: "crop", "pad", "exact".
      on_corrupt: files that do not decode are all named and then "refuse" ends, "skip" goes on without them.
      background: grey level under transparency and beside padded images, 0 to 255.
      max_pixels: an image whose header claims more is refused, whatever `on_corrupt` says.
      check: "pixels" decodes every image while opening, so that no damaged file is met later; "headers" reads headers
        only, for sets that take too long: a file whose pixels turn out to be damaged then ends the run by its name.
      classes: how many classes there must be; None takes what there is.

    Raises:
      UserError: one line that names the file, what it is, and what would be accepted.
    """
    _check_options(resolution, channels, fit, on_corrupt, background, max_pixels, check)
    rules = Rules(resolution, channels, fit, background, max_pixels)
    if is_builtin(path):
        opened = open_builtin(path, resolution, channels)
    else:
        # 16 bits in four channels, and something for the container.
        max_bytes = 8 * max_pixels + 2**20
        if path.startswith("tfds:"):
            archive, layout = open_prepared(path)
        else:
            place, part = _split_part(path)
            archive = open_archive(place, max_bytes)
            layout = find_layout(archive, part, classes)
        opened = _checked(path, archive, layout, rules, on_corrupt, check)
    if classes is not None and len(opened.class_names) != classes:
        raise UserError("data", f"{path}: {len(opened.class_names)} classes", f"sets of {classes} classes")
    return opened


def _check_options(
    resolution: int | None,
    channels: int | None,
    fit: str,
    on_corrupt: str,
    background: int,
    max_pixels: int,
    check: str,
) -> None:
    if resolution is not None and resolution < 1:
        raise UserError("data.resolution", resolution, "a positive number of pixels")
    if channels not in (None, 1, 3):
        raise UserError("data.channels", channels, "1 (grey) or 3 (colour)")
    one_of("data.fit", fit, FITS)
    one_of("data.on_corrupt", on_corrupt, ("refuse", "skip"))
    one_of("data.check", check, ("pixels", "headers"))
    if not 0 <= background <= 255:
        raise UserError("data.background", background, "a grey level from 0 to 255")
    if not 1 <= max_pixels <= MAX_PIXELS:
        raise UserError("data.max_pixels", max_pixels, f"1 to {MAX_PIXELS:,}")


def _split_part(path: str) -> tuple[str, str | None]:
    """`PATH:FOLDER` as (PATH, FOLDER), where PATH is there and the whole is not."""
    place, colon, part = path.rpartition(":")
    return (place, part) if colon and not os.path.exists(path) and os.path.exists(place) else (path, None)


def _checked(path: str, archive: Archive, layout: Layout, rules: Rules, on_corrupt: str, check: str) -> ImageSet:
    """The set of a layout's files: headers settle size and channels, pixels are checked, damage is dealt with."""
    files = layout.files
    damaged: dict[int, str] = {}
    headers: list[Header | None] = [None] * len(files)
    settled = rules
    if rules.resolution is None or rules.channels is None or check == "headers":
        headers = _headers(path, archive, files, rules.max_pixels, damaged)
        settled = _settled(path, files, headers, rules, damaged)
    pixels = EncodedPixels(archive, files, settled)
    decoded = _decoded(pixels, headers, damaged) if check == "pixels" else None
    skipped = tuple((files[i], why) for i, why in sorted(damaged.items()))
    if skipped and (on_corrupt == "refuse" or len(skipped) == len(files)):
        raise refused(path, skipped)
    if skipped:
        named = "; ".join(f"{name} ({why})" for name, why in skipped)
        logging.getLogger(__name__).warning("%s: %d damaged files are skipped: %s", path, len(skipped), named)
    rows = np.array([i for i in range(len(files)) if i not in damaged], np.int32)
    labels = np.array(layout.labels, np.int32)[rows]
    refuse_empty(path, labels.tolist(), layout.class_names, "all of its files are damaged")
    sound = [(files[i], header) for i in rows if (header := headers[i]) is not None]
    return ImageSet(
        name=path,
        resolution=settled.resolution,
        channels=settled.channels,
        class_names=layout.class_names,
        labels=labels,
        files=tuple(files[i] for i in rows),
        pixels=pixels,
        rows=rows,
        numbering=layout.numbering,
        notes=layout.notes + _notes(sound, settled) + _repeats(pixels, rows),
        skipped=skipped,
        decoded=decoded,
    )


def _headers(
    path: str, archive: Archive, files: tuple[str, ...], max_pixels: int, damaged: dict[int, str]
) -> list[Header | None]:
    """Reads every header, adding to `damaged`."""

    def header(i: int) -> Header | None:
        try:
            return read_header(archive.read(files[i]), f"{path}: {files[i]}", max_pixels=max_pixels)
        except CorruptImage as damage:
            damaged[i] = damage.why
            return None

    return in_threads(header, len(files))


def _settled(
    path: str, files: tuple[str, ...], headers: list[Header | None], rules: Rules, damaged: dict[int, str]
) -> Rules:
    """The rules with the size and the channels that the headers suggest, where they were left open."""
    sound = [(files[i], header) for i, header in enumerate(headers) if header is not None]
    if not sound:
        raise refused(path, [(files[i], why) for i, why in sorted(damaged.items())])
    return replace(
        rules,
        resolution=rules.resolution or _resolution(path, sound),
        channels=rules.channels or (1 if all(header.grey for _, header in sound) else 3),
    )


def _decoded(
    pixels: EncodedPixels, headers: list[Header | None], damaged: dict[int, str]
) -> UInt8[np.ndarray, "n h w c"] | None:
    """Decodes everything once, adding to `headers` and `damaged`; the images where they may stay in memory, or None."""
    settled = pixels.settled
    shape = (len(headers), settled.resolution, settled.resolution, settled.channels)
    kept = np.zeros(shape, np.uint8) if int(np.prod(shape, dtype=np.int64)) <= KEEP_BYTES else None

    def load(i: int) -> None:
        if i in damaged:
            return
        try:
            headers[i], image = pixels.read_all(i)
        except CorruptImage as damage:
            damaged[i] = damage.why
            return
        if kept is not None:
            kept[i] = image

    in_threads(load, len(headers))
    return kept


def _resolution(path: str, headers: Sequence[tuple[str, Header]]) -> int:
    """The common size of square images that are all alike, else the largest power of two that enlarges none."""
    sizes = {(header.width, header.height) for _, header in headers}
    name, smallest = min(headers, key=lambda item: min(item[1].width, item[1].height))
    edge = min(smallest.width, smallest.height)
    if edge < SMALLEST_RESOLUTION:
        value = f"{path}: {name} is {smallest.width}x{smallest.height}"
        allowed = f"images of at least {SMALLEST_RESOLUTION} pixels a side, or setting data.resolution"
        raise UserError("data", value, allowed)
    return edge if sizes == {(edge, edge)} else 1 << (edge.bit_length() - 1)


def _notes(headers: Sequence[tuple[str, Header]], settled: Rules) -> tuple[str, ...]:
    """One line for each rule of decoding that changes some images, with their number and the first of them."""
    size = settled.resolution
    found: dict[str, list[str]] = defaultdict(list)
    for name, header in headers:
        for kind in header.kinds:
            found[kind].append(name)
        if header.width != header.height:
            verb = "cut to their centre square" if settled.fit == "crop" else "padded to a square"
            found[f"not square: {verb}"].append(name)
        edge = (min if settled.fit == "crop" else max)(header.width, header.height)
        if edge != size:
            found[f"{'larger' if edge > size else 'smaller'} than {size}x{size}: resized"].append(name)
        if header.grey and settled.channels == 3:
            found["grey: repeated to three channels"].append(name)
        if not header.grey and settled.channels == 1:
            found["colour: turned to grey"].append(name)
    examples = {kind: names[0] + (", ..." if len(names) > 1 else "") for kind, names in found.items()}
    return tuple(f"{len(names)} of {len(headers)} {kind} ({examples[kind]})" for kind, names in found.items())


def _repeats(pixels: EncodedPixels, rows: np.ndarray) -> tuple[str, ...]:
    """A line on files with the same bytes, where checksums are at hand."""
    times = Counter(pixels.content(int(row)) for row in rows)
    repeated = sum(times.values()) - len(times)
    if not repeated:
        return ()
    most = max(times, key=times.__getitem__)
    first = next(pixels.files[row] for row in rows if pixels.content(int(row)) == most)
    return (f"{repeated} of {len(rows)} repeat the bytes of another file (such as {first})",)
