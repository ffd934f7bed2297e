"""DCGAN: plain stacks of strided convolutions with batch norm, in the forms in which they were published.

Paper: Radford, Metz, Chintala 2015, "Unsupervised Representation Learning with Deep Convolutional Generative
Adversarial Networks", arXiv:1511.06434. Everybody writes it a little differently, so what differs is an option:
kernels of 4 or 5, a first normalisation per channel or per value, activation before or after normalisation, its epsilon
and statistics, biases, a sigmoid instead of the tanh, uniform latents. The defaults are those of the PyTorch example.

With `class_dim` the generator reads a class embedding beside the latent (Mirza and Osindero 2014, arXiv:1411.1784) and
the discriminator has projection rows (Miyato and Koyama 2018, arXiv:1802.05637); without, both ignore labels.

What differs from the releases: arrays are NHWC; the first transposed convolution, of a 1x1 map, is a linear layer, and
so is the last convolution of a discriminator; logits are raw; a generator that ends in a sigmoid is scaled to [-1, 1];
fresh gains are 1 where the paper draws them from N(1, 0.02).
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from gantransfer.errors import UserError, one_of
from gantransfer.models import convolution
from gantransfer.models.family import ClassRows, Family, Judgement, Labels, Networks, Option, Picture, Role, wanted
from gantransfer.models.layers import INITS, BatchNorm, ClassTable, Conv, Dense, NormRule, Recipe, settled
from gantransfer.models.options import complete, numbers

# Steps of a generator by name: the operation, the side of its kernel, and what it does to the size.
STEPS: dict[str, tuple[Callable[..., Array], int, int]] = {
    "up4": (convolution.conv_up, 4, 2),
    "up5": (convolution.conv_up, 5, 2),
    "nearest3": (convolution.upsample_conv3x3, 3, 2),
    "keep1": (convolution.conv1x1, 1, 1),
    "keep3": (convolution.conv3x3, 3, 1),
    "keep4": (convolution.conv_same, 4, 1),
}
SLOPE = 0.2


def _activate(x: Array, name: str) -> Array:
    return nn.relu(x) if name == "relu" else nn.leaky_relu(x, SLOPE)


class GeneratorBlock(nn.Module):
    """One step, normalised and rectified.

    Attributes:
      step: one of `STEPS`.
      norm_last: whether it is rectified first.
    """

    features: int
    step: str
    activation: str
    norm_last: bool
    use_bias: bool
    norm: NormRule
    recipe: Recipe

    @nn.compact
    def __call__(self, x: Float[Array, "n h w i"], train: bool) -> Float[Array, "n h2 w2 o"]:
        operation, size, _ = STEPS[self.step]
        x = Conv(self.features, size, operation, self.recipe, self.use_bias, name="conv")(x)
        norm = BatchNorm(self.norm, self.recipe, name="bn")
        if self.norm_last:
            return norm(_activate(x, self.activation), train)
        return _activate(norm(x, train), self.activation)


class Generator(nn.Module):
    """Latents `(n, z_dim)` to images in [-1, 1]; stages `b8`, `b16`, ...: where several steps make one size, the last.

    Attributes:
      widths: channels out of the first layer and of each step but the last.
      steps: names of the steps; the last makes the image.
      base: side of the map that the first layer makes.
      class_dim: length of the class embedding, or 0.
      first_norm: what the first layer's normalisation counts separately: channels, all values, or there is none.
      first_activation: whether the first layer is rectified.
      bias: which layers have biases.
      batch_statistics: whether evaluation, too, normalises by the batch.
    """

    widths: tuple[int, ...]
    steps: tuple[str, ...]
    base: int
    resolution: int
    channels: int
    num_classes: int
    class_dim: int
    first_norm: Literal["channel", "feature", "none"]
    first_activation: bool
    activation: str
    norm_last: bool
    bias: Literal["none", "output", "all"]
    output: Literal["tanh", "sigmoid"]
    batch_statistics: bool
    norm: NormRule
    first_rule: NormRule
    recipe: Recipe

    @nn.compact
    def __call__(self, z: Float[Array, "n z"], c: Labels, train: bool = False, want: tuple[str, ...] = ()) -> Picture:
        live, everywhere = train or self.batch_statistics, self.bias == "all"
        if self.class_dim:
            z = jnp.concatenate([z, ClassTable(self.num_classes, self.class_dim, self.recipe, name="classes")(c)], 1)
        x, stages = self._first(z, live, everywhere), {}
        for i, (features, step) in enumerate(zip(self.widths[1:], self.steps[:-1], strict=True)):
            x = GeneratorBlock(
                features,
                step,
                self.activation,
                self.norm_last,
                everywhere,
                self.norm,
                self.recipe,
                name=f"block_{i}",
            )(x, live)
            stages[f"b{x.shape[1]}"] = x
        operation, size, _ = STEPS[self.steps[-1]]
        x = Conv(self.channels, size, operation, self.recipe, self.bias != "none", name="out_conv")(x)
        cut = (x.shape[1] - self.resolution) // 2
        x = x[:, cut : cut + self.resolution, cut : cut + self.resolution].astype(jnp.float32)
        images = jnp.tanh(x) if self.output == "tanh" else 2 * nn.sigmoid(x) - 1
        return Picture(images, wanted(stages, want))

    def _first(self, z: Array, live: bool, use_bias: bool) -> Float[Array, "n h w c"]:
        width = self.widths[0]
        x = Dense(self.base**2 * width, self.recipe, use_bias, name="linear")(z)
        if self.first_norm == "feature":
            x = BatchNorm(self.first_rule, self.recipe, name="first_bn")(x[:, None, None, :], live)
        x = x.reshape(-1, self.base, self.base, width).astype(self.recipe.dtype)
        if self.first_norm == "channel":
            x = BatchNorm(self.first_rule, self.recipe, name="first_bn")(x, live)
        return _activate(x, self.activation) if self.first_activation else x


class Discriminator(nn.Module):
    """Images to logits; stages are `pooled` (means over positions) and, by the size a block is given, `b32`, ...

    Attributes:
      widths: channels out of each convolution, which halves the size.
      kernel: side of the kernels.
      head_padding: rows above and columns left of the last map that its linear layer reads as zeros.
      projection: whether there are class rows.
      bias: whether layers that no normalisation follows have a bias.
      norm: None for no normalisation; else of all convolutions but the first.
      batch_statistics: as the generator's.
    """

    widths: tuple[int, ...]
    kernel: int
    head_padding: int
    num_classes: int
    projection: bool
    bias: bool
    norm: NormRule | None
    batch_statistics: bool
    recipe: Recipe

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], c: Labels, train: bool = False, want: tuple[str, ...] = ()
    ) -> Judgement:
        stages = {}
        for i, features in enumerate(self.widths):
            size, norm = x.shape[1], self.norm if i else None
            block = DiscriminatorBlock(
                features, self.kernel, self.bias and norm is None, norm, self.recipe, name=f"block_{i}"
            )
            x = stages[f"b{size}"] = block(x, train or self.batch_statistics)
        # The heads work in float32 whatever the convolutions' precision: losses read them directly.
        exact, x = Recipe(self.recipe.spectral, self.recipe.init), settled(x).astype(jnp.float32)
        pooled = stages["pooled"] = x.mean((1, 2))
        before = (self.head_padding, 0)
        flat = jnp.pad(x, ((0, 0), before, before, (0, 0))).reshape(len(x), -1)
        logits = Dense(1, exact, self.bias, name="head")(flat)[:, 0]
        if self.projection:
            # Rows of unit length would outweigh the head; drawn as its kernel is, they start beside it.
            table = ClassTable(self.num_classes, pooled.shape[1], exact, std=pooled.shape[1] ** -0.5, name="embed")
            logits = logits + (table(c) * pooled).sum(1)
        return Judgement(logits, wanted(stages, want))


class DiscriminatorBlock(nn.Module):
    """A convolution with stride 2, normalised where there is a rule, and rectified with slope 0.2."""

    features: int
    kernel: int
    use_bias: bool
    norm: NormRule | None
    recipe: Recipe

    @nn.compact
    def __call__(self, x: Float[Array, "n h w i"], train: bool) -> Float[Array, "n h2 w2 o"]:
        x = Conv(self.features, self.kernel, convolution.conv_down, self.recipe, self.use_bias, name="conv")(x)
        if self.norm is not None:
            x = BatchNorm(self.norm, self.recipe, name="bn")(x, train)
        return nn.leaky_relu(x, SLOPE)


# What the family declares.

OPTIONS: dict[str, Option] = {
    "resolution": Option(64, int, "side of the images, in pixels"),
    "channels": Option(3, int, "colour channels of the images"),
    "num_classes": Option(1, int, "number of classes; without `class_dim` labels are ignored"),
    "class_dim": Option(0, int, "length of the class embedding; 0 for networks without classes"),
    "z_dim": Option(100, int, "length of the latent"),
    "latent": Option("normal", ("normal", "uniform"), "distribution of the latent's numbers; uniform in [-1, 1)"),
    "width": Option(64, int, "channels at the largest size, where `widths_g` or `widths_d` is empty"),
    "base": Option(4, int, "side of the map that the generator's first layer makes"),
    "widths_g": Option(
        "", str, "channels of the generator's maps, joined with '_'; empty: doubling from `width` at the largest"
    ),
    "steps_g": Option(
        "", str, f"the generator's steps ({', '.join(STEPS)}), the last to the image; empty: up4 up to the resolution"
    ),
    "first_norm": Option("channel", ("channel", "feature", "none"), "what the first batch norm counts separately"),
    "first_activation": Option(True, bool, "the generator's first layer is rectified"),
    "activation": Option("relu", ("relu", "leaky_relu"), "the generator's rectifier; leaky has slope 0.2"),
    "norm_last": Option(False, bool, "the generator's steps are rectified before they are normalised"),
    "norm_eps": Option(1e-5, float, "added to the variance in the generator's steps"),
    "first_norm_eps": Option(1e-5, float, "added to the variance in the generator's first layer"),
    "statistics_g": Option("running", ("running", "batch"), "what the generator normalises by in evaluation"),
    "bias_g": Option("none", ("none", "output", "all"), "which of the generator's layers have biases"),
    "output": Option("tanh", ("tanh", "sigmoid"), "how the generator ends; a sigmoid is scaled to [-1, 1]"),
    "widths_d": Option("", str, "channels of the discriminator's maps, joined with '_'; empty: doubling from `width`"),
    "kernel_d": Option(4, (4, 5), "side of the discriminator's kernels"),
    "norm_d": Option("batch", ("batch", "none"), "normalisation of the discriminator after its first convolution"),
    "norm_eps_d": Option(1e-5, float, "added to the variance in the discriminator"),
    "statistics_d": Option("running", ("running", "batch"), "what the discriminator normalises by in evaluation"),
    "bias_d": Option(False, bool, "biases on the discriminator's layers that no normalisation follows"),
    "head_padding": Option(0, int, "rows and columns of zeros before the map that the discriminator's head reads"),
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
    o = spelled_out(complete(OPTIONS, options, ("class_dim", "head_padding")))
    recipe = Recipe(None, o["init"], o["dtype"], o["convolution"])
    generator, discriminator = _generator(o, recipe), _discriminator(o, recipe)
    sizes: dict[Role, tuple[int, ...]] = {
        "generator": _sizes(o["base"], generator.steps)[:-1],
        "discriminator": tuple(_halved(o, i) for i in range(len(discriminator.widths))),
    }
    classes = bool(o["class_dim"])
    return Networks(
        generator=generator,
        discriminator=discriminator,
        z_dim=o["z_dim"],
        resolution=o["resolution"],
        channels=o["channels"],
        num_classes=o["num_classes"],
        group=lambda role, path: _group(role, path, sizes[role]),
        block=lambda role, path: _block(path),
        class_rows={
            "generator": (ClassRows("classes/embedding", 0),) if classes else (),
            "discriminator": (ClassRows("embed/embedding", 0),) if classes else (),
        },
        joint_pass=discriminator.norm is None,
        latent=o["latent"],
    )


def spelled_out(options: Mapping[str, Any]) -> dict[str, Any]:
    """Complete options with the steps and widths that empty ones stand for."""
    o = dict(options)
    if not o["steps_g"]:
        doublings = max(1, (max(1, -(-o["resolution"] // o["base"])) - 1).bit_length())
        o["steps_g"] = "_".join(["up4"] * doublings)
    if not o["widths_g"]:
        count = len(o["steps_g"].split("_"))
        o["widths_g"] = "_".join(str(o["width"] << (count - 1 - i)) for i in range(count))
    if not o["widths_d"]:
        # Down to a map of 2 to 4 pixels, as in the paper: what reads a map of 7 sees strokes, not shapes.
        count = next(i for i in range(1, 32) if _halved(o, i) <= 4)
        o["widths_d"] = "_".join(str(o["width"] << i) for i in range(count))
    return o


def _generator(o: Mapping[str, Any], recipe: Recipe) -> Generator:
    steps, widths = tuple(o["steps_g"].split("_")), numbers("widths_g", o["widths_g"])
    for step in steps:
        one_of("model.steps_g", step, STEPS)
    if len(widths) != len(steps):
        raise UserError("model.widths_g", o["widths_g"], f"{len(steps)} numbers, one before each step of model.steps_g")
    size = _sizes(o["base"], steps)[-1]
    if not o["resolution"] <= size < 2 * o["resolution"] or (size - o["resolution"]) % 2:
        allowed = f"steps from {o['base']} px to {o['resolution']} px, or to a border around it that is cut off"
        raise UserError("model.steps_g", "_".join(steps), allowed)
    return Generator(
        widths=widths,
        steps=steps,
        base=o["base"],
        resolution=o["resolution"],
        channels=o["channels"],
        num_classes=o["num_classes"],
        class_dim=o["class_dim"],
        first_norm=o["first_norm"],
        first_activation=o["first_activation"],
        activation=o["activation"],
        norm_last=o["norm_last"],
        bias=o["bias_g"],
        output=o["output"],
        batch_statistics=o["statistics_g"] == "batch",
        norm=NormRule(o["norm_eps"]),
        first_rule=NormRule(o["first_norm_eps"]),
        recipe=recipe,
    )


def _discriminator(o: Mapping[str, Any], recipe: Recipe) -> Discriminator:
    widths = numbers("widths_d", o["widths_d"])
    if not _halved(o, len(widths)):
        raise UserError("model.widths_d", o["widths_d"], f"no more numbers than {o['resolution']} px can be halved")
    return Discriminator(
        widths=widths,
        kernel=o["kernel_d"],
        head_padding=o["head_padding"],
        num_classes=o["num_classes"],
        projection=bool(o["class_dim"]),
        bias=o["bias_d"],
        norm=None if o["norm_d"] == "none" else NormRule(o["norm_eps_d"]),
        batch_statistics=o["statistics_d"] == "batch",
        recipe=recipe,
    )


def _sizes(base: int, steps: tuple[str, ...]) -> tuple[int, ...]:
    """Sides of the maps that the steps make."""
    sizes = []
    for step in steps:
        base *= STEPS[step][2]
        sizes.append(base)
    return tuple(sizes)


def _halved(o: Mapping[str, Any], times: int) -> int:
    """A map's side after some of the discriminator's convolutions: kernel 5 rounds halves up."""
    size = o["resolution"]
    for _ in range(times):
        size = (size + o["kernel_d"] - 4) // 2
    return size


def _block(path: str) -> int | None:
    kind, _, number = path.split("/")[0].rpartition("_")
    return int(number) if kind == "block" else None


_GROUPS = {
    "generator": {"classes": "class_embedding", "linear": "linear", "first_bn": "norm", "out_conv": "output"},
    "discriminator": {"head": "head", "embed": "projection"},
}


def _group(role: Role, path: str, sizes: tuple[int, ...]) -> str:
    number = _block(path)
    if number is None:
        return _GROUPS[role][path.split("/")[0]]
    return "norm" if path.split("/")[1] == "bn" else f"blocks.{sizes[number]}"


FAMILY = Family("dcgan", OPTIONS, build, "Radford et al. 2015, arXiv:1511.06434")
