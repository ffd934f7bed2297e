"""Fades in the block that was added to a discriminator for larger images.

After progressive growing (Karras et al. 2018, arXiv:1710.10196, section 2): the share of the new block's output in what
the next block is given rises in a straight line, from where it starts to 1, while `kimg` thousand real images are
shown; the layer that read smaller images has the rest. The generator's new block starts with colours of zero and needs
no fade.

A run whose discriminator has such a block takes this method by itself, with its defaults, where the config does not
name it. A snapshot stores the share that has been reached.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array

from gantransfer.errors import UserError
from gantransfer.methods.hooks import Keys, Method, MethodState, Observed, Players, Tree, register
from gantransfer.models.family import Labels, Networks, Role

LEAF = "fade"


@register("fade_in")
@dataclass(frozen=True)
class FadeIn(Method):
    """Settings of the fade.

    Attributes:
      kimg: real images, in thousands, until the new block is all that the next one is given.
    """

    settles: ClassVar[bool] = True
    kimg: float = 20.0

    def check(self) -> None:
        self.limit("kimg", 1e-3)

    def needs(self, networks: Networks) -> None:
        if not getattr(networks.discriminator, "fade", False):
            raise UserError("fade_in", "no such block", "a discriminator with a block added by transfer.resolution")

    def freeze(self, role: Role, path: str, networks: Networks) -> bool:
        return role == "discriminator" and path == LEAF

    def start(self, key: Keys, params: Tree, players: Players, reals: Array, labels: Labels) -> MethodState:
        first = jnp.asarray(params["discriminator"][LEAF], jnp.float32)
        return MethodState(carried={"first": first, "share": jnp.array(first)})

    def weights(self, role: Role, params: Tree, state: MethodState) -> Tree:
        if role == "generator":
            return params
        return {**params, LEAF: state.carried["share"]}

    def update(self, state: MethodState, observed: Observed) -> Tree:
        first = state.carried["first"]
        gone = observed.images_seen.astype(jnp.float32) / (1000 * self.kimg)
        return {"first": first, "share": jnp.minimum(first + (1 - first) * gone, 1.0)}
