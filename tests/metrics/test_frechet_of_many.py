"""Fréchet distances of wide features, of moments that merge, inside classes, and of infinitely many images."""

import numpy as np
import pytest

from gantransfer.errors import UserError
from gantransfer.metrics import (
    Moments,
    frechet,
    frechet_distance,
    frechet_from_covariances,
    frechet_infinity,
    intra_class_frechet_distance,
    sobol_latents,
)


@pytest.fixture
def rng():
    return np.random.Generator(np.random.PCG64(0))


def features(rng, count, width, decay):
    """Non-negative features whose variances decay by a power, as pooled activations do; float32."""
    mix = rng.standard_normal((width, width)) * np.arange(1.0, width + 1)[:, None] ** -decay
    return np.maximum(rng.standard_normal((count, width)) @ mix + 0.3, 0).astype(np.float32)


def exact(a, b):
    """By singular values of the rows themselves."""
    sides = [(x.astype(np.float64).mean(axis=0), frechet.covariance_factor(x.astype(np.float64))) for x in (a, b)]
    return frechet.frechet_from_factors(*sides[0], *sides[1])


@pytest.mark.parametrize("decay", [0, 1, 3])
def test_the_quick_way_for_wide_features_is_taken_and_exact(rng, decay, monkeypatch):
    real, fake = features(rng, 900, 600, decay), 1.1 * features(rng, 800, 600, decay)
    expected = exact(real, fake)
    monkeypatch.setattr(frechet, "factor_of_covariance", None)
    assert frechet_distance(real, fake) == pytest.approx(expected, rel=1e-9)


@pytest.fixture(scope="module")
def directions():
    rng = np.random.Generator(np.random.PCG64(1))
    turned = [np.linalg.qr(rng.standard_normal((560, 560)))[0] for _ in range(2)]
    return {"axes": np.eye(560), "one": turned[0], "other": turned[1]}


def spectrum(kind):
    """560 variances: a power law, ascending if negative, or `low` with a third of them and none else."""
    if kind == "low":
        return np.r_[np.ones(190), np.zeros(370)]
    return np.arange(1.0, 561) ** -abs(kind) if kind >= 0 else np.arange(560.0, 0, -1) ** kind


@pytest.mark.parametrize(("of_a", "of_b"), [("one", "one"), ("one", "other"), ("axes", "one")])
@pytest.mark.parametrize("kinds", [(0, 0), (2, 2), (4, 4), (0, 4), (4, 0), (2, 4), (4, -4), ("low", 2), (2, "low")])
def test_the_quick_way_holds_its_tolerance_wherever_it_is_taken(directions, kinds, of_a, of_b):
    turns = directions[of_a], directions[of_b]
    a, b = ((turn * spectrum(kind)) @ turn.T for turn, kind in zip(turns, kinds, strict=True))
    # Half of a per cent apart where all else is equal: a small distance, which asks for most.
    a, b = (a + a.T) / 2, 1.01 * (b + b.T) / 2
    zero = np.zeros(560)
    factors = [frechet.factor_of_covariance(side) for side in (a, b)]
    expected = frechet.frechet_from_factors(zero, factors[0], zero, factors[1])
    root, error = frechet._root_trace(a, b)
    quick = np.trace(a) + np.trace(b) - 2 * root
    assert abs(quick - expected) <= 1e-7 * expected
    assert 2 * error <= 1e-7 * expected or "low" in kinds
    assert frechet_from_covariances(zero, a, zero, b) == pytest.approx(expected, rel=1e-7)
    if of_a == of_b:
        # Nothing of ours: with shared directions the distance is that of the deviations.
        deviations = [np.sqrt(scale * spectrum(kind)) for scale, kind in zip((1, 1.01), kinds, strict=True)]
        assert quick == pytest.approx(np.sum((deviations[0] - deviations[1]) ** 2), rel=1e-6)


def test_noise_of_rounding_is_not_taken_for_a_distance(rng, monkeypatch):
    """Nothing but the other way tells a distance of zero from the quick way's error."""
    covariance = Moments.of(features(rng, 900, 600, 1)).covariance()
    taken = []
    by_factors = frechet.frechet_from_factors
    monkeypatch.setattr(frechet, "frechet_from_factors", lambda *given: taken.append(1) or by_factors(*given))
    assert abs(frechet_from_covariances(np.zeros(600), covariance, np.zeros(600), covariance)) < 1e-10 and taken


def test_constant_features_have_no_root():
    zero = np.zeros((600, 600))
    assert frechet_from_covariances(np.ones(600), zero, np.zeros(600), zero) == 600
    assert frechet_from_covariances(np.zeros(600), np.eye(600), np.zeros(600), zero) == 600


def test_wide_features_of_low_rank_are_exact(rng):
    real = rng.standard_normal((700, 3)) @ rng.standard_normal((3, 600))
    fake = rng.standard_normal((800, 3)) @ rng.standard_normal((3, 600)) + 1
    expected = exact(real, fake)
    assert frechet_distance(real, fake) == pytest.approx(expected, rel=1e-7)
    assert abs(frechet_distance(real, real)) < 1e-9 * np.trace(Moments.of(real).covariance())


def test_moments_of_parts_merge_to_those_of_the_whole(rng):
    rows = features(rng, 400, 24, 0) + 1000
    whole, merged = Moments.of(rows), Moments.of(rows[:1])
    for part in (rows[1:150], rows[150:333], rows[333:]):
        merged = merged.merge(Moments.of(part))
    assert merged.count == 400
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-14)
    np.testing.assert_allclose(merged.covariance(), np.cov(rows.astype(np.float64), rowvar=False), atol=1e-10)
    np.testing.assert_allclose(merged.scatter, whole.scatter, atol=1e-9)


@pytest.mark.parametrize("ddof", [0, 1])
def test_moments_covariances_and_features_agree(rng, ddof):
    real, fake = features(rng, 300, 20, 0), features(rng, 200, 20, 1)
    expected = frechet_distance(real, fake, ddof)
    assert frechet_distance(Moments.of(real), fake, ddof) == pytest.approx(expected, rel=1e-11)
    assert frechet_distance(Moments.of(real), Moments.of(fake), ddof) == pytest.approx(expected, rel=1e-11)
    first, second = Moments.of(real), Moments.of(fake)
    stored = Moments.of_covariance(first.mean, first.covariance(ddof), 300, ddof)
    assert frechet_distance(stored, second, ddof) == pytest.approx(expected, rel=1e-11)
    got = frechet_from_covariances(first.mean, first.covariance(ddof), second.mean, second.covariance(ddof))
    assert got == pytest.approx(expected, rel=1e-11)


def test_statistics_that_do_not_fit_are_refused(rng):
    mean, covariance = np.zeros(3), np.eye(3)
    with pytest.raises(UserError, match="statistics"):
        frechet_from_covariances(mean, covariance, np.zeros(4), np.eye(4))
    with pytest.raises(UserError, match="NaN or infinity"):
        frechet_from_covariances(mean, covariance, mean, covariance * np.nan)
    with pytest.raises(UserError, match="a: '1 rows'"):
        frechet_distance(Moments(1, mean, covariance), rng.standard_normal((9, 3)))
    with pytest.raises(UserError, match="widths 3 and 5"):
        frechet_distance(Moments(9, mean, covariance), rng.standard_normal((9, 5)))


def test_classes_are_measured_one_by_one(rng):
    real, fake = rng.standard_normal((2, 90, 3))
    labels = np.arange(90) % 3
    got = intra_class_frechet_distance(real, labels, fake + labels[:, None], labels)
    assert list(got["per_class"]) == [0, 1, 2] and got["excluded"] == []
    assert got["per_class"][2] == pytest.approx(frechet_distance(real[labels == 2], fake[labels == 2] + 2))
    assert got["value"] == pytest.approx(np.mean(list(got["per_class"].values())))


def test_classes_without_a_distance_are_listed_or_refused(rng):
    real, labels = rng.standard_normal((41, 3)), np.append(np.arange(40) % 2, 7)
    got = intra_class_frechet_distance(real, labels, real, labels)
    assert got["excluded"] == [7] and list(got["per_class"]) == [0, 1] and abs(got["value"]) < 1e-10
    with pytest.raises(UserError, match=r"classes: '1 without images on one side: 7 \(fake\)"):
        intra_class_frechet_distance(real, labels, real[:40], labels[:40])
    with pytest.raises(UserError, match="1 of one image each"):
        intra_class_frechet_distance(real[40:], labels[40:], real[40:], labels[40:])


def test_the_extrapolated_distance_of_equal_distributions_is_near_zero(rng):
    real, fake = rng.standard_normal((4000, 8)), rng.standard_normal((2000, 8))
    got = frechet_infinity(real, fake, smallest=100, seed=1)
    assert got["slope"] > 0 and got["value"] < frechet_distance(real, fake)
    assert abs(got["value"]) < 0.03 and got["residual"] < 0.02
    assert got == frechet_infinity(real, fake, smallest=100, seed=1)
    assert got["sizes"][0] == 100 and got["sizes"][-1] == 2000 and len(got["distances"]) == 15


@pytest.mark.parametrize("settings", [{"points": 2}, {"smallest": 1}, {"smallest": 99}, {"smallest": 20, "points": 9}])
def test_a_line_through_fewer_than_three_sizes_is_refused(rng, settings):
    with pytest.raises(UserError, match="subset sizes"):
        frechet_infinity(rng.standard_normal((30, 2)), rng.standard_normal((20, 2)), **settings)


def test_sobol_latents_fill_the_normal_distribution_evenly():
    latents = sobol_latents(1000, 5, seed=3)
    assert latents.shape == (1000, 5) and latents.dtype == np.float32 and np.isfinite(latents).all()
    np.testing.assert_array_equal(latents, sobol_latents(1000, 5, seed=3))
    # Independent draws miss the mean by about 0.03.
    assert np.abs(latents.mean(axis=0)).max() < 0.005
    np.testing.assert_allclose(np.cov(latents, rowvar=False), np.eye(5), atol=0.03)
    with pytest.raises(UserError, match="Sobol points"):
        sobol_latents(0, 5)
