"""R1: keeps the discriminator flat around real images by penalising its slope there.

Mescheder et al. 2018, "Which training methods for GANs do actually converge?", equation 9; lazily every k-th iteration
as in Karras et al. 2020 ("Analyzing and improving the image quality of StyleGAN"), appendix B.

Adds `gamma / 2 * E |grad_x D(x)|^2` over reals, summed over pixels. Released code of StyleGAN2, ADA and Diffusion-GAN
takes the slope at the image as it came from the data, through the augmentation; DiffAugment's TensorFlow scripts for
CIFAR, FFHQ and LSUN take it at the augmented image (`point="augmented"`). The two are equal without augmentation. With
several heads it is the slope of their mean.
"""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Array

from gantransfer.methods.hooks import Method, MethodState, Play, Terms, register
from gantransfer.objectives.losses import Logits, Scalar
from gantransfer.objectives.penalties import r1_penalty


@register("r1")
@dataclass(frozen=True)
class R1(Method):
    """Settings of R1.

    Attributes:
      gamma: strength. StyleGAN2 10, its configurations for small images 0.01 to 1; ADA's rule is 0.0002 * resolution^2
        / batch.
      point: whether the slope is taken at the raw image or at what the views made of it.
      every: lazy interval, 16 in StyleGAN2.
    """

    gamma: float = 10.0
    point: Literal["raw", "augmented"] = "raw"

    def check(self) -> None:
        self.limit("gamma", 0.0)

    def loss(self, play: Play, state: MethodState) -> tuple[Scalar, Terms] | None:
        if play.real is None or self.gamma == 0.0:
            return None
        real, judge = play.real, play.players.D

        def raw(x: Array) -> Logits:
            return judge(real.view(x), real.labels).logits

        def augmented(x: Array) -> Logits:
            return judge(x, real.labels).logits

        # The judgement of the reals is asked for again here, as the slope needs the pass itself; where the step judged
        # reals apart from fakes, it is the same pass and the compiler keeps one.
        if self.point == "raw":
            penalty = r1_penalty(raw, real.images)
        else:
            penalty = r1_penalty(augmented, real.view(real.images))
        return self.gamma * penalty, {"penalty": penalty}
