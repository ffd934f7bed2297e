"""FastGAN's discriminator: two branches, skip-layer excitation, and decoders that reconstruct the image."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from gantransfer.models import convolution
from gantransfer.models.family import Judgement, Labels, wanted
from gantransfer.models.fastgan_layers import SkipExcitation, gated_half, pooled_to
from gantransfer.models.layers import BatchNorm, ClassTable, Conv, NormRule, Recipe, settled

SMALL = 128
SLOPE = 0.2
# Channels of a map, in multiples of the width, by the side that it would have in an image of 1024 px and more.
CHANNELS: dict[int, float] = {8: 16, 16: 8, 32: 4, 64: 2, 128: 1, 256: 0.5, 512: 0.25, 1024: 0.125}
# Channels of the decoders' maps, in multiples of their width.
DECODER = (4, 2, 2, 1)
QUADRANTS = 4
# Blocks whose output is scaled, and the block before them whose output says by how much.
GATES = {3: 0, 4: 1, 5: 2}


def _channels(side: int, width: int) -> int:
    return int(CHANNELS[side] * width)


def _rectified(x: Array) -> Array:
    return nn.leaky_relu(x, SLOPE)


def _conv(features: int, size: int, operation, recipe: Recipe, name: str, scale: float = 1.0) -> Conv:
    return Conv(features, size, operation, recipe, use_bias=False, scale=scale, name=name)


class FromImage(nn.Module):
    """The first convolutions of the large branch: 1024 and 512 px to a map of 256, else one of the image's size.

    Attributes:
      scale: factor on the normalised kernel that sees the image.
    """

    width: int
    recipe: Recipe
    scale: float

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h2 w2 o"]:
        side, out = x.shape[1], _channels(512, self.width)
        if side < 512:
            return _rectified(_conv(out, 3, convolution.conv3x3, self.recipe, "conv1", self.scale)(x))
        first = _channels(1024, self.width) if side == 1024 else out
        x = _rectified(_conv(first, 4, convolution.conv_down, self.recipe, "conv1", self.scale)(x))
        if side == 1024:
            x = _conv(out, 4, convolution.conv_down, self.recipe, "conv2")(x)
            x = _rectified(BatchNorm(NormRule(), self.recipe, name="bn2")(x, train))
        return x


class DownBlock(nn.Module):
    """The mean of two ways to half the size: two convolutions, and pooling with a 1x1 convolution."""

    features: int
    recipe: Recipe

    @nn.compact
    def __call__(self, x: Float[Array, "n h w i"], train: bool) -> Float[Array, "n h2 w2 o"]:
        def layer(y, size, operation, number):
            y = _conv(self.features, size, operation, self.recipe, f"conv{number}")(y)
            return _rectified(BatchNorm(NormRule(), self.recipe, name=f"bn{number}")(y, train))

        main = layer(layer(x, 4, convolution.conv_down, 1), 3, convolution.conv3x3, 2)
        return (main + layer(x, 1, convolution.conv1x1_pool, 3)) / 2


class SmallBlock(nn.Module):
    """A convolution that halves the size; the first of its branch has no batch norm.

    Attributes:
      scale: factor on the normalised kernel.
    """

    features: int
    first: bool
    recipe: Recipe
    scale: float = 1.0

    @nn.compact
    def __call__(self, x: Float[Array, "n h w i"], train: bool) -> Float[Array, "n h2 w2 o"]:
        x = _conv(self.features, 4, convolution.conv_down, self.recipe, "conv1", self.scale)(x)
        return _rectified(x if self.first else BatchNorm(NormRule(), self.recipe, name="bn1")(x, train))


class Decoder(nn.Module):
    """A map to an image of 128 px in [-1, 1]."""

    width: int
    channels: int
    recipe: Recipe

    @nn.compact
    def __call__(self, x: Float[Array, "n h w i"], train: bool) -> Float[Array, "n 128 128 c"]:
        x = pooled_to(x, 8)
        for i, multiple in enumerate(DECODER):
            features = 2 * multiple * self.width
            x = _conv(features, 3, convolution.upsample_conv3x3, self.recipe, f"conv{i}")(x)
            x = gated_half(BatchNorm(NormRule(), self.recipe, name=f"bn{i}")(x, train))
        x = _conv(self.channels, 3, convolution.conv3x3, self.recipe, "out_conv")(x)
        return jnp.tanh(x.astype(jnp.float32))


class Head(nn.Module):
    """Logits of overlapping patches `(n, patches)`; that of the large branch mixes channels first."""

    hidden: int
    recipe: Recipe

    @nn.compact
    def __call__(self, x: Float[Array, "n h w i"], train: bool) -> Float[Array, "n m"]:
        if self.hidden:
            x = _conv(self.hidden, 1, convolution.conv1x1, self.recipe, "conv1")(x)
            x = _rectified(BatchNorm(NormRule(), self.recipe, name="bn1")(x, train))
        return _conv(1, 4, convolution.conv_valid, self.recipe, "conv2")(x).reshape(len(x), -1)


class Discriminator(nn.Module):
    """Images to logits of patches, one head per branch: `(n, 25)` and `(n, 25)` from 256 px upwards.

    The small branch sees the image at 128 px: every k-th pixel, or `small` where the generator has made one of its own.
    Stages are `pooled` (means of the last map), by the size that a block of the large branch is given `b256`, `b128`,
    ..., and the images that the decoders make: `reconstruction_big` and `reconstruction_small` of the whole, and
    `reconstruction_part0` ... `3` of a quadrant (by rows). A decoder that nobody wants does not run, and a pass of
    training asks for one quadrant, as in the release: each moves the statistics of their common decoder.

    Attributes:
      width: of the channels.
      decoder_width: of the decoders' channels.
      projection: whether there are class rows, which the release does not have.
      image_scales: factors on the normalised kernels that see the image, of the large branch and of the small one.
    """

    width: int
    decoder_width: int
    num_classes: int
    projection: bool
    recipe: Recipe
    image_scales: tuple[float, float] = (1.0, 1.0)

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n h w c"],
        c: Labels,
        train: bool = False,
        want: tuple[str, ...] = (),
        small: Float[Array, "n 128 128 c"] | None = None,
    ) -> Judgement:
        maps, stages = self._large_branch(x, train)
        step = x.shape[1] // SMALL
        y = x[:, ::step, ::step] if small is None else small
        for i, side in enumerate((256, 128, 64, 32)):
            scale = 1.0 if i else self.image_scales[1]
            y = SmallBlock(_channels(side, self.width), i == 0, self.recipe, scale, name=f"small_{i}")(y, train)
        large = Head(_channels(8, self.width), self.recipe, name="head_big")(maps[-1], train)
        logits = tuple(each.astype(jnp.float32) for each in (large, Head(0, self.recipe, name="head_small")(y, train)))
        pooled = stages["pooled"] = settled(maps[-1]).astype(jnp.float32).mean((1, 2))
        if self.projection:
            table = ClassTable(self.num_classes, pooled.shape[1], Recipe(None, self.recipe.init), name="embed")
            judged = (table(c) * pooled).sum(1, keepdims=True)
            logits = tuple(each + judged for each in logits)
        stages |= self._reconstructions(maps[-2], maps[-1], y, x.shape[-1], train, want)
        return Judgement(logits, wanted(stages, want))

    def _large_branch(self, x: Array, train: bool) -> tuple[list[Array], dict[str, Array]]:
        """Outputs of the blocks, scaled where they are, and the same by the size that each block is given."""
        maps, stages = [], {}
        for i, side in enumerate((512, 256, 128, 64, 32, 16)):
            given = maps[-1] if i else x
            if i:
                y = DownBlock(_channels(side, self.width), self.recipe, name=f"block_{i}")(given, train)
            else:
                y = FromImage(self.width, self.recipe, self.image_scales[0], name="block_0")(given, train)
            if i in GATES:
                y = SkipExcitation(self.recipe, name=f"gate_{i}")(maps[GATES[i]], y)
            maps.append(y)
            stages[f"b{given.shape[1]}"] = y
        return maps, stages

    def _reconstructions(
        self, before: Array, last: Array, small: Array, channels: int, train: bool, want: tuple[str, ...]
    ) -> dict[str, Array]:
        """The images that are asked for, from the last two maps of the large branch and the last of the small one."""
        half = before.shape[1] // 2
        given = {"reconstruction_big": last, "reconstruction_small": small}
        for part in range(QUADRANTS):
            row, column = half * (part // 2), half * (part % 2)
            given[f"reconstruction_part{part}"] = before[:, row : row + half, column : column + half]
        if self.is_initializing():
            want = ("reconstruction_big", "reconstruction_small", "reconstruction_part0")
        made, decoders = {}, {}
        for name in (name for name in given if name in want):
            decoder = name.replace("reconstruction", "decoder").rstrip("0123")
            if decoder not in decoders:
                decoders[decoder] = Decoder(self.decoder_width, channels, self.recipe, name=decoder)
            made[name] = decoders[decoder](given[name], train)
        return made
