"""Layers of frozen feature networks, with the parameters and names that published state dicts have.

A parameter is called as in the state dict (`weight`, `bias`, `running_mean`, ...) and a layer by its key with the dots
in it, so `layer1.0.conv1.weight` is the leaf `weight` of the layer `layer1.0.conv1`, and no table of names is needed.
Everything is computed in the type of the input.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gantransfer.models.layers import settled

HIGHEST = jax.lax.Precision.HIGHEST
Pair = tuple[int, int]
Padding = Sequence[Pair]


class Taps:
    """Collects the stages and outputs that are wanted, while a network is computed.

    Args:
      want: their names; None collects all.
    """

    def __init__(self, want: tuple[str, ...] | None):
        self.want = want
        self.found: dict[str, Array] = {}

    def __call__(self, name: str, value: Array) -> Array:
        """Keeps the value if it is wanted, and hands it on."""
        if self.want is None or name in self.want:
            self.found[name] = value
        return value


class Graph(nn.Module):
    """A network as published: its layers are made by `conv`, `norm` and `linear`, its call returns what is wanted.

    Args:
      folded: whether the scale of batch norm already sits in the preceding kernel, so that only a bias is left of it.
      precision: of products; metrics must not depend on the device, so they take the highest.
    """

    folded: bool = False
    precision: jax.lax.Precision = HIGHEST

    def conv(
        self,
        x: Float[Array, "n h w _i"],
        name: str,
        features: int,
        size: int | Pair,
        *,
        stride: int = 1,
        padding: int | Padding = 0,
        bias: bool = False,
        depthwise: bool = False,
    ) -> Float[Array, "n _h _w _o"]:
        """A convolution; `size` and `padding` are one number, or one for height and one for width."""
        size = (size, size) if isinstance(size, int) else size
        padding = ((padding, padding),) * 2 if isinstance(padding, int) else tuple(padding)
        layer = Depthwise if depthwise else Convolution
        return layer(features, size, stride, padding, bias, self.precision, name=name)(x)

    def norm(self, x: Float[Array, "n h w c"], name: str, eps: float, *, kernel: str = "") -> Array:
        """Batch norm with stored statistics.

        `kernel` names the convolution without bias before it that its scale may be folded into: none where what that
        convolution returns is itself a stage. Between them may only be what commutes with scales, as mean pooling does.
        """
        return BatchNorm(eps, kernel, folded=self.folded and bool(kernel), name=name)(x)

    def conv_norm(
        self,
        x: Float[Array, "n h w _i"],
        conv: str,
        norm: str,
        features: int,
        size: int | Pair,
        eps: float,
        **shape: Any,
    ) -> Float[Array, "n _h _w _o"]:
        """A convolution and the batch norm after it, with nothing between them that anybody may want."""
        return self.norm(self.conv(x, conv, features, size, **shape), norm, eps, kernel=conv)

    def linear(self, x: Float[Array, "*n _i"], name: str, features: int, *, bias: bool = True) -> Array:
        """A linear layer over the last axis."""
        return Linear(features, bias, self.precision, name=name)(x)


def _zeros(shape: Sequence[int]) -> Callable[..., Array]:
    # Weights are always loaded: this only states a shape.
    return lambda key: jnp.zeros(tuple(shape), jnp.float32)


class Stored(nn.Module):
    """A layer whose parameters come from a file."""

    def stored(self, name: str, *shape: int, dtype: Any = None) -> Array:
        """A parameter of this shape in our layout, in the type that is computed in."""
        value = self.param(name, _zeros(shape))
        return value if dtype is None else value.astype(dtype)


class Convolution(Stored):
    """Convolution of NHWC with an HWIO kernel."""

    features: int
    size: Pair
    stride: int
    padding: tuple[Pair, ...]
    bias: bool
    precision: jax.lax.Precision

    @nn.compact
    def __call__(self, x: Float[Array, "n h w _i"]) -> Float[Array, "n _h _w _o"]:
        """Returns the filtered map."""
        weight = self.stored("weight", *self.size, x.shape[-1], self.features, dtype=x.dtype)
        if self.size == (1, 1) and self.stride == 1 and not any(map(any, self.padding)):
            # On CPUs a product of matrices is faster than the same as a convolution.
            y = jnp.dot(x, weight[0, 0], precision=self.precision)
        else:
            y = self._filtered(x, weight)
        return y + self.stored("bias", self.features, dtype=x.dtype) if self.bias else y

    def _filtered(self, x: Float[Array, "n h w _i"], weight: Float[Array, "_kh _kw _i _o"]) -> Array:
        # XLA's CPU backend takes two to four times as long for a convolution without any padding (jaxlib 0.10), so one
        # column of zeros is added and what it makes is cut off.
        bare = not any(map(any, self.padding))
        y = jax.lax.conv_general_dilated(
            x,
            weight,
            (self.stride, self.stride),
            ((0, 0), (0, 1)) if bare else self.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=self.precision,
        )
        return y[:, :, : (x.shape[2] - self.size[1]) // self.stride + 1] if bare else y


class Depthwise(Stored):
    """Convolution of each channel by itself; the kernel is `(height, width, 1, channels)`.

    A sum of shifted pictures: grouped convolutions are many times slower on CPUs.
    """

    features: int
    size: Pair
    stride: int
    padding: tuple[Pair, ...]
    bias: bool
    precision: jax.lax.Precision

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n _h _w c"]:
        """Returns the filtered map."""
        weight = self.stored("weight", *self.size, 1, self.features, dtype=x.dtype)
        shifts = windows(jnp.pad(x, ((0, 0), *self.padding, (0, 0))), self.size, self.stride)
        y = sum(part * weight[i, j, 0] for (i, j), part in shifts.items())
        return y + self.stored("bias", self.features, dtype=x.dtype) if self.bias else y


class BatchNorm(Stored):
    """Normalisation by stored statistics; only the bias is left of it where the scale is in the kernel before it."""

    eps: float
    kernel: str
    folded: bool

    @nn.compact
    def __call__(self, x: Float[Array, "*n c"]) -> Float[Array, "*n c"]:
        """Returns the normalised map."""
        names = ("bias",) if self.folded else ("weight", "bias", "running_mean", "running_var")
        stored = {name: self.stored(name, x.shape[-1], dtype=x.dtype) for name in names}
        if self.folded:
            return x + stored["bias"]
        scale = stored["weight"] * jax.lax.rsqrt(stored["running_var"] + self.eps)
        return (x - stored["running_mean"]) * scale + stored["bias"]


class Linear(Stored):
    """A product with an (in, out) matrix."""

    features: int
    bias: bool
    precision: jax.lax.Precision

    @nn.compact
    def __call__(self, x: Float[Array, "*n _i"]) -> Float[Array, "*n _o"]:
        """Returns the product, plus the bias where there is one."""
        weight = self.stored("weight", x.shape[-1], self.features, dtype=x.dtype)
        y = jnp.dot(x, weight, precision=self.precision)
        return y + self.stored("bias", self.features, dtype=x.dtype) if self.bias else y


# ---------------------------------------------------------------------------------------------------- pooling


def windows(x: Float[Array, "n h w c"], size: Pair, stride: int) -> dict[Pair, Float[Array, "n _h _w c"]]:
    """For each place in a window, what the windows of a padded map hold there."""
    high, wide = ((x.shape[axis + 1] - size[axis]) // stride + 1 for axis in (0, 1))
    last = ((high - 1) * stride + 1, (wide - 1) * stride + 1)
    return {
        (i, j): x[:, i : i + last[0] : stride, j : j + last[1] : stride] for i in range(size[0]) for j in range(size[1])
    }


def max_pool(x: Float[Array, "n h w c"], size: int, stride: int, padding: int = 0) -> Float[Array, "n _h _w c"]:
    """The largest of each window; the padding never wins."""
    around = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    x = jnp.pad(x, around, constant_values=-jnp.inf) if padding else x
    # First down, then across: six comparisons for a 3x3 window instead of nine, and no slow window reduction.
    for shape in ((size, 1), (1, size)):
        step = (stride, 1) if shape[1] == 1 else (1, stride)
        x = _largest(x, shape, step)
    return x


def _largest(x: Float[Array, "n h w c"], size: Pair, step: Pair) -> Float[Array, "n _h _w c"]:
    last = [(x.shape[axis + 1] - size[axis]) // step[axis] * step[axis] + 1 for axis in (0, 1)]
    parts = [x[:, i : i + last[0] : step[0], j : j + last[1] : step[1]] for i in range(size[0]) for j in range(size[1])]
    y = parts[0]
    for part in parts[1:]:
        y = jnp.maximum(y, part)
    return y


def mean_pool_3x3(x: Float[Array, "n h w c"], *, count_padding: bool) -> Float[Array, "n h w c"]:
    """Mean of 3x3 windows with a border of one pixel, which counts as zeros or does not count at all."""
    high, wide = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    down = padded[:, :high] + padded[:, 1:-1] + padded[:, 2:]
    total = down[:, :, :wide] + down[:, :, 1:-1] + down[:, :, 2:]
    rows, columns = (np.full(length, 3.0) for length in (high, wide))
    if not count_padding:
        for counts in (rows, columns):
            counts[0] -= 1
            counts[-1] -= 1
    return total / jnp.asarray(rows[:, None, None] * columns[:, None], x.dtype)


def spatial_mean(x: Float[Array, "n h w c"]) -> Float[Array, "n c"]:
    """Mean over pixels."""
    return jnp.mean(settled(x), axis=(1, 2))


def flatten(x: Float[Array, "n h w c"]) -> Float[Array, "n _d"]:
    """One row per image in the order channel, height, width, as published linear layers expect it."""
    return jnp.transpose(x, (0, 3, 1, 2)).reshape(x.shape[0], -1)
