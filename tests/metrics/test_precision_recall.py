"""Precision, recall, density, coverage: stored values of published code, and what must hold of them."""

import numpy as np
import pytest

from gantransfer.errors import UserError
from gantransfer.metrics import improved_precision_recall, neighbours, precision_recall_density_coverage, realism

CASES = ("plain", "ties", "disjoint", "same", "far_outlier", "near", "offset")


@pytest.fixture(scope="module")
def stored(shared):
    with np.load(shared / "parity" / "metrics" / "prdc.npz") as file:
        return dict(file)


@pytest.fixture
def rng():
    return np.random.Generator(np.random.PCG64(0))


@pytest.mark.parametrize("k", [1, 3, 5, 10])
@pytest.mark.parametrize("case", CASES)
def test_open_balls_equal_the_published_counts(stored, case, k):
    got = precision_recall_density_coverage(stored[f"{case}/real"], stored[f"{case}/gen"], k)
    assert list(got) == ["precision", "recall", "density", "coverage"]
    np.testing.assert_allclose(list(got.values()), stored[f"{case}/prdc_k{k}"], atol=1e-12)


@pytest.mark.parametrize("k", [1, 3, 5, 10])
@pytest.mark.parametrize("case", CASES)
def test_closed_balls_equal_the_published_counts(stored, case, k):
    got = precision_recall_density_coverage(stored[f"{case}/real"], stored[f"{case}/gen"], k, closed=True)
    np.testing.assert_allclose([got["precision"], got["recall"]], stored[f"{case}/improved_pr_k{k}"], atol=1e-12)


@pytest.mark.parametrize("case", ["plain", "ties", "offset"])
def test_blocks_do_not_change_the_counts(stored, case, monkeypatch):
    monkeypatch.setattr(neighbours, "TILE", 7)
    monkeypatch.setattr(neighbours, "PAIRS", 5)
    got = precision_recall_density_coverage(stored[f"{case}/real"], stored[f"{case}/gen"], 3)
    np.testing.assert_allclose(list(got.values()), stored[f"{case}/prdc_k3"], atol=1e-12)


def test_a_collapsed_generator_is_precise_and_recalls_nothing(rng):
    real = rng.normal(size=(200, 4))
    centre = real[np.linalg.norm(real, axis=1).argmin()]
    got = precision_recall_density_coverage(real, centre + 1e-6 * rng.normal(size=(200, 4)), 3)
    assert got["precision"] == 1 and got["recall"] < 0.02 and got["coverage"] < 0.1


def test_one_real_outlier_inflates_precision_but_not_coverage(rng):
    real = np.concatenate([rng.normal(size=(100, 2)), [[1000.0, 1000.0]]])
    far = rng.normal(size=(100, 2)) + 300
    got = precision_recall_density_coverage(real, far, 3)
    assert got["precision"] == 1 and got["coverage"] < 0.02 and got["density"] < 0.5


def test_a_neighbour_that_does_not_exist_is_refused(rng):
    with pytest.raises(UserError, match="k: 5 .*5 real, 9 fake"):
        precision_recall_density_coverage(rng.normal(size=(5, 2)), rng.normal(size=(9, 2)), 5)


def test_features_of_another_width_are_refused(rng):
    with pytest.raises(UserError, match="widths 2 and 3"):
        precision_recall_density_coverage(rng.normal(size=(9, 2)), rng.normal(size=(9, 3)), 3)


def test_features_that_are_not_finite_are_refused(rng):
    bad = rng.normal(size=(9, 2))
    bad[3, 1] = np.inf
    with pytest.raises(UserError, match="fake: '1 rows hold NaN or infinity"):
        precision_recall_density_coverage(rng.normal(size=(9, 2)), bad, 3)


@pytest.mark.parametrize("shift", [0, 100])
def test_decisions_equal_those_of_differences_whatever_the_rounding(rng, shift):
    # Rounded to few values, with duplicates: borders are met exactly, and float32 products are far from exact.
    real, fake = (np.round(rng.normal(size=(n, 30)) @ rng.normal(size=(30, 40)), 1) + shift for n in (150, 130))
    real[100:120], fake[50:60] = real[:20], real[30:40]
    real, fake = real.astype(np.float32), fake.astype(np.float32)

    def between(a, b):
        return np.einsum("ijd->ij", (a[:, None].astype(np.float64) - b) ** 2)

    real_radii, fake_radii = (np.sort(between(x, x), axis=1)[:, 4] for x in (real, fake))
    cross = between(real, fake)
    for closed in (False, True):
        inside = np.less_equal if closed else np.less
        in_real, in_fake = inside(cross, real_radii[:, None]), inside(cross, fake_radii)
        expected = [in_real.any(axis=0).mean(), in_fake.any(axis=1).mean(), in_real.sum() / 130 / 4]
        got = precision_recall_density_coverage(real, fake, 4, closed=closed)
        np.testing.assert_allclose(list(got.values()), [*expected, in_real.any(axis=1).mean()], atol=1e-12)


def test_one_far_image_does_not_spoil_the_others(rng):
    real, fake = rng.normal(size=(2, 200, 6)).astype(np.float32)
    real[7] = 1e6
    got = precision_recall_density_coverage(real, fake, 3)
    np.testing.assert_allclose(
        list(got.values()), list(precision_recall_density_coverage(real.astype(np.float64), fake, 3).values())
    )
    assert got["precision"] > 0.5


def test_realism_is_above_one_inside_and_infinite_for_a_copy(rng):
    real = rng.normal(size=(100, 3))
    scores = realism(real, np.concatenate([real[[np.argmin(np.linalg.norm(real, axis=1))]], [[50.0, 50, 50]]]))
    assert scores[0] > 1 and scores[1] < 0.1
    assert improved_precision_recall(real, real) == {"precision": 1.0, "recall": 1.0}
