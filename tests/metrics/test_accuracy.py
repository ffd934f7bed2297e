"""Class accuracy and variety inside classes."""

import numpy as np
import pytest

from gantransfer.errors import UserError
from gantransfer.metrics import class_accuracy, within_class_deviation


@pytest.fixture
def rng():
    return np.random.Generator(np.random.PCG64(0))


def test_accuracy_is_the_share_of_samples_in_the_class_asked_for():
    logits = np.eye(3, dtype=np.float32)[[0, 1, 2, 2]]
    assert class_accuracy(logits, np.array([0, 1, 2, 0])) == 0.75


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_outside_the_classifier_is_refused(label):
    with pytest.raises(UserError, match=f"labels: {label} .*0 to 2"):
        class_accuracy(np.eye(3, dtype=np.float32), np.array([0, 1, label]))


def test_deviation_is_relative_to_real_images(rng):
    labels = np.repeat([0, 1], 500)
    centres = np.array([50.0, 150.0])[labels, None]
    real = centres + 10 * rng.normal(size=(1000, 20))
    fake = centres + 5 * rng.normal(size=(1000, 20))
    assert within_class_deviation(fake, labels, real, labels) == pytest.approx(0.5, abs=0.02)
    assert within_class_deviation(real, labels, real, labels) == 1


def test_one_picture_per_class_has_no_deviation_though_classes_differ(rng):
    labels = np.tile([0, 1, 2], 10)
    real = rng.integers(0, 256, (30, 4, 4, 1), dtype=np.uint8)
    assert within_class_deviation(real[labels], labels, real, labels) == 0


def test_classes_without_two_images_on_both_sides_are_left_out(rng):
    real = rng.normal(size=(6, 5))
    labels = np.array([0, 0, 0, 1, 1, 2])
    shared_class = within_class_deviation(real[:3], labels[:3], real[:3], labels[:3])
    assert (
        within_class_deviation(real, labels, np.concatenate([real[:3], real[5:]]), np.array([0, 0, 0, 2]))
        == shared_class
    )
    with pytest.raises(ValueError, match="no class has two images"):
        within_class_deviation(real[5:], labels[5:], real, labels)
