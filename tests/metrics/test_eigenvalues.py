"""Eigenvalues by way of a band are those of LAPACK's usual routine, also of matrices that leave nothing to reflect."""

import numpy as np
import pytest

from gantransfer.metrics.eigenvalues import BAND, _banded, symmetric_eigenvalues


def matrix_with(values, seed=0):
    """A symmetric matrix with these eigenvalues."""
    turned, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(values), len(values))))
    found = turned * np.asarray(values, float) @ turned.T
    return (found + found.T) / 2


@pytest.mark.parametrize("band", [1, 4, BAND])
@pytest.mark.parametrize("size", [1, 2, 5, 6, 33, 34, 63, 64, 65, 130])
def test_values_are_those_of_the_matrix(size, band):
    values = np.sort(np.random.default_rng(size).standard_normal(size))
    found = symmetric_eigenvalues(matrix_with(values, size), band)
    np.testing.assert_allclose(found, values, atol=1e-13)


@pytest.mark.parametrize(
    "values", [np.zeros(80), np.ones(80), np.r_[np.zeros(70), np.full(10, 3.0)], 10.0 ** -np.arange(0, 16, 0.2)]
)
def test_equal_vanishing_and_spread_values_are_found(values):
    found = symmetric_eigenvalues(matrix_with(values), 8)
    np.testing.assert_allclose(found, np.sort(values), atol=2e-14 * max(1, values.max()))


@pytest.mark.parametrize("band", [3, 8])
def test_a_matrix_that_is_in_order_already_has_nothing_reflected(band):
    diagonal = np.arange(40.0)
    np.testing.assert_array_equal(symmetric_eigenvalues(np.diag(diagonal), band), diagonal)
    blocks = np.kron(np.eye(5), matrix_with(np.arange(8.0)))
    np.testing.assert_allclose(symmetric_eigenvalues(blocks, band), np.repeat(np.arange(8.0), 5), atol=1e-13)


def test_a_band_has_the_matrix_s_norm_and_only_the_lower_triangle_is_read():
    matrix = matrix_with(np.arange(50.0))
    diagonals = _banded(matrix, 4)
    assert diagonals.shape == (5, 50) and np.abs(diagonals[4, :46]).min() > 0
    whole = np.sum(diagonals[0] ** 2) + 2 * np.sum(diagonals[1:] ** 2)
    assert whole == pytest.approx(np.sum(matrix**2), rel=1e-12)
    np.testing.assert_array_equal(symmetric_eigenvalues(np.tril(matrix), 4), symmetric_eigenvalues(matrix, 4))
