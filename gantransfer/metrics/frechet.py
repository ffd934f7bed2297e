"""Fréchet distance between two sets of features, each taken as a Gaussian (Heusel et al. 2017).

|m1 - m2|^2 + Tr S1 + Tr S2 - 2 Tr (S1 S2)^(1/2), without a matrix square root. With S1 = A'A and S2 = B'B the last
trace is the sum of the singular values of A B': no root of a round-off value is taken, nothing becomes complex, and
fewer samples than dimensions are no special case. The usual `sqrtm` route is slow and loses 1e-7 there.
"""

import numpy as np
from jaxtyping import Float

from gantransfer.metrics.distances import flat_rows


def frechet_distance(a: Float[np.ndarray, "n _"], b: Float[np.ndarray, "m _"], ddof: int = 1) -> float:
    """Fréchet distance of two feature sets; symmetric, 0 for a set and itself.

    Args:
      a, b: features of one width, one row per image; computed in float64 whatever the type.
      ddof: the covariance is divided by rows minus this. 1 is usual; 0 is what NVIDIA's code does.

    Raises:
      ValueError: for fewer than 2 rows, different widths, or features that are not finite.
    """
    a, b = flat_rows("a", a), flat_rows("b", b)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"features differ in width: {a.shape[1]} and {b.shape[1]}")
    if min(len(a), len(b)) < 2:
        raise ValueError(f"a covariance needs at least 2 rows, got {len(a)} and {len(b)}")
    return frechet_from_factors(a.mean(axis=0), covariance_factor(a, ddof), b.mean(axis=0), covariance_factor(b, ddof))


def frechet_from_factors(
    mean_a: Float[np.ndarray, " d"],
    factor_a: Float[np.ndarray, "p d"],
    mean_b: Float[np.ndarray, " d"],
    factor_b: Float[np.ndarray, "q d"],
) -> float:
    """The same from means and factors F with F'F = covariance (see `covariance_factor` and `factor_of_covariance`)."""
    shift = mean_a - mean_b
    cross = np.linalg.svd(factor_a @ factor_b.T, compute_uv=False).sum()
    return float(shift @ shift + np.sum(factor_a**2) + np.sum(factor_b**2) - 2 * cross)


def covariance_factor(features: Float[np.ndarray, "n d"], ddof: int = 1) -> Float[np.ndarray, "p d"]:
    """A factor of the features' covariance with at most d rows."""
    centred = (features - features.mean(axis=0)) / np.sqrt(len(features) - ddof)
    n, d = centred.shape
    # Turning the rows changes neither the covariance nor the singular values of a product of factors.
    return np.linalg.qr(centred, mode="r") if n > d else centred


def factor_of_covariance(covariance: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "p d"]:
    """A factor of a stored covariance; directions below round-off of the largest are dropped."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > len(values) * np.finfo(np.float64).eps * max(values[-1], 0)
    return np.sqrt(values[kept])[:, None] * vectors[:, kept].T
