"""Fréchet distance between two sets of features, each taken as a Gaussian (Heusel et al. 2017).

|m1 - m2|^2 + Tr S1 + Tr S2 - 2 Tr (S1 S2)^(1/2), without a matrix square root, which is slow and loses 1e-7 where a
covariance is singular. The last trace is found in one of two ways:

1. With S1 = A'A and S2 = B'B it is the sum of the singular values of A B': no root of a round-off value is taken,
   nothing becomes complex, and fewer samples than dimensions are no special case.
2. With S2 = L L' the eigenvalues of S1 S2 are those of the symmetric L' S1 L, and the trace is the sum of their roots:
   a quarter of the work. An eigenvalue has an error, and its root a larger one where it is small, so this way is taken
   only where an estimate of that error is below 1e-7 of the distance.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped

from gantransfer.errors import UserError
from gantransfer.metrics.distances import check_widths, checked_rows
from gantransfer.metrics.eigenvalues import symmetric_eigenvalues

# Below this width the first way takes no time worth saving.
NARROW = 512
BLOCK = 1024
PART = 128
QUICK_ERROR = 1e-7
# Of the estimate; tests/metrics holds what is computed so to the tolerance, on families of spectra and directions.
ROUNDING = 32


@dataclass(frozen=True)
class Moments:
    """Number, mean and centred second moment of rows, which merge: what a streaming pass keeps of features.

    Attributes:
      count: how many rows.
      mean: float64.
      scatter: the sum of (x - mean)(x - mean)', float64, symmetric.
    """

    count: int
    mean: Float[np.ndarray, " d"]
    scatter: Float[np.ndarray, "d d"]

    @classmethod
    def of(cls, features: Shaped[np.ndarray, "n _"]) -> "Moments":
        """Moments of one row per image, in float64 whatever the type; `UserError` if one is not finite."""
        return _moments(checked_rows("features", features))

    @classmethod
    def of_covariance(
        cls, mean: Float[np.ndarray, " d"], covariance: Float[np.ndarray, "d d"], count: int, ddof: int = 1
    ) -> "Moments":
        """Moments from a stored mean and covariance (`mu`, `sigma`) of `count` rows."""
        return cls(count, np.asarray(mean, np.float64), np.asarray(covariance, np.float64) * (count - ddof))

    def merge(self, other: "Moments") -> "Moments":
        """Moments of both sets together (Chan, Golub, LeVeque 1979)."""
        count, shift = self.count + other.count, other.mean - self.mean
        mean = self.mean + shift * (other.count / count)
        between = np.outer(shift, shift) * (self.count * other.count / count)
        return Moments(count, mean, self.scatter + other.scatter + between)

    def covariance(self, ddof: int = 1) -> Float[np.ndarray, "d d"]:
        """The covariance, divided by the count minus `ddof`."""
        return self.scatter / (self.count - ddof)


def frechet_distance(
    a: Float[np.ndarray, "n _"] | Moments, b: Float[np.ndarray, "m _"] | Moments, ddof: int = 1
) -> float:
    """Fréchet distance of two feature sets; symmetric, 0 for a set and itself.

    Args:
      a, b: features of one width, one row per image, or their `Moments`; computed in float64 whatever the type.
      ddof: the covariance is divided by rows minus this. 1 is usual; 0 is what NVIDIA's code does.

    Raises:
      UserError: for fewer than 2 rows, different widths, or features that are not finite.
    """
    sides = [_side(name, side) for name, side in (("a", a), ("b", b))]
    check_widths(*(side.scatter if isinstance(side, Moments) else side for side in sides))
    counts = [side.count if isinstance(side, Moments) else len(side) for side in sides]
    width = len(sides[0].mean) if isinstance(sides[0], Moments) else sides[0].shape[1]
    if width <= NARROW or min(counts) <= width:
        (mean_a, factor_a), (mean_b, factor_b) = (_mean_and_factor(side, ddof) for side in sides)
        return frechet_from_factors(mean_a, factor_a, mean_b, factor_b)
    first, second = (side if isinstance(side, Moments) else _moments(side) for side in sides)
    return frechet_from_covariances(first.mean, first.covariance(ddof), second.mean, second.covariance(ddof))


def frechet_from_covariances(
    mean_a: Float[np.ndarray, " _"],
    covariance_a: Float[np.ndarray, "_ _"],
    mean_b: Float[np.ndarray, " _"],
    covariance_b: Float[np.ndarray, "_ _"],
) -> float:
    """The same from means and covariances, such as stored statistics (`mu`, `sigma`).

    Raises:
      UserError: where shapes do not agree or something is not finite.
    """
    arrays = [np.asarray(array, np.float64) for array in (mean_a, covariance_a, mean_b, covariance_b)]
    mean_a, covariance_a, mean_b, covariance_b = arrays
    width = len(mean_a)
    if [array.shape for array in arrays] != [(width,), (width, width)] * 2:
        raise UserError("statistics", [array.shape for array in arrays], "means (d,) and covariances (d, d) of one d")
    if not all(np.isfinite(array).all() for array in arrays):
        raise UserError("statistics", "NaN or infinity", "finite means and covariances")
    if width > NARROW:
        shift = mean_a - mean_b
        rest = float(shift @ shift + np.trace(covariance_a) + np.trace(covariance_b))
        root, error = _root_trace(covariance_a, covariance_b)
        if 2 * error <= QUICK_ERROR * (rest - 2 * root):
            return rest - 2 * root
    return frechet_from_factors(mean_a, factor_of_covariance(covariance_a), mean_b, factor_of_covariance(covariance_b))


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
    """A factor of a stored covariance, of as many rows as its rank: Cholesky's with pivots, up to round-off."""
    from scipy.linalg.lapack import dpstrf

    upper, pivots, rank, _ = dpstrf(covariance)
    factor = np.empty((rank, len(covariance)))
    factor[:, pivots - 1] = np.triu(upper)[:rank]
    return factor


def _root_trace(a: Float[np.ndarray, "d d"], b: Float[np.ndarray, "d d"]) -> tuple[float, float]:
    """The trace of (a b)^(1/2) from symmetric eigenvalues, and an estimate of its error."""
    from scipy.linalg.blas import dsymm
    from scipy.linalg.lapack import dpstrf, dsygst

    # Symmetric, so either order in memory will do: rows in a row for NumPy, columns in a row for LAPACK.
    a, b = (side.T if side.flags.f_contiguous else side for side in (a, b))
    # Pivots put what is large first. So graded, small eigenvalues are found to their own scale, not to the largest's.
    lower, pivots, rank, _ = dpstrf(b.T, lower=1)
    if rank == 0:
        return 0.0, 0.0
    a = _upper_of_order(a, pivots - 1).T
    if rank == len(b):
        product, _ = dsygst(a, lower, itype=2, lower=1, overwrite_a=1)
    else:
        factor = np.tril(lower)[:, :rank]
        product = factor.T @ dsymm(1.0, a, factor, lower=1)
    roots = np.sqrt(np.maximum(symmetric_eigenvalues(product), 0))[::-1]
    # What rounding moves each eigenvalue by, at the scale of the diagonal.
    moved = ROUNDING * np.finfo(np.float64).eps * np.sort(np.diag(product))[::-1]
    largest = np.sqrt(moved)
    errors = np.divide(moved, roots, out=largest, where=roots > largest)
    return float(roots.sum()), float(errors.sum())


def _side(name: str, side: Shaped[np.ndarray, "n _"] | Moments) -> Shaped[np.ndarray, "n _"] | Moments:
    if not isinstance(side, Moments):
        return checked_rows(name, side, least=2)
    if side.count < 2:
        raise UserError(name, f"{side.count} rows", "at least 2")
    return side


def _mean_and_factor(
    side: Shaped[np.ndarray, "n _"] | Moments, ddof: int
) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, "p d"]]:
    if isinstance(side, Moments):
        return side.mean, factor_of_covariance(side.covariance(ddof))
    rows = side.astype(np.float64, copy=False)
    return rows.mean(axis=0), covariance_factor(rows, ddof)


def _moments(rows: Shaped[np.ndarray, "n d"]) -> Moments:
    from scipy.linalg.blas import dsyrk

    mean = rows.mean(axis=0, dtype=np.float64)
    upper = np.zeros((rows.shape[1], rows.shape[1]), order="F")
    buffer = np.empty((min(BLOCK, len(rows)), rows.shape[1]))
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        centred = np.subtract(block, mean, out=buffer[: len(block)])
        # One triangle, added in place.
        upper = dsyrk(1.0, centred.T, beta=1.0, c=upper, overwrite_c=1)
    _mirror(upper)
    return Moments(len(rows), mean, upper)


def _upper_of_order(matrix: Float[np.ndarray, "d d"], order: Shaped[np.ndarray, " d"]) -> Float[np.ndarray, "d d"]:
    """The upper triangle of a symmetric matrix with rows and columns in another order; below it nothing is written."""
    upper = np.empty_like(matrix)
    for start in range(0, len(order), PART):
        # Whole rows first: picking single numbers takes six times as long.
        rows = matrix.take(order[start : start + PART], axis=0)
        upper[start : start + PART, start:] = rows.take(order[start:], axis=1)
    return upper


def _mirror(upper: Float[np.ndarray, "d d"]) -> None:
    """Writes the upper triangle into the lower one, which is zero, by parts: a whole transpose runs across memory."""
    for start in range(0, len(upper), PART):
        end = start + PART
        upper[end:, start:end] = upper[start:end, end:].T
        corner = upper[start:end, start:end]
        corner += np.triu(corner, 1).T
