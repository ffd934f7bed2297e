"""Kernel distance (KID, Bińkowski et al. 2018): squared maximum mean discrepancy of features under a cubic kernel.

Unlike a Fréchet distance its expectation does not depend on the number of images, so it is the one to read for small
sets. It is unbiased and may therefore be a little negative; report it as it is.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from gantransfer.errors import UserError, one_of
from gantransfer.metrics.distances import BLOCK, check_widths, flat_rows

Kernel = Callable[[Float[np.ndarray, "n d"], Float[np.ndarray, "m d"]], Float[np.ndarray, "n m"]]
ESTIMATORS = ("unbiased", "biased", "u_statistic")


@dataclass(frozen=True)
class PolynomialKernel:
    """(gamma x.y + coef0)^degree; gamma None is 1 / width. The defaults are those of KID."""

    degree: int = 3
    gamma: float | None = None
    coef0: float = 1.0

    def __call__(self, x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "n m"]:
        """The kernel of every row of one set with every row of the other."""
        values = x @ y.T
        values *= 1 / x.shape[1] if self.gamma is None else self.gamma
        values += self.coef0
        if self.degree == 3:
            # A general power costs ten times as much as two products.
            return values * values * values
        return values**self.degree


@dataclass(frozen=True)
class GaussianKernel:
    """exp(-|x - y|^2 / (2 sigma^2))."""

    sigma: float

    def __call__(self, x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "n m"]:
        """The kernel of every row of one set with every row of the other."""
        norms = np.einsum("ij,ij->i", x, x)[:, None] + np.einsum("ij,ij->i", y, y)
        return np.exp(np.maximum(norms - 2 * (x @ y.T), 0) / (-2 * self.sigma**2))


class KernelDistance(NamedTuple):
    """Mean over subsets, and the spread of subsets (population deviation), which is not the error of the mean."""

    mean: float
    std: float

    def __float__(self) -> float:
        return self.mean


def kernel_distance(
    a: Float[np.ndarray, "n _"],
    b: Float[np.ndarray, "m _"],
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
    *,
    kernel: Kernel | None = None,
    estimator: str = "unbiased",
    draws: tuple[Int[np.ndarray, "s k"], Int[np.ndarray, "s k"]] | None = None,
) -> KernelDistance:
    """Kernel distance averaged over random subsets, as published; `kernel_distance_full` needs no draws.

    Args:
      a, b: features of one width, one row per image; computed in float64 whatever the type.
      subsets: how many.
      subset_size: rows of each, drawn without replacement; the smaller count where a set has fewer.
      seed: of the draws.
      kernel: None is `PolynomialKernel()`.
      estimator: `unbiased`; `biased` keeps the diagonals; `u_statistic` also leaves out equal numbers across sets.
      draws: row numbers of the subsets of a and of b, instead of drawing them.

    Raises:
      UserError: for fewer than 2 rows, different widths, features that are not finite, or draws of one row.
    """
    a, b = flat_rows("a", a, least=2), flat_rows("b", b, least=2)
    check_widths(a, b)
    one_of("estimator", estimator, ESTIMATORS)
    if draws is None:
        size = min(subset_size, len(a), len(b))
        if subsets < 1 or size < 2:
            raise UserError("subsets", f"{subsets} of {size} rows", "at least 1 subset of at least 2 rows")
        rng = np.random.Generator(np.random.PCG64(seed))
        drawn = [
            (rng.choice(len(a), size, replace=False), rng.choice(len(b), size, replace=False)) for _ in range(subsets)
        ]
    else:
        drawn = list(zip(*draws, strict=True))
    measure = kernel or PolynomialKernel()
    values = [squared_discrepancy(a[rows_a], b[rows_b], measure, estimator) for rows_a, rows_b in drawn]
    return KernelDistance(float(np.mean(values)), float(np.std(values)))


def squared_discrepancy(
    a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"], kernel: Kernel, estimator: str = "unbiased"
) -> float:
    """Squared maximum mean discrepancy of two small float64 sets, by an estimator of `kernel_distance`.

    Raises:
      UserError: for another estimator, or a `u_statistic` of sets of different sizes.
    """
    one_of("estimator", estimator, ESTIMATORS)
    n, m = len(a), len(b)
    if estimator == "u_statistic" and n != m:
        raise UserError("estimator", f"u_statistic of {n} and {m} rows", "as many rows in both sets")
    within_a, within_b, across = kernel(a, a), kernel(b, b), kernel(a, b)
    if estimator == "biased":
        return float(within_a.mean() + within_b.mean() - 2 * across.mean())
    own = (within_a.sum() - np.trace(within_a)) / (n * (n - 1)) + (within_b.sum() - np.trace(within_b)) / (m * (m - 1))
    if estimator == "u_statistic":
        return float(own - 2 * (across.sum() - np.trace(across)) / (n * (n - 1)))
    return float(own - 2 * across.mean())


def kernel_distance_full(
    a: Float[np.ndarray, "n _"], b: Float[np.ndarray, "m _"], *, kernel: Kernel | None = None
) -> float:
    """The unbiased kernel distance of whole sets: every pair once, nothing drawn; blocked.

    Raises:
      UserError: for fewer than 2 rows, different widths, or features that are not finite.
    """
    a, b = flat_rows("a", a, least=2), flat_rows("b", b, least=2)
    check_widths(a, b)
    measure = kernel or PolynomialKernel()
    return float(_mean_within(a, measure) + _mean_within(b, measure) - 2 * _mean_across(a, b, measure))


def _parts(rows: Float[np.ndarray, "n d"]) -> list[Float[np.ndarray, "_ d"]]:
    return [rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK)]


def _mean_within(rows: Float[np.ndarray, "n d"], kernel: Kernel) -> float:
    """Mean of the kernel over pairs of different rows."""
    parts, total = _parts(rows), 0.0
    for i, part in enumerate(parts):
        values = kernel(part, part)
        total += float(values.sum() - np.trace(values))
        total += 2 * sum(float(kernel(part, other).sum()) for other in parts[i + 1 :])
    return total / (len(rows) * (len(rows) - 1))


def _mean_across(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"], kernel: Kernel) -> float:
    return sum(float(kernel(x, y).sum()) for x in _parts(a) for y in _parts(b)) / (len(a) * len(b))
