"""Everything random of a step, as a pure function of the seed and the position of an image in the run.

Each image has a key of its own, folded from the seed and its position; a use folds in its name. So a draw depends
neither on the batch, nor on the number of devices, nor on which methods are on.
"""

import zlib
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from gantransfer.data.batches import DeviceImages, gather, positions_to_draws
from gantransfer.models.family import Labels, Role
from gantransfer.training.recipe import Recipe
from gantransfer.training.state import Held


class Draw(NamedTuple):
    """Everything that one update is given: for several updates, each leaf has a leading axis more.

    Attributes:
      reals: `(n, h, w, channels)` in [-1, 1]; None for the generator.
      real_labels: int32 `(n,)`; None for the generator.
      z: latents `(n, z_dim)`, of the networks' distribution.
      c: labels of the fakes.
      keys: one random key per image.
    """

    reals: Float[Array, "*u n h w c"] | None
    real_labels: Int[Array, "*u n"] | None
    z: Float[Array, "*u n z"]
    c: Labels | Int[Array, "u n"]
    keys: Any


class StreamedBatch(NamedTuple):
    """Real images of one iteration that were read by the host: uint8, and their labels."""

    images: UInt8[Array, "u n h w c"]
    labels: Int[Array, "u n"]


def name_code(name: str) -> int:
    """A number for a name that is the same in every process, for folding into keys."""
    return zlib.crc32(name.encode()) & 0x7FFFFFFF


def fold(keys: Any, name: str) -> Any:
    """Folds a name into every key: streams of different names never meet."""
    return jax.vmap(lambda key: jax.random.fold_in(key, name_code(name)))(keys)


def keys_at(seed: Array, positions: Int[Array, " n"]) -> Any:
    """One random key for each position of the run's image stream."""
    return jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(positions)


def draw_fakes(recipe: Recipe, held: Held, positions: Int[Array, " n"], role: Role) -> Draw:
    """Latents, labels and keys of the fakes of one update; image i's depend on its position alone."""
    keys = fold(keys_at(held.seed, positions), role)
    latent, shape = recipe.networks.latent, (recipe.networks.z_dim,)
    one = jax.random.normal if latent == "normal" else partial(jax.random.uniform, minval=-1, maxval=1)
    z = jax.vmap(lambda key: one(key, shape))(fold(keys, "z"))
    count = recipe.networks.num_classes if recipe.fake_labels == "uniform" else held.labels.shape[0]
    c = jax.vmap(lambda key: jax.random.randint(key, (), 0, count))(fold(keys, "c"))
    if recipe.fake_labels == "data":
        c = held.labels[c]
    return Draw(None, None, z, c, keys)


def draw_reals(
    recipe: Recipe, held: Held, positions: Int[Array, " n"], streamed: StreamedBatch | None, update: Array | int
) -> tuple[Array, Array]:
    """Real images in [-1, 1] and labels of one update, from the device's set or from what the host has read."""
    if streamed is not None:
        images = DeviceImages(streamed.images[update], streamed.labels[update])
        # The host has gathered and mirrored already; only the conversion is left.
        order = jnp.arange(recipe.batch, dtype=jnp.int32)
        return gather(images, order, jnp.zeros(recipe.batch, bool))
    length = held.labels.shape[0]
    indices, flips = positions_to_draws(held.seed, positions, length, mirror=recipe.mirror, xp=jnp)
    return gather(held.images, indices, flips)


def draw_update(
    recipe: Recipe, held: Held, images_seen: Array, streamed: StreamedBatch | None, role: Role, update: Array | int
) -> Draw:
    """Everything random of one update, as a pure function of (seed, images seen, update)."""
    positions = images_seen + update * recipe.batch + jnp.arange(recipe.batch, dtype=jnp.int32)
    draw = draw_fakes(recipe, held, positions, role)
    if role == "discriminator":
        reals, labels = draw_reals(recipe, held, positions, streamed, update)
        draw = draw._replace(reals=reals, real_labels=labels)
    return recipe.shard(draw)
