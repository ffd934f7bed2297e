"""Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020) of a set of samples.

Every image owns a ball that reaches to its k-th nearest neighbour in its own set. Precision: share of fakes inside some
real ball. Recall: share of reals inside some fake ball. Density: how many real balls hold a fake, over k. Coverage:
share of real balls that hold a fake. A generator that scatters its samples gets large balls and so a high recall: read
recall beside precision, or coverage instead.
"""

import numpy as np
from jaxtyping import Float, Float16, Shaped

from gantransfer.errors import UserError
from gantransfer.metrics.distances import check_widths, checked_rows, squared_distance_blocks
from gantransfer.metrics.neighbours import RowSet, cross_pairs, inside, squared_radii


def precision_recall_density_coverage(
    real: Float[np.ndarray, "n _"], fake: Float[np.ndarray, "m _"], k: int = 5, *, closed: bool = False
) -> dict[str, float]:
    """Returns `precision`, `recall`, `density`, `coverage`.

    Decisions are those of exact distances. Beside the features it holds a float32 copy of them and tiles of 2048 rows:
    50,000 by 2,048 takes 2 GB.

    Args:
      real, fake: features of one width, one row per image.
      k: which neighbour sets the radius; the image itself does not count.
      closed: whether a point on the border is inside (`<=`, Kynkäänniemi et al.); the default is `<`, as Naeem et al.
        It matters only where points coincide or features are rounded.

    Raises:
      UserError: if k is not below both counts, the widths differ or features are not finite.
    """
    real, fake = _checked(real, fake, k)
    reals = RowSet(real)
    fakes = RowSet(fake, reals.centre)
    real_radii, fake_radii = squared_radii(reals, k), squared_radii(fakes, k)
    recalled, covered = np.zeros(len(real), bool), np.zeros(len(real), bool)
    holding = np.zeros(len(fake), int)
    for pairs in cross_pairs(reals, fakes, real_radii, fake_radii):
        in_real = pairs.where(inside(reals, fakes, pairs, real_radii[pairs.row], closed))
        covered[in_real.row] = True
        holding += np.bincount(in_real.column, minlength=len(fake))
        undecided = pairs.where(~recalled[pairs.row])
        in_fake = inside(reals, fakes, undecided, fake_radii[undecided.column], closed)
        recalled[undecided.row[in_fake]] = True
    return {
        "precision": float(np.mean(holding > 0)),
        "recall": float(np.mean(recalled)),
        "density": float(np.mean(holding) / k),
        "coverage": float(np.mean(covered)),
    }


def improved_precision_recall(
    real: Float[np.ndarray, "n _"], fake: Float[np.ndarray, "m _"], k: int = 3, *, half: bool = False
) -> dict[str, float]:
    """Improved precision and recall: `precision`, `recall` with closed balls (Kynkäänniemi et al. 2019).

    Args:
      real, fake: features; published numbers take VGG16's second hidden layer and k = 3.
      k: which neighbour sets the radius.
      half: features and distances rounded to float16, as NVIDIA's code does; decisions near a border flip, more so for
        features far from the origin.

    Raises:
      UserError: as `precision_recall_density_coverage`.
    """
    if not half:
        both = precision_recall_density_coverage(real, fake, k, closed=True)
        return {name: both[name] for name in ("precision", "recall")}
    real, fake = _checked(real, fake, k)
    real, fake = (rows.astype(np.float16).astype(np.float64) for rows in (real, fake))
    return {
        "precision": _share_inside(fake, real, _half_radii(real, k)),
        "recall": _share_inside(real, fake, _half_radii(fake, k)),
    }


def realism(real: Float[np.ndarray, "n _"], fake: Float[np.ndarray, "m _"], k: int = 3) -> Float[np.ndarray, " m"]:
    """How far inside the reals' balls each fake lies: the largest ratio of a radius to the distance from its centre.

    Above 1 is inside. Balls that are not smaller than the median are left out (Kynkäänniemi et al. 2019,
    section 5). A fake that
    equals a real image has infinity.

    Raises:
      UserError: as `precision_recall_density_coverage`.
    """
    real, fake = checked_rows("real", real), checked_rows("fake", fake)
    check_widths(real, fake)
    if not 1 <= k < len(real):
        raise UserError("k", k, f"at least 1 and below {len(real)}, the number of real images")
    squared = squared_radii(RowSet(real), k)
    # Parity: a radius equal to the median is out, as one above it. Where no radius is smaller, all are equal to it.
    median = np.median(squared)
    kept = squared < median if squared.min() < median else squared <= median
    centres, scores = RowSet(real[kept]), np.zeros(len(fake))
    for part, squares in squared_distance_blocks(fake.astype(np.float64), centres.rows.astype(np.float64)):
        with np.errstate(divide="ignore"):
            best = np.argmax(squared[kept] / squares, axis=1)
            # From the difference: the nearest decide, and the expanded square is worst there.
            difference = fake[part].astype(np.float64) - centres.rows[best]
            scores[part] = np.sqrt(squared[kept][best] / np.einsum("ij,ij->i", difference, difference))
    return scores


def _checked(
    real: Shaped[np.ndarray, "n _"], fake: Shaped[np.ndarray, "m _"], k: int
) -> tuple[Shaped[np.ndarray, "n d"], Shaped[np.ndarray, "m d"]]:
    real, fake = checked_rows("real", real), checked_rows("fake", fake)
    check_widths(real, fake)
    if not 1 <= k < min(len(real), len(fake)):
        raise UserError("k", k, f"at least 1 and below both counts ({len(real)} real, {len(fake)} fake)")
    return real, fake


def _half_radii(rows: Float[np.ndarray, "n d"], k: int) -> Float16[np.ndarray, " n"]:
    radii = np.empty(len(rows), np.float16)
    for part, squares in squared_distance_blocks(rows, rows):
        squares[np.arange(len(squares)), np.arange(part.start, part.stop)] = 0
        radii[part] = np.sqrt(np.partition(squares, k, axis=1)[:, k]).astype(np.float16)
    return radii


def _share_inside(
    points: Float[np.ndarray, "n d"], centres: Float[np.ndarray, "m d"], radii: Float16[np.ndarray, " m"]
) -> float:
    held = [
        (np.sqrt(squares).astype(np.float16) <= radii).any(axis=1)
        for _, squares in squared_distance_blocks(points, centres)
    ]
    return float(np.mean(np.concatenate(held)))
