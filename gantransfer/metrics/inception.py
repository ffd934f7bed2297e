"""Inception score (Salimans et al. 2016): how sure a classifier is of each image, and how varied its answers are.

It never looks at real images and means little for pictures that are not of the classifier's classes.
"""

import numpy as np
from jaxtyping import Float, Int

from gantransfer.errors import UserError
from gantransfer.metrics.distances import flat_rows

SUM_TOLERANCE = 1e-3


def inception_score(
    probabilities: Float[np.ndarray, "n c"],
    splits: int = 10,
    *,
    order: Int[np.ndarray, " n"] | None = None,
    drop_remainder: bool = False,
) -> tuple[float, float]:
    """Mean and population deviation over splits of exp(mean KL(p(y|x) || p(y))); between 1 and the number of classes.

    Args:
      probabilities: one row per image, rows summing to 1; exact zeros are allowed (0 log 0 = 0).
      splits: split i holds rows `i * n // splits` up to `(i + 1) * n // splits`. 10 of 5,000 images are usual.
      order: the order to take rows in: torch-fidelity shuffles them, NVIDIA's code does not.
      drop_remainder: splits of `n // splits` rows each, as dgm-eval has them.

    Raises:
      UserError: for fewer images than splits, or rows that are no probabilities.
    """
    given = flat_rows("probabilities", probabilities)
    sums = given.sum(axis=1)
    if given.min() < 0 or np.abs(sums - 1).max() > SUM_TOLERANCE:
        bad = f"a smallest value {given.min():.3g}, sums from {sums.min():.4g} to {sums.max():.4g}"
        raise UserError("probabilities", bad, "rows of at least 0 that sum to 1; for logits: inception_score_of_logits")
    with np.errstate(divide="ignore"):
        return _score(given, np.log(given), splits, order, drop_remainder)


def inception_score_of_logits(
    logits: Float[np.ndarray, "n c"],
    splits: int = 10,
    *,
    order: Int[np.ndarray, " n"] | None = None,
    drop_remainder: bool = False,
) -> tuple[float, float]:
    """The same from logits, whose logarithms of probabilities lose nothing.

    Raises:
      UserError: for fewer images than splits, or logits that are not finite.
    """
    shifted = flat_rows("logits", logits)
    shifted = shifted - shifted.max(axis=1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return _score(np.exp(logs), logs, splits, order, drop_remainder)


def _score(
    probabilities: Float[np.ndarray, "n c"],
    logs: Float[np.ndarray, "n c"],
    splits: int,
    order: Int[np.ndarray, " n"] | None,
    drop_remainder: bool,
) -> tuple[float, float]:
    count = len(probabilities)
    if not 1 <= splits <= count:
        raise UserError("splits", splits, f"1 to {count}, the number of images")
    if order is not None:
        probabilities, logs = probabilities[order], logs[order]
    size = count // splits
    edges = [size * i if drop_remainder else i * count // splits for i in range(splits + 1)]
    scores = []
    for first, last in zip(edges[:-1], edges[1:], strict=True):
        p, log_p = probabilities[first:last], logs[first:last]
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = p * (log_p - np.log(p.mean(axis=0)))
        scores.append(np.exp(np.where(p > 0, terms, 0.0).sum(axis=1).mean()))
    return float(np.mean(scores)), float(np.std(scores))
