"""CMMD (Jayasumana et al. 2024): squared maximum mean discrepancy of CLIP embeddings under a wide Gaussian kernel."""

import numpy as np
from jaxtyping import Float

from gantransfer.metrics.distances import check_widths, flat_rows, squared_distance_blocks

SIGMA = 10.0
SCALE = 1000.0


def cmmd(a: Float[np.ndarray, "n _"], b: Float[np.ndarray, "m _"], sigma: float = SIGMA) -> float:
    """1000 times the biased discrepancy (diagonals kept) of two sets of embeddings; 0 for a set and itself.

    Args:
      a, b: embeddings of one width, one row per image; published numbers take rows of unit length (`unit_rows`),
        projected by CLIP ViT-L/14 at 336 px. They are taken as they are.
      sigma: of the kernel.

    Between unit rows the kernel lies between 0.98 and 1, and differences of its means cancel; so 1 - k is computed, in
    float64. Published float32 code is off by up to 1e-3.

    Raises:
      UserError: for empty sets, different widths, or embeddings that are not finite.
    """
    a, b = flat_rows("a", a), flat_rows("b", b)
    check_widths(a, b)
    return SCALE * (2 * _mean_gap(a, b, sigma) - _mean_gap(a, a, sigma) - _mean_gap(b, b, sigma))


def unit_rows(features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Rows of unit length, float64; a row of zeros stays."""
    rows = flat_rows("features", features)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1)


def _mean_gap(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"], sigma: float) -> float:
    """Mean of 1 - k over all pairs."""
    total = sum(float(np.expm1(squares / (-2 * sigma**2)).sum()) for _, squares in squared_distance_blocks(a, b))
    return -total / (len(a) * len(b))
