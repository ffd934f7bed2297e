"""Pictures of pictures: grids with titles, strips of an interpolation, videos.

Small images are enlarged by whole numbers (nearest neighbour), so that what is seen is what the network made, pixel for
pixel.
Files appear whole or not at all: they are written beside their place and renamed.
"""

import io
import math
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image, ImageDraw, ImageFont

from gantransfer.errors import UserError

Images = UInt8[np.ndarray, "n h w c"]
# One for each image, which is checked with a message for people.
Labels = Integer[np.ndarray, " labels"]

SMALLEST_CELL = 32
# Neither black nor white, so that cells with a black or a white background both show their edge.
PAPER, INK = 236, 32
FONT_SIZE = 13
LONGEST_TITLE = 28


def grid(
    images: Images,
    *,
    columns: int,
    scale: int | None = None,
    gap: int = 2,
    row_titles: Sequence[str] | None = None,
    column_titles: Sequence[str] | None = None,
) -> Image.Image:
    """Lays images out row by row.

    Args:
      images: 1 or 3 channels; the last row may be incomplete.
      columns: images in a row.
      scale: whole-number enlargement; None: the smallest that makes both sides of a cell at least 32 pixels.
      gap: pixels around each cell, after enlarging.
      row_titles, column_titles: one text for each row (drawn on the left) or column (above); long ones are cut.

    Returns:
      A grey or RGB picture.

    Raises:
      UserError: for no images, another number of channels or titles, or numbers out of range.
    """
    images = _checked(images)
    scale = whole_scale(images.shape[1], images.shape[2]) if scale is None else scale
    for name, value, least in (("columns", columns, 1), ("scale", scale, 1), ("gap", gap, 0)):
        if value < least:
            raise UserError(f"grid.{name}", value, f"an integer of at least {least}")
    n, h, w, c = images.shape
    rows = math.ceil(n / columns)
    for name, titles, count in (("row_titles", row_titles, rows), ("column_titles", column_titles, columns)):
        if titles is not None and len(titles) != count:
            raise UserError(f"grid.{name}", list(titles), f"{count} texts, one for each")

    step_y, step_x = h * scale + gap, w * scale + gap
    cells = np.full((rows * step_y + gap, columns * step_x + gap, c), PAPER, np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * step_y + gap, i % columns * step_x + gap
        cells[top : top + h * scale, left : left + w * scale] = image.repeat(scale, 0).repeat(scale, 1)
    picture = Image.fromarray(cells[..., 0] if c == 1 else cells)
    return _with_titles(picture, row_titles or (), column_titles or (), gap, step_y, step_x)


def strip(images: Images, *, scale: int | None = None, gap: int = 0) -> Image.Image:
    """Lays images out in one horizontal row without gaps, as one shows an interpolation; arguments as for `grid`."""
    return grid(images, columns=max(len(images), 1), scale=scale, gap=gap)


def by_class(
    images: Images, labels: Labels, columns: int, class_names: Sequence[str] | None = None
) -> tuple[UInt8[np.ndarray, "cells h w c"], list[str]]:
    """Arranges images for a grid with one class to a row.

    Args:
      labels: class of each image.
      columns: the first so many images of each class are taken; missing ones become empty paper.
      class_names: by label; without them, and where Pillow's own font lacks a letter of a name, a row is titled by its
        number.

    Returns:
      The images in the order of the cells, and the title of each row; classes without images have no row.
    """
    if len(labels) != len(images):
        raise UserError("grid.labels", f"{len(labels)} labels", f"one for each of the {len(images)} images")
    present = np.unique(labels).tolist()
    if class_names is not None and present and not 0 <= present[0] <= present[-1] < len(class_names):
        raise UserError(
            "grid.labels", [present[0], present[-1]], f"0 to {len(class_names) - 1}, one for each class name"
        )
    cells = np.full((len(present), columns, *images.shape[1:]), PAPER, np.uint8)
    for row, label in enumerate(present):
        chosen = images[labels == label][:columns]
        cells[row, : len(chosen)] = chosen
    titles = [str(label) if class_names is None else _title(class_names[label], label) for label in present]
    return cells.reshape(-1, *images.shape[1:]), titles


def save_grid(
    path: Path,
    images: Images,
    *,
    columns: int | None = None,
    labels: Labels | None = None,
    class_names: Sequence[str] | None = None,
    scale: int | None = None,
    gap: int = 2,
) -> Path:
    """Writes a grid as PNG, with one class to a row where `labels` are given; returns the path.

    Args:
      columns: None: as many as the fullest class has (at most 16), or the next square without labels.
      labels, class_names: see `by_class`.
      scale, gap: see `grid`.
    """
    titles = None
    _checked(images)
    if labels is None:
        columns = columns or math.ceil(math.sqrt(len(images)))
    else:
        columns = columns or min(16, int(np.unique(labels, return_counts=True)[1].max(initial=1)))
        images, titles = by_class(images, labels, columns, class_names)
    picture = grid(images, columns=columns, scale=scale, gap=gap, row_titles=titles)
    return write_whole(path, png_bytes(picture))


def save_video(path: Path, frames: Images, fps: float) -> Path:
    """Writes frames as a film and returns its path; the suffix says which kind.

    `.gif` needs nothing more and loops; its clock counts hundredths of a second, so the true rate is the nearest one
    that it has, at most 50. `.mp4` (H.264, plays everywhere) needs the extra `video`; its sides must be even, so that
    an odd side gains one repeated row or column.

    Raises:
      UserError: for another suffix, a rate out of range, or `.mp4` without the extra.
    """
    frames = _checked(frames)
    if not 0 < fps <= 120:
        raise UserError("video.fps", fps, "a number above 0, at most 120")
    if path.suffix == ".gif":
        return write_whole(path, _gif_bytes(frames, fps))
    if path.suffix == ".mp4":
        return write_whole(path, _mp4_bytes(path, frames, fps))
    raise UserError("video", str(path), "a file name that ends in .mp4 or .gif")


def whole_scale(height: int, width: int) -> int:
    """The smallest whole-number enlargement at which both sides have at least 32 pixels."""
    return max(1, math.ceil(SMALLEST_CELL / min(height, width)))


def png_bytes(picture: Image.Image) -> bytes:
    """The picture as the content of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def write_whole(path: Path, content: bytes) -> Path:
    """Writes a file that appears whole or not at all, making its folder where needed; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        beside.write_bytes(content)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return path


def _checked(images: np.ndarray) -> np.ndarray:
    if len(images) == 0:
        raise UserError("grid.images", "no images", "at least one image")
    if images.shape[-1] not in (1, 3):
        raise UserError("grid.images", f"{images.shape[-1]} channels", "1 or 3 channels")
    return images


def _with_titles(
    picture: Image.Image, rows: Sequence[str], columns: Sequence[str], gap: int, step_y: int, step_x: int
) -> Image.Image:
    font = ImageFont.load_default(FONT_SIZE)
    rows = [_shortened(_drawable(text), LONGEST_TITLE) for text in rows]
    left = max((math.ceil(font.getlength(text)) + 12 for text in rows), default=0)
    top = FONT_SIZE + 8 if columns else 0
    if not left and not top:
        return picture
    sheet = Image.new(picture.mode, (picture.width + left, picture.height + top), "#" + f"{PAPER:02x}" * 3)
    sheet.paste(picture, (left, top))
    draw = ImageDraw.Draw(sheet)
    ink = "#" + f"{INK:02x}" * 3
    for i, text in enumerate(rows):
        draw.text((left - 6, top + gap + i * step_y + (step_y - gap) / 2), text, ink, font, anchor="rm")
    for i, text in enumerate(columns):
        text = _fitting(_shortened(_drawable(text), LONGEST_TITLE), step_x, font)
        draw.text((left + gap + i * step_x + (step_x - gap) / 2, top / 2), text, ink, font, anchor="mm")
    return sheet


def _drawable(text: str) -> str:
    """The text in the letters that Pillow's own font has: accents go, other scripts become question marks."""
    plain = "".join(letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
    return "".join(letter if " " <= letter <= "~" else "?" for letter in plain)


def _title(name: str, label: int) -> str:
    return name if _drawable(name).count("?") == name.count("?") else f"class {label}"


def _shortened(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _fitting(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    while len(text) > 1 and font.getlength(text) > width:
        text = text.removesuffix("…")[:-1] + "…"
    return text


def _gif_bytes(frames: np.ndarray, fps: float) -> bytes:
    pictures = [Image.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame) for frame in frames]
    # Browsers slow frames of one hundredth of a second down to ten.
    hundredths = max(2, round(100 / fps))
    buffer = io.BytesIO()
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:], duration=hundredths * 10, loop=0)
    return buffer.getvalue()


def _mp4_bytes(path: Path, frames: np.ndarray, fps: float) -> bytes:
    try:
        import av  # noqa: F401  (imageio's plugin is chosen by name and would fail later, less clearly)
        import imageio.v3 as imageio
    except ImportError as missing:
        raise UserError("video", str(path), "a .gif here; .mp4 after: pip install 'gantransfer[video]'") from missing
    frames = np.pad(frames, [(0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)], mode="edge")
    frames = np.broadcast_to(frames, (*frames.shape[:3], 3))
    return imageio.imwrite("<bytes>", frames, extension=".mp4", plugin="pyav", codec="libx264", fps=fps)
