"""Perceptual path length (Karras et al. 2019): how much a picture changes for a small step between two latents.

The parts that need no network. For 50,000 pairs of latents: both ends of a step (`path_step`), their pictures with the
same noise (`path_pictures`), the LPIPS distance over epsilon squared, and the mean without the tails (`path_length`).
Differences at 1e-4 vanish in half precision: everything in float32.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gantransfer.errors import UserError, one_of
from gantransfer.features.pixels import resize

EPSILON = 1e-4
SPACES = ("w", "z")
PICTURE_SIZE_PX = 256

Device = Array | np.ndarray


def lerp(a: Float[Device, "*n d"], b: Float[Device, "*n d"], t: Float[Device, "*n"]) -> Float[Array, "*n d"]:
    """Points on straight lines, `t` from 0 (a) to 1 (b)."""
    return a + (b - a) * jnp.asarray(t)[..., None]


def slerp(a: Float[Device, "*n d"], b: Float[Device, "*n d"], t: Float[Device, "*n"]) -> Float[Array, "*n d"]:
    """Points on great circles between the directions of a and b, of unit length."""
    a, b = _unit(a), _unit(b)
    cosine = jnp.clip(jnp.sum(a * b, axis=-1, keepdims=True), -1, 1)
    angle = jnp.asarray(t)[..., None] * jnp.arccos(cosine)
    return _unit(a * jnp.cos(angle) + _unit(b - cosine * a) * jnp.sin(angle))


def path_step(
    a: Float[Device, "n d"],
    b: Float[Device, "n d"],
    t: Float[Device, " n"],
    space: str = "w",
    epsilon: float = EPSILON,
) -> tuple[Float[Array, "n d"], Float[Array, "n d"]]:
    """Both ends of a step of `epsilon` on the way from a to b.

    Args:
      a, b: styles (`w`, straight lines) or latents (`z`, great circles).
      t: where on the way: uniform in [0, 1) for the sampling `full`, 0 for `end`.
      space: `w` or `z`.
      epsilon: length of the step; published numbers take 1e-4.

    Raises:
      UserError: for another space, or half precision, in which the step is lost.
    """
    one_of("space", space, SPACES)
    if jnp.finfo(a.dtype).bits < 32:
        raise UserError("latents", str(a.dtype), "float32 or float64: a step of 1e-4 is lost in less")
    way = lerp if space == "w" else slerp
    return way(a, b, t), way(a, b, t + epsilon)


def path_pictures(images: Float[Device, "n h w c"], crop: bool = False) -> Float[Array, "n h2 w2 c"]:
    """Generated pictures in [-1, 1] as the distance takes them: levels of 255, not clipped, averaged to 256 px.

    Args:
      images: float32.
      crop: keeps rows 3/8 to 7/8 and columns 2/8 to 6/8, the face, as older variants do.

    Raises:
      UserError: for sizes above 256 that are no multiple of it.
    """
    if crop:
        height, width = (side // 8 for side in images.shape[1:3])
        images = images[:, 3 * height : 7 * height, 2 * width : 6 * width]
    sides = images.shape[1:3]
    target = (min(sides[0], PICTURE_SIZE_PX), min(sides[1], PICTURE_SIZE_PX))
    if sides[0] % target[0] or sides[1] % target[1]:
        raise UserError("picture size", sides, f"at most {PICTURE_SIZE_PX}, or multiples of it")
    return (resize(images, target, "area") + 1) * 127.5


def path_length(distances: Float[np.ndarray, " n"]) -> float:
    """Mean of the distances from the 1st percentile to the 99th, both order statistics included.

    Args:
      distances: LPIPS of both ends of each step, over epsilon squared.

    Raises:
      UserError: if there is none, or one is not finite.
    """
    values = np.asarray(distances, np.float64)
    if not values.size or not np.isfinite(values).all():
        raise UserError("path distances", f"{values.size}, or NaN among them", "at least 1, all finite")
    low, high = np.percentile(values, 1, method="lower"), np.percentile(values, 99, method="higher")
    return float(values[(values >= low) & (values <= high)].mean())


def _unit(x: Float[Device, "*n d"]) -> Float[Array, "*n d"]:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
