"""Sets that need no download: scikit-learn's handwritten `digits`, and `glyphs`, letters drawn to look like them."""

import numpy as np

from gantransfer.data.counts import digit_counts, digits_split, enlarge
from gantransfer.data.glyphs import open_glyphs
from gantransfer.data.image_set import ArrayPixels, ImageSet
from gantransfer.errors import UserError, one_of

DIGITS = ("digits", "digits:test", "digits:train")
GLYPHS = ("glyphs", "glyphs:test", "glyphs:train")
RESOLUTION = 16


def is_builtin(path: str) -> bool:
    """Whether `--data` names one of these sets; a folder of the same name is meant by `./digits`."""
    return path.partition(":")[0] in ("digits", "glyphs")


def open_builtin(path: str, resolution: int | None, channels: int | None) -> ImageSet:
    """Opens one of the sets that need no download.

    They are `digits` (all 1,797, in scikit-learn's order), `digits:train` (1,437), `digits:test` (the 360 held out),
    `glyphs` or `glyphs:train` (11,100 letters in 37 classes) and `glyphs:test` (1,110 others).

    Both are 8x8 counts enlarged by `counts.enlarge`, to 16x16 unless told otherwise; grey, or repeated to three
    channels.

    Raises:
      UserError: a package that draws or holds them is missing, the part is unknown, or the resolution is below 8.
    """
    one_of("data", path, DIGITS if path.startswith("digits") else GLYPHS)
    resolution = RESOLUTION if resolution is None else resolution
    try:
        images, labels, class_names, rows = (_digits if path in DIGITS else _glyphs)(path, resolution)
    except ImportError as error:
        allowed = f"a set whose packages are installed; this one needs pip install 'gantransfer[quickstart]' ({error})"
        raise UserError("data", path, allowed) from error
    return ImageSet(
        name=path,
        resolution=resolution,
        channels=channels or 1,
        class_names=class_names,
        labels=labels.astype(np.int32),
        files=tuple(f"{class_names[label]}/{row:05d}" for label, row in zip(labels, rows, strict=True)),
        pixels=ArrayPixels(np.repeat(images, channels or 1, axis=-1)),
        rows=np.arange(len(labels), dtype=np.int32),
        numbering="numbered as drawn",
        notes=(f"8x8 counts enlarged to {resolution}x{resolution}, bilinear",),
    )


def _digits(path: str, resolution: int) -> tuple[np.ndarray, np.ndarray, tuple[str, ...], np.ndarray]:
    counts, labels = digit_counts()
    rows = np.arange(len(labels))
    if path != "digits":
        rows = digits_split()[("digits:train", "digits:test").index(path)]
    return enlarge(counts[rows], resolution), labels[rows], tuple("0123456789"), rows


def _glyphs(path: str, resolution: int) -> tuple[np.ndarray, np.ndarray, tuple[str, ...], np.ndarray]:
    images, labels, class_names = open_glyphs(path.partition(":")[2] or "train", resolution)
    return images, labels, class_names, np.arange(len(labels))
