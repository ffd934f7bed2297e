"""Which distances lie below a radius: decided by float32 products where they suffice, by exact differences elsewhere.

A float32 product of two sets costs half of a float64 one, and its error has a bound: with c = 2 (d + 8) 2^-24, the
squared distance of x and y lies within c (|x|^2 + |y|^2) of what the product says. Only pairs whose interval holds the
radius are computed again, in float64 from the difference, where equal distances come out equal to the last bit. So
decisions are those of exact arithmetic, ties included, for a few pairs per row more.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Shaped

from gantransfer.metrics.distances import BLOCK, coarse

# Rows and columns of one product: 16 MiB, large enough for full speed.
TILE = 2048
# Pairs whose exact differences are held at a time.
PAIRS = 1024


@dataclass(frozen=True)
class Pairs:
    """Pairs of rows that may be near, and between which bounds their squared distances lie."""

    row: Int[np.ndarray, " p"]
    column: Int[np.ndarray, " p"]
    low: Float[np.ndarray, " p"]
    high: Float[np.ndarray, " p"]

    def where(self, chosen: Bool[np.ndarray, " p"] | Int[np.ndarray, " _"]) -> "Pairs":
        """Some of the pairs."""
        return Pairs(self.row[chosen], self.column[chosen], self.low[chosen], self.high[chosen])


class RowSet:
    """Rows prepared for products with others about the same centre.

    Args:
      rows: features, one row per image, finite.
      centre: what is subtracted from both sets; None: the rows' mean.
    """

    def __init__(self, rows: Shaped[np.ndarray, "n d"], centre: Float[np.ndarray, " d"] | None = None):
        self.rows = rows
        self.centre = coarse(rows.mean(axis=0, dtype=np.float64)) if centre is None else centre
        self.slack = 2 * (rows.shape[1] + 8) * 2.0**-24
        self.norms = np.empty(len(rows))
        # The last two columns make a product of two sets the lower bound itself, at no cost of their own.
        self.wide = np.empty((len(rows), rows.shape[1] + 2), np.float32)
        for start in range(0, len(rows), BLOCK):
            part = slice(start, start + BLOCK)
            centred = rows[part] - self.centre
            self.norms[part] = np.einsum("ij,ij->i", centred, centred)
            self.wide[part, :-2] = centred
        self.wide[:, -2] = 1
        self.wide[:, -1] = self.norms * (1 - self.slack)

    def __len__(self) -> int:
        return len(self.rows)

    def lower_bounds(self, part: slice, other: "RowSet", columns: slice) -> Float32[np.ndarray, "a b"]:
        """Lower bounds of the squared distances of some rows of this set to some of another."""
        left = self.wide[part] * np.float32(-2)
        left[:, -2], left[:, -1] = self.wide[part, -1], 1
        return left @ other.wide[columns].T

    def pairs(
        self,
        bounds: Float32[np.ndarray, "a b"],
        near: Bool[np.ndarray, "a b"],
        part: slice,
        other: "RowSet",
        start: int,
    ) -> Pairs:
        """The marked entries of a tile of lower bounds."""
        index = np.flatnonzero(near)
        row, column = np.divmod(index, near.shape[1])
        low = bounds.ravel()[index].astype(np.float64)
        row, column = row + part.start, column + start
        return Pairs(row, column, low, low + 2 * self.slack * (self.norms[row] + other.norms[column]))

    def exact(self, pairs: Pairs, other: "RowSet") -> Float[np.ndarray, " p"]:
        """Squared distances of pairs, in float64 from differences: equal both ways round."""
        squares = np.empty(len(pairs.row))
        for start in range(0, len(squares), PAIRS):
            part = slice(start, start + PAIRS)
            difference = self.rows[pairs.row[part]].astype(np.float64) - other.rows[pairs.column[part]]
            squares[part] = np.einsum("ij,ij->i", difference, difference)
        return squares


def tiles(count: int) -> list[slice]:
    """Slices of nearly equal length that cover `count` rows."""
    edges = np.linspace(0, count, -(-count // TILE) + 1).astype(int)
    return [slice(int(a), int(b)) for a, b in zip(edges[:-1], edges[1:], strict=True)]


def not_below(values: Float[np.ndarray, " n"]) -> Float32[np.ndarray, " n"]:
    """Float32 numbers that are at least the given ones."""
    return np.nextafter(values.astype(np.float32), np.float32(np.inf))


def squared_radii(rows: RowSet, k: int) -> Float[np.ndarray, " n"]:
    """Squared distance of each row to its k-th nearest other row; exact."""
    reach, found = np.full(len(rows), np.inf, np.float32), []
    parts = tiles(len(rows))
    for part in parts:
        bounds = rows.lower_bounds(part, rows, part)
        np.fill_diagonal(bounds, np.inf)
        if len(bounds) > k:
            norms = 2 * rows.slack * rows.norms[part]
            reach[part] = not_below(np.partition(bounds + (norms[:, None] + norms), k - 1, axis=1)[:, k - 1])
        found.append(rows.pairs(bounds, bounds <= reach[part, None], part, rows, part.start))
    for i, part in enumerate(parts):
        for columns in parts[i + 1 :]:
            bounds = rows.lower_bounds(part, rows, columns)
            near = bounds <= np.maximum(reach[part, None], reach[columns])
            both = rows.pairs(bounds, near, part, rows, columns.start)
            found.append(both.where(both.low <= reach[both.row]))
            turned = both.where(both.low <= reach[both.column])
            found.append(Pairs(turned.column, turned.row, turned.low, turned.high))
    joined = (np.concatenate([getattr(pairs, name) for pairs in found]) for name in ("row", "column", "low", "high"))
    return _kth(rows, Pairs(*joined), k)


def _kth(rows: RowSet, pairs: Pairs, k: int) -> Float[np.ndarray, " n"]:
    """The exact k-th smallest of each row's pairs, of which there are at least k."""
    ordered = pairs.where(np.lexsort((pairs.high, pairs.row)))
    first = np.searchsorted(ordered.row, np.arange(len(rows)))
    # Of k pairs, none is farther than the k-th upper bound: whatever must be farther than that is out.
    reach = ordered.high[first + k - 1]
    ordered = ordered.where(ordered.low <= reach[ordered.row])
    squares = rows.exact(ordered, rows)
    order = np.lexsort((squares, ordered.row))
    first = np.searchsorted(ordered.row, np.arange(len(rows)))
    return squares[order][first + k - 1]


def cross_pairs(
    a: RowSet, b: RowSet, radii_a: Float[np.ndarray, " n"], radii_b: Float[np.ndarray, " m"]
) -> Iterator[Pairs]:
    """Yields, tile by tile, the pairs of two sets that may lie within either row's (squared) radius."""
    reach_a, reach_b = not_below(radii_a), not_below(radii_b)
    for part in tiles(len(a)):
        for columns in tiles(len(b)):
            bounds = a.lower_bounds(part, b, columns)
            near = bounds <= np.maximum(reach_a[part, None], reach_b[columns])
            yield a.pairs(bounds, near, part, b, columns.start)


def inside(a: RowSet, b: RowSet, pairs: Pairs, radii: Float[np.ndarray, " p"], closed: bool) -> Bool[np.ndarray, " p"]:
    """Whether each pair lies within its squared radius; the border counts if `closed`."""
    result = pairs.high < radii
    open_question = np.flatnonzero(~result & (pairs.low <= radii))
    squares = a.exact(pairs.where(open_question), b)
    border = radii[open_question]
    result[open_question] = squares <= border if closed else squares < border
    return result
