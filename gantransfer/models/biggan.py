"""BigGAN: class-conditional residual generator and projection discriminator, 16 to 512 pixels.

Paper: Brock, Donahue, Simonyan 2018, "Large Scale GAN Training for High Fidelity Natural Image Synthesis",
arXiv:1809.11096. The layouts are those of the first author's PyTorch release (with its published checkpoints, SAGAN and
SN-GAN as settings); its code has no discriminator at 512 px, for which StudioGAN's is taken. The 16 px layout is this
project's.

What differs from the release: arrays are NHWC, so the first linear layer makes `(4, 4, channels)` in this order; equal
rewrites of convolutions (see `convolution`); spectral normalisation of the discriminator can be switched off, and a
class head and a scale of the pooled features can be added.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from gantransfer.errors import UserError
from gantransfer.models import convolution
from gantransfer.models.family import ClassRows, Family, Judgement, Labels, Networks, Option, Picture, Role, wanted
from gantransfer.models.layers import (
    INITS,
    Attention,
    BatchNorm,
    ClassTable,
    ConditionalBatchNorm,
    Conv,
    Dense,
    NormRule,
    Recipe,
    SpectralNorm,
    settled,
)
from gantransfer.models.options import complete


@dataclass(frozen=True)
class Layout:
    """Widths of the blocks at one resolution, in multiples of the width option.

    Attributes:
      generator: input of each generator block and, last, the output of the last; every block doubles the size from 4
        px.
      discriminator: output of each discriminator block; the first block sees the image.
      pooled: how many discriminator blocks, from the first, halve the size.
      labels: per discriminator block, the size by which attention settings name it.
    """

    generator: tuple[int, ...]
    discriminator: tuple[int, ...]
    pooled: int
    labels: tuple[int, ...]


LAYOUTS: dict[int, Layout] = {
    16: Layout((4, 2, 1), (1, 2, 4), 2, (8, 4, 4)),
    # The release names all four blocks of its 32 px discriminator "16", though three of them make 8x8 features.
    32: Layout((4, 4, 4, 4), (4, 4, 4, 4), 2, (16, 16, 16, 16)),
    64: Layout((16, 16, 8, 4, 2), (1, 2, 4, 8, 16), 4, (32, 16, 8, 4, 4)),
    128: Layout((16, 16, 8, 4, 2, 1), (1, 2, 4, 8, 16, 16), 5, (64, 32, 16, 8, 4, 4)),
    256: Layout((16, 16, 8, 8, 4, 2, 1), (1, 2, 4, 8, 8, 16, 16), 6, (128, 64, 32, 16, 8, 4, 4)),
    512: Layout((16, 16, 8, 8, 4, 2, 1, 1), (1, 1, 2, 4, 8, 8, 16, 16), 7, (256, 128, 64, 32, 16, 8, 4, 4)),
}


# StudioGAN's big_resnet (Kang, Shim, Park 2021, arXiv:2111.01118) where it differs. There attention is named by the
# block that it follows; a size here stands for the blocks that make it.
STUDIOGAN_LAYOUTS: dict[int, Layout] = LAYOUTS | {
    32: Layout((4, 4, 4, 4), (2, 2, 2, 2), 2, (16, 8, 8, 8)),
    64: Layout((16, 8, 4, 2, 1), (1, 2, 4, 8, 16), 4, (32, 16, 8, 4, 4)),
}


class GeneratorBlock(nn.Module):
    """A residual block that doubles the size; its shortcut has a convolution even where the width stays."""

    features: int
    norm: NormRule
    recipe: Recipe
    num_classes: int | None
    condition_std: float

    @nn.compact
    def __call__(self, x: Float[Array, "n h w i"], condition: Array, train: bool) -> Float[Array, "n h2 w2 o"]:
        def norm(name):
            return ConditionalBatchNorm(self.norm, self.recipe, self.num_classes, self.condition_std, name=name)

        def conv(size, operation, name):
            return Conv(self.features, size, operation, self.recipe, name=name)

        r = nn.relu(norm("bn1")(x, condition, train))
        r = conv(3, convolution.upsample_conv3x3, "conv1")(r)
        r = nn.relu(norm("bn2")(r, condition, train))
        r = conv(3, convolution.conv3x3, "conv2")(r)
        return r + conv(1, convolution.upsample_conv1x1, "conv_sc")(x)


class Generator(nn.Module):
    """Latents `(n, z_dim)` and labels to images in [-1, 1]; stages `b8`, `b16`, ... are the blocks' outputs.

    Attributes:
      widths: channels into each block and, last, out of the last.
      attention: block numbers that attention follows.
      chunks: length of the part of z that each block reads, or 0 where the first layer reads all of it.
      shared_dim: length of the shared class embedding, or 0 for a table in every normalisation.
    """

    widths: tuple[int, ...]
    channels: int
    num_classes: int
    attention: tuple[int, ...]
    chunks: int
    shared_dim: int
    norm: NormRule
    out_norm: NormRule
    recipe: Recipe
    embedding_std: float
    condition_std: float

    @nn.compact
    def __call__(self, z: Float[Array, "n z"], c: Labels, train: bool = False, want: tuple[str, ...] = ()) -> Picture:
        blocks = len(self.widths) - 1
        parts = jnp.split(z, blocks + 1, axis=1) if self.chunks else [z] + [z[:, :0]] * blocks
        condition = c
        if self.shared_dim:
            condition = ClassTable(self.num_classes, self.shared_dim, self.recipe, self.embedding_std, name="shared")(c)
        x = Dense(16 * self.widths[0], self.recipe, name="linear")(parts[0])
        x = x.reshape(-1, 4, 4, self.widths[0]).astype(self.recipe.dtype)
        stages = {}
        for i, features in enumerate(self.widths[1:]):
            per_class = None if self.shared_dim else self.num_classes
            block = GeneratorBlock(features, self.norm, self.recipe, per_class, self.condition_std, name=f"block_{i}")
            given = jnp.concatenate([condition, parts[i + 1]], axis=1) if self.shared_dim else condition
            x = block(x, given, train)
            if i in self.attention:
                x = Attention(self.recipe, name=f"attn_{i}")(x)
            stages[f"b{x.shape[1]}"] = x
        x = nn.relu(BatchNorm(self.out_norm, self.recipe, name="out_bn")(x, train))
        x = Conv(self.channels, 3, convolution.conv3x3, self.recipe, name="out_conv")(x)
        return Picture(jnp.tanh(x.astype(jnp.float32)), wanted(stages, want))


class DiscriminatorBlock(nn.Module):
    """A residual block without normalisation.

    Attributes:
      hidden: channels between the two convolutions.
      first: whether it sees the image, which is not rectified and pooled before its shortcut's convolution.
      pool: whether it halves the size.
      rectified_shortcut: whether the shortcut, too, reads what is rectified.
      scales: factors on the normalised kernels of the first convolution and of the shortcut's.
    """

    features: int
    hidden: int
    first: bool
    pool: bool
    recipe: Recipe
    rectified_shortcut: bool = False
    scales: tuple[float, float] = (1.0, 1.0)

    @nn.compact
    def __call__(self, x: Float[Array, "n h w i"]) -> Float[Array, "n h2 w2 o"]:
        def conv(features, size, operation, name):
            scale = {"conv1": self.scales[0], "conv_sc": self.scales[1]}.get(name, 1.0)
            return Conv(features, size, operation, self.recipe, scale=scale, name=name)

        r = x if self.first else nn.relu(x)
        if self.rectified_shortcut:
            x = r
        r = nn.relu(conv(self.hidden, 3, convolution.conv3x3, "conv1")(r))
        last = convolution.conv3x3_pool if self.pool else convolution.conv3x3
        r = conv(self.features, 3, last, "conv2")(r)
        if not self.pool and x.shape[-1] == self.features:
            return r + x
        if self.pool and self.first:
            x = convolution.mean_pool2(x.astype(self.recipe.dtype), self.recipe.form)
        commuting = self.pool and not self.first
        return r + conv(self.features, 1, convolution.conv1x1_pool if commuting else convolution.conv1x1, "conv_sc")(x)


class Discriminator(nn.Module):
    """Images and labels to logits; stages are `pooled` and, by the size a block is given, `b32`, `b16`, ...

    Where several blocks are given one size, the stage of this name is the output of the last.

    Attributes:
      widths: channels out of each block.
      pooled: how many blocks, from the first, halve the size.
      attention: block numbers that attention follows.
      thin: hidden channels of a block are those it is given (SN-GAN), not those it makes.
      rectified_shortcut: shortcuts read what is rectified, as where the activation works in place (StudioGAN).
      image_scales: factors on the two normalised kernels that see the image.
    """

    widths: tuple[int, ...]
    num_classes: int
    pooled: int
    attention: tuple[int, ...]
    thin: bool
    recipe: Recipe
    pool_scale: float
    projection_std: float
    has_class_head: bool
    class_head_scale: float
    rectified_shortcut: bool = False
    image_scales: tuple[float, float] = (1.0, 1.0)

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], c: Labels, train: bool = False, want: tuple[str, ...] = ()
    ) -> Judgement:
        stages = {}
        for i, features in enumerate(self.widths):
            size, hidden = x.shape[1], x.shape[-1] if self.thin else features
            place, scales = (i == 0, i < self.pooled), self.image_scales if i == 0 else (1.0, 1.0)
            x = DiscriminatorBlock(
                features, hidden, *place, self.recipe, self.rectified_shortcut, scales, name=f"block_{i}"
            )(x)
            if i in self.attention:
                x = Attention(self.recipe, name=f"attn_{i}")(x)
            stages[f"b{size}"] = x
        features = stages["pooled"] = self.pool_scale * nn.relu(settled(x).astype(jnp.float32)).sum((1, 2))
        scale = self.class_head_scale if self.has_class_head else None
        logits, classes = judge(self, features, c, self.recipe, self.projection_std, self.num_classes, scale)
        return Judgement(logits, wanted(stages, want), classes)


def judge(
    module: nn.Module,
    features: Float[Array, "n c"],
    c: Labels,
    recipe: Recipe,
    projection_std: float,
    num_classes: int,
    class_head_scale: float | None,
) -> tuple[Float[Array, " n"], Float[Array, "n k"] | None]:
    """Logits from pooled features, and class logits: a linear layer, a projection on class rows, a class head.

    Called inside a discriminator `module`, which gets the layers `head`, `embed` and `class_head`; the last only with a
    scale of what it reads. They work in float32 whatever the blocks' precision: they are small, and losses read them
    directly.
    """
    exact = Recipe(recipe.spectral, recipe.init)
    table = ClassTable(num_classes, features.shape[1], exact, projection_std, recipe.spectral, name="embed")
    projection = (table(c) * features).sum(1)
    if recipe.spectral is not None:
        projection = module.variable("constants", "projection_scale", jnp.ones, ()).value * projection
    logits = Dense(1, exact, name="head")(features)[:, 0] + projection
    if class_head_scale is None:
        return logits, None
    return logits, Dense(num_classes, exact, name="class_head")(class_head_scale * features)


# What the family declares.

OPTIONS: dict[str, Option] = {
    "resolution": Option(32, tuple(LAYOUTS), "side of the images, in pixels"),
    "channels": Option(3, int, "colour channels of the images"),
    "num_classes": Option(10, int, "number of classes; 1 for a set without labels"),
    "width": Option(64, int, "width unit of the generator, in channels"),
    "width_d": Option(0, int, "width unit of the discriminator, in channels; 0 takes the generator's"),
    "z_dim": Option(128, int, "length of the latent; hierarchical latents round it down to a multiple of blocks + 1"),
    "shared_dim": Option(0, int, "length of the shared class embedding; 0 takes z_dim"),
    "shared": Option(True, bool, "one class embedding for all layers, instead of a table in every normalisation"),
    "hierarchical": Option(True, bool, "every block reads its own part of the latent; needs `shared`"),
    "attention_g": Option("0", str, "sizes after which the generator attends, joined with '_'; '0' for none"),
    "attention_d": Option("0", str, "sizes after which the discriminator attends, joined with '_'; '0' for none"),
    "spectral_g": Option(True, bool, "spectral normalisation of the generator"),
    "spectral_d": Option(True, bool, "spectral normalisation of the discriminator"),
    "num_svs_g": Option(1, int, "singular values followed per weight of the generator"),
    "num_svs_d": Option(1, int, "singular values followed per weight of the discriminator"),
    "power_iterations_g": Option(1, int, "power iterations per training pass of the generator"),
    "power_iterations_d": Option(1, int, "power iterations per training pass of the discriminator"),
    "spectral_eps": Option(1e-6, float, "lower bound of the norms in power iterations"),
    "norm_eps": Option(1e-5, float, "added to the variance in conditional batch norm"),
    "out_norm_eps": Option(1e-5, float, "added to the variance in the generator's last batch norm"),
    "running_variance": Option(
        "unbiased", ("unbiased", "biased"), "which variance of a batch the running value follows"
    ),
    "init": Option("orthogonal", INITS, "distribution of fresh weights"),
    "embedding_std": Option(1.0, float, "deviation of fresh class embeddings; init fan_in only"),
    "condition_std": Option(
        0.5, float, "deviation of fresh conditional gains and biases over 1/sqrt(fan_in); init fan_in only"
    ),
    "projection_std": Option(0.125, float, "deviation of the discriminator's fresh class rows; init fan_in only"),
    "plan": Option("release", ("release", "studiogan"), "whose widths of blocks: the release's, or StudioGAN's"),
    "stored_vectors": Option(False, bool, "singular values in evaluation are those of stored vectors, as in StudioGAN"),
    "rectified_shortcut": Option(False, bool, "the discriminator's shortcuts read what is rectified, as in StudioGAN"),
    "image_scale_d": Option(1.0, float, "factor on the discriminator's first convolution, after its normalisation"),
    "shortcut_scale_d": Option(1.0, float, "factor on the shortcut's convolution beside it, after its normalisation"),
    "thin_d": Option(False, bool, "hidden width of discriminator blocks is their input's (SN-GAN)"),
    "class_head": Option(False, bool, "a class head on the discriminator"),
    "class_head_scale": Option(1.0, float, "factor on what the class head reads"),
    "pool_scale": Option(1.0, float, "factor on the discriminator's sum over positions"),
    "convolution": Option(
        "rewritten", convolution.FORMS, "form in which convolutions are computed; both give equal numbers"
    ),
    "dtype": Option(
        "float32", ("float32", "bfloat16"), "precision of convolutions and products; parameters stay float32"
    ),
}
_MAY_BE_ZERO = ("width_d", "shared_dim")


def build(**options: Any) -> Networks:
    """Makes both networks; see `OPTIONS` for the settings and `family.Networks` for what comes back."""
    o = _checked(options)
    layout = (STUDIOGAN_LAYOUTS if o["plan"] == "studiogan" else LAYOUTS)[o["resolution"]]
    generator, z_dim = _generator(o, layout)
    discriminator = _discriminator(o, layout)
    return Networks(
        generator=generator,
        discriminator=discriminator,
        z_dim=z_dim,
        resolution=o["resolution"],
        channels=o["channels"],
        num_classes=o["num_classes"],
        group=lambda role, path: _group(role, path, _sizes(role, o["resolution"], layout)),
        block=lambda role, path: _block(path),
        class_rows={"generator": _generator_rows(generator), "discriminator": judge_rows(o)},
        # Vectors that are stored move once for each pass, and StudioGAN judges real and generated images in two.
        joint_pass=o["spectral_d"] and not o["stored_vectors"],
        has_class_head=o["class_head"],
    )


def _checked(options: Mapping[str, Any]) -> dict[str, Any]:
    """All options with their values, or a `UserError` that names the one that is wrong."""
    o = complete(OPTIONS, options, _MAY_BE_ZERO)
    if o["hierarchical"] and not o["shared"]:
        raise UserError("model.hierarchical", True, "False where model.shared is False")
    if o["stored_vectors"] and (o["num_svs_g"], o["num_svs_d"]) != (1, 1):
        raise UserError("model.stored_vectors", True, "False unless one singular value is followed")
    return o


def recipe_of(o: Mapping[str, Any], side: str) -> Recipe:
    """The recipe of one network, "g" or "d", from complete options."""
    spectral = None
    if o[f"spectral_{side}"]:
        stored = o.get("stored_vectors", False)
        spectral = SpectralNorm(o[f"num_svs_{side}"], o[f"power_iterations_{side}"], o["spectral_eps"], stored)
    return Recipe(spectral, o["init"], o["dtype"], o["convolution"])


def _generator(o: Mapping[str, Any], layout: Layout) -> tuple[Generator, int]:
    widths = tuple(m * o["width"] for m in layout.generator)
    parts = len(widths) if o["hierarchical"] else 1
    if o["z_dim"] < parts:
        raise UserError("model.z_dim", o["z_dim"], f"at least {parts}, one number for each part")
    chunk = o["z_dim"] // parts
    sizes = _sizes("generator", o["resolution"], layout)
    generator = Generator(
        widths=widths,
        channels=o["channels"],
        num_classes=o["num_classes"],
        attention=attention_blocks("attention_g", o, sizes, widths[1:]),
        chunks=chunk if o["hierarchical"] else 0,
        shared_dim=(o["shared_dim"] or o["z_dim"]) if o["shared"] else 0,
        norm=NormRule(o["norm_eps"], running_variance=o["running_variance"]),
        out_norm=NormRule(o["out_norm_eps"], running_variance=o["running_variance"]),
        recipe=recipe_of(o, "g"),
        embedding_std=o["embedding_std"],
        condition_std=o["condition_std"],
    )
    return generator, chunk * parts


def _discriminator(o: Mapping[str, Any], layout: Layout) -> Discriminator:
    widths = tuple(m * (o["width_d"] or o["width"]) for m in layout.discriminator)
    return Discriminator(
        widths=widths,
        num_classes=o["num_classes"],
        pooled=layout.pooled,
        attention=attention_blocks("attention_d", o, layout.labels, widths),
        thin=o["thin_d"],
        recipe=recipe_of(o, "d"),
        pool_scale=o["pool_scale"],
        projection_std=o["projection_std"],
        has_class_head=o["class_head"],
        class_head_scale=o["class_head_scale"],
        rectified_shortcut=o["rectified_shortcut"],
        image_scales=(o["image_scale_d"], o["shortcut_scale_d"]),
    )


def attention_blocks(
    name: str, o: Mapping[str, Any], sizes: tuple[int, ...], widths: tuple[int, ...]
) -> tuple[int, ...]:
    """Numbers of the blocks that attention follows, for the option `name` and the size and width of each block."""
    value = o[name]
    if value == "0":
        return ()
    asked = value.split("_")
    if not set(asked) <= set(map(str, sizes)):
        raise UserError(
            f"model.{name}", value, f"'0', or some of {', '.join(map(str, dict.fromkeys(sizes)))} joined with '_'"
        )
    blocks = tuple(i for i, size in enumerate(sizes) if str(size) in asked)
    if min(widths[i] for i in blocks) < 8:
        raise UserError(f"model.{name}", value, f"sizes with at least 8 channels; here the blocks have {widths}")
    return blocks


def _sizes(role: Role, resolution: int, layout: Layout) -> tuple[int, ...]:
    """Per block, the size that a generator's makes or a discriminator's is given."""
    if role == "generator":
        return tuple(8 * 2**i for i in range(len(layout.generator) - 1))
    return tuple(resolution >> min(i, layout.pooled) for i in range(len(layout.discriminator)))


def _block(path: str) -> int | None:
    kind, _, number = path.split("/")[0].rpartition("_")
    return int(number) if kind in ("block", "attn") else None


_GROUPS = {
    "generator": {"shared": "class_embedding", "linear": "linear", "out_bn": "norm", "out_conv": "output"},
    "discriminator": {"head": "head", "embed": "projection", "class_head": "class_head"},
}


def _group(role: Role, path: str, sizes: tuple[int, ...]) -> str:
    number = _block(path)
    if number is None:
        return _GROUPS[role][path.split("/")[0]]
    return "conditional_norm" if path.split("/")[1] in ("bn1", "bn2") else f"blocks.{sizes[number]}"


def _generator_rows(generator: Generator) -> tuple[ClassRows, ...]:
    if generator.shared_dim:
        return (ClassRows("shared/embedding", 0),)
    return tuple(
        ClassRows(f"block_{i}/{norm}/{part}/embedding", 0)
        for i in range(len(generator.widths) - 1)
        for norm in ("bn1", "bn2")
        for part in ("gain", "bias")
    )


def judge_rows(o: Mapping[str, Any]) -> tuple[ClassRows, ...]:
    """The rows of `judge`, from complete options."""
    rows = (ClassRows("embed/embedding", 0, o["spectral_d"]),)
    if o["class_head"]:
        rows += (ClassRows("class_head/kernel", 1, o["spectral_d"]), ClassRows("class_head/bias", 0))
    return rows


FAMILY = Family("biggan", OPTIONS, build, "Brock et al. 2018, arXiv:1809.11096")
