"""The record of an evaluation: right on samples whose quality is known, and with its protocol."""

import json

import numpy as np
import pytest

from gantransfer import features
from gantransfer.data.counts import digit_counts, digits_split, enlarge
from gantransfer.errors import UserError
from gantransfer.metrics.evaluation import evaluate_images


@pytest.fixture(scope="module")
def network():
    return features.load("digits_cnn")


@pytest.fixture(scope="module")
def digits():
    counts, labels = digit_counts()
    train, test = digits_split()
    # By chance rather than in order: neighbours in the file have one writer.
    train = np.random.Generator(np.random.PCG64(0)).permutation(train)
    images = enlarge(counts)
    return images, labels, train[:100], np.concatenate([train[100:], test])


def test_real_digits_that_were_not_trained_on_score_as_real(network, digits):
    images, labels, target, other = digits
    samples = other[::4]
    record = evaluate_images(images[samples], labels[samples], images, labels, images[target], network, seed=7)
    assert record["class_accuracy"] > 0.99
    assert record["frechet_distance"] < 0.5
    assert min(record[name] for name in ("precision", "recall", "coverage")) > 0.85
    assert record["density"] == pytest.approx(1, abs=0.15)
    assert record["within_class_deviation"] == pytest.approx(1, abs=0.05)
    protocol = record["protocol"]
    assert (protocol["n_generated"], protocol["n_real"], protocol["n_train"], protocol["k"]) == (
        len(samples),
        1697,
        100,
        3,
    )
    assert (protocol["seed"], protocol["network"], protocol["network_sha256"]) == (7, "digits_cnn", network.sha256)
    assert set(protocol["versions"]) == {"gantransfer", "jax", "numpy"}
    assert json.loads(json.dumps(record)) == record


def test_copies_of_the_training_images_are_unmasked(network, digits):
    images, labels, target, _ = digits
    copies = np.repeat(target, 5)
    record = evaluate_images(images[copies], labels[copies], images, labels, images[target], network)
    assert record["memorisation"] == 0 and record["recall"] == 0 and record["coverage"] < 0.5
    flattered = evaluate_images(
        images[copies], labels[copies], images, labels, images[target], network, reference="all"
    )
    assert flattered["frechet_distance"] < record["frechet_distance"]


def test_samples_of_the_wrong_class_and_of_noise_are_told_apart(network, digits):
    images, labels, target, other = digits
    samples = other[:400]
    wrong = evaluate_images(images[samples], (labels[samples] + 1) % 10, images, labels, images[target], network)
    noise = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (400, 16, 16, 1), dtype=np.uint8)
    noisy = evaluate_images(noise, labels[samples], images, labels, images[target], network)
    assert wrong["class_accuracy"] < 0.02 and wrong["frechet_distance"] < 2
    assert noisy["frechet_distance"] > 20 and noisy["precision"] < 0.2


def test_the_reference_is_all_real_images_where_too_few_are_held_out_and_the_record_says_so(network, digits):
    images, labels, _, other = digits
    few = other[:300]
    record = evaluate_images(images[few], labels[few], images[few], labels[few], images[few[:50]], network)
    assert record["protocol"]["reference"] == "all real images, 50 of them trained on"
    assert record["protocol"]["n_real"] == 300
    forced = evaluate_images(
        images[few], labels[few], images[few], labels[few], images[few[:50]], network, reference="held_out"
    )
    assert forced["protocol"]["n_real"] == 250


def test_memorisation_is_none_where_every_real_image_was_trained_on(network, digits):
    images, labels, target, other = digits
    samples = other[:100]
    record = evaluate_images(images[samples], labels[samples], images[target], labels[target], images[target], network)
    assert record["memorisation"] is None


def test_an_unknown_reference_is_refused(network, digits):
    images, labels, target, _ = digits
    with pytest.raises(UserError, match="reference: 'train'.*all, auto, held_out"):
        evaluate_images(images, labels, images, labels, images[target], network, reference="train")
