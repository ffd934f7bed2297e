"""BigGAN-deep: bottleneck residual blocks, several per size, 16 to 512 pixels.

Paper: Brock, Donahue, Simonyan 2018, "Large Scale GAN Training for High Fidelity Natural Image Synthesis",
arXiv:1809.11096, appendix B. Two releases are options of this one family: the first author's PyTorch code (generator
and discriminator; the default) and the generators of TF-Hub, which

- put the latent before the class embedding in the condition (`latent_first`),
- keep batch norm statistics in rows, one per truncation, and are called with the truncation (`statistics`),
- divide by singular values of stored vectors (`stored_vectors_g`),
- have a last convolution of which only the first outputs are the picture (`output_width`).

No discriminator of the latter was published: they are finetuned with a fresh one. Training with batch statistics moves
all rows alike, so that afterwards every truncation is normalised by what training saw.

What differs from the releases: arrays are NHWC; equal rewrites of convolutions (see `convolution`); the PyTorch code
runs with a depth other than 2 only where no width changes, and has no 16 and 512 px; 16 px is this project's layout.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from gantransfer.errors import UserError
from gantransfer.models import biggan, convolution
from gantransfer.models.biggan import LAYOUTS, attention_blocks, judge, judge_rows, recipe_of
from gantransfer.models.family import ClassRows, Family, Judgement, Labels, Networks, Option, Picture, Role, wanted
from gantransfer.models.layers import (
    Attention,
    BatchNorm,
    ClassTable,
    ConditionalBatchNorm,
    Conv,
    Dense,
    NormRule,
    Recipe,
    settled,
)
from gantransfer.models.options import complete

Interpolation = Literal["hub_port", "linear"]
# Deviation of fresh class rows of the discriminator, under the init "fan_in" only.
_PROJECTION_STD = 0.125


def rows_at(truncation: float, rows: int, interpolation: Interpolation) -> tuple[tuple[int, float], ...]:
    """Which rows of statistics a truncation reads, as (row, weight); row k is for truncation k / (rows - 1).

    Args:
      truncation: above 0, up to 1; a Python number, since the quotient decides in double precision.
      rows: how many there are.
      interpolation: "linear", or "hub_port" as the PyTorch port of the TF-Hub generators does: with the weights of the
        two neighbours exchanged, and with what rounding of the quotient makes of 0.14, 0.28, 0.56, 0.58 and 0.94.

    Raises:
      UserError: the truncation is out of range.
    """
    if not 0 < truncation <= 1:
        raise UserError("truncation", truncation, "above 0, up to 1")
    place = truncation / (1.0 / (rows - 1)) if rows > 1 else 0.0
    if interpolation == "linear" and abs(place - round(place)) < 1e-6:
        place = float(round(place))
    share, first = math.modf(place)
    if share == 0:
        return ((int(first), 1.0),)
    below, above = (share, 1 - share) if interpolation == "hub_port" else (1 - share, share)
    return ((int(first), below), (int(first) + 1, above))


class GeneratorBlock(nn.Module):
    """A bottleneck block; its shortcut keeps the first channels."""

    features: int
    up: bool
    norm: NormRule
    recipe: Recipe

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w i"], condition: Float[Array, "n e"], train: bool
    ) -> Float[Array, "n h2 w2 o"]:
        hidden, form = x.shape[-1] // 4, self.recipe.form

        def step(r, number, features, size, operation):
            r = nn.relu(ConditionalBatchNorm(self.norm, self.recipe, name=f"bn{number}")(r, condition, train))
            return Conv(features, size, operation, self.recipe, name=f"conv{number}")(r)

        r = step(x, 1, hidden, 1, convolution.conv1x1)
        r = step(r, 2, hidden, 3, convolution.upsample_conv3x3 if self.up else convolution.conv3x3)
        r = step(r, 3, hidden, 3, convolution.conv3x3)
        r = step(r, 4, self.features, 1, convolution.conv1x1)
        kept = x[..., : self.features]
        return r + (convolution.upsample2(kept, form) if self.up else kept)


class Generator(nn.Module):
    """Latents `(n, z_dim)` and labels to images in [-1, 1]; stages `b8`, `b16`, ...: the last block of each size.

    Its call takes `truncation`, read only where statistics have rows: a Python number above 0, up to 1.

    Attributes:
      widths: channels into each stage and, last, out of the last; every stage doubles the size from 4 px.
      depth: blocks per stage; the last one doubles.
      attention: block numbers that attention follows.
      latent_first: whether the condition is [latent, class embedding], not the other way round.
      output_width: outputs of the last convolution, of which the first `channels` are the image.
    """

    widths: tuple[int, ...]
    depth: int
    channels: int
    num_classes: int
    attention: tuple[int, ...]
    shared_dim: int
    latent_first: bool
    output_width: int
    norm: NormRule
    out_norm: NormRule
    interpolation: Interpolation
    recipe: Recipe

    @nn.compact
    def __call__(
        self,
        z: Float[Array, "n z"],
        c: Labels,
        train: bool = False,
        want: tuple[str, ...] = (),
        truncation: float = 1.0,
    ) -> Picture:
        norm, out_norm = (self._at(truncation, rule) for rule in (self.norm, self.out_norm))
        embedded = ClassTable(self.num_classes, self.shared_dim, self.recipe, name="shared")(c)
        condition = jnp.concatenate([z, embedded] if self.latent_first else [embedded, z], axis=1)
        x = Dense(16 * self.widths[0], self.recipe, name="linear")(condition)
        x, stages = x.reshape(-1, 4, 4, self.widths[0]).astype(self.recipe.dtype), {}
        for i in range((len(self.widths) - 1) * self.depth):
            stage, number = divmod(i, self.depth)
            last = number == self.depth - 1
            features = self.widths[stage + 1] if number or last else self.widths[stage]
            x = GeneratorBlock(features, last, norm, self.recipe, name=f"block_{i}")(x, condition, train)
            if i in self.attention:
                x = Attention(self.recipe, name=f"attn_{i}")(x)
            stages[f"b{x.shape[1]}"] = x
        x = nn.relu(BatchNorm(out_norm, self.recipe, name="out_bn")(x, train))
        used = self.channels if self.channels < self.output_width else None
        x = Conv(self.output_width, 3, convolution.conv3x3, self.recipe, used=used, name="out_conv")(x)
        return Picture(jnp.tanh(x.astype(jnp.float32)), wanted(stages, want))

    def _at(self, truncation: float, rule: NormRule) -> NormRule:
        mix = rows_at(truncation, rule.rows, self.interpolation) if rule.rows else ()
        return dataclasses.replace(rule, mix=mix)


class DiscriminatorBlock(nn.Module):
    """A bottleneck block without normalisation; its shortcut keeps all channels and adds the missing ones."""

    features: int
    pool: bool
    recipe: Recipe

    @nn.compact
    def __call__(self, x: Float[Array, "n h w i"]) -> Float[Array, "n h2 w2 o"]:
        hidden, form = self.features // 4, self.recipe.form

        def conv(features, size, name):
            operation = convolution.conv1x1 if size == 1 else convolution.conv3x3
            return Conv(features, size, operation, self.recipe, name=name)

        r = conv(hidden, 1, "conv1")(nn.relu(x))
        r = conv(hidden, 3, "conv2")(nn.relu(r))
        r = nn.relu(conv(hidden, 3, "conv3")(nn.relu(r)))
        if self.pool:
            r, x = convolution.mean_pool2(r, form), convolution.mean_pool2(x, form)
        r = conv(self.features, 1, "conv4")(r)
        if missing := self.features - x.shape[-1]:
            x = jnp.concatenate([x, conv(missing, 1, "conv_sc")(x)], axis=-1)
        return r + x


class Discriminator(nn.Module):
    """Images and labels to logits; stages are `pooled` and, by the size a block is given, `b32`, `b16`, ...

    Attributes:
      widths: channels out of the first convolution and out of each stage.
      depth: blocks per stage; the first one pools.
      pooled: how many stages, from the first, halve the size.
      attention: block numbers that attention follows.
      image_scale: factor on the normalised kernel that sees the image.
    """

    widths: tuple[int, ...]
    depth: int
    num_classes: int
    pooled: int
    attention: tuple[int, ...]
    recipe: Recipe
    has_class_head: bool
    image_scale: float = 1.0

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], c: Labels, train: bool = False, want: tuple[str, ...] = ()
    ) -> Judgement:
        scale, stages = self.image_scale, {}
        x = Conv(self.widths[0], 3, convolution.conv3x3, self.recipe, scale=scale, name="input_conv")(x)
        for i in range((len(self.widths) - 1) * self.depth):
            stage, number = divmod(i, self.depth)
            size, pool = x.shape[1], number == 0 and stage < self.pooled
            x = DiscriminatorBlock(self.widths[stage + 1], pool, self.recipe, name=f"block_{i}")(x)
            if i in self.attention:
                x = Attention(self.recipe, name=f"attn_{i}")(x)
            stages[f"b{size}"] = x
        features = stages["pooled"] = nn.relu(settled(x).astype(jnp.float32)).sum((1, 2))
        scale = 1.0 if self.has_class_head else None
        logits, classes = judge(self, features, c, self.recipe, _PROJECTION_STD, self.num_classes, scale)
        return Judgement(logits, wanted(stages, want), classes)


# What the family declares.

_SAME_AS_BIGGAN = (
    "resolution",
    "channels",
    "num_classes",
    "width",
    "width_d",
    "z_dim",
    "shared_dim",
    "attention_g",
    "attention_d",
    "spectral_g",
    "spectral_d",
    "num_svs_g",
    "num_svs_d",
    "power_iterations_g",
    "power_iterations_d",
    "spectral_eps",
    "norm_eps",
    "out_norm_eps",
    "running_variance",
    "init",
    "class_head",
    "image_scale_d",
    "convolution",
    "dtype",
)
OPTIONS: dict[str, Option] = {name: biggan.OPTIONS[name] for name in _SAME_AS_BIGGAN} | {
    "z_dim": Option(128, int, "length of the latent, which every block reads as a whole"),
    "depth_g": Option(2, int, "generator blocks per size"),
    "depth_d": Option(2, int, "discriminator blocks per size"),
    "latent_first": Option(False, bool, "the condition is [latent, class embedding], not the other way round"),
    "statistics": Option(0, int, "rows of batch norm statistics, one per truncation; 0 for statistics without rows"),
    "interpolation": Option(
        "hub_port", ("hub_port", "linear"), "between rows of statistics: as the PyTorch port does, or linear"
    ),
    "stored_vectors_g": Option(False, bool, "the generator's singular values in evaluation are of stored vectors"),
    "output_width": Option(0, int, "outputs of the generator's last convolution; 0 for the colour channels"),
}


def build(**options: Any) -> Networks:
    """Makes both networks; see `OPTIONS` for the settings and `family.Networks` for what comes back."""
    o = _checked(options)
    layout, depths = LAYOUTS[o["resolution"]], {"generator": o["depth_g"], "discriminator": o["depth_d"]}
    sizes = {role: _sizes(role, o["resolution"], depth) for role, depth in depths.items()}
    return Networks(
        generator=_generator(o, layout),
        discriminator=_discriminator(o, layout),
        z_dim=o["z_dim"],
        resolution=o["resolution"],
        channels=o["channels"],
        num_classes=o["num_classes"],
        group=lambda role, path: _group(role, path, sizes[role]),
        block=lambda role, path: _block(path),
        class_rows={"generator": (ClassRows("shared/embedding", 0),), "discriminator": judge_rows(o)},
        joint_pass=o["spectral_d"],
        has_class_head=o["class_head"],
        truncation="both" if o["statistics"] else "latents",
    )


def _checked(options: Mapping[str, Any]) -> dict[str, Any]:
    """All options with their values, or a `UserError` that names the one that is wrong."""
    o = complete(OPTIONS, options, ("width_d", "shared_dim", "statistics", "output_width"))
    if o["output_width"] and o["output_width"] < o["channels"]:
        raise UserError("model.output_width", o["output_width"], f"0, or at least the {o['channels']} colour channels")
    if o["stored_vectors_g"] and not (o["spectral_g"] and o["num_svs_g"] == 1):
        raise UserError("model.stored_vectors_g", True, "False unless one singular value is followed in the generator")
    return o


def _widths(name: str, unit: int, multiples: tuple[int, ...], hidden_of: slice) -> tuple[int, ...]:
    """Widths of stages; a quarter of those in `hidden_of` is the width inside blocks."""
    smallest = min(multiples[hidden_of])
    if unit * smallest < 4:
        raise UserError(f"model.{name}", unit, f"at least {-(-4 // smallest)}, so that bottlenecks have a channel")
    return tuple(unit * multiple for multiple in multiples)


def _generator(o: Mapping[str, Any], layout: biggan.Layout) -> Generator:
    widths, depth = _widths("width", o["width"], layout.generator, slice(None, -1)), o["depth_g"]
    recipe = recipe_of(o, "g")
    if o["stored_vectors_g"]:
        recipe = dataclasses.replace(recipe, spectral=dataclasses.replace(recipe.spectral, stored=True))
    sizes = tuple(8 << stage for stage in range(len(widths) - 1))
    rule = NormRule(o["norm_eps"], running_variance=o["running_variance"], rows=o["statistics"])
    return Generator(
        widths=widths,
        depth=depth,
        channels=o["channels"],
        num_classes=o["num_classes"],
        attention=_after(attention_blocks("attention_g", o, sizes, widths[1:]), depth),
        shared_dim=o["shared_dim"] or o["z_dim"],
        latent_first=o["latent_first"],
        output_width=o["output_width"] or o["channels"],
        norm=rule,
        out_norm=dataclasses.replace(rule, eps=o["out_norm_eps"]),
        interpolation=o["interpolation"],
        recipe=recipe,
    )


def _discriminator(o: Mapping[str, Any], layout: biggan.Layout) -> Discriminator:
    widths = _widths("width_d", o["width_d"] or o["width"], layout.discriminator, slice(1, None))
    labels = layout.labels[: len(widths) - 1]
    return Discriminator(
        widths=widths,
        depth=o["depth_d"],
        num_classes=o["num_classes"],
        pooled=layout.pooled,
        attention=_after(attention_blocks("attention_d", o, labels, widths[1:]), o["depth_d"]),
        recipe=recipe_of(o, "d"),
        has_class_head=o["class_head"],
        image_scale=o["image_scale_d"],
    )


def _after(stages: tuple[int, ...], depth: int) -> tuple[int, ...]:
    """Numbers of the last blocks of stages."""
    return tuple((stage + 1) * depth - 1 for stage in stages)


def _sizes(role: Role, resolution: int, depth: int) -> tuple[int, ...]:
    """Per block, the size that a generator's makes or a discriminator's is given."""
    layout = LAYOUTS[resolution]
    if role == "generator":
        stages = range(len(layout.generator) - 1)
        return tuple(8 << s if k == depth - 1 else 4 << s for s in stages for k in range(depth))
    stages = range(len(layout.discriminator) - 1)
    return tuple(resolution >> min(s + (k > 0), layout.pooled) for s in stages for k in range(depth))


def _block(path: str) -> int | None:
    module = path.split("/")[0]
    kind, _, number = module.rpartition("_")
    if module == "input_conv":
        return 0
    return int(number) if kind in ("block", "attn") else None


_GROUPS = {
    "generator": {"shared": "class_embedding", "linear": "linear", "out_bn": "norm", "out_conv": "output"},
    "discriminator": {"head": "head", "embed": "projection", "class_head": "class_head"},
}


def _group(role: Role, path: str, sizes: tuple[int, ...]) -> str:
    number, parts = _block(path), path.split("/")
    if number is None:
        return _GROUPS[role][parts[0]]
    return "conditional_norm" if parts[1].startswith("bn") else f"blocks.{sizes[number]}"


FAMILY = Family("biggan_deep", OPTIONS, build, "Brock et al. 2018, arXiv:1809.11096, appendix B")
