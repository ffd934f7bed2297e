"""Networks of StyleGAN2: mapping, synthesis and discriminator (Karras et al. 2020, arXiv:1912.04958).

A mapping network turns a latent (and the embedding of its class) into styles `w`, one for each layer: `ws`
`(n, num_ws, w_dim)`. Synthesis blocks `b4`, `b8`, ... double the size and are modulated by them; a block's layer to RGB
shares its style with the first layer of the next block. Besides its call, the generator has two halves for methods that
work on styles, to be run as `generator.apply(variables, ..., method="mapping")` and `method="synthesis"`.

Collections: `params`; `averages` {mapper/w_avg}, the running mean of `w` that truncation pulls towards, which moves
only in training passes that may change it; `constants` {noise_const} of each layer.

Random noise is drawn from the stream "noise": training passes need `rngs={"noise": key}`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from gantransfer.errors import UserError
from gantransfer.models import resampling
from gantransfer.models.family import Judgement, Labels, Picture, wanted
from gantransfer.models.stylegan2_layers import (
    ClassDense,
    Conv,
    Dense,
    Recipe,
    StyledConv,
    ToRGB,
    minibatch_deviation,
    unit_second_moment,
)

Architecture = Literal["skip", "resnet", "orig"]
ARCHITECTURES: tuple[Architecture, ...] = ("skip", "resnet", "orig")
# Where noise comes from: a name of this list, or the draws themselves by layer ("b8/conv0"), each (n or 1, r, r, 1).
NOISES = ("random", "const", "none")
Noise = str | Mapping[str, Array]
Number = float | int
Styles = Float[Array, "n num_ws d"]
_HALF = 0.5**0.5


@dataclass(frozen=True)
class MappingPlan:
    """How a mapping network is built.

    Attributes:
      features: length of `w`.
      layers, width: number of hidden layers, and their width.
      embedding: length of the class embedding.
      num_classes: 1: labels are not read.
      rate: multiplier of the learning rate of the layers; the embedding's is 1.
      decay: of the running mean of `w`, per training pass; None: none is kept.
    """

    features: int
    layers: int
    width: int
    embedding: int
    num_classes: int
    rate: float
    decay: float | None = None


class MappingNetwork(nn.Module):
    """Latents and labels to styles `w`."""

    plan: MappingPlan

    @nn.compact
    def __call__(
        self, z: Float[Array, "n z"] | None, c: Labels | None, train: bool = False
    ) -> tuple[Float[Array, "n d"], Float[Array, " d"] | None]:
        """Returns styles, and their running mean as it is after this pass."""
        plan = self.plan
        parts = [] if z is None else [unit_second_moment(z.astype(jnp.float32))]
        if plan.num_classes > 1:
            parts.append(unit_second_moment(ClassDense(plan.num_classes, plan.embedding, name="embed")(c)))
        x = jnp.concatenate(parts, axis=1)
        for i in range(plan.layers):
            features = plan.features if i == plan.layers - 1 else plan.width
            x = Dense(features, "lrelu", plan.rate, name=f"fc{i}")(x)
        if plan.decay is None:
            return x, None
        average = self.variable("averages", "w_avg", jnp.zeros, (plan.features,))
        if train and self.is_mutable_collection("averages") and not self.is_initializing():
            now = lax.stop_gradient(x).mean(0)
            average.value = now + plan.decay * (average.value - now)
        return x, average.value


class SynthesisBlock(nn.Module):
    """Layers of one resolution; adds its colours to the image of the blocks before it.

    Attributes:
      features, resolution: of what it makes.
      rgb: whether it has a layer to RGB.
    """

    features: int
    resolution: int
    channels: int
    architecture: Architecture
    rgb: bool
    use_noise: bool
    recipe: Recipe

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n h w i"] | None,
        image: Float[Array, "n h w c"] | None,
        ws: Float[Array, "n k d"],
        noise: Noise,
    ) -> tuple[Float[Array, "n r r o"], Float[Array, "n r r c"] | None]:
        r = self.recipe

        def layer(name, x, w, up=1, gain=1.0):
            draw = noise if isinstance(noise, str) else _given(noise, f"b{self.resolution}/{name}")
            return StyledConv(self.features, r, up, self.use_noise, name=name)(x, w, draw, gain)

        if x is None:
            const = self.param("const", nn.initializers.normal(1.0), (4, 4, self.features))
            x = jnp.broadcast_to(const.astype(r.dtype), (ws.shape[0], *const.shape))
            x = layer("conv1", x, ws[:, 0])
        elif self.architecture == "resnet":
            shortcut = Conv(self.features, 1, r, up=2, shortcut=True, name="skip")(x, _HALF)
            x = shortcut + layer("conv1", layer("conv0", x, ws[:, 0], 2), ws[:, 1], gain=_HALF)
        else:
            x = layer("conv1", layer("conv0", x, ws[:, 0], 2), ws[:, 1])
        if image is not None:
            image = resampling.upsampled(image, r.filter, r.form)
        if self.rgb:
            colours = ToRGB(self.channels, r, name="torgb")(x, ws[:, -1])
            image = colours if image is None else image + colours
        return x, image


def _given(noise: Mapping[str, Array], layer: str) -> Array:
    if layer not in noise:
        raise UserError("noise", layer, f"draws for every layer; given are {', '.join(noise)}")
    return noise[layer]


class Generator(nn.Module):
    """Latents `(n, z_dim)` and labels to images, nominally in [-1, 1]; stages are `ws` and the blocks' outputs `b4`,
    `b8`, ...

    Attributes:
      plan: of the mapping network.
      widths: channels of each block, from 4 px on.
      recipes: of each block.
    """

    plan: MappingPlan
    widths: tuple[int, ...]
    channels: int
    architecture: Architecture
    use_noise: bool
    recipes: tuple[Recipe, ...]

    def setup(self):
        self.mapper = MappingNetwork(self.plan)
        last = len(self.widths) - 1
        for i, (features, recipe) in enumerate(zip(self.widths, self.recipes, strict=True)):
            rgb = self.architecture == "skip" or i == last
            block = SynthesisBlock(features, 4 << i, self.channels, self.architecture, rgb, self.use_noise, recipe)
            setattr(self, f"b{4 << i}", block)

    @property
    def num_ws(self) -> int:
        """How many styles a picture takes: one at 4 px, two at each other size, and one for the last colours."""
        return 2 * len(self.widths)

    def mapping(
        self,
        z: Float[Array, "n z"],
        c: Labels | None = None,
        train: bool = False,
        truncation: Number = 1.0,
        cutoff: int | None = None,
    ) -> Styles:
        """Styles of every layer, `(n, num_ws, w_dim)`.

        Args:
          z: latents.
          c: labels or class weights; not read where there is one class.
          train: moves the running mean of styles, where `averages` may change.
          truncation: 1 leaves styles as they are, 0 makes all of them the running mean.
          cutoff: how many styles, from the coarsest, are truncated; None: all.
        """
        w, average = self.mapper(z, c, train)
        ws = jnp.broadcast_to(w[:, None], (w.shape[0], self.num_ws, w.shape[1]))
        if truncation == 1:
            return ws
        near = average + truncation * (ws - average)
        return near if cutoff is None else jnp.concatenate([near[:, :cutoff], ws[:, cutoff:]], axis=1)

    def synthesis(
        self, ws: Styles, train: bool = False, want: tuple[str, ...] = (), noise: Noise | None = None
    ) -> Picture:
        """Images of given styles.

        Args:
          ws: styles of every layer.
          train: only decides what `noise` is where it is not given.
          want: stages to return.
          noise: "random", "const" (each layer's constant), "none", or the draws by layer. None: random in training, as
            in the reference, and constant in evaluation, so that a latent has one picture.
        """
        if isinstance(noise, str) and noise not in NOISES:
            raise UserError("noise", noise, " or ".join(NOISES))
        chosen: Noise = ("random" if train else "const") if noise is None else noise
        x = image = None
        stages = {"ws": ws}
        for i in range(len(self.widths)):
            first = max(2 * i - 1, 0)
            x, image = getattr(self, f"b{4 << i}")(x, image, ws[:, first : 2 * i + 2], chosen)
            stages[f"b{4 << i}"] = x
        return Picture(image, wanted(stages, want))

    def __call__(
        self,
        z: Float[Array, "n z"],
        c: Labels | None = None,
        train: bool = False,
        want: tuple[str, ...] = (),
        truncation: Number = 1.0,
        cutoff: int | None = None,
        noise: Noise | None = None,
    ) -> Picture:
        """Images of latents and labels; the arguments are those of `mapping` and `synthesis`."""
        return self.synthesis(self.mapping(z, c, train, truncation, cutoff), train, want, noise)


class DiscriminatorBlock(nn.Module):
    """Layers of one resolution; halves the size.

    Attributes:
      features: channels that it makes.
      rgb: channels that it makes of the image first; None where it does not see it.
    """

    features: int
    rgb: int | None
    architecture: Architecture
    recipe: Recipe

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w i"] | None, image: Float[Array, "n h w c"] | None
    ) -> tuple[Float[Array, "n h2 w2 o"], Float[Array, "n h2 w2 c"] | None]:
        r = self.recipe
        if self.rgb is not None:
            colours = Conv(self.rgb, 1, r, name="fromrgb")(image)
            x = colours if x is None else x.astype(r.dtype) + colours
            image = resampling.downsampled(image, r.filter, r.form) if self.architecture == "skip" else None
        first = Conv(x.shape[-1], 3, r, name="conv0")
        second = Conv(self.features, 3, r, down=2, name="conv1")
        if self.architecture != "resnet":
            return second(first(x)), image
        shortcut = Conv(self.features, 1, r, down=2, shortcut=True, name="skip")(x, _HALF)
        return shortcut + second(first(x), _HALF), image


class Epilogue(nn.Module):
    """The discriminator's end at 4 px: deviation within groups, a convolution, two linear layers.

    Attributes:
      rgb: whether it sees the image too.
      outputs: 1, or the length of the class vector that the output is multiplied with.
      group, deviations: of the minibatch's standard deviation; no deviations leave it out.
    """

    rgb: bool
    outputs: int
    group: int
    deviations: int
    recipe: Recipe

    @nn.compact
    def __call__(
        self, x: Float[Array, "n 4 4 i"], image: Float[Array, "n 4 4 c"] | None
    ) -> tuple[Float[Array, "n o"], Float[Array, "n i"]]:
        """Returns the outputs and the features that they are made of."""
        features, x = x.shape[-1], x.astype(jnp.float32)
        if self.rgb:
            x = x + Conv(features, 1, self.recipe, clamped=False, name="fromrgb")(image)
        if self.deviations:
            x = minibatch_deviation(x, self.group, self.deviations)
        x = Conv(features, 3, self.recipe, name="conv")(x)
        x = Dense(features, self.recipe.activation, name="fc")(x.reshape(x.shape[0], -1))
        return Dense(self.outputs, name="out")(x), x


class Discriminator(nn.Module):
    """Images and labels to logits; stages are the outputs of blocks by the size they are given (`b32`, ...) and
    `pooled`, the features before the last layer.

    Attributes:
      widths: channels of each size, from the image down to 4 px; a block makes those of the next size.
      recipes: of each block and, last, of the end.
      plan: of the mapping network of labels; None where there is one class.
      group, deviations: as in `Epilogue`.
      fade: whether the first block was added to a network that had none of its size: what the rest is given is a share
        of the block's output, the parameter `fade`, and for the remaining share what it was given before.
    """

    widths: tuple[int, ...]
    architecture: Architecture
    recipes: tuple[Recipe, ...]
    plan: MappingPlan | None
    group: int
    deviations: int
    fade: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n h w c"],
        c: Labels | None = None,
        train: bool = False,
        want: tuple[str, ...] = (),
    ) -> Judgement:
        features, image, stages = None, x, {}
        for i, width in enumerate(self.widths[:-1]):
            size = 4 << (len(self.widths) - 1 - i)
            rgb = width if i == 0 or self.architecture == "skip" else None
            block = DiscriminatorBlock(self.widths[i + 1], rgb, self.architecture, self.recipes[i], name=f"b{size}")
            features, image = block(features, image)
            if self.fade and i == 0:
                features = self._faded(features, x)
            stages[f"b{size}"] = features
        labels = None
        if self.plan is not None:
            labels, _ = MappingNetwork(self.plan, name="mapper")(None, c)
        end = Epilogue(
            self.architecture == "skip",
            1 if labels is None else labels.shape[1],
            self.group,
            self.deviations,
            self.recipes[-1],
            name="b4",
        )
        out, stages["pooled"] = end(features, image)
        logits = out[:, 0] if labels is None else (out * labels).sum(1) * labels.shape[1] ** -0.5
        return Judgement(logits, wanted(stages, want))

    def _faded(self, features: Float[Array, "n h w i"], x: Float[Array, "n h2 w2 c"]) -> Float[Array, "n h w i"]:
        share = self.param("fade", nn.initializers.ones, ()).astype(features.dtype)
        if self.architecture == "skip":
            # The next block adds what it sees of the smaller image to what it is given: all that there was before.
            return share * features
        r = self.recipes[1]
        smaller = resampling.downsampled(x, r.filter, r.form)
        before = Conv(self.widths[1], 1, r, name="fade_fromrgb")(smaller)
        return share * features + (1 - share) * before.astype(features.dtype)
