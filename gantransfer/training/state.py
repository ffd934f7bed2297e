"""What a run carries: the part that a step writes (`GanState`) and the part that it only reads (`Held`).

Frozen parameters, statistics that never move, learning rates and the images on the device are `Held`: the step takes
them as an argument that is not donated and never returns them, so nothing of them is copied, differentiated or
averaged.
"""

from typing import Any

import jax
from flax import struct

Tree = Any
# An array, or what stands for it where these records are trees of something else: shapes, shardings, options of Orbax,
# which also puts one in the place of an empty dictionary.
Leaf = Any


@struct.dataclass
class Moving:
    """The part of one network that moves: trained parameters, and the statistics that its passes update.

    Attributes:
      trained: nested dictionary, the trained leaves of `params`.
      stats: `{collection: nested dictionary}`, without the leaves that this run holds still.
    """

    trained: Tree
    stats: Tree


@struct.dataclass
class GanState:
    """Everything that a step reads and writes; its checkpoint is enough to go on bit for bit.

    Attributes:
      images_seen: int32 scalar, real images shown to the discriminator so far.
      generator, discriminator: what moves of each network.
      ema: running average of the generator's trained leaves and statistics.
      optimizer_g, optimizer_d: optax states over trained leaves only.
      methods: `MethodState` of each method that has one, by name.
      tick: `{metric: float32 (sum, count)}` since the last status line.
      warmed_at: int32 scalar, images seen when a gap of the logits ended the warm-up, -1 before; None where no gap
        does.
    """

    images_seen: Leaf
    generator: Moving
    discriminator: Moving
    ema: Moving
    optimizer_g: Tree
    optimizer_d: Tree
    methods: Tree
    tick: Tree
    warmed_at: Leaf | None = None


@struct.dataclass
class Held:
    """Everything that a step reads and never writes.

    Attributes:
      generator, discriminator: `{collection: leaves}` of what is frozen; spectral normalisation of frozen layers is
        folded into their weights once, so the step does not repeat it.
      rates: `{role: {rate group: float32}}`, scalars; data and not constants, so that another rate is not another
        program.
      seed: uint32 scalar, the run's seed.
      labels: int32 `(length,)` of the whole set.
      images: the set on the device (`DeviceImages`), or None where it streams.
    """

    generator: Tree
    discriminator: Tree
    rates: Tree
    seed: Leaf
    labels: Leaf
    images: Tree | None


def copy(tree: Tree) -> Tree:
    """Returns a copy of every array: a donated state must not hold one buffer twice."""
    return jax.tree.map(lambda leaf: leaf.copy(), tree)
