"""Singular values and vectors of spectrally normalised tables: those in use, and those of a table that surgery made.

A table is a matrix, or a kernel, with its outputs first and the rest in the order in which ours has it. Beside it lie
either `u` and `sigma` (one iteration from `u` is taken in evaluation), or stored vectors `u` and `v`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

Leaves = Mapping[str, Any]


def used_sigma(flat: Leaves, layer: str, table: np.ndarray) -> float:
    """What an evaluation divides a table by.

    Args:
      flat: leaves of the network by collection and path.
      layer: path of the layer.
      table: `(outputs, ...)`, float64.
    """
    rows, u = table.reshape(len(table), -1), np.asarray(flat[f"spectral/{layer}/u"], np.float64)
    if _stored(flat, layer):
        return float(u @ rows @ np.asarray(flat[f"spectral/{layer}/v"], np.float64))
    v = u[0] @ rows
    return float(np.linalg.norm(rows @ (v / np.linalg.norm(v))))


def exact_leaves(flat: Leaves, layer: str, table: np.ndarray) -> tuple[dict[str, np.ndarray], float]:
    """What belongs beside a new table: leaves of the kind that the layer has, and the largest singular value."""
    if _stored(flat, layer):
        vectors, values = exact_singular(table, 1)
        v = vectors[0] @ table.reshape(len(table), -1)
        made = {"u": vectors[0], "v": (v / np.linalg.norm(v)).astype(np.float32)}
    else:
        vectors, values = exact_singular(table, len(flat[f"spectral/{layer}/sigma"]))
        made = {"u": vectors, "sigma": values}
    return {f"spectral/{layer}/{name}": leaf for name, leaf in made.items()}, float(values[0])


def exact_singular(table: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Left singular vectors `(count, rows)` and values `(count,)`, largest first; zeros beyond the table's rank.

    A vector is fixed up to its sign: the entry of largest size is made positive.
    """
    left, values, _ = np.linalg.svd(table.reshape(len(table), -1), full_matrices=False)
    left = left * np.sign(left[np.abs(left).argmax(axis=0), np.arange(left.shape[1])])
    vectors, padded = np.zeros((count, len(table)), np.float32), np.zeros(count, np.float32)
    kept = min(count, len(values))
    vectors[:kept], padded[:kept] = left.T[:kept], values[:kept]
    return vectors, padded


def _stored(flat: Leaves, layer: str) -> bool:
    return f"spectral/{layer}/v" in flat
