"""Orthogonal regularisation: keeps the output directions of each weight apart, whatever their lengths.

Brock et al. 2019 (BigGAN), section 3.1 and equation 3: `strength * |w w^T * (1 - I)|^2` over weights with two axes or
more. The released code adds `2 * strength * (w w^T * (1 - I)) w` to the gradient, half of that formula's own gradient;
this file follows the code, as published strengths were used with it (1e-4; the published 128 pixel model used 0). As
there, the raw weight is meant, before spectral normalisation, and the generator's shared class embedding is left alone
while the discriminator's is not. Only trained leaves count: a frozen one does not move, so its term would be a
constant.
"""

from dataclasses import dataclass

import jax

from gantransfer.methods.hooks import Method, MethodState, Play, Terms, register
from gantransfer.objectives.losses import Scalar
from gantransfer.objectives.penalties import orthogonal


@register("orthogonal_regularization")
@dataclass(frozen=True)
class OrthogonalRegularization(Method):
    """Settings of orthogonal regularisation.

    Attributes:
      strength_g: of the generator's trained weights.
      strength_d: of the discriminator's trained weights.
    """

    strength_g: float = 1e-4
    strength_d: float = 0.0

    def check(self) -> None:
        self.limit("strength_g", 0.0)
        self.limit("strength_d", 0.0)

    def loss(self, play: Play, state: MethodState) -> tuple[Scalar, Terms] | None:
        strength = self.strength_g if play.role == "generator" else self.strength_d
        left_alone = "shared/embedding" if play.role == "generator" else None
        leaves = {
            jax.tree_util.keystr(path, simple=True, separator="/"): leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(play.trained)
        }
        counted = {path: leaf for path, leaf in leaves.items() if leaf.ndim >= 2 and path != left_alone}
        if strength == 0.0 or not counted:
            return None
        penalty = orthogonal(counted)
        return strength * penalty, {"overlap": penalty}
