"""Kernel distance, CMMD, Vendi score and MIND: what must hold of distances between sets."""

import numpy as np
import pytest

from gantransfer.errors import UserError
from gantransfer.metrics import (
    GaussianKernel,
    cmmd,
    kernel,
    kernel_distance,
    kernel_distance_full,
    mind,
    unit_rows,
    vendi_score,
)


@pytest.fixture
def rng():
    return np.random.Generator(np.random.PCG64(0))


def test_equal_distributions_are_at_zero_within_the_spread_and_others_are_not(rng):
    real, same, other = (rng.standard_normal((600, 8)) + shift for shift in (0, 0, 0.5))
    near, far = kernel_distance(real, same, 20, 100), kernel_distance(real, other, 20, 100)
    assert abs(near.mean) < 3 * near.std
    assert far.mean > 10 * near.std and float(far) == far.mean == far[0]
    assert kernel_distance_full(real, other) == pytest.approx(far.mean, abs=3 * far.std / np.sqrt(20))


def test_the_seed_draws_the_subsets(rng):
    a, b = rng.standard_normal((2, 200, 4))
    assert kernel_distance(a, b, 3, 50, seed=1) == kernel_distance(a, b, 3, 50, seed=1)
    assert kernel_distance(a, b, 3, 50, seed=1) != kernel_distance(a, b, 3, 50, seed=2)


def test_subsets_are_no_larger_than_the_smaller_set(rng):
    a, b = rng.standard_normal((30, 4)), rng.standard_normal((20, 4))
    whole = kernel_distance(a[:20], b, subsets=2)
    assert whole.std == pytest.approx(0, abs=1e-15)
    assert whole.mean == pytest.approx(kernel_distance_full(a[:20], b), rel=1e-12)
    assert kernel_distance(a, b, subsets=5).std > 0


def test_the_full_distance_does_not_depend_on_order_or_blocks(rng, monkeypatch):
    a, b = rng.standard_normal((50, 4)), rng.standard_normal((41, 4))
    whole = kernel_distance_full(a, b)
    assert whole == pytest.approx(kernel.squared_discrepancy(a, b, kernel.PolynomialKernel()), rel=1e-12)
    monkeypatch.setattr(kernel, "BLOCK", 7)
    assert kernel_distance_full(a[::-1], rng.permutation(b)) == pytest.approx(whole, rel=1e-12)


def test_kernels_are_their_formulas(rng):
    x, y = rng.standard_normal((5, 3)), rng.standard_normal((4, 3))
    products = np.einsum("id,jd->ij", x, y)
    np.testing.assert_allclose(kernel.PolynomialKernel()(x, y), (products / 3 + 1) ** 3)
    np.testing.assert_allclose(kernel.PolynomialKernel(4, 0.5, 2.0)(x, y), (products / 2 + 2) ** 4)
    squares = ((x[:, None] - y) ** 2).sum(axis=-1)
    np.testing.assert_allclose(GaussianKernel(1.5)(x, y), np.exp(-squares / 4.5))


def test_kernel_distances_that_cannot_be_are_refused(rng):
    a = rng.standard_normal((9, 3))
    with pytest.raises(UserError, match="b: '1 rows' .* at least 2"):
        kernel_distance(a, a[:1])
    with pytest.raises(UserError, match="widths 3 and 2"):
        kernel_distance_full(a, a[:, :2])
    with pytest.raises(UserError, match="a: '1 rows hold NaN"):
        kernel_distance(np.where(np.arange(9)[:, None] == 4, np.nan, a), a)
    with pytest.raises(UserError, match="0 of 9 rows"):
        kernel_distance(a, a, subsets=0)
    with pytest.raises(UserError, match="did you mean unbiased"):
        kernel_distance(a, a, estimator="unbias")
    with pytest.raises(UserError, match="u_statistic of 9 and 8 rows"):
        kernel.squared_discrepancy(a, a[:8], kernel.PolynomialKernel(), "u_statistic")


def test_cmmd_is_zero_for_a_set_and_itself_and_blind_to_order(rng):
    a, b = unit_rows(rng.standard_normal((60, 16))), unit_rows(rng.standard_normal((40, 16)) + 1)
    assert abs(cmmd(a, a)) < 1e-10
    assert cmmd(a, b) == pytest.approx(cmmd(rng.permutation(a), b[::-1]), rel=1e-9)
    kernels = (np.exp(-((x[:, None] - y) ** 2).sum(axis=-1) / 200).mean() for x, y in ((a, a), (b, b), (a, b)))
    aa, bb, ab = kernels
    assert cmmd(a, b) == pytest.approx(1000 * (aa + bb - 2 * ab), rel=1e-8)
    with pytest.raises(UserError, match="widths 16 and 5"):
        cmmd(a, b[:, :5])


def test_rows_are_scaled_to_unit_length_and_zeros_stay():
    np.testing.assert_allclose(unit_rows(np.array([[3.0, 4.0], [0.0, 0.0]])), [[0.6, 0.8], [0, 0]])


def test_the_vendi_score_counts_different_rows():
    different = np.eye(6)
    for order in (0.5, 1.0, 2.0, np.inf):
        assert vendi_score(different, order) == pytest.approx(6)
        assert vendi_score(np.repeat(different[:2], 5, axis=0), order) == pytest.approx(2)
    with pytest.raises(UserError, match="order: 0"):
        vendi_score(different, 0.0)
    with pytest.raises(UserError, match="kernel: 'cube'"):
        vendi_score(different, kernel="cube")


def test_mind_is_zero_for_a_set_and_itself_and_sees_a_shift(rng):
    a, b = rng.standard_normal((80, 4)), rng.standard_normal((60, 4))
    assert mind(a, rng.permutation(a)) == pytest.approx(0, abs=1e-12)
    # The mean squared projection of a shift of length 2 is 4 / width.
    assert mind(a, a + np.array([2.0, 0, 0, 0]), directions=20_000) == pytest.approx(12, rel=0.03)
    assert mind(a, b, seed=1) == mind(a, b, seed=1)
    assert mind(a, b, seed=1) == pytest.approx(mind(b, a, seed=1), rel=1e-12)
