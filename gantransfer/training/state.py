"""What a run carries: the part that a step writes (`GanState`) and the part that it only reads (`Held`).

Frozen parameters, statistics that never move, learning rates and the images on the device are `Held`: the step takes
them as an argument that is not donated and never returns them, so nothing of them is copied, differentiated or
averaged.
"""

from typing import Any

import jax
from flax import struct
from jaxtyping import Array, Int32, UInt32

from gantransfer.data.batches import DeviceImages
from gantransfer.methods.hooks import MethodState

Tree = Any


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
      images_seen: real images shown to the discriminator so far.
      generator, discriminator: what moves of each network.
      ema: running average of the generator's trained leaves and statistics.
      optimizer_g, optimizer_d: optax states over trained leaves only.
      methods: state of each method that has one, by name.
      tick: `{metric: (sum, count)}` since the last status line.
    """

    images_seen: Int32[Array, ""]
    generator: Moving
    discriminator: Moving
    ema: Moving
    optimizer_g: Tree
    optimizer_d: Tree
    methods: dict[str, MethodState]
    tick: dict[str, Array]


@struct.dataclass
class Held:
    """Everything that a step reads and never writes.

    Attributes:
      generator, discriminator: `{collection: leaves}` of what is frozen; spectral normalisation of frozen layers is
        folded into their weights once, so the step does not repeat it.
      rates: `{role: {rate group: float32}}`; data and not constants, so that another rate is not another program.
      seed: the run's seed.
      labels: int32 `(length,)` of the whole set.
      images: the set on the device, or None where it streams.
    """

    generator: Tree
    discriminator: Tree
    rates: dict[str, dict[str, Array]]
    seed: UInt32[Array, ""]
    labels: Int32[Array, " length"]
    images: DeviceImages | None


def copy(tree: Tree) -> Tree:
    """Returns a copy of every array: a donated state must not hold one buffer twice."""
    return jax.tree.map(lambda leaf: leaf.copy(), tree)
