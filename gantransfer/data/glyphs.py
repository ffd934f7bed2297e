"""Letters drawn to look handwritten: the source data of the quickstart, rendered from fonts that come with matplotlib.

Each letter goes the way that scikit-learn's digits went: a 32x32 binary field whose ink is counted in 4x4 blocks, and
from there the digits' own enlarging rule (`counts.py`). A smooth random displacement makes type look handwritten, and
stroke weight and proportions are set so that the ink statistics are those of the digits. No digit is drawn.
"""

import functools
import hashlib
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from gantransfer.data.counts import SIDE, enlarge
from gantransfer.errors import one_of

# Capitals, and the lower-case letters whose shape differs from their capital once all are scaled to one height; m would
# be a blot at eight columns.
CLASSES: tuple[str, ...] = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ" + "abdefghnqrt")

# matplotlib's other fonts hold symbols only.
FONTS: tuple[str, ...] = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique",
    "DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique",
    "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic",
    "STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic",
    "cmr10", "cmb10", "cmss10", "cmtt10", "cmti10", "cmmi10",
)  # fmt: skip

CANVAS = 80
FIELD = 32
PER_CLASS = {"train": 300, "test": 30}
SEEDS = {"train": 0, "test": 1}


@dataclass(frozen=True)
class Recipe:
    """The numbers of the drawing; lengths are pixels of the 80x80 canvas, or of the 32x32 field where it says so."""

    letter_height: float = 48.0
    rotation: float = 0.10
    shear: tuple[float, float] = (0.05, 0.15)
    log_width: float = 0.12
    wobble: float = 2.6
    # Chosen from 7.6, 8.5, 9.0 and 9.4 as the nearest to the digits: mean count 4.86 (digits 4.88), zeros 0.494
    # (0.489), full blocks 0.085 (0.091); a classifier reads the letters as well as at 7.6.
    stroke: tuple[float, float] = (9.4, 1.4)
    stroke_range: tuple[float, float] = (4.0, 11.0)
    level_range: tuple[float, float] = (-2.2, 4.0)
    # Field pixels.
    squeeze: tuple[float, float] = (0.66, 0.9)
    width_range: tuple[int, int] = (6, 23)
    shift: int = 2


RECIPE = Recipe()


def render_glyphs(
    per_class: int,
    seed: int,
    *,
    classes: Sequence[str] = CLASSES,
    fonts: Sequence[str] = FONTS,
    recipe: Recipe = RECIPE,
) -> tuple[UInt8[np.ndarray, "n 8 8"], Int[np.ndarray, " n"]]:
    """Draws `per_class` letters of each class; about 2 ms of one core per letter.

    Letter i of a class depends on (seed, character, i) alone, so a longer or a narrower set holds the same letters.

    Returns:
      Ink counts 0 to 16 and int32 labels (positions in `classes`), all of the first class first.
    """
    counts = np.empty((len(classes) * per_class, SIDE, SIDE), np.uint8)
    for label, character in enumerate(classes):
        for i in range(per_class):
            rng = np.random.Generator(np.random.PCG64((seed, ord(character), i)))
            font = fonts[rng.integers(len(fonts))]
            counts[label * per_class + i] = _count_ink(_draw(character, font, rng, recipe))
    return counts, np.repeat(np.arange(len(classes), dtype=np.int32), per_class)


def to_images(counts: UInt8[np.ndarray, "n 8 8"], resolution: int = 16) -> UInt8[np.ndarray, "n h w 1"]:
    """The digits' enlarging rule, applied to letters."""
    return enlarge(counts, resolution)


def open_glyphs(
    split: str = "train", resolution: int = 16
) -> tuple[UInt8[np.ndarray, "n h w 1"], Int[np.ndarray, " n"], tuple[str, ...]]:
    """Returns the letters as a data set: images, int32 labels and class names.

    `train` is 300 letters per class (11,100), `test` 30 per class of another seed. The first call renders them (half a
    minute for `train`) and keeps them, compressed, in `$GANTRANSFER_CACHE` or `~/.cache/gantransfer`.
    """
    one_of("glyphs split", split, SEEDS)
    counts, labels = _cached(PER_CLASS[split], SEEDS[split])
    return to_images(counts, resolution), labels, CLASSES


def cache_folder() -> Path:
    """Where rendered sets are kept."""
    return Path(os.environ.get("GANTRANSFER_CACHE") or Path.home() / ".cache" / "gantransfer")


def _cached(per_class: int, seed: int) -> tuple[UInt8[np.ndarray, "n 8 8"], Int[np.ndarray, " n"]]:
    import matplotlib
    import PIL
    import scipy

    # Rasteriser, fonts and interpolation come from these packages: another version may draw another pixel.
    versions = [matplotlib.__version__, PIL.__version__, scipy.__version__, np.__version__]
    recipe = repr((asdict(RECIPE), CLASSES, FONTS, per_class, seed, versions))
    path = cache_folder() / f"glyphs-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}.npz"
    if path.exists():
        with np.load(path) as stored:
            return stored["counts"], stored["labels"]
    counts, labels = render_glyphs(per_class, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A process killed while writing, or two at once, must not leave half a file under the final name.
    half = path.with_suffix(f".{os.getpid()}.npz")
    np.savez_compressed(half, counts=counts, labels=labels)
    half.replace(path)
    return counts, labels


def _draw(character: str, font: str, rng: np.random.Generator, recipe: Recipe) -> Bool[np.ndarray, "32 32"]:
    warped = _warp(_typeset(character, font, recipe.letter_height), rng, recipe)
    return _fit_field(_set_stroke(warped, rng, recipe), rng, recipe)


@functools.cache
def _typeset(character: str, font: str, height: float) -> UInt8[np.ndarray, "80 80"]:
    """The plain letter, white on black, scaled to one height and centred."""
    from PIL import Image, ImageDraw

    page = Image.new("L", (160, 160))
    ImageDraw.Draw(page).text((80, 80), character, fill=255, font=_font(font), anchor="mm")
    ink = page.crop(page.getbbox())
    scale = height / max(ink.height, 0.9 * ink.width)
    ink = ink.resize((max(1, round(ink.width * scale)), max(1, round(ink.height * scale))), Image.Resampling.BILINEAR)
    canvas = Image.new("L", (CANVAS, CANVAS))
    canvas.paste(ink, ((CANVAS - ink.width) // 2, (CANVAS - ink.height) // 2))
    return np.asarray(canvas)


@functools.cache
def _font(name: str):
    import matplotlib
    from PIL import ImageFont

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
    # The basic engine: the other one is there only on machines with libraqm, and places glyphs differently.
    return ImageFont.truetype(str(path), 64, layout_engine=ImageFont.Layout.BASIC)


def _warp(letter: UInt8[np.ndarray, "80 80"], rng: np.random.Generator, recipe: Recipe) -> Bool[np.ndarray, "80 80"]:
    """Turns, slants, stretches and wobbles a letter, by inverse mapping."""
    from scipy import ndimage

    turn = rng.normal(0, recipe.rotation)
    slant = rng.normal(*recipe.shear)
    stretch = np.exp(rng.normal(0, recipe.log_width))
    wobble = rng.normal(0, recipe.wobble, (2, 4, 4))
    # Output (row, column) -> input (row, column): the column is unstretched and unslanted, then both are turned back.
    cos, sin = np.cos(turn), np.sin(turn)
    inverse = np.array([[cos, -sin], [sin, cos]]) @ np.array([[1, 0], [slant, 1 / stretch]])
    middle = (CANVAS - 1) / 2
    grid = np.indices((CANVAS, CANVAS)).reshape(2, -1) - middle
    spline = _spline(4, CANVAS)
    where = (inverse @ grid).reshape(2, CANVAS, CANVAS) + middle + spline @ wobble @ spline.T
    return ndimage.map_coordinates(letter.astype(np.float32), where, order=1) > 127.5


@functools.cache
def _spline(few: int, many: int) -> Float[np.ndarray, "many few"]:
    """The cubic-spline enlargement of `few` numbers to `many`, ends on ends, as a matrix (the operation is linear)."""
    from scipy import ndimage

    return np.stack([ndimage.zoom(row, many / few, order=3) for row in np.eye(few)], axis=1)


def _set_stroke(
    letter: Bool[np.ndarray, "80 80"], rng: np.random.Generator, recipe: Recipe
) -> Bool[np.ndarray, "80 80"]:
    """Thickens or thins the strokes to a drawn width."""
    from scipy import ndimage

    inside = ndimage.distance_transform_edt(letter)
    distance = inside - ndimage.distance_transform_edt(~letter)
    width = 2.6 * np.median(inside[letter])
    target = np.clip(rng.normal(*recipe.stroke), *recipe.stroke_range)
    return distance > -np.clip((target - width) / 2, *recipe.level_range)


def _fit_field(
    letter: Bool[np.ndarray, "80 80"], rng: np.random.Generator, recipe: Recipe
) -> Bool[np.ndarray, "32 32"]:
    """Scales the ink to the full height of the field and a drawn width, near the horizontal middle."""
    from PIL import Image

    page = Image.fromarray(letter.astype(np.uint8) * 255)
    ink = page.crop(page.getbbox())
    squeezed = FIELD * (ink.width / ink.height) * rng.uniform(*recipe.squeeze)
    width = int(np.clip(round(squeezed), *recipe.width_range))
    ink = np.asarray(ink.resize((width, FIELD), Image.Resampling.BILINEAR)) > 127
    left = (FIELD - width) // 2 + rng.integers(-recipe.shift, recipe.shift + 1)
    field = np.zeros((FIELD, FIELD), bool)
    field[:, left : left + width] = ink
    return field


def _count_ink(field: Bool[np.ndarray, "32 32"]) -> UInt8[np.ndarray, "8 8"]:
    block = FIELD // SIDE
    return field.reshape(SIDE, block, SIDE, block).sum(axis=(1, 3)).astype(np.uint8)
