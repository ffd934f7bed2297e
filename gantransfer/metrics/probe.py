"""Linear probe: can a plane through feature space tell generated images from real ones?

The rule by which vision-aided GANs choose a feature network (Kumari et al. 2022): 50 % of the held-out images right
means that the network cannot tell them apart, and so is of no use to a discriminator.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from gantransfer.errors import UserError
from gantransfer.metrics.distances import check_widths, flat_rows

STRENGTH = 0.2
GRADIENT_TOLERANCE = 1e-10
MOST_STEPS = 100


@dataclass(frozen=True)
class Plane:
    """A linear classifier: positive on the side of `weights @ x + bias > 0`."""

    weights: Float[np.ndarray, " d"]
    bias: float

    def accuracy(self, features: Float[np.ndarray, "n d"], positive: Bool[np.ndarray, " n"]) -> float:
        """Share of rows on their side."""
        return float(np.mean((features @ self.weights + self.bias > 0) == positive))


def fit_logistic(
    features: Float[np.ndarray, "n d"], positive: Bool[np.ndarray, " n"], strength: float = STRENGTH
) -> Plane:
    """The unique minimum of |w|^2 / 2 + strength * sum of logistic losses; the bias is not penalised.

    Newton's method with halved steps, in float64, to a gradient of 1e-10 of the first one. With fewer rows than columns
    it works in the space that the rows span, where the minimum lies.

    Raises:
      UserError: if all rows are of one class: the bias would be infinite.
    """
    if positive.all() or not positive.any():
        raise UserError("classes", "one", "rows of both classes")
    features, basis = np.asarray(features, np.float64), None
    if len(features) < features.shape[1]:
        basis, triangle = np.linalg.qr(features.T)
        features = triangle.T
    signs, count = np.where(positive, 1.0, -1.0), len(features)
    design = np.column_stack([features, np.ones(count)])
    ridge = np.append(np.ones(features.shape[1]), 0.0)
    plane, scale = np.zeros(len(ridge)), None

    def loss(at: Float[np.ndarray, " d"]) -> float:
        return float(at @ (ridge * at) / 2 + strength * np.logaddexp(0, -signs * (design @ at)).sum())

    for _ in range(MOST_STEPS):
        share = 0.5 * (1 - np.tanh(signs * (design @ plane) / 2))
        gradient = ridge * plane - strength * (design.T @ (signs * share))
        scale = np.linalg.norm(gradient) if scale is None else scale
        if np.linalg.norm(gradient) <= GRADIENT_TOLERANCE * scale:
            break
        curvature = (strength * share * (1 - share))[:, None] * design
        # A bias has no curvature of its own where every row is certain.
        hessian = design.T @ curvature + np.diag(ridge + 1e-12)
        step, rate = np.linalg.solve(hessian, gradient), 1.0
        before = loss(plane)
        while rate > 1e-6 and loss(plane - rate * step) > before:
            rate /= 2
        plane = plane - rate * step
    weights = plane[:-1] if basis is None else basis @ plane[:-1]
    return Plane(weights, float(plane[-1]))


def linear_probe(
    real: Float[np.ndarray, "n _"],
    fake: Float[np.ndarray, "m _"],
    *,
    strength: float = STRENGTH,
    repetitions: int = 3,
    seed: int = 0,
    permutations: Int[np.ndarray, "r n"] | None = None,
) -> dict[str, float | int]:
    """Accuracy of a plane that tells real from fake features, on the halves that it was not fitted to.

    Args:
      real, fake: features of one width, one row per image, neither scaled nor centred.
      strength: of the data against the penalty.
      repetitions: how often reals are shuffled and both sets halved; fakes are halved as they come.
      seed: of the shuffles.
      permutations: of the reals, instead of drawing them.

    Returns:
      `train_accuracy` and `validation_accuracy`, means over repetitions; `low` and `high`, the 95 % interval of the
      latter for the images of one repetition (Wilson): repetitions share their images; `n_validation`.

    Raises:
      UserError: for fewer than 4 rows, different widths, or features that are not finite.
    """
    real, fake = flat_rows("real", real, least=4), flat_rows("fake", fake, least=4)
    check_widths(real, fake)
    rng = np.random.Generator(np.random.PCG64(seed))
    orders = [rng.permutation(len(real)) for _ in range(repetitions)] if permutations is None else permutations
    scores = []
    for order in orders:
        first, second = np.split(real[order], [len(real) // 2])
        fake_first, fake_second = np.split(fake, [len(fake) // 2])
        halves = [np.concatenate([first, fake_first]), np.concatenate([second, fake_second])]
        sides = [np.arange(len(half)) < count for half, count in zip(halves, (len(first), len(second)), strict=True)]
        plane = fit_logistic(halves[0], sides[0], strength)
        scores.append([plane.accuracy(half, side) for half, side in zip(halves, sides, strict=True)])
    train, validation = np.mean(scores, axis=0)
    low, high = wilson_interval(float(validation), len(halves[1]))
    return {
        "train_accuracy": float(train),
        "validation_accuracy": float(validation),
        "low": low,
        "high": high,
        "n_validation": len(halves[1]),
    }


def wilson_interval(share: float, count: int, z: float = 1.959964) -> tuple[float, float]:
    """Interval of a share of `count` independent cases (Wilson 1927); `z` 1.96 is 95 %."""
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * np.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    return float(max(middle - half, 0.0)), float(min(middle + half, 1.0))
