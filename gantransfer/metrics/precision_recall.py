"""Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020) of a set of samples.

Every image owns a ball that reaches to its k-th nearest neighbour in its own set. Precision: share of fakes inside some
real ball. Recall: share of reals inside some fake ball. Density: how many real balls hold a fake, over k. Coverage:
share of real balls that hold a fake. A generator that scatters its samples gets large balls and so a high recall: read
recall beside precision, or coverage instead.
"""

import numpy as np
from jaxtyping import Bool, Float

from gantransfer.errors import UserError
from gantransfer.metrics.distances import flat_rows, squared_distance_blocks


def precision_recall_density_coverage(
    real: Float[np.ndarray, "n _"], fake: Float[np.ndarray, "m _"], k: int = 5, *, closed: bool = False
) -> dict[str, float]:
    """Returns `precision`, `recall`, `density`, `coverage`.

    Args:
      real, fake: features of one width, one row per image; computed in float64.
      k: which neighbour sets the radius; the image itself does not count.
      closed: whether a point on the border is inside (`<=`, Kynkäänniemi et al.); the default is `<`, as Naeem et al.
        It matters only where points coincide or features are rounded.

    Raises:
      UserError: if k is not below both counts.
      ValueError: if the widths differ or features are not finite.
    """
    real, fake = flat_rows("real", real), flat_rows("fake", fake)
    if real.shape[1] != fake.shape[1]:
        raise ValueError(f"features differ in width: {real.shape[1]} and {fake.shape[1]}")
    if not 1 <= k < min(len(real), len(fake)):
        raise UserError("k", k, f"at least 1 and below both counts ({len(real)} real, {len(fake)} fake)")
    real_radii, fake_radii = squared_radii(real, k), squared_radii(fake, k)

    def inside(squares: Float[np.ndarray, "b m"], radii: Float[np.ndarray, "..."]) -> Bool[np.ndarray, "b m"]:
        return squares <= radii if closed else squares < radii

    recalled, covered, holding = [], [], np.zeros(len(fake), int)
    for part, squares in squared_distance_blocks(real, fake):
        recalled.append(inside(squares, fake_radii).any(axis=1))
        in_real_ball = inside(squares, real_radii[part, None])
        covered.append(in_real_ball.any(axis=1))
        holding += in_real_ball.sum(axis=0)
    return {
        "precision": float(np.mean(holding > 0)),
        "recall": float(np.mean(np.concatenate(recalled))),
        "density": float(np.mean(holding) / k),
        "coverage": float(np.mean(np.concatenate(covered))),
    }


def squared_radii(rows: Float[np.ndarray, "n d"], k: int) -> Float[np.ndarray, " n"]:
    """Squared distance of each row to its k-th nearest other row."""
    radii = np.empty(len(rows))
    for part, squares in squared_distance_blocks(rows, rows):
        # The row itself is the nearest; round-off must not make it a little more than 0.
        squares[np.arange(len(squares)), np.arange(part.start, part.stop)] = 0
        radii[part] = np.partition(squares, k, axis=1)[:, k]
    return radii
