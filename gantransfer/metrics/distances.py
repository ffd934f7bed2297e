"""Euclidean distances between two sets of rows, in blocks, so that no set times set matrix is ever whole in memory."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Shaped

BLOCK = 2048


def flat_rows(name: str, rows: Shaped[np.ndarray, "n ..."]) -> Float[np.ndarray, "n d"]:
    """Float64 rows of a set of vectors or images.

    Raises:
      ValueError: if the set is empty, or anything in it is not finite; the message names the set.
    """
    flat = np.asarray(rows, np.float64).reshape(len(rows), -1) if len(rows) else np.empty((0, 0))
    if not flat.size:
        raise ValueError(f"{name}: the set is empty")
    if not np.isfinite(flat).all():
        raise ValueError(f"{name}: {np.count_nonzero(~np.isfinite(flat).all(axis=1))} rows hold NaN or infinity")
    return flat


def squared_distance_blocks(
    rows: Float[np.ndarray, "n d"], columns: Float[np.ndarray, "m d"]
) -> Iterator[tuple[slice, Float[np.ndarray, "b m"]]]:
    """Yields (rows of the block, their squared distances to all columns).

    Both sets are moved to the columns' mean first: |x|^2 + |y|^2 - 2xy cancels for features far from the origin.
    """
    centre = _coarse(columns.mean(axis=0))
    rows, columns = rows - centre, columns - centre
    norms = np.einsum("ij,ij->i", columns, columns)
    for start in range(0, len(rows), BLOCK):
        part = slice(start, min(start + BLOCK, len(rows)))
        block = rows[part]
        squares = np.einsum("ij,ij->i", block, block)[:, None] + norms - 2 * (block @ columns.T)
        yield part, np.maximum(squares, 0, out=squares)


def _coarse(mean: Float[np.ndarray, " d"]) -> Float[np.ndarray, " d"]:
    """The mean to seven bits of its largest entry.

    Subtracting it is exact for features of float32 precision, so equal distances stay equal: an exact mean would add
    round-off that decides ties by chance.
    """
    largest = np.abs(mean).max()
    if largest == 0:
        return mean
    quantum = 2.0 ** (np.floor(np.log2(largest)) - 6)
    return np.rint(mean / quantum) * quantum
