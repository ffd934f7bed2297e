"""Pixels on their way into a feature network: quantising and resizing by the rules that published metrics use.

Metrics of equal images differ when the images are resized by another rule (Parmar, Zhang, Zhu: On Aliased Resizing and
Surprising Subtleties in GAN Evaluation, CVPR 2022), so every rule here is that of a published tool, to 1e-3 levels of
255. All of them are separable: two constant matrices, built on the host and applied at the highest precision. So a
pipeline runs inside the program that holds the generator, on any device, and under any sharding of the batch.

| rule | what it is |
|---|---|
| `pillow_nearest`, `_box`, `_bilinear`, `_bicubic`, `_lanczos` | Pillow: widened filters when shrinking, no clipping |
| `torch_bilinear`, `torch_bicubic` | half-pixel centres, no antialiasing (cubic: a = -0.75) |
| `torch_bicubic_antialias` | a = -0.5, widened when shrinking |
| `area` | mean of the source pixels that a target pixel touches |
| `tf1_bilinear` | TensorFlow 1: no half-pixel centres, so pictures shift to the upper left |
| `align_corners` | bilinear, with the corner pixels of both sizes on each other |
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped, UInt8

from gantransfer.errors import UserError, one_of

INCEPTION_SIZE_PX = 299
# Fixed point of Pillow's 8-bit resize.
PILLOW_BITS = 22

# Host or device: what a rule returns is on the device.
Pixels = Array | np.ndarray
Taps = tuple[Int[np.ndarray, "m t"], Float[np.ndarray, "m t"]]


def to_uint8(images: Float[Pixels, "*shape"]) -> UInt8[Array, "*shape"]:
    """Pixels of a generator's output in [-1, 1]: `trunc(clamp(127.5 x + 128, 0, 255))`.

    The rule of NVIDIA's code, and of StudioGAN's in another spelling. Not finite values have no pixel: call
    `check_generated` where the array is on the host.
    """
    levels = jnp.clip(jnp.asarray(images, jnp.float32) * 127.5 + 128, 0, 255)
    # Rounded down as floats too: inside a program XLA takes a conversion to bytes and back for nothing and drops it.
    return jnp.floor(levels).astype(jnp.uint8)


def check_generated(images: Float[np.ndarray, "n h w c"]) -> float:
    """Refuses generated images that are not finite; returns the share of values outside [-1.5, 1.5].

    More than 0.01 outside says that the generator's range is not [-1, 1], or that it diverged.

    Raises:
      UserError: with the number of images that hold NaN or infinity.
    """
    bad = int(np.count_nonzero(~np.isfinite(images).all(axis=(1, 2, 3))))
    if bad:
        raise UserError("generated images", f"{bad} of {len(images)} hold NaN or infinity", "finite pixels")
    return float(np.mean(np.abs(images) > 1.5))


def to_rgb(images: Shaped[Pixels, "n h w c"]) -> Shaped[Array, "n h w 3"]:
    """Three equal channels of grey images; colour images as they are.

    Raises:
      UserError: for other numbers of channels: what becomes of transparency is for the reader of files to say.
    """
    if images.shape[-1] not in (1, 3):
        raise UserError("channels", images.shape[-1], "1 or 3")
    return jnp.broadcast_to(images, (*images.shape[:-1], 3))


def resize(
    images: Shaped[Pixels, "n h w c"], size: tuple[int, int], rule: str, *, clip: bool = False
) -> Float[Array, "n h2 w2 c"]:
    """Images of another size, in the levels of the input (0 to 255 for uint8), neither rounded nor quantised.

    Args:
      images: uint8, or float32 in any range.
      size: height and width; equal ones return the input as float32.
      rule: a name of the table above.
      clip: whether to clip to [0, 255] at the end: filters with negative lobes overshoot by up to 114 levels.

    Raises:
      UserError: for another rule, a size below 1, or another type of pixel.
    """
    _check_pixels(images, size)
    one_of("resize rule", rule, RULES)
    resized = jnp.asarray(images, jnp.float32)
    for axis, letters in ((2, "nhwc,Ww->nhWc"), (1, "nhwc,Hh->nHwc")):
        if images.shape[axis] != size[axis - 1]:
            weights = resize_weights(rule, images.shape[axis], size[axis - 1]).astype(np.float32)
            resized = jnp.einsum(letters, resized, weights, precision=jax.lax.Precision.HIGHEST)
    return jnp.clip(resized, 0, 255) if clip else resized


def resize_uint8(
    images: UInt8[Pixels, "n h w c"], size: tuple[int, int], rule: str = "pillow_bicubic"
) -> UInt8[Array, "n h2 w2 c"]:
    """Pillow's resize of 8-bit images, level for level: fixed-point weights, rounded and clipped after each pass.

    Args:
      images: uint8.
      size: height and width.
      rule: one that begins with `pillow_`.

    Raises:
      UserError: for another rule, or a size below 1.
    """
    _check_pixels(images, size)
    one_of("8-bit resize rule", rule, [name for name in RULES if name.startswith("pillow_")])
    resized = jnp.asarray(images, jnp.int32)
    for axis, letters in ((2, "nhwc,Ww->nhWc"), (1, "nhwc,Hh->nHwc")):
        if images.shape[axis] != size[axis - 1]:
            scaled = resize_weights(rule, images.shape[axis], size[axis - 1]) * 2**PILLOW_BITS
            weights = np.trunc(scaled + np.copysign(0.5, scaled)).astype(np.int32)
            sums = jnp.einsum(letters, resized, weights) + 2 ** (PILLOW_BITS - 1)
            resized = jnp.clip(sums >> PILLOW_BITS, 0, 255)
    return resized.astype(jnp.uint8)


@dataclass(frozen=True)
class Pipeline:
    """How a published tool brings images to a feature network.

    Attributes:
      name: what records call it.
      rule: of `resize`.
      clip: whether overshoot is clipped to [0, 255].
      centre, scale: Inception gets (levels - centre) / scale.
      source: whose tool it is.
    """

    name: str
    rule: str
    clip: bool
    centre: float
    scale: float
    source: str

    def levels(self, images: UInt8[Pixels, "n h w c"], size: tuple[int, int]) -> Float[Array, "n h2 w2 3"]:
        """Resized colour images in levels of 255; for networks that have a mean and a deviation of their own."""
        return resize(to_rgb(images), size, self.rule, clip=self.clip)

    def inception(self, images: UInt8[Pixels, "n h w c"]) -> Float[Array, "n 299 299 3"]:
        """What the FID Inception network takes: 299 x 299 pixels, about [-1, 1]."""
        return (self.levels(images, (INCEPTION_SIZE_PX, INCEPTION_SIZE_PX)) - self.centre) / self.scale


# The filter of StudioGAN's "friendly" resizer goes with the network.
FRIENDLY_RULES = {
    "inception_tf": "pillow_bilinear",
    "inception_torchvision": "pillow_lanczos",
    "resnet50": "pillow_bilinear",
    "swav": "pillow_bilinear",
    "dino": "pillow_bilinear",
    "swin": "pillow_bicubic",
}

PIPELINES = {
    "legacy_tensorflow": Pipeline(
        "legacy_tensorflow", "tf1_bilinear", False, 128.0, 128.0, "NVIDIA's metrics, torch-fidelity"
    ),
    "legacy_pytorch": Pipeline(
        "legacy_pytorch", "torch_bilinear", True, 127.5, 127.5, "pytorch-fid, StudioGAN's legacy resizer"
    ),
    "clean": Pipeline("clean", "pillow_bicubic", True, 128.0, 128.0, "clean-fid"),
    "friendly": Pipeline("friendly", "pillow_bilinear", False, 127.5, 127.5, "StudioGAN's friendly resizer"),
}


def pipeline(name: str, backbone: str = "inception_tf") -> Pipeline:
    """A pipeline by name (`legacy_tensorflow`, `legacy_pytorch`, `clean`, `friendly`), as the backbone takes it.

    Raises:
      UserError: for another name, or a backbone that `friendly` has no filter for.
    """
    found = PIPELINES[one_of("pixel pipeline", name, PIPELINES)]
    if name != "friendly":
        return found
    rule = FRIENDLY_RULES[one_of("backbone", backbone, FRIENDLY_RULES)]
    return Pipeline(found.name, rule, found.clip, found.centre, found.scale, found.source)


@functools.lru_cache(maxsize=256)
def resize_weights(rule: str, source: int, target: int) -> Float[np.ndarray, "m n"]:
    """The matrix that takes a line of `source` pixels to one of `target`; float64, rows sum to 1."""
    taps, weights = RULES[rule](source, target)
    matrix = np.zeros((target, source))
    np.add.at(matrix, (np.arange(target)[:, None], np.clip(taps, 0, source - 1)), weights)
    matrix.setflags(write=False)
    return matrix


def _check_pixels(images: Shaped[Pixels, "n h w c"], size: tuple[int, int]) -> None:
    if min(size) < 1 or min(images.shape[1:3]) < 1:
        raise UserError("resize", f"{images.shape[1:3]} to {size}", "heights and widths of at least 1")
    if images.dtype not in (jnp.uint8, jnp.float32):
        raise UserError("pixels", str(images.dtype), "uint8 levels, or float32")


# --- rules: which source pixels a target pixel is made of, and how much of each


def _filtered(kernel: Callable[[Float[np.ndarray, "..."]], Float[np.ndarray, "..."]], support: float) -> Callable:
    """Pillow's rule for a filter: widened by the ratio of sizes when shrinking, normalised to sum 1."""

    def taps(source: int, target: int) -> Taps:
        ratio = source / target
        scale = max(ratio, 1.0)
        centre = (np.arange(target) + 0.5) * ratio
        first = np.maximum(np.trunc(centre - support * scale + 0.5), 0).astype(int)
        last = np.minimum(np.trunc(centre + support * scale + 0.5), source).astype(int)
        index = first[:, None] + np.arange(int((last - first).max()))
        weights = np.where(index < last[:, None], kernel((index - centre[:, None] + 0.5) / scale), 0.0)
        return index, weights / weights.sum(axis=1, keepdims=True)

    return taps


def _box(x: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    return ((x > -0.5) & (x <= 0.5)).astype(np.float64)


def _triangle(x: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    return np.maximum(1 - np.abs(x), 0)


def _cubic(x: Float[np.ndarray, "..."], a: float = -0.5) -> Float[np.ndarray, "..."]:
    """Keys' cubic convolution."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _lanczos(x: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    return np.where((x >= -3) & (x < 3), np.sinc(x) * np.sinc(x / 3), 0.0)


def _nearest(source: int, target: int) -> Taps:
    ratio = source / target
    # Parity: Pillow adds up steps, and round-off decides where a centre falls on a border between pixels.
    centre = np.cumsum(np.r_[0.5 * ratio, np.full(target - 1, ratio)])
    index = np.minimum(np.trunc(centre), source - 1).astype(int)
    return index[:, None], np.ones((target, 1))


def _linear(position: Float[np.ndarray, " m"], source: int) -> Taps:
    low = np.floor(position).astype(int)
    share = (position - low).astype(np.float64)
    return np.stack([low, np.minimum(low + 1, source - 1)], axis=1), np.stack([1 - share, share], axis=1)


def _half_pixel(source: int, target: int) -> Float[np.ndarray, " m"]:
    # Parity: positions are float32 in the published code, and decide which pixels are neighbours.
    ratio = np.float32(source) / np.float32(target)
    return (np.arange(target, dtype=np.float32) + np.float32(0.5)) * ratio - np.float32(0.5)


def _torch_bilinear(source: int, target: int) -> Taps:
    return _linear(np.maximum(_half_pixel(source, target), np.float32(0)), source)


def _torch_bicubic(source: int, target: int) -> Taps:
    position = _half_pixel(source, target)
    low = np.floor(position).astype(int)
    index = low[:, None] + np.arange(-1, 3)
    return index, _cubic(position[:, None].astype(np.float64) - index, -0.75)


def _tf1_bilinear(source: int, target: int) -> Taps:
    # Parity: a float64 product would put positions that fall on integers beside them.
    return _linear(np.arange(target, dtype=np.float32) * (np.float32(source) / np.float32(target)), source)


def _align_corners(source: int, target: int) -> Taps:
    ratio = np.float32(source - 1) / np.float32(max(target - 1, 1))
    return _linear(np.minimum(np.arange(target, dtype=np.float32) * ratio, np.float32(source - 1)), source)


def _area(source: int, target: int) -> Taps:
    first = np.arange(target) * source // target
    last = -(-(np.arange(target) + 1) * source // target)
    index = first[:, None] + np.arange(math.ceil(source / target) + 1)
    inside = index < last[:, None]
    return index, inside / (last - first)[:, None]


RULES: dict[str, Callable[[int, int], Taps]] = {
    "pillow_nearest": _nearest,
    "pillow_box": _filtered(_box, 0.5),
    "pillow_bilinear": _filtered(_triangle, 1.0),
    "pillow_bicubic": _filtered(_cubic, 2.0),
    "pillow_lanczos": _filtered(_lanczos, 3.0),
    "torch_bilinear": _torch_bilinear,
    "torch_bicubic": _torch_bicubic,
    "torch_bicubic_antialias": _filtered(_cubic, 2.0),
    "area": _area,
    "tf1_bilinear": _tf1_bilinear,
    "align_corners": _align_corners,
}
