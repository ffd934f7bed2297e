"""Layers of StyleGAN2: equalised learning rates, modulated convolution, noise, minibatch standard deviation.

Weights are stored as drawn, N(0, 1) (over the rate, where a layer has one), and scaled when used (Karras et al. 2018,
arXiv:1710.10196, section 4.1), so that optimizers move all of them at one pace and files hold what was trained.
Arrays are NHWC, kernels HWIO. `form` is that of `convolution`: the plain form of a modulated convolution gives each
sample its own kernel, the rewritten one scales inputs and outputs of a shared kernel (Karras et al. 2020,
arXiv:1912.04958, section 2.2 and appendix B).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from gantransfer.errors import UserError
from gantransfer.models.convolution import Form
from gantransfer.models.layers import Labels, class_vector
from gantransfer.models.resampling import Filter, convolve_resampled

EPS = 1e-8


def leaky_relu(x: Float[Array, "..."], slope: float = 0.2) -> Float[Array, "..."]:
    """`x`, times `slope` where it is not above 0; at exactly 0 the derivative is `slope`, as in torch."""
    return jnp.where(x > 0, x, slope * x)


# Function and gain; the gains of rectifiers keep the second moment of what they are given.
ACTIVATIONS: dict[str, tuple[Callable[[Array], Array], float]] = {
    "linear": (lambda x: x, 1.0),
    "relu": (nn.relu, 2**0.5),
    "lrelu": (leaky_relu, 2**0.5),
    "tanh": (jnp.tanh, 1.0),
    "sigmoid": (nn.sigmoid, 1.0),
    "elu": (nn.elu, 1.0),
    "selu": (nn.selu, 1.0),
    "softplus": (nn.softplus, 1.0),
    "swish": (nn.swish, 2**0.5),
}


@dataclass(frozen=True)
class Recipe:
    """What the layers of one block have in common.

    Attributes:
      filter: of all resampling.
      activation: one of `ACTIVATIONS`.
      clamp: largest magnitude of what a convolutional layer returns; None: no limit.
      dtype: of the operands of convolutions. Parameters, styles and demodulation are float32 always.
      form: which of the equal forms of a convolution is computed.
    """

    filter: Filter
    activation: str = "lrelu"
    clamp: float | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    form: Form = "rewritten"


def biased(
    x: Float[Array, "... c"],
    bias: Float[Array, " c"] | None,
    activation: str,
    gain: float = 1.0,
    clamp: float | None = None,
) -> Float[Array, "... c"]:
    """Adds a bias, activates, multiplies by the activation's gain times `gain`, and limits to `clamp * gain`."""
    function, own = ACTIVATIONS[activation]
    if bias is not None:
        x = x + bias.astype(x.dtype)
    x = function(x)
    if own * gain != 1:
        x = x * (own * gain)
    if clamp is None:
        return x
    limit = jnp.asarray(clamp * gain, x.dtype)
    return lax.clamp(-limit, x, limit)


def unit_second_moment(x: Float[Array, "n c"]) -> Float[Array, "n c"]:
    """Divides each row by the root of the mean of its squares."""
    return x * lax.rsqrt(jnp.square(x).mean(1, keepdims=True) + EPS)


class Dense(nn.Module):
    """A linear layer with an equalised learning rate, float32.

    Attributes:
      features: number of outputs.
      rate: multiplier of the learning rate of kernel and bias.
      bias_start: of a fresh bias, before `rate`.
    """

    features: int
    activation: str = "linear"
    rate: float = 1.0
    bias_start: float = 0.0

    @nn.compact
    def __call__(self, x: Float[Array, "n i"]) -> Float[Array, "n o"]:
        kernel = self.param("kernel", nn.initializers.normal(1 / self.rate), (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.constant(self.bias_start), (self.features,))
        # The gain goes on the product, which is smaller than the kernel.
        y = jnp.dot(x, kernel) * (self.rate * x.shape[-1] ** -0.5)
        return biased(y, bias * self.rate, self.activation)


class ClassDense(nn.Module):
    """A linear layer of one-hot labels: one row of its kernel per class; called with labels or class weights."""

    num_classes: int
    features: int

    @nn.compact
    def __call__(self, c: Labels) -> Float[Array, "n e"]:
        kernel = self.param("kernel", nn.initializers.normal(1.0), (self.num_classes, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return class_vector(kernel, c) * self.num_classes**-0.5 + bias


class Conv(nn.Module):
    """A convolution with an equalised learning rate, as the discriminator and the shortcuts use it.

    Attributes:
      features: number of outputs.
      size: side of the kernel, odd.
      up, down: factors of resampling.
      turn_kernel: whether the kernel is turned by 180 degrees.
      shortcut: neither bias nor activation nor clamp.
      clamped: False: the recipe's clamp is not applied.
    """

    features: int
    size: int
    recipe: Recipe
    up: int = 1
    down: int = 1
    turn_kernel: bool = False
    shortcut: bool = False
    clamped: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "n h w i"], gain: float = 1.0) -> Float[Array, "n h2 w2 o"]:
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.normal(1.0), shape)
        r, dtype, scale = self.recipe, self.recipe.dtype, (self.size**2 * x.shape[-1]) ** -0.5
        y = convolve_resampled(
            x.astype(dtype),
            kernel.astype(dtype),
            r.filter,
            r.form,
            self.up,
            self.down,
            self.size // 2,
            self.turn_kernel,
        )
        if self.shortcut:
            return y * (scale * gain)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return biased(y * scale, bias, r.activation, gain, r.clamp if self.clamped else None)


# Modulated convolution.


def modulated_convolution(
    x: Float[Array, "n h w i"],
    kernel: Float[Array, "kh kw i o"],
    styles: Float[Array, "n i"],
    recipe: Recipe,
    demodulate: bool = True,
    up: int = 1,
    down: int = 1,
    pads: int = 0,
    turn_kernel: bool = False,
) -> Float[Array, "n h2 w2 o"]:
    """A convolution whose kernel's inputs are scaled by each sample's styles, and outputs to unit norm.

    Args:
      x, kernel: maps, and a raw kernel of N(0, 1) entries: the 1e-8 under the root is relative to these.
      styles: a factor per sample and input channel.
      recipe: filter, dtype and form.
      demodulate: divides each output channel by the norm of its scaled kernel.
      up, down, pads, turn_kernel: as in `resampling.convolve_resampled`.
    """
    operate = lambda maps, k: convolve_resampled(maps, k, recipe.filter, recipe.form, up, down, pads, turn_kernel)
    dtype = recipe.dtype
    if recipe.form == "plain":
        scaled = kernel * styles[:, None, None, :, None]
        if demodulate:
            scaled = scaled * lax.rsqrt(jnp.square(scaled).sum((1, 2, 3), keepdims=True) + EPS)
        return jax.vmap(lambda one, k: operate(one[None], k)[0])(x.astype(dtype), scaled.astype(dtype))
    if not demodulate and kernel.shape[:2] == (1, 1) and kernel.shape[3] < kernel.shape[2] and up == down == 1:
        # To few colours: scaled kernels are smaller than scaled maps.
        scaled = kernel[0, 0] * styles[:, :, None]
        return jnp.einsum("nhwi,nio->nhwo", x.astype(dtype), scaled.astype(dtype))
    y = operate(x.astype(dtype) * styles[:, None, None].astype(dtype), kernel.astype(dtype))
    if not demodulate:
        return y
    norm = lax.rsqrt(jnp.square(styles) @ jnp.square(kernel).sum((0, 1)) + EPS)
    return y * norm[:, None, None].astype(dtype)


class StyledConv(nn.Module):
    """A 3x3 modulated convolution with noise, bias and activation.

    Attributes:
      features: number of outputs.
      up: factor of upsampling. Where it upsamples, the stored kernel is turned, as in published files.
      use_noise: False: the layer has neither noise nor its strength.
    """

    features: int
    recipe: Recipe
    up: int = 1
    use_noise: bool = True

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n h w i"],
        w: Float[Array, "n d"],
        noise: str | Float[Array, "#n h2 w2 1"] = "const",
        gain: float = 1.0,
    ) -> Float[Array, "n h2 w2 o"]:
        kernel = self.param("kernel", nn.initializers.normal(1.0), (3, 3, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        styles = Dense(x.shape[-1], bias_start=1.0, name="affine")(w)
        r = self.recipe
        y = modulated_convolution(x, kernel, styles, r, up=self.up, pads=1, turn_kernel=self.up > 1)
        if self.use_noise:
            strength = self.param("noise_strength", nn.initializers.zeros, ())
            field = self._noise(noise, y.shape)
            if field is not None:
                y = y + (field * strength).astype(y.dtype)
        return biased(y, bias, r.activation, gain, r.clamp)

    def _noise(self, noise, shape):
        if self.is_initializing() or (isinstance(noise, str) and noise == "const"):
            make = lambda: jax.random.normal(self.make_rng("params"), shape[1:3])
            return self.variable("constants", "noise_const", make).value[None, :, :, None]
        if isinstance(noise, str):
            return jax.random.normal(self.make_rng("noise"), (*shape[:3], 1)) if noise == "random" else None
        return noise


class ToRGB(nn.Module):
    """A 1x1 modulated convolution to colours, float32 out; neither demodulated nor activated."""

    channels: int
    recipe: Recipe

    @nn.compact
    def __call__(self, x: Float[Array, "n h w i"], w: Float[Array, "n d"]) -> Float[Array, "n h w o"]:
        kernel = self.param("kernel", nn.initializers.normal(1.0), (1, 1, x.shape[-1], self.channels))
        bias = self.param("bias", nn.initializers.zeros, (self.channels,))
        styles = Dense(x.shape[-1], bias_start=1.0, name="affine")(w) * x.shape[-1] ** -0.5
        y = modulated_convolution(x, kernel, styles, self.recipe, demodulate=False)
        return biased(y, bias, "linear", clamp=self.recipe.clamp).astype(jnp.float32)


# The discriminator's statistics.


def minibatch_deviation(x: Float[Array, "n h w c"], group: int, channels: int = 1) -> Float[Array, "n h w c2"]:
    """Appends how much the samples of a group differ (Karras et al. 2018, arXiv:1710.10196, section 3).

    Args:
      x: features. Sample i belongs to group `i mod (n / group)`: the members of a group are spread over the batch.
      group: samples per group, at most the whole batch; 0 takes the whole batch.
      channels: how many deviations, each over its share of the features.

    Raises:
      UserError: where the batch is not a multiple of the group.
    """
    n, h, w, c = x.shape
    members = min(group, n) if group else n
    if n % members:
        raise UserError("batch", n, f"a multiple of the discriminator's group of {members} samples")
    grouped = x.astype(jnp.float32).reshape(members, n // members, h, w, channels, c // channels)
    centred = grouped - grouped.mean(0)
    deviation = jnp.sqrt(jnp.square(centred).mean(0) + EPS).mean((1, 2, 4))
    spread = jnp.broadcast_to(deviation[None, :, None, None], (members, n // members, h, w, channels))
    return jnp.concatenate([x, spread.reshape(n, h, w, channels).astype(x.dtype)], axis=3)
