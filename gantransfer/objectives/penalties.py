"""Penalties on a discriminator's slope and on the shape of weights, as plain losses without their strength."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from gantransfer.objectives.losses import Logits, Scalar


def r1_penalty(logits_fn: Callable[[Array], Logits], images: Float[Array, "n h w c"]) -> Scalar:
    """Half the squared norm of the discriminator's slope at `images`: summed over pixels, mean over the batch.

    Args:
      logits_fn: images to logits `(n,)`. Several heads count by their mean, as in the losses.
      images: where the slope is taken.

    Returns:
      The penalty for gamma = 1 of Mescheder et al. 2018, equation 9 (their `gamma / 2` holds the half).

    The slope is that of the summed logits, as in all released code. That is each image's own slope unless the
    discriminator mixes images (batch norm, minibatch statistics), where the cross terms are included.
    """

    def total(x: Array) -> Array:
        logits = logits_fn(x)
        heads = logits if isinstance(logits, tuple) else (logits,)
        # A head of several logits per image (patches) counts by their mean, so that the sum still runs over images
        # only.
        return sum(jnp.sum(head) * (len(x) / head.size) for head in heads) / len(heads)

    slope = jax.grad(total)(images)
    return 0.5 * jnp.mean(jnp.sum(slope**2, axis=(1, 2, 3)))


def path_lengths(
    images_fn: Callable[[Array], Array], ws: Float[Array, "n l w"], directions: Float[Array, "n h w2 c"]
) -> Float[Array, " n"]:
    """How far each image moves along a random direction per unit of style (Karras et al. 2020, eq. 4).

    Args:
      images_fn: styles to images `(n, h, w, c)`.
      ws: styles of every layer.
      directions: standard normal, of the images' shape; they are divided by the root of the number of pixels.

    Returns:
      The length of the slope of `sum(images * directions)`, with the mean of squares over layers, as in the release
      of StyleGAN2 (arXiv:1912.04958).
    """
    scale = (directions.shape[1] * directions.shape[2]) ** -0.5
    slope = jax.grad(lambda styles: jnp.sum(images_fn(styles) * directions) * scale)(ws)
    return jnp.sqrt(jnp.mean(jnp.sum(slope**2, axis=2), axis=1))


def orthogonal(tree: PyTree) -> Scalar:
    """How far the rows of each weight are from being orthogonal to one another, whatever their lengths.

    Sum over leaves of `0.5 * |w w^T * (1 - I)|^2`, with `w` of one row per output channel: kernels have outputs on
    their last axis, tables that are called `embedding` have one row per class. Its gradient is `2 (w w^T * (1 - I)) w`.

    Args:
      tree: the leaves to count, each with at least two axes; the caller chooses them.

    Source: Brock et al. 2019, equation 3. The formula's own gradient is twice as large; released code adds the gradient
    that is given here, so strengths that go with published settings are strengths of this function.
    """
    total = jnp.zeros(())
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/").rpartition("/")[2]
        rows = leaf.reshape(len(leaf), -1) if name == "embedding" else leaf.reshape(-1, leaf.shape[-1]).T
        products = rows @ rows.T
        total += 0.5 * jnp.sum((products * (1 - jnp.eye(len(rows), dtype=products.dtype))) ** 2)
    return total
