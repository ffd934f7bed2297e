"""Auxiliary classifier: D also names the class of reals, and G is to make images that it names right.

Odena et al. 2017, "Conditional image synthesis with auxiliary classifier GANs", equations 2 and 3. There the
discriminator learns classes from reals and fakes alike (`fakes=True`); by default it learns from reals only, as in
later code (WGAN-GP's conditional ResNet, Gulrajani et al. 2017), because early fakes carry wrong labels. The weights 1
and 0.1 are those of that code. Labels may be class weights; the cross-entropy then is against them. A class head whose
weights are zero gives exactly log(classes).
"""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array

from gantransfer.errors import UserError
from gantransfer.methods.hooks import Method, MethodState, Play, Seen, Terms, register
from gantransfer.models.family import Networks
from gantransfer.objectives.losses import Scalar, class_cross_entropy


@register("auxiliary_classifier")
@dataclass(frozen=True)
class AuxiliaryClassifier(Method):
    """Settings of the auxiliary classifier.

    Attributes:
      weight_d: of the cross-entropy in the discriminator's loss.
      weight_g: of the cross-entropy of fakes in the generator's loss.
      fakes: whether the discriminator's term also has the fakes, with equal weight.
    """

    weight_d: float = 1.0
    weight_g: float = 0.1
    fakes: bool = False

    def check(self) -> None:
        self.limit("weight_d", 0.0)
        self.limit("weight_g", 0.0)

    def needs(self, networks: Networks) -> None:
        if not networks.has_class_head:
            raise UserError("methods", self.name, "networks whose discriminator has a class head")

    def loss(self, play: Play, state: MethodState) -> tuple[Scalar, Terms] | None:
        if (self.weight_g if play.role == "generator" else self.weight_d) == 0.0:
            return None
        if play.real is None:
            entropy, accuracy = _measure(play.fake)
            return self.weight_g * entropy, {"fake_cross_entropy": entropy, "fake_accuracy": accuracy}
        entropy, accuracy = _measure(play.real)
        total, terms = entropy, {"real_cross_entropy": entropy, "real_accuracy": accuracy}
        if self.fakes:
            fake_entropy, _ = _measure(play.fake)
            total, terms = entropy + fake_entropy, terms | {"fake_cross_entropy": fake_entropy}
        return self.weight_d * total, terms


def _measure(seen: Seen) -> tuple[Scalar, Array]:
    """Returns the cross-entropy of one side and the share of its images whose likeliest class is right."""
    classes = seen.judgement.classes
    truth = seen.labels if seen.labels.ndim == 1 else jnp.argmax(seen.labels, axis=1)
    return class_cross_entropy(classes, seen.labels), jnp.mean(
        (jnp.argmax(classes, axis=1) == truth).astype(jnp.float32)
    )
