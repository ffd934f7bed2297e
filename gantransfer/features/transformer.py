"""What vision transformers share: normalisation of tokens, attention over packed queries, keys and values, blocks."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gantransfer.features.layers import Graph, Stored


class LayerNorm(Stored):
    """Normalisation of each token over its channels."""

    eps: float

    @nn.compact
    def __call__(self, x: Float[Array, "*n c"]) -> Float[Array, "*n c"]:
        """Returns the normalised tokens; variances of half-precision tokens are computed in float32."""
        weight, bias = (self.stored(name, x.shape[-1], dtype=x.dtype) for name in ("weight", "bias"))
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        centred = wide - wide.mean(axis=-1, keepdims=True)
        deviation = jnp.sqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + self.eps)
        return (centred / deviation).astype(x.dtype) * weight + bias


class Patches(Stored):
    """Convolution whose stride is its size, as one product: the gradient of the convolution is very slow on CPUs."""

    features: int
    side: int
    bias: bool
    precision: jax.lax.Precision

    @nn.compact
    def __call__(self, x: Float[Array, "n h w i"]) -> Float[Array, "n _h _w _o"]:
        """Returns one token per patch; height and width are multiples of its side."""
        n, high, wide, channels = x.shape
        weight = self.stored("weight", self.side, self.side, channels, self.features, dtype=x.dtype)
        x = x.reshape(n, high // self.side, self.side, wide // self.side, self.side, channels)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(n, high // self.side, wide // self.side, -1)
        y = jnp.dot(x, weight.reshape(-1, self.features), precision=self.precision)
        return y + self.stored("bias", self.features, dtype=x.dtype) if self.bias else y


class StoredArray(Stored):
    """One array that is added or multiplied as it is: a token, a table, the scale of a branch.

    Args:
      leaf: its name.
      shape: its shape.
    """

    leaf: str
    shape: tuple[int, ...]

    @nn.compact
    def __call__(self, dtype: jnp.dtype) -> Array:
        """Returns it in the type that is computed in."""
        return self.stored(self.leaf, *self.shape, dtype=dtype)


class Transformer(Graph):
    """A graph of blocks that attend and then transform each token."""

    def patches(
        self, x: Float[Array, "n h w i"], name: str, features: int, side: int, *, bias: bool = True
    ) -> Float[Array, "n _h _w _o"]:
        """One token per square patch, in rows."""
        return Patches(features, side, bias, self.precision, name=name)(x)

    def layer_norm(self, x: Float[Array, "*n c"], name: str, eps: float) -> Float[Array, "*n c"]:
        """Layer norm with stored scale and shift."""
        return LayerNorm(eps, name=name)(x)

    def table(self, name: str, *shape: int, dtype: jnp.dtype) -> Array:
        """A stored array that is no layer's: a token, or a table of positions."""
        layer, _, leaf = name.rpartition(".")
        if layer:
            return StoredArray(leaf, shape, name=layer)(dtype)
        return self.param(name, lambda key: jnp.zeros(shape, jnp.float32)).astype(dtype)

    def mlp(self, x: Float[Array, "*n c"], names: tuple[str, str], act=None) -> Float[Array, "*n c"]:
        """Two linear layers, four times as wide between them; exact GELU unless told otherwise."""
        hidden = self.linear(x, names[0], 4 * x.shape[-1])
        hidden = act(hidden) if act else jax.nn.gelu(hidden, approximate=False)
        return self.linear(hidden, names[1], x.shape[-1])

    def attention(
        self, packed: Float[Array, "*n t _"], heads: int, bias: Float[Array, "... _h t t"] | None = None
    ) -> Float[Array, "*n t _c"]:
        """Attention of tokens to each other.

        Args:
          packed: queries, keys and values of each token, in this order, each split into heads.
          heads: how many.
          bias: added to the scores, `(..., heads, tokens, tokens)`.
        """
        width = packed.shape[-1] // 3
        q, k, v = jnp.moveaxis(packed.reshape(*packed.shape[:-1], 3, heads, width // heads), -3, 0)
        scores = jnp.einsum("...qhd,...khd->...hqk", q * (width // heads) ** -0.5, k, precision=self.precision)
        scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
        shares = jax.nn.softmax(scores if bias is None else scores + bias, axis=-1).astype(packed.dtype)
        mixed = jnp.einsum("...hqk,...khd->...qhd", shares, v, precision=self.precision)
        return mixed.reshape(*packed.shape[:-1], width)
