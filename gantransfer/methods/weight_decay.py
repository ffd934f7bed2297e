"""Weight decay: pulls the trained weights towards zero through their gradient.

Adds `strength / 2 * |w|^2` over the trained leaves, so that `strength * w` joins the gradient before the optimizer: the
coupled form that `weight_decay` means in released GAN code, not AdamW's. All released configurations of BigGAN and
StyleGAN2 have 0. Frozen leaves are not counted: they do not move, and a decoupled decay would have moved them.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from gantransfer.methods.hooks import Method, MethodState, Play, Terms, register
from gantransfer.objectives.losses import Scalar


@register("weight_decay")
@dataclass(frozen=True)
class WeightDecay(Method):
    """Settings of weight decay.

    Attributes:
      strength_g: of the generator's trained leaves.
      strength_d: of the discriminator's trained leaves.
    """

    strength_g: float = 0.0
    strength_d: float = 0.0

    def check(self) -> None:
        self.limit("strength_g", 0.0)
        self.limit("strength_d", 0.0)

    def loss(self, play: Play, state: MethodState) -> tuple[Scalar, Terms] | None:
        strength = self.strength_g if play.role == "generator" else self.strength_d
        if strength == 0.0:
            return None
        penalty = sum((0.5 * jnp.sum(leaf**2) for leaf in jax.tree.leaves(play.trained)), jnp.zeros(()))
        return strength * penalty, {"half_squared_norm": penalty}
