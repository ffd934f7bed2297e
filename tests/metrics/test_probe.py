"""The linear probe: a convex fit, and accuracies that say whether two sets can be told apart."""

import numpy as np
import pytest

from gantransfer.errors import UserError
from gantransfer.metrics import fit_logistic, linear_probe
from gantransfer.metrics.probe import wilson_interval


@pytest.fixture
def rng():
    return np.random.Generator(np.random.PCG64(0))


@pytest.mark.parametrize("width", [3, 200])
def test_the_fit_is_the_minimum(rng, width):
    features, positive = rng.standard_normal((60, width)), np.arange(60) < 25
    plane = fit_logistic(features, positive, 0.7)

    def loss(weights, bias):
        scores = np.where(positive, 1, -1) * (features @ weights + bias)
        return weights @ weights / 2 + 0.7 * np.logaddexp(0, -scores).sum()

    least = loss(plane.weights, plane.bias)
    for _ in range(20):
        assert (
            loss(plane.weights + 1e-3 * rng.standard_normal(width), plane.bias + 1e-3 * rng.standard_normal()) > least
        )
    share = 1 / (1 + np.exp(-(features @ plane.weights + plane.bias)))
    np.testing.assert_allclose(plane.weights, 0.7 * features.T @ (positive - share), atol=1e-8)
    assert np.sum(positive - share) == pytest.approx(0, abs=1e-8)


def test_large_features_that_are_separable_still_converge(rng):
    features = np.concatenate([rng.standard_normal((50, 4)) + 9, rng.standard_normal((50, 4)) - 9]) * 100
    plane = fit_logistic(features, np.arange(100) < 50)
    assert plane.accuracy(features, np.arange(100) < 50) == 1
    assert np.isfinite(plane.weights).all()


def test_equal_sets_cannot_be_told_apart_and_others_can(rng):
    same = linear_probe(rng.standard_normal((600, 8)), rng.standard_normal((500, 8)))
    assert same["low"] < 0.55 and abs(same["validation_accuracy"] - 0.5) < 0.08 and same["n_validation"] == 550
    apart = linear_probe(rng.standard_normal((600, 8)), rng.standard_normal((500, 8)) + 3)
    assert apart["validation_accuracy"] > 0.99 and apart["low"] > 0.97
    assert apart["low"] <= apart["validation_accuracy"] <= apart["high"] <= 1


def test_the_seed_shuffles_the_reals(rng):
    real, fake = rng.standard_normal((100, 8)), rng.standard_normal((90, 8)) + 0.2
    assert linear_probe(real, fake, seed=1) == linear_probe(real, fake, seed=1)
    assert linear_probe(real, fake, seed=1) != linear_probe(real, fake, seed=2)


def test_the_interval_holds_the_share_and_narrows():
    low, high = wilson_interval(0.9, 50)
    assert (low, high) == pytest.approx((0.7864, 0.9565), abs=1e-4)
    assert wilson_interval(1.0, 50) == pytest.approx((0.9286, 1.0), abs=1e-4)


def test_sets_that_cannot_be_probed_are_refused(rng):
    with pytest.raises(UserError, match="fake: '3 rows' .*at least 4"):
        linear_probe(rng.standard_normal((9, 2)), rng.standard_normal((3, 2)))
    with pytest.raises(UserError, match="widths 2 and 3"):
        linear_probe(rng.standard_normal((9, 2)), rng.standard_normal((9, 3)))
    with pytest.raises(UserError, match="rows of both classes"):
        fit_logistic(rng.standard_normal((9, 2)), np.ones(9, bool))
