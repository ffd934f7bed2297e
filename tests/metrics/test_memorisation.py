"""Nearest neighbours and the scores of copying."""

import numpy as np
import pytest

from gantransfer.errors import UserError
from gantransfer.metrics import (
    authenticity_percent,
    memorisation_ratio,
    nearest_neighbours,
    nearest_ratio,
    nearest_sheet,
)


@pytest.fixture
def images():
    return np.random.Generator(np.random.PCG64(0)).integers(0, 256, (400, 4, 4, 1), dtype=np.uint8)


def test_nearest_neighbours_and_authenticity_equal_the_published_ones(shared):
    with np.load(shared / "parity" / "metrics" / "distances.npz") as stored:
        samples, train = stored["memor/gen"], stored["memor/train"]
        index, distance = nearest_neighbours(samples, train)
        np.testing.assert_array_equal(index, stored["memor/nn_index"])
        np.testing.assert_allclose(distance, stored["memor/nn_distance"], atol=1e-10)
        assert authenticity_percent(samples, train) == stored["memor/authpct"]


def test_a_copy_is_found_at_distance_zero(images):
    index, distance = nearest_neighbours(images[[7, 30]], images)
    np.testing.assert_array_equal(index, [7, 30])
    np.testing.assert_array_equal(distance, [0, 0])


def test_uint8_differences_do_not_wrap():
    _, distance = nearest_neighbours(np.zeros((1, 1, 1, 1), np.uint8), np.full((1, 1, 1, 1), 255, np.uint8))
    assert distance[0] == 255


def test_fresh_samples_have_ratio_one_and_copies_zero(images):
    fresh, train, other = images[:100], images[100:200], images[200:]
    assert memorisation_ratio(fresh, train, other) == pytest.approx(1, abs=0.02)
    assert memorisation_ratio(train, train, other) == 0
    half = np.concatenate([train[:50], fresh[:50]])
    assert 0.4 < memorisation_ratio(half, train, other) < 0.6


def test_more_images_not_trained_on_do_not_move_the_ratio(images):
    samples, train = images[:100], images[100:130]
    assert memorisation_ratio(samples, train, images[130:160]) == pytest.approx(
        memorisation_ratio(samples, train, images[130:]), abs=0.03
    )
    # Nor do more training images: both sides hold equally many.
    assert memorisation_ratio(samples, images[160:], images[130:160]) == pytest.approx(1, abs=0.03)


def test_the_ratio_depends_on_its_seed_alone(images):
    parts = images[:50], images[50:100], images[100:]
    assert (
        memorisation_ratio(*parts, seed=1) == memorisation_ratio(*parts, seed=1) != memorisation_ratio(*parts, seed=2)
    )


def test_one_training_image_has_no_authenticity(images):
    with pytest.raises(UserError, match="training images: 1"):
        authenticity_percent(images[:5], images[:1])


def test_the_sheet_shows_copies_first_beside_what_they_copy(images):
    train, samples = images[:20], images[100:105].copy()
    samples[3] = train[11]
    sheet = nearest_sheet(samples, train, rows=2, neighbours=3, gap=1)
    assert sheet.shape == (2 * 5 - 1, 4 * 5, 1) and sheet.dtype == np.uint8
    np.testing.assert_array_equal(sheet[:4, :4], samples[3])
    np.testing.assert_array_equal(sheet[:4, 6:10], train[11])
    assert np.all(sheet[:, 4:6] == 255) and np.all(sheet[4] == 255)


def test_the_sheet_goes_by_features_where_they_are_given(images):
    train, samples = images[:3], images[3:5]
    features = np.array([[5.0], [1.0]]), np.array([[0.0], [1.1], [9.0]])
    sheet = nearest_sheet(samples, train, features=features, neighbours=9, gap=1)
    np.testing.assert_array_equal(sheet[:4, :4], samples[1])
    np.testing.assert_array_equal(sheet[:4, 6:10], train[1])
    with pytest.raises(UserError, match="features: '1 and 3 rows'"):
        nearest_sheet(samples, train, features=(features[0][:1], features[1]))
    with pytest.raises(UserError, match="of a size"):
        nearest_sheet(samples, train[:, :2])


def test_the_median_ratio_is_one_for_fresh_samples_and_zero_for_copies(images):
    assert nearest_ratio(images[:50], images[50:200], images[200:350]) == pytest.approx(1, abs=0.05)
    assert nearest_ratio(images[50:60], images[50:200], images[200:350]) == 0
    with pytest.raises(UserError, match="also a training image"):
        nearest_ratio(images[:5], images[:9], images[:9])
