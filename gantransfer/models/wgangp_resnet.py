"""The residual networks of WGAN-GP, with which Transferring GANs finetuned first: 64 px, four blocks a side.

Papers: Gulrajani et al. 2017, "Improved Training of Wasserstein GANs", arXiv:1704.00028, the 64 px ResNet; Wang et al.
2018, "Transferring GANs: generating images from limited data", arXiv:1805.01677, which adds class-conditional gains in
the generator (`conditional`) and a class head on the discriminator (`class_head`, Odena et al. 2017, arXiv:1610.09585).

The original normalises by the batch's statistics in evaluation too, so that an image depends on its batch
(`statistics_g="batch"`); by default evaluation reads running statistics, which the original never updates.

What differs from the original: arrays are NHWC, equal rewrites of convolutions (see `convolution`), and sizes other
than 32 and 64 px are possible.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from gantransfer.models import convolution
from gantransfer.models.family import ClassRows, Family, Judgement, Labels, Networks, Option, Picture, Role, wanted
from gantransfer.models.layers import (
    BatchNorm,
    Conv,
    Dense,
    NormRule,
    Recipe,
    batch_moments,
    class_vector,
    scale_shift,
    settled,
)
from gantransfer.models.options import complete

# Widths in multiples of the width option: into each generator block and out of the last; out of the discriminator's
# first convolution and of each block.
GENERATOR, DISCRIMINATOR = (8, 8, 4, 2, 1), (1, 2, 4, 8, 8)
NORMS = ("bn1", "bn2")


@dataclass(frozen=True)
class UniformRecipe(Recipe):
    """Fresh kernels are uniform with variance `spread / ((fan_in + fan_out) / 2)`, biases zero: 1 is Glorot's rule."""

    spread: float = 1.0

    def kernel_init(self, gain: float = 1.0) -> Callable[..., Array]:
        """The initializer of kernels; `gain` is for other inits."""
        return nn.initializers.variance_scaling(self.spread, "fan_avg", "uniform")

    def bias_init(self, fan_in: int) -> Callable[..., Array]:
        """The initializer of biases."""
        return nn.initializers.zeros


class ClassNorm(nn.Module):
    """Batch normalisation whose gain and bias are rows of tables: gains of 1 and biases of 0 at first."""

    num_classes: int
    rule: NormRule
    recipe: Recipe

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], c: Labels, train: bool) -> Float[Array, "n h w c"]:
        shape = (self.num_classes, x.shape[-1])
        gain, bias = self.param("gain", nn.initializers.ones, shape), self.param("bias", nn.initializers.zeros, shape)
        mean, variance = batch_moments(self, x, self.rule, train)
        gain, bias = class_vector(gain, c), class_vector(bias, c)
        return scale_shift(x, mean, variance, self.rule.eps, gain, bias, self.recipe.dtype)


class LayerNorm(nn.Module):
    """Normalisation of each sample over positions and channels, with a gain and a bias per channel."""

    eps: float
    recipe: Recipe

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        gain = self.param("gain", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        x = x.astype(jnp.float32)
        mean = x.mean((1, 2, 3), keepdims=True)
        variance = jnp.square(x - mean).mean((1, 2, 3))[:, None]
        return scale_shift(x, mean[:, 0, 0], variance, self.eps, gain, bias, self.recipe.dtype)


class GeneratorBlock(nn.Module):
    """A residual block that doubles the size; `num_classes` is None where gains are not conditional."""

    features: int
    num_classes: int | None
    norm: NormRule
    recipe: UniformRecipe

    @nn.compact
    def __call__(self, x: Float[Array, "n h w i"], c: Labels, train: bool) -> Float[Array, "n h2 w2 o"]:
        r = nn.relu(normalise("bn1", x, c, train, self.num_classes, self.norm, self.recipe))
        r = Conv(self.features, 3, convolution.upsample_conv3x3, self.recipe, use_bias=False, name="conv1")(r)
        r = nn.relu(normalise("bn2", r, c, train, self.num_classes, self.norm, self.recipe))
        r = Conv(self.features, 3, convolution.conv3x3, self.recipe, name="conv2")(r)
        return r + Conv(self.features, 1, convolution.upsample_conv1x1, glorot(self.recipe), name="conv_sc")(x)


def normalise(
    name: str, x: Array, c: Labels, train: bool, num_classes: int | None, norm: NormRule, recipe: Recipe
) -> Array:
    """A generator's normalisation, called inside a module that gets it as the layer `name`."""
    if num_classes is None:
        return BatchNorm(norm, recipe, name=name)(x, train)
    return ClassNorm(num_classes, norm, recipe, name=name)(x, c, train)


def glorot(recipe: UniformRecipe) -> UniformRecipe:
    """The recipe of shortcuts, linear layers and the discriminator's first convolution."""
    return UniformRecipe(recipe.spectral, recipe.init, recipe.dtype, recipe.form)


class Generator(nn.Module):
    """Latents `(n, z_dim)` and labels to images in [-1, 1]; stages `b8`, `b16`, ... are the blocks' outputs.

    Attributes:
      widths: channels into each block and, last, out of the last.
      base: side of the map that the first layer makes.
      num_classes: None where gains are not conditional; labels are ignored then.
      batch_statistics: whether evaluation, too, normalises by the batch.
    """

    widths: tuple[int, ...]
    base: int
    channels: int
    num_classes: int | None
    batch_statistics: bool
    norm: NormRule
    recipe: UniformRecipe

    @nn.compact
    def __call__(self, z: Float[Array, "n z"], c: Labels, train: bool = False, want: tuple[str, ...] = ()) -> Picture:
        live, stages = train or self.batch_statistics, {}
        x = Dense(self.base**2 * self.widths[0], glorot(self.recipe), name="linear")(z)
        x = x.reshape(-1, self.base, self.base, self.widths[0]).astype(self.recipe.dtype)
        for i, features in enumerate(self.widths[1:]):
            x = GeneratorBlock(features, self.num_classes, self.norm, self.recipe, name=f"block_{i}")(x, c, live)
            stages[f"b{x.shape[1]}"] = x
        x = nn.relu(normalise("out_bn", x, c, live, self.num_classes, self.norm, self.recipe))
        x = Conv(self.channels, 3, convolution.conv3x3, self.recipe, name="out_conv")(x)
        return Picture(jnp.tanh(x.astype(jnp.float32)), wanted(stages, want))


class DiscriminatorBlock(nn.Module):
    """A residual block that halves the size."""

    features: int
    eps: float
    recipe: UniformRecipe

    @nn.compact
    def __call__(self, x: Float[Array, "n h w i"]) -> Float[Array, "n h2 w2 o"]:
        r = nn.relu(LayerNorm(self.eps, self.recipe, name="bn1")(x))
        r = Conv(x.shape[-1], 3, convolution.conv3x3, self.recipe, use_bias=False, name="conv1")(r)
        r = nn.relu(LayerNorm(self.eps, self.recipe, name="bn2")(r))
        r = Conv(self.features, 3, convolution.conv3x3_pool, self.recipe, name="conv2")(r)
        return r + Conv(self.features, 1, convolution.conv1x1_pool, glorot(self.recipe), name="conv_sc")(x)


class Discriminator(nn.Module):
    """Images to logits; stages are `pooled` (means over positions) and, by the size a block is given, `b32`, ...

    Labels are ignored: what classes there are, the class head tells.

    Attributes:
      widths: channels out of the first convolution and out of each block.
      eps: added to the variance in layer normalisation.
    """

    widths: tuple[int, ...]
    num_classes: int
    has_class_head: bool
    eps: float
    recipe: UniformRecipe

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], c: Labels, train: bool = False, want: tuple[str, ...] = ()
    ) -> Judgement:
        stages = {}
        x = Conv(self.widths[0], 3, convolution.conv3x3, glorot(self.recipe), name="input_conv")(x)
        for i, features in enumerate(self.widths[1:]):
            size = x.shape[1]
            x = stages[f"b{size}"] = DiscriminatorBlock(features, self.eps, self.recipe, name=f"block_{i}")(x)
        # The heads work in float32 whatever the blocks' precision: losses read them directly.
        x, exact = settled(x).astype(jnp.float32), UniformRecipe()
        stages["pooled"], flat = x.mean((1, 2)), x.reshape(len(x), -1)
        logits = Dense(1, exact, name="head")(flat)[:, 0]
        classes = Dense(self.num_classes, exact, name="class_head")(flat) if self.has_class_head else None
        return Judgement(logits, wanted(stages, want), classes)


# What the family declares.

OPTIONS: dict[str, Option] = {
    "resolution": Option(64, (16, 32, 64, 128), "side of the images, in pixels"),
    "channels": Option(3, int, "colour channels of the images"),
    "num_classes": Option(10, int, "number of classes; 1 for a set without labels"),
    "width": Option(64, int, "width unit of the generator, in channels"),
    "width_d": Option(0, int, "width unit of the discriminator, in channels; 0 takes the generator's"),
    "z_dim": Option(128, int, "length of the latent"),
    "conditional": Option(True, bool, "one gain and bias per class in the generator's normalisations"),
    "class_head": Option(True, bool, "a class head on the discriminator"),
    "statistics_g": Option("running", ("running", "batch"), "what the generator normalises by in evaluation"),
    "norm_eps": Option(1e-5, float, "added to the variance in normalisations"),
    "convolution": Option(
        "rewritten", convolution.FORMS, "form in which convolutions are computed; both give equal numbers"
    ),
    "dtype": Option(
        "float32", ("float32", "bfloat16"), "precision of convolutions and products; parameters stay float32"
    ),
}


def build(**options: Any) -> Networks:
    """Makes both networks; see `OPTIONS` for the settings and `family.Networks` for what comes back."""
    o = complete(OPTIONS, options, ("width_d",))
    # The rule of He et al. for the average of fans, as the original has it for 3x3 kernels of blocks.
    recipe = UniformRecipe(dtype=o["dtype"], form=o["convolution"], spread=2.0)
    generator = Generator(
        widths=tuple(m * o["width"] for m in GENERATOR),
        base=o["resolution"] // 16,
        channels=o["channels"],
        num_classes=o["num_classes"] if o["conditional"] else None,
        batch_statistics=o["statistics_g"] == "batch",
        norm=NormRule(o["norm_eps"]),
        recipe=recipe,
    )
    discriminator = Discriminator(
        widths=tuple(m * (o["width_d"] or o["width"]) for m in DISCRIMINATOR),
        num_classes=o["num_classes"],
        has_class_head=o["class_head"],
        eps=o["norm_eps"],
        recipe=recipe,
    )
    return Networks(
        generator=generator,
        discriminator=discriminator,
        z_dim=o["z_dim"],
        resolution=o["resolution"],
        channels=o["channels"],
        num_classes=o["num_classes"],
        group=lambda role, path: _group(role, path, o),
        block=lambda role, path: _block(path),
        class_rows=_class_rows(o),
        has_class_head=o["class_head"],
    )


def _block(path: str) -> int | None:
    module = path.split("/")[0]
    if module == "input_conv":
        return 0
    return int(module.removeprefix("block_")) if module.startswith("block_") else None


_GROUPS = {"linear": "linear", "out_conv": "output", "head": "head", "class_head": "class_head"}


def _group(role: Role, path: str, o: Mapping[str, Any]) -> str:
    number, parts = _block(path), path.split("/")
    if role == "generator" and parts[-2] in (*NORMS, "out_bn"):
        return "conditional_norm" if o["conditional"] else "norm"
    if number is None:
        return _GROUPS[parts[0]]
    size = (o["resolution"] // 8) << number if role == "generator" else o["resolution"] >> number
    return "norm" if parts[-2] in NORMS else f"blocks.{size}"


def _class_rows(o: Mapping[str, Any]) -> dict[Role, tuple[ClassRows, ...]]:
    rows: dict[Role, tuple[ClassRows, ...]] = {"generator": (), "discriminator": ()}
    if o["conditional"]:
        layers = [f"block_{i}/{norm}" for i in range(len(GENERATOR) - 1) for norm in NORMS]
        leaves = [f"{layer}/{part}" for layer in (*layers, "out_bn") for part in ("gain", "bias")]
        rows["generator"] = tuple(ClassRows(leaf, 0) for leaf in leaves)
    if o["class_head"]:
        rows["discriminator"] = (ClassRows("class_head/kernel", 1), ClassRows("class_head/bias", 0))
    return rows


FAMILY = Family(
    "wgangp_resnet", OPTIONS, build, "Gulrajani et al. 2017, arXiv:1704.00028; Wang et al. 2018, arXiv:1805.01677"
)
