"""Fréchet distance: stored values of published code, and what must hold of it."""

import numpy as np
import pytest

from gantransfer.errors import UserError
from gantransfer.metrics import frechet_distance
from gantransfer.metrics.frechet import covariance_factor, factor_of_covariance, frechet_from_factors

CASES = (
    "full16",
    "one_dim",
    "deficient64",
    "deficient_both_rank3",
    "relu96",
    "mean_only",
    "same",
    "zero_dims",
    "large_offset",
)


@pytest.fixture(scope="module")
def stored(shared):
    with np.load(shared / "parity" / "metrics" / "fid.npz") as file:
        return dict(file)


@pytest.fixture
def rng():
    return np.random.Generator(np.random.PCG64(0))


@pytest.mark.parametrize("case", CASES)
def test_equals_the_published_value(stored, case):
    real, fake, expected = stored[f"{case}/real"], stored[f"{case}/gen"], float(stored[f"{case}/fid_reference"])
    assert frechet_distance(real, fake) == pytest.approx(expected, abs=1e-9 * max(1, abs(expected)))


@pytest.mark.parametrize("case", [case for case in CASES if case not in ("deficient64", "deficient_both_rank3")])
def test_divisor_n_equals_the_published_variant(stored, case):
    real, fake, expected = stored[f"{case}/real"], stored[f"{case}/gen"], float(stored[f"{case}/fid_nvidia"])
    # The published variant takes raw second moments and a general root: it is the less exact side here.
    assert frechet_distance(real, fake, ddof=0) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("case", CASES)
def test_stored_covariances_give_the_same_value_as_features(stored, case):
    sides = []
    for name in ("real", "gen"):
        features = stored[f"{case}/{name}"].astype(np.float64)
        sides += [features.mean(axis=0), factor_of_covariance(np.atleast_2d(np.cov(features, rowvar=False)))]
    expected = float(stored[f"{case}/fid_reference"])
    assert frechet_from_factors(*sides) == pytest.approx(expected, abs=1e-9 * max(1, abs(expected)))


def test_per_class_distances_equal_the_published_ones(stored):
    labels = stored["intra/labels"]
    for c, expected in enumerate(stored["intra/per_class"]):
        members = labels == c
        # Stored by the general-root route, which loses up to 4e-7.
        value = frechet_distance(stored["intra/real"][members], stored["intra/gen"][members])
        assert value == pytest.approx(expected, abs=1e-6)


def test_one_dimension_has_the_closed_form(rng):
    a, b = rng.normal(1, 2, (70, 1)), rng.normal(-1, 0.5, (50, 1))
    expected = (a.mean() - b.mean()) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_is_zero_symmetric_and_blind_to_rotation(rng):
    a, b = rng.normal(size=(40, 6)), rng.normal(size=(30, 6)) * 2 + 1
    turn, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    assert abs(frechet_distance(a, a)) < 1e-12
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-12)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(a @ turn, b @ turn), rel=1e-12)


def test_grows_with_noise(rng):
    real, fake, noise = rng.normal(size=(3, 200, 8))
    distances = [frechet_distance(real, fake + size * noise) for size in (0, 0.5, 1, 2)]
    assert distances == sorted(distances) and distances[-1] > 4 * distances[0]


def test_a_covariance_factor_has_at_most_as_many_rows_as_columns(rng):
    tall = rng.normal(size=(50, 5))
    factor = covariance_factor(tall)
    assert factor.shape == (5, 5)
    np.testing.assert_allclose(factor.T @ factor, np.cov(tall, rowvar=False), atol=1e-12)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.ones((1, 3)), np.ones((4, 3)), "a: '1 rows' .* at least 2"),
        (np.ones((4, 3)), np.ones((4, 2)), "widths 3 and 2"),
        (np.full((4, 3), np.nan), np.ones((4, 3)), "a: '4 rows hold NaN"),
        (np.ones((4, 3)), np.ones((0, 3)), "b: '0 rows'"),
    ],
)
def test_refuses_what_has_no_distance(a, b, message):
    with pytest.raises(UserError, match=message):
        frechet_distance(a, b)
