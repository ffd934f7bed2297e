"""FastGAN: a light generator for few images at 128 to 1024 px, as released and as Projected GAN uses it.

Paper: Liu, Zhu, Song, Elgammal 2021, "Towards Faster and Stabilized GAN Training for High-fidelity Few-shot Image
Synthesis", arXiv:2101.04775. The variants of the generator called `projected` and `projected_lite` are those of Sauer,
Chitta, Mueller, Geiger 2021, "Projected GANs Converge Faster", arXiv:2111.01007; their conditional form reads a class
embedding in every normalisation. The discriminator is FastGAN's for every variant.

What differs from the releases:

- Noise is a function of the latent, not a new draw at every call, so that a latent always makes the same image. Where
  the collection `noise` has values (`block_0/draw1`, ...), they are taken instead.
- The release shows the discriminator the generator's own image of 128 px beside the large one. Here that image is the
  stage `small`, and the discriminator takes it as `small`; where nobody passes it, the small branch sees the large
  image at 128 px, and `to_small` learns nothing.
- The perceptual reconstruction loss is not here; the discriminator's stages `reconstruction_*` are what it needs.
- 128 px, and class rows in the discriminator of a conditional pair, are this project's.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from gantransfer.errors import UserError
from gantransfer.models import convolution
from gantransfer.models.family import ClassRows, Family, Labels, Networks, Option, Picture, Role, wanted
from gantransfer.models.fastgan_discriminator import CHANNELS as CHANNELS_D
from gantransfer.models.fastgan_discriminator import Discriminator
from gantransfer.models.fastgan_layers import FromLatent, SkipExcitation, gated_half, noise_keys
from gantransfer.models.layers import (
    INITS,
    BatchNorm,
    ClassTable,
    ConditionalBatchNorm,
    Conv,
    NormRule,
    Recipe,
    SpectralNorm,
)
from gantransfer.models.options import complete

RESOLUTIONS = (128, 256, 512, 1024)
VARIANTS = ("official", "projected", "projected_lite")
# Channels of the generator's maps by side, in multiples of the width.
CHANNELS: dict[int, float] = {4: 16, 8: 8, 16: 4, 32: 2, 64: 2, 128: 1, 256: 0.5, 512: 0.25, 1024: 0.125}
# The release's blocks with two convolutions, by the size they make.
DOUBLE = (8, 32, 128, 512)


class GeneratorBlock(nn.Module):
    """Doubles the size: one or two convolutions, each with noise where there is any, normalised and gated.

    Attributes:
      convolutions: 1 or 2.
      noise: None for no noise; else whether both convolutions share one strength.
      conditional: whether normalisation reads a class embedding.
    """

    features: int
    convolutions: int
    noise: bool | None
    conditional: bool
    recipe: Recipe

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w i"], embedded: Float[Array, "n e"] | None, keys: Array, train: bool
    ) -> Float[Array, "n h2 w2 o"]:
        strengths = {}
        for j in range(1, self.convolutions + 1):
            operation = convolution.upsample_conv3x3 if j == 1 else convolution.conv3x3
            x = Conv(2 * self.features, 3, operation, self.recipe, use_bias=False, name=f"conv{j}")(x)
            if self.noise is not None:
                name = "noise" if self.noise else f"noise{j}"
                if name not in strengths:
                    strengths[name] = self.param(name, nn.initializers.zeros, (1,))
                x = x + (strengths[name] * self._draw(j, x, keys)).astype(x.dtype)
            if self.conditional:
                norm = ConditionalBatchNorm(NormRule(), self.recipe, use_bias=True, name=f"bn{j}")
                x = norm(x, embedded, train)
            else:
                x = BatchNorm(NormRule(), self.recipe, name=f"bn{j}")(x, train)
            x = gated_half(x)
        return x

    def _draw(self, number: int, x: Array, keys: Array) -> Float[Array, "n h w 1"]:
        if self.has_variable("noise", f"draw{number}"):
            return self.get_variable("noise", f"draw{number}")
        shape = (x.shape[1], x.shape[2], 1)
        return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 2 * x.shape[1] + number), shape))(keys)


class Generator(nn.Module):
    """Latents `(n, z_dim)` to images, in [-1, 1] but for the overshoot of a last layer without tanh.

    Stages are `b8`, `b16`, ... (scaled where they are) and, of the official variant, `small`: its image of 128 px.

    Attributes:
      output_width: outputs of the layers that make images, of which the first `channels` are the image.
      image_scale: factor on the normalised kernels of these layers.
    """

    variant: str
    resolution: int
    channels: int
    width: int
    num_classes: int
    conditional: bool
    recipe: Recipe
    output_width: int
    image_scale: float

    @nn.compact
    def __call__(self, z: Float[Array, "n z"], c: Labels, train: bool = False, want: tuple[str, ...] = ()) -> Picture:
        official, keys = self.variant == "official", noise_keys(z)
        embedded = None
        if self.conditional:
            embedded = ClassTable(self.num_classes, z.shape[1], self.recipe, name="embed")(c)
        if not official:
            z = z * lax.rsqrt((z * z).mean(1, keepdims=True) + 1e-8)
        x = FromLatent(2 * self._channels(4), self.recipe, name="init")(z)
        x = gated_half(BatchNorm(NormRule(), self.recipe, name="init_bn")(x, train))
        maps, stages = {4: x}, {}
        for i, side in enumerate(8 << i for i in range(self.resolution.bit_length() - 3)):
            double = self.variant == "projected" or (official and side in DOUBLE)
            noise = self.conditional if double else None
            block = GeneratorBlock(
                self._channels(side), 1 + double, noise, self.conditional, self.recipe, name=f"block_{i}"
            )
            x = block(x, embedded, keys, train)
            # 64 px is scaled by what the map of 4 px holds, 128 by 8, 256 by 16, 512 by 32.
            if 64 <= side <= 512:
                x = SkipExcitation(self.recipe, name=f"gate_{i}")(maps[side // 16], x)
            maps[side] = x
            stages[f"b{side}"] = x
        used = self.channels if self.channels < self.output_width else None
        to_image = partial(Conv, self.output_width, recipe=self.recipe, scale=self.image_scale, used=used)
        last = to_image(3, convolution.conv3x3, use_bias=not official, name="to_big")(x)
        images = last.astype(jnp.float32)
        if official:
            small = to_image(1, convolution.conv1x1, use_bias=False, name="to_small")(maps[128])
            stages["small"] = small.astype(jnp.float32)
            # The release applies tanh at this size alone.
            if self.resolution == 1024:
                images, stages["small"] = jnp.tanh(images), jnp.tanh(stages["small"])
        return Picture(images, wanted(stages, want))

    def _channels(self, side: int) -> int:
        return int(CHANNELS[side] * self.width)


# What the family declares.

OPTIONS: dict[str, Option] = {
    "resolution": Option(256, RESOLUTIONS, "side of the images, in pixels"),
    "channels": Option(3, int, "colour channels of the images"),
    "num_classes": Option(1, int, "number of classes; without `conditional` labels are ignored"),
    "variant": Option("official", VARIANTS, "whose generator: FastGAN's, or one of Projected GAN's"),
    "conditional": Option(False, bool, "a class embedding in every block; projected variants only"),
    "width": Option(64, int, "channels of the generator's map at 128 px; Projected GAN takes 128"),
    "width_d": Option(64, int, "width unit of the discriminator, in channels"),
    "decoder_width": Option(32, int, "width unit of the discriminator's decoders, in channels"),
    "z_dim": Option(256, int, "length of the latent"),
    "output_width": Option(0, int, "outputs of the generator's layers that make images; 0 for the colour channels"),
    "image_scale_g": Option(1.0, float, "factor on the kernels of these layers, after their normalisation"),
    "image_scale_d": Option(1.0, float, "factor on the kernel of the large branch that sees the image, likewise"),
    "small_scale_d": Option(1.0, float, "factor on the kernel of the small branch that sees the image, likewise"),
    "init": Option("N02", INITS, "distribution of fresh weights"),
    "convolution": Option(
        "rewritten", convolution.FORMS, "form in which convolutions are computed; both give equal numbers"
    ),
    "dtype": Option(
        "float32", ("float32", "bfloat16"), "precision of convolutions and products; parameters stay float32"
    ),
}


def build(**options: Any) -> Networks:
    """Makes both networks; see `OPTIONS` for the settings and `family.Networks` for what comes back."""
    o = complete(OPTIONS, options, ("output_width",))
    if o["output_width"] and o["output_width"] < o["channels"]:
        raise UserError("model.output_width", o["output_width"], f"0, or at least the {o['channels']} colour channels")
    if o["conditional"] and o["variant"] == "official":
        raise UserError("model.conditional", True, "False with model.variant=official, which has no classes")
    _check_width("width", o["width"], CHANNELS[o["resolution"]])
    _check_width("width_d", o["width_d"], CHANNELS_D[1024 if o["resolution"] == 1024 else 512])
    recipe = Recipe(SpectralNorm(stored=True), o["init"], o["dtype"], o["convolution"])
    classes = bool(o["conditional"])
    return Networks(
        generator=Generator(
            variant=o["variant"],
            resolution=o["resolution"],
            channels=o["channels"],
            width=o["width"],
            num_classes=o["num_classes"],
            conditional=classes,
            recipe=recipe,
            output_width=o["output_width"] or o["channels"],
            image_scale=o["image_scale_g"],
        ),
        discriminator=Discriminator(
            width=o["width_d"],
            decoder_width=o["decoder_width"],
            num_classes=o["num_classes"],
            projection=classes,
            recipe=recipe,
            image_scales=(o["image_scale_d"], o["small_scale_d"]),
        ),
        z_dim=o["z_dim"],
        resolution=o["resolution"],
        channels=o["channels"],
        num_classes=o["num_classes"],
        group=lambda role, path: _group(role, path, o),
        block=lambda role, path: _block(path),
        class_rows={
            "generator": (ClassRows("embed/embedding", 0),) if classes else (),
            "discriminator": (ClassRows("embed/embedding", 0),) if classes else (),
        },
        joint_pass=False,
    )


def _check_width(name: str, width: int, share: float) -> None:
    if width * share < 1:
        raise UserError(f"model.{name}", width, f"at least {round(1 / share)}, one channel at the largest size")


def _block(path: str) -> int | None:
    kind, _, number = path.split("/")[0].rpartition("_")
    return int(number) if kind in ("block", "gate", "small") else None


_GROUPS = {
    "embed": {"generator": "class_embedding", "discriminator": "projection"},
    "init": {"generator": "linear"},
    "init_bn": {"generator": "norm"},
    "to_big": {"generator": "output"},
    "to_small": {"generator": "output"},
    "head_big": {"discriminator": "head"},
    "head_small": {"discriminator": "head"},
}


def _group(role: Role, path: str, o: Mapping[str, Any]) -> str:
    top, *rest = path.split("/")
    number = _block(path)
    if any(part.startswith("bn") for part in rest):
        return "conditional_norm" if role == "generator" and o["conditional"] else "norm"
    if top.startswith("decoder_"):
        return "reconstruction"
    if number is None:
        return _GROUPS[top][role]
    if role == "generator":
        return f"blocks.{8 << number}"
    if top.startswith("small_"):
        return f"blocks.{128 >> number}"
    return f"blocks.{_given(o['resolution'], number)}"


def _given(resolution: int, number: int) -> int:
    """Side of what a block of the discriminator's large branch is given."""
    return resolution if number == 0 else min(resolution, 256) >> (number - 1)


FAMILY = Family("fastgan", OPTIONS, build, "Liu et al. 2021, arXiv:2101.04775")
