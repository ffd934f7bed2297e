"""The gradient similarity: its sign, its nearest targets, and what it refuses."""

import numpy as np
import pytest

from gantransfer.errors import UserError
from gantransfer.selection.gradients import gradient_similarity

IMAGES = np.array([[0.0, 0.0], [10.0, 0.0]])
TARGETS = np.array([[1.0, 0.0], [10.0, 5.0], [-50.0, 0.0]])
# The way from each image to its nearest target.
WAYS = np.array([[1.0, 0.0], [0.0, 5.0]])


def test_descending_towards_the_nearest_targets_is_one_and_away_from_them_minus_one():
    assert gradient_similarity(IMAGES, -WAYS, TARGETS) == pytest.approx(1)
    assert gradient_similarity(IMAGES, WAYS, TARGETS) == pytest.approx(-1)


def test_it_is_the_mean_cosine_and_lengths_do_not_matter():
    gradients = np.array([[-1000.0, 0.0], [1e-3, -1e-3]])
    assert gradient_similarity(IMAGES, gradients, TARGETS) == pytest.approx((1 + 2**-0.5) / 2)


def test_an_image_without_a_direction_counts_as_zero():
    gradients = np.array([[0.0, 0.0], [0.0, -1.0]])
    assert gradient_similarity(IMAGES, gradients, TARGETS) == pytest.approx(0.5)
    assert gradient_similarity(TARGETS, np.ones((3, 2)), TARGETS) == 0


def test_pictures_are_vectors_and_far_from_the_origin_nothing_changes():
    rng = np.random.default_rng(0)
    images, targets = rng.normal(size=(300, 4, 4, 3)), rng.normal(size=(50, 4, 4, 3))
    gradients = rng.normal(size=images.shape)
    pairs = ((images[:, None] - targets) ** 2).sum(axis=(2, 3, 4)).argmin(axis=1)
    way = (targets[pairs] - images).reshape(300, -1)
    down = -gradients.reshape(300, -1)
    expected = np.mean((way * down).sum(axis=1) / np.linalg.norm(way, axis=1) / np.linalg.norm(down, axis=1))
    assert gradient_similarity(images, gradients, targets) == pytest.approx(expected)
    assert gradient_similarity(images + 1e5, gradients, targets + 1e5) == pytest.approx(expected, abs=1e-6)
    assert gradient_similarity(images.astype(np.float32), gradients, targets) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("images", "gradients", "targets", "said"),
    [
        (IMAGES, WAYS[:1], TARGETS, "gradients"),
        (IMAGES, WAYS * np.nan, TARGETS, "gradients"),
        (IMAGES, WAYS, TARGETS[:, :1], "widths"),
        (IMAGES, WAYS, TARGETS[:0], "target images"),
        (IMAGES[:0], WAYS[:0], TARGETS, "images"),
    ],
)
def test_what_does_not_fit_is_refused(images, gradients, targets, said):
    with pytest.raises(UserError, match=said):
        gradient_similarity(images, gradients, targets)
