"""Parts that FastGAN's networks share: noise, skip-layer excitation, gated halves, kernels of the size of their map."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gantransfer.models.layers import Recipe, effective_weight


def gated_half(x: Float[Array, "n h w c"]) -> Float[Array, "n h w c//2"]:
    """The first half of the channels times the sigmoid of the second (Dauphin et al. 2017, arXiv:1612.08083)."""
    value, gate = jnp.split(x, 2, axis=-1)
    return value * nn.sigmoid(gate)


def pooled_to(x: Float[Array, "n h w c"], side: int) -> Float[Array, "n side2 side3 c"]:
    """Means over squares, or repetitions, that leave a map of this side; one of the sides divides the other."""
    n, h, w, c = x.shape
    if h < side:
        return x.repeat(side // h, axis=1).repeat(side // w, axis=2)
    return x.reshape(n, side, h // side, side, w // side, c).mean((2, 4))


def noise_keys(z: Float[Array, "n z"]) -> Array:
    """One random key per image, made of its latent: an image is a function of weights and latent, in any batch.

    Latents are rounded down to sixteenths first, so that programs which differ in a latent's last bits agree.
    """
    coarse = jnp.floor(16 * z).astype(jnp.int32).astype(jnp.uint32)
    constants = np.random.default_rng(0).integers(0, 2**31, (2, z.shape[1])).astype(np.uint32) * np.uint32(2) + 1
    first, second = ((coarse * row).sum(1, dtype=jnp.uint32) for row in constants.astype(np.uint32))
    one = lambda a, b: jax.random.fold_in(jax.random.fold_in(jax.random.key(0), a), b)
    return jax.vmap(one)(first, second)


class FromLatent(nn.Module):
    """A transposed convolution of a 1x1 map: latents `(n, z)` to `(n, 4, 4, features)`, without bias."""

    features: int
    recipe: Recipe

    @nn.compact
    def __call__(self, z: Float[Array, "n z"]) -> Float[Array, "n 4 4 o"]:
        kernel = self.param("kernel", self.recipe.kernel_init(), (4, 4, z.shape[1], self.features))
        kernel = effective_weight(self, kernel, self.recipe.spectral)
        return jnp.einsum("nz,hwzo->nhwo", z.astype(self.recipe.dtype), kernel.astype(self.recipe.dtype))


class Window(nn.Module):
    """A convolution, without bias, whose kernel is as large as its map: `(n, side, side, c)` to `(n, features)`."""

    features: int
    recipe: Recipe

    @nn.compact
    def __call__(self, x: Float[Array, "n side side c"]) -> Float[Array, "n o"]:
        kernel = self.param("kernel", self.recipe.kernel_init(), (*x.shape[1:], self.features))
        kernel = effective_weight(self, kernel, self.recipe.spectral)
        return jnp.einsum("nhwi,hwio->no", x.astype(self.recipe.dtype), kernel.astype(self.recipe.dtype))


class SkipExcitation(nn.Module):
    """Scales the channels of a large map by what a small map holds (Liu et al. 2021, section 3.1)."""

    recipe: Recipe

    @nn.compact
    def __call__(self, small: Float[Array, "n h w c"], large: Float[Array, "n h2 w2 o"]) -> Float[Array, "n h2 w2 o"]:
        features = large.shape[-1]
        gate = nn.swish(Window(features, self.recipe, name="conv1")(pooled_to(small, 4)))
        gate = nn.sigmoid(Window(features, self.recipe, name="conv2")(gate[:, None, None, :]))
        return large * gate[:, None, None, :]
