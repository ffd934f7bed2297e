"""Euclidean distances between two sets of rows, in blocks, so that no set times set matrix is ever whole in memory."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Shaped

from gantransfer.errors import UserError

BLOCK = 2048


def checked_rows(name: str, rows: Shaped[np.ndarray, "n ..."], least: int = 1) -> Shaped[np.ndarray, "n d"]:
    """Rows of a set of vectors or images in their own number format.

    Raises:
      UserError: if there are fewer than `least`, they are no vectors, or not finite; the message names the set.
    """
    rows = np.asarray(rows)
    if len(rows) < least:
        raise UserError(name, f"{len(rows)} rows", f"at least {least}")
    flat = rows.reshape(len(rows), -1)
    if not flat.shape[1]:
        raise UserError(name, f"rows of shape {rows.shape[1:]}", "rows of at least one number")
    bad = sum(
        int(np.count_nonzero(~np.isfinite(flat[start : start + BLOCK]).all(axis=1)))
        for start in range(0, len(flat), BLOCK)
    )
    if bad:
        raise UserError(name, f"{bad} rows hold NaN or infinity", "finite numbers")
    return flat


def flat_rows(name: str, rows: Shaped[np.ndarray, "n ..."], least: int = 1) -> Float[np.ndarray, "n d"]:
    """The same in float64."""
    return checked_rows(name, rows, least).astype(np.float64, copy=False)


def check_widths(a: Shaped[np.ndarray, "n _"], b: Shaped[np.ndarray, "m _"]) -> None:
    """Raises a `UserError` where two sets of rows differ in width."""
    if a.shape[1] != b.shape[1]:
        raise UserError("features", f"widths {a.shape[1]} and {b.shape[1]}", "two sets of one network, of one width")


def squared_distance_blocks(
    rows: Float[np.ndarray, "n d"], columns: Float[np.ndarray, "m d"]
) -> Iterator[tuple[slice, Float[np.ndarray, "b m"]]]:
    """Yields (rows of the block, their squared distances to all columns).

    Both sets are moved to the columns' mean first: |x|^2 + |y|^2 - 2xy cancels for features far from the origin.
    """
    centre = coarse(columns.mean(axis=0))
    rows, columns = rows - centre, columns - centre
    norms = np.einsum("ij,ij->i", columns, columns)
    for start in range(0, len(rows), BLOCK):
        part = slice(start, min(start + BLOCK, len(rows)))
        block = rows[part]
        squares = np.einsum("ij,ij->i", block, block)[:, None] + norms - 2 * (block @ columns.T)
        yield part, np.maximum(squares, 0, out=squares)


def coarse(mean: Float[np.ndarray, " d"]) -> Float[np.ndarray, " d"]:
    """The mean to seven bits of its largest entry.

    Subtracting it is exact for features of float32 precision, so equal distances stay equal: an exact mean would add
    round-off that decides ties by chance.
    """
    largest = np.abs(mean).max()
    if largest == 0:
        return mean
    quantum = 2.0 ** (np.floor(np.log2(largest)) - 6)
    return np.rint(mean / quantum) * quantum
