"""From the bytes of one image file to uint8 pixels of the wanted size: one rule for each kind of image.

| kind | rule |
|---|---|
| animation (GIF, APNG, WebP, TIFF pages) | the first frame |
| 16 bits per channel | divided by 257 and rounded, so that 65535 becomes 255; never clipped |
| 1 bit | 0 and 255 |
| palette | looked up: colour, even if all its colours are grey |
| transparency (of each pixel, of palette entries, of one colour) | composited over the grey `background` (0: black) |
| CMYK, YCbCr, Lab | converted to RGB by Pillow; embedded colour profiles are not applied |
| grey, where 3 channels are wanted | repeated |
| colour, where 1 channel is wanted | luma of ITU-R 601: 0.299 R + 0.587 G + 0.114 B |
| EXIF orientation | applied, all eight of them |
| not square | `fit`: "crop" takes the centre, "pad" puts it on a square of `background`, "exact" refuses |
| another size | resized by Lanczos with antialiasing; "exact" refuses. Never stretched |

16-bit colour is read in full from PNG; of other formats Pillow gives the high bytes only (one level lower at most).
Images of 32 bits per channel have no agreed range and are refused as unreadable.
"""

import contextlib
import functools
import io
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8, UInt16

from gantransfer.errors import UserError, one_of

FITS = ("crop", "pad", "exact")

# 8192 x 8192: above every photograph, and below the size at which Pillow itself begins to warn.
MAX_PIXELS = 2**26

# Not all that Pillow can open: EPS would start another program, and nobody trains on icons or fonts.
_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")

_ENDINGS = {
    "PNG": "png apng", "JPEG": "jpg jpeg jpe jfif", "MPO": "jpg jpeg mpo", "WEBP": "webp", "BMP": "bmp dib",
    "DIB": "bmp dib", "GIF": "gif", "TIFF": "tif tiff", "PPM": "ppm pgm pbm pnm pfm", "JPEG2000": "jp2 j2k jpx jpf",
    "AVIF": "avif avifs",
}  # fmt: skip
IMAGE_ENDINGS = frozenset(ending for endings in _ENDINGS.values() for ending in endings.split())

_MAGIC = re.compile(
    rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|GIF8[79]a|RIFF....WEBP|II\*\0|MM\0\*|\0\0\0\x0cjP  |....ftypavi[fs]", re.DOTALL
)
MAGIC_BYTES = 16

# How a PNG stores 16-bit colour, in Pillow's words, and the words under which Pillow gives the other half of the bits.
_DEEP = {"RGB;16B": "RGB;16L", "RGBA;16B": "RGBA;16L", "LA;16B": "RGBA"}


class CorruptImage(Exception):
    """A file that should be an image and cannot be decoded; whoever opens a set turns it into a skip or a refusal."""

    def __init__(self, name: str, why: str):
        self.name, self.why = name, why
        super().__init__(f"{name}: {why}")

    def __reduce__(self):
        return type(self), (self.name, self.why)


class Header(NamedTuple):
    """What a file says of itself before its pixels are decoded.

    Attributes:
      width, height: in pixels, as stored (EXIF orientation not applied).
      grey: whether the pixels have one channel, transparency not counted.
      kinds: which of the rules of this file apply, in words.
    """

    width: int
    height: int
    grey: bool
    kinds: tuple[str, ...]


def looks_like_image(head: bytes) -> bool:
    """Whether the first `MAGIC_BYTES` bytes are those of an image format, whatever the file is called."""
    return _MAGIC.match(head) is not None


def read_header(data: bytes, name: str, *, max_pixels: int = MAX_PIXELS) -> Header:
    """Reads size and kind without decoding the pixels.

    Raises:
      CorruptImage: the bytes are no image.
      UserError: the image claims more than `max_pixels` pixels.
    """
    return _open(data, name, max_pixels)[1]


def decode(data: bytes, name: str, **rules: Any) -> UInt8[np.ndarray, "h w c"]:
    """The pixels that `decode_with_header` gives, under the same arguments."""
    return decode_with_header(data, name, **rules)[1]


def decode_with_header(
    data: bytes,
    name: str,
    *,
    resolution: int | None,
    channels: int | None,
    fit: str = "crop",
    background: int = 0,
    max_pixels: int = MAX_PIXELS,
) -> tuple[Header, UInt8[np.ndarray, "h w c"]]:
    """Decodes an image file by the rules of this module.

    Args:
      data: the whole file.
      name: what messages call it.
      resolution: height and width of the result; None leaves size and shape as they are.
      channels: 1 or 3; None keeps grey grey and colour colour.
      fit: what happens to other shapes and sizes: "crop", "pad" or "exact".
      background: grey level, 0 to 255, under transparency and beside padded images.
      max_pixels: what larger images, by their header, are refused above.

    Returns:
      (header, pixels uint8 `(h, w, channels)`).

    Raises:
      CorruptImage: the bytes are no image, or the pixels do not decode.
      UserError: the image is too large, or `fit` is "exact" and the size another.
    """
    one_of("data.fit", fit, FITS)
    image, header = _open(data, name, max_pixels)
    with _naming(name, max_pixels):
        pixels = _native(image, data, background)
        orientation = image.getexif().get(0x0112, 1)
    pixels = _upright(pixels, orientation)
    if channels == 3 and pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, axis=2)
    if channels == 1 and pixels.shape[2] == 3:
        pixels = np.asarray(_picture(pixels).convert("L"))[..., None]
    return header, pixels if resolution is None else _fitted(pixels, name, resolution, fit, background)


@functools.cache
def _formats() -> tuple[str, ...]:
    from PIL import Image

    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


@contextlib.contextmanager
def _naming(name: str, max_pixels: int) -> Iterator[None]:
    """Turns what Pillow raises inside into a CorruptImage, or a UserError where the image is too large."""
    from PIL import Image, UnidentifiedImageError

    try:
        yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        claim = re.search(r"\d{6,}", str(error))
        raise _too_large(name, max_pixels, int(claim[0]) if claim else 0) from error
    except UnidentifiedImageError as error:
        raise CorruptImage(name, "not an image by its content, or with a damaged header") from error
    except Exception as error:
        # Pillow's plugins raise a dozen types on damaged bytes, and each of them means just that.
        raise CorruptImage(name, " ".join(str(error).split()) or type(error).__name__) from error


def _too_large(name: str, max_pixels: int, claim: int) -> UserError:
    return UserError("data", name, f"images of at most {max_pixels:,} pixels; this header claims {claim:,}")


def _open(data: bytes, name: str, max_pixels: int) -> tuple[Any, Header]:
    """The image, not yet decoded, and its header."""
    from PIL import Image

    if not data:
        raise CorruptImage(name, "the file is empty")
    with _naming(name, max_pixels):
        image = Image.open(io.BytesIO(data), formats=_formats())
        header = _header(image, name)
    if image.width * image.height > max_pixels:
        raise _too_large(name, max_pixels, image.width * image.height)
    return image, header


def _header(image: Any, name: str) -> Header:
    grey = image.mode in ("1", "L", "LA", "La", "I") or image.mode.startswith("I;16")
    kinds = []
    if getattr(image, "is_animated", False):
        kinds.append("animated: the first frame is taken")
    if image.mode == "I" or image.mode.startswith("I;16") or _deep_rawmode(image):
        kinds.append("16 bits per channel: divided by 257")
    if image.has_transparency_data:
        kinds.append("with transparency: composited over the background")
    if image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        kinds.append(f"{image.mode}: converted to RGB")
    # A PNG's orientation may come after its pixels, where asking would decode them; then it is applied without a note.
    if "exif" in image.info and image.getexif().get(0x0112, 1) in range(2, 9):
        kinds.append("with an EXIF orientation: turned upright")
    ending = name.rpartition(".")[2].lower()
    if ending in IMAGE_ENDINGS and ending not in _ENDINGS.get(image.format, ending).split():
        kinds.append("named like another format than their content: read by content")
    return Header(image.width, image.height, grey, tuple(kinds))


def _deep_rawmode(image: Any) -> str | None:
    """How a PNG stores 16-bit colour, in Pillow's word for it; None for every other image."""
    rawmode = image.tile[0][3] if image.format == "PNG" and image.tile else None
    return rawmode if rawmode in _DEEP else None


def _native(image: Any, data: bytes, background: int) -> UInt8[np.ndarray, "h w c"]:
    """The pixels as one or three 8-bit channels, without transparency, neither turned nor resized."""
    deep = _deep_rawmode(image)
    image.load()
    if deep or image.mode == "I" or image.mode.startswith("I;16"):
        values = _sixteen_bits(image, data, deep)
        key = image.info.get("transparency")
        pixels = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
        if isinstance(key, int | tuple):
            clear = np.all(values == np.asarray(key).reshape(-1), axis=2, keepdims=True)
            pixels = np.concatenate([pixels, np.where(clear, 0, 255).astype(np.uint8)], axis=2)
    else:
        if image.mode == "F":
            raise ValueError("holds floating-point numbers")
        colour = image.mode not in ("1", "L", "LA", "La")
        clear = image.has_transparency_data
        mode = ("RGBA" if clear else "RGB") if colour else ("LA" if clear else "L")
        pixels = np.asarray(image if image.mode == mode else image.convert(mode))
        pixels = pixels.reshape(image.height, image.width, -1)
    if pixels.shape[2] in (1, 3):
        return pixels
    alpha = pixels[..., -1:].astype(np.uint32)
    return ((pixels[..., :-1] * alpha + background * (255 - alpha) + 127) // 255).astype(np.uint8)


def _sixteen_bits(image: Any, data: bytes, deep: str | None) -> UInt16[np.ndarray, "h w c"]:
    """All 16 bits of each channel of a loaded image."""
    if deep is None:
        values = np.asarray(image)
        # Mode "I" is 32 bits wide. Pillow scales deep PNM files into 16 of them; what others keep there has no agreed
        # range.
        if image.mode == "I" and image.format not in ("PNG", "PPM"):
            raise ValueError("holds 32-bit numbers")
        return values.astype(np.uint16)[..., None]
    # Pillow keeps the high bytes of deep colour only. Read once more as little-endian, the same file gives the low
    # bytes; two deep channels are read as four of 8 bits.
    from PIL import Image

    again = Image.open(io.BytesIO(data), formats=("PNG",))
    codec, extents, offset, _ = again.tile[0]
    again.tile = [type(again.tile[0])(codec, extents, offset, _DEEP[deep])]
    if deep == "LA;16B":
        again._mode = "RGBA"
        both = np.asarray(again)
        return both[..., 0::2].astype(np.uint16) * 256 + both[..., 1::2]
    return np.asarray(image).astype(np.uint16) * 256 + np.asarray(again)


def _upright(pixels: UInt8[np.ndarray, "h w c"], orientation: Any) -> UInt8[np.ndarray, "a b c"]:
    """Undoes an EXIF orientation (1 to 8; anything else is taken as 1)."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _picture(pixels: UInt8[np.ndarray, "h w c"]) -> Any:
    from PIL import Image

    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def _fitted(
    pixels: UInt8[np.ndarray, "h w c"], name: str, resolution: int, fit: str, background: int
) -> UInt8[np.ndarray, "r r c"]:
    """A square of `resolution`, by cropping or padding first and resizing afterwards."""
    height, width, channels = pixels.shape
    if (height, width) == (resolution, resolution):
        return pixels
    if fit == "exact":
        size = f"{width}x{height}"
        raise UserError(
            "data", f"{name} ({size})", f"images of {resolution}x{resolution}, or data.fit=crop, or data.fit=pad"
        )
    if fit == "crop":
        edge = min(height, width)
        top, left = (height - edge) // 2, (width - edge) // 2
        pixels = pixels[top : top + edge, left : left + edge]
    else:
        edge = max(height, width)
        square = np.full((edge, edge, channels), background, np.uint8)
        top, left = (edge - height) // 2, (edge - width) // 2
        square[top : top + height, left : left + width] = pixels
        pixels = square
    if edge == resolution:
        return np.ascontiguousarray(pixels)
    from PIL import Image

    resized = _picture(np.ascontiguousarray(pixels)).resize((resolution, resolution), Image.Resampling.LANCZOS)
    return np.asarray(resized).reshape(resolution, resolution, channels)
