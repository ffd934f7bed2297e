"""Running average of the generator: decay with a late start and a ramp, over what moves only."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32

from gantransfer.training.state import Moving

Tree = Any


def decay_at(
    images_seen: Int32[Array, ""], *, images_per_step: int, ceiling: float, start: float, rampup: float | None
) -> Float32[Array, ""]:
    """Decay of the running average in the iteration that ends at `images_seen`.

    Args:
      images_seen: real images shown to the discriminator, this iteration included.
      images_per_step: real images of one iteration.
      ceiling: the decay where nothing below lowers it.
      start: until this many images the average is a copy (decay 0), as in BigGAN-PyTorch.
      rampup: the half-life is at most this share of the images seen before the iteration (Karras et al. 2020); None: no
        ramp.
    """
    decay = jnp.float32(ceiling)
    if rampup is not None:
        before = (images_seen - images_per_step).astype(jnp.float32)
        ramp = jnp.exp2(-images_per_step / jnp.maximum(rampup * before, 1e-6))
        decay = jnp.minimum(decay, ramp)
    return jnp.where(images_seen.astype(jnp.float32) < start, 0.0, decay)


def average(old: Tree, new: Tree, decay: Float32[Array, ""]) -> Tree:
    """Returns `decay * old + (1 - decay) * new` leaf by leaf."""
    return jax.tree.map(lambda o, n: o * decay + n * (1.0 - decay), old, new)


def follow(old: Moving, new: Moving, decay: Float32[Array, ""]) -> Moving:
    """Running average of what moves of a generator.

    The collection "averages" (StyleGAN2's mean style) holds running averages already: it is copied, as the released
    code copies its buffers.
    """
    followed = average(old, new, decay)
    if "averages" not in new.stats:
        return followed
    return followed.replace(stats=followed.stats | {"averages": new.stats["averages"]})
