"""Class accuracy and variety inside classes."""

import numpy as np
import pytest

from gantransfer.errors import UserError
from gantransfer.metrics import (
    class_accuracy,
    classification_accuracy_score,
    top_k_accuracy,
    within_class_deviation,
)


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


def test_the_likeliest_answers_count_and_labels_may_be_shifted():
    logits = np.array([[0.0, 3.0, 2.0, 1.0], [9.0, 1.0, 2.0, 3.0]], np.float32)
    assert top_k_accuracy(logits, np.array([2, 1]), 1) == 0
    assert top_k_accuracy(logits, np.array([2, 1]), 2) == 0.5
    assert top_k_accuracy(logits, np.array([2, 1]), 4) == 1
    assert top_k_accuracy(logits, np.array([1, 0]), 2, shift=1) == 0.5
    with pytest.raises(UserError, match="k: 5 .*1 to 4"):
        top_k_accuracy(logits, np.array([0, 1]))
    with pytest.raises(UserError, match="labels: 4"):
        top_k_accuracy(logits, np.array([0, 3]), 1, shift=1)


def test_a_classifier_of_samples_is_read_beside_one_of_real_images():
    labels = np.arange(8)
    good, half = np.eye(8, dtype=np.float32), np.eye(8, dtype=np.float32)
    half[4:] = np.eye(8, dtype=np.float32)[0]
    got = classification_accuracy_score(half, good, labels)
    assert got == {"value": 0.5, "real_on_real": 1.0, "ratio": 0.5, "top5": got["top5"]} and got["top5"] >= 0.5
    with pytest.raises(UserError, match="right on some real images"):
        classification_accuracy_score(good, np.roll(good, 1, axis=1), labels)
