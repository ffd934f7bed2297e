"""LPIPS (Zhang et al. 2018) on features that a network has already computed, and the diversity measures made of it.

The distance of two pictures: at each stage the features of every pixel are scaled to unit length, their squared
differences weighted by a learned head, summed over channels and averaged over pixels; then summed over stages.
"""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gantransfer.errors import UserError
from gantransfer.features.pixels import resize_weights

# ImageNet's mean and deviation for pixels in [-1, 1], as the published heads were trained with.
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
EPSILON = 1e-10

Device = Array | np.ndarray
Distance = Callable[[Int[np.ndarray, " p"], Int[np.ndarray, " p"]], Float[np.ndarray, " p"]]


def scaling_layer(images: Float[Device, "n h w 3"]) -> Float[Array, "n h w 3"]:
    """Pixels in [-1, 1] as the network takes them. Version 0.0 of the published heads goes without."""
    return (images - jnp.asarray(SHIFT, images.dtype)) / jnp.asarray(SCALE, images.dtype)


def lpips(
    stages_a: Sequence[Float[Device, "n _h _w _c"]],
    stages_b: Sequence[Float[Device, "n _h _w _c"]],
    heads: Sequence[Float[Device, " _c"]] | None,
) -> Float[Array, " n"]:
    """Distances of pairs of pictures; 0 for equal ones, symmetric, finite gradients.

    Args:
      stages_a, stages_b: features of the same stages of one network, channels last, float32 or float64: the small
        constant in the norm is lost in half precision.
      heads: a weight per channel for each stage, not negative; None takes 1 (the "baseline" of the paper).

    Raises:
      UserError: where the numbers of stages and heads, or the channels, differ.
    """
    maps = _weighted_maps(stages_a, stages_b, heads)
    return sum(weighted.mean(axis=(1, 2)) for weighted in maps)


def lpips_map(
    stages_a: Sequence[Float[Device, "n _h _w _c"]],
    stages_b: Sequence[Float[Device, "n _h _w _c"]],
    heads: Sequence[Float[Device, " _c"]] | None,
    size: tuple[int, int],
) -> Float[Array, "n h w"]:
    """Where pairs of pictures differ: weighted maps resized to the picture (half-pixel bilinear) and summed.

    Raises:
      UserError: as `lpips`.
    """
    total = 0.0
    for weighted in _weighted_maps(stages_a, stages_b, heads):
        down, across = (resize_weights("torch_bilinear", weighted.shape[i + 1], size[i]) for i in (0, 1))
        total += jnp.einsum("nhw,Hh,Ww->nHW", weighted, down, across, precision="highest")
    return total


def _weighted_maps(
    stages_a: Sequence[Float[Device, "n _h _w _c"]],
    stages_b: Sequence[Float[Device, "n _h _w _c"]],
    heads: Sequence[Float[Device, " _c"]] | None,
) -> list[Float[Array, "n _h _w"]]:
    weights = [jnp.ones(a.shape[-1], a.dtype) for a in stages_a] if heads is None else heads
    channels = [[array.shape[-1] for array in arrays] for arrays in (stages_a, stages_b, weights)]
    if not channels[0] or channels[0] != channels[1] or channels[0] != channels[2]:
        raise UserError("stages", f"channels {channels[0]}, {channels[1]}, heads {channels[2]}", "equal ones, in order")
    return [
        jnp.sum((_unit(a) - _unit(b)) ** 2 * w, axis=-1) for a, b, w in zip(stages_a, stages_b, weights, strict=True)
    ]


def _unit(features: Float[Device, "n h w c"]) -> Float[Array, "n h w c"]:
    squares = jnp.sum(features**2, axis=-1, keepdims=True)
    zero = squares == 0
    # The root of 0 has no gradient, and a masked NaN is still NaN: so the root is taken of something else there.
    norm = jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, squares)))
    return features / (norm + EPSILON)


def pairwise_diversity(distance: Distance, count: int, pairs: int = 1000, seed: int = 0) -> float:
    """Mean distance of random pairs of different pictures.

    Args:
      distance: of the pictures with the first numbers to those with the second, both `(p,)`.
      count: how many pictures there are.
      pairs: how many to draw, with replacement; all, once each, where there are no more.
      seed: of the draws.

    Raises:
      UserError: for fewer than 2 pictures or no pair.
    """
    if count < 2 or pairs < 1:
        raise UserError("pictures", f"{count}, {pairs} pairs", "at least 2 pictures and 1 pair")
    return float(np.mean(distance(*_draw_pairs(count, pairs, np.random.Generator(np.random.PCG64(seed))))))


def intra_cluster_diversity(
    nearest: Int[np.ndarray, " n"], distance: Distance, clusters: int, limit: int = 50, seed: int = 0
) -> dict[str, float | int]:
    """Few-shot diversity (Ojha et al. 2021): mean distance inside clusters of samples with one nearest training image.

    A generator that copies its training images has about 0; higher is more varied.

    Args:
      nearest: for each sample the number of its nearest training image, by the same distance.
      distance: as in `pairwise_diversity`.
      clusters: how many training images there are.
      limit: samples taken per cluster, drawn.
      seed: of the draws.

    Returns:
      `value`, the mean over clusters that have a pair; `clusters_without_pairs`, how many have not.

    Raises:
      UserError: if no cluster has a pair, or a number is no cluster.
    """
    if nearest.size and not 0 <= nearest.min() <= nearest.max() < clusters:
        raise UserError("nearest", int(nearest.max()), f"0 to {clusters - 1}, the training images")
    rng, means = np.random.Generator(np.random.PCG64(seed)), []
    for cluster in range(clusters):
        members = np.flatnonzero(nearest == cluster)
        if len(members) > limit:
            members = np.sort(rng.choice(members, limit, replace=False))
        if len(members) >= 2:
            first, second = np.triu_indices(len(members), 1)
            means.append(float(np.mean(distance(members[first], members[second]))))
    if not means:
        raise UserError("samples", len(nearest), "two samples with the same nearest training image")
    return {"value": float(np.mean(means)), "clusters_without_pairs": clusters - len(means)}


def _draw_pairs(
    count: int, pairs: int, rng: np.random.Generator
) -> tuple[Int[np.ndarray, " p"], Int[np.ndarray, " p"]]:
    if count * (count - 1) // 2 <= pairs:
        first, second = np.triu_indices(count, 1)
        return first, second
    first = rng.integers(0, count, pairs)
    return first, (first + rng.integers(1, count, pairs)) % count
