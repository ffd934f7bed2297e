"""How varied is a set of features? Vendi score, and the sliced distance of sorted projections (MIND)."""

import numpy as np
from jaxtyping import Float, Int

from gantransfer.errors import UserError, one_of
from gantransfer.metrics.discrepancy import unit_rows
from gantransfer.metrics.distances import check_widths, flat_rows

VENDI_KERNELS = ("linear", "cubic")


def vendi_score(features: Float[np.ndarray, "n d"], order: float = 1.0, kernel: str = "linear") -> float:
    """Effective number of different rows (Friedman and Dieng 2023): 1 if all are equal, n if none are alike.

    Args:
      features: one row per image.
      order: of the entropy of the kernel's eigenvalues; infinity counts the largest alone.
      kernel: of rows of unit length: `linear`, or `cubic`, (x.y / d + 1)^3, as dgm-eval has it: its diagonal is not 1,
        so the score may fall below 1.

    Raises:
      UserError: for another kernel, an order of 0 or below, or features that are not finite.
    """
    one_of("kernel", kernel, VENDI_KERNELS)
    if not order > 0:
        raise UserError("order", order, "above 0")
    rows = unit_rows(features)
    if kernel == "linear":
        # The smaller of the two products has the same eigenvalues but for zeros.
        gram = rows @ rows.T if len(rows) <= rows.shape[1] else rows.T @ rows
    else:
        gram = (rows @ rows.T / rows.shape[1] + 1) ** 3
    shares = np.linalg.eigvalsh(gram / len(rows))
    shares = shares[shares > 0]
    if order == 1:
        return float(np.exp(-np.sum(shares * np.log(shares))))
    if np.isinf(order):
        return float(1 / shares.max())
    return float(np.sum(shares**order) ** (1 / (1 - order)))


def mind(
    a: Float[np.ndarray, "n _"],
    b: Float[np.ndarray, "m _"],
    *,
    directions: int | Float[np.ndarray, "r _"] = 1000,
    seed: int = 0,
    chosen: Int[np.ndarray, " c"] | None = None,
) -> float:
    """3 d times the mean squared difference of sorted projections on random directions; 0 for a set and itself.

    Args:
      a, b: features of one width, one row per image; as many rows of the larger set are drawn as the smaller has.
      directions: how many unit directions to draw, or the directions.
      seed: of the draws.
      chosen: rows of the larger set, instead of drawing them.

    Raises:
      UserError: for empty sets, different widths, or features that are not finite.
    """
    a, b = flat_rows("a", a), flat_rows("b", b)
    check_widths(a, b)
    rng = np.random.Generator(np.random.PCG64(seed))
    large, small = (a, b) if len(a) >= len(b) else (b, a)
    if len(large) > len(small):
        large = large[rng.choice(len(large), len(small), replace=False) if chosen is None else chosen]
    if isinstance(directions, int):
        drawn = rng.standard_normal((directions, a.shape[1]))
        directions = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    projected = [np.sort(rows @ directions.T, axis=0) for rows in (large, small)]
    return float(3 * a.shape[1] * np.mean((projected[0] - projected[1]) ** 2))
