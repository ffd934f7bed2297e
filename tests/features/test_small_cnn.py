"""The shipped character classifiers: what their records promise, and that training makes them again."""

import json

import numpy as np
import pytest

from gantransfer import features
from gantransfer.data import glyphs
from gantransfer.data.counts import digit_counts, digits_split, enlarge
from gantransfer.errors import UserError
from gantransfer.features import small_cnn, train_small_cnn


@pytest.fixture(scope="module")
def digits_cnn():
    return features.load("digits_cnn")


def test_digits_classifier_reaches_its_recorded_accuracy_on_unseen_digits(digits_cnn):
    counts, labels = digit_counts()
    _, test = digits_split()
    predicted = digits_cnn(enlarge(counts[test]))["logits"].argmax(axis=1)
    accuracy = np.mean(predicted == labels[test])
    assert accuracy == pytest.approx(digits_cnn.info["test_accuracy"], abs=1e-12)
    assert accuracy >= 0.99


def test_letters_classifier_reads_unseen_letters():
    network = features.load("letters_cnn")
    assert network.classes == glyphs.CLASSES and network.info["test_accuracy"] > 0.95
    counts, labels = glyphs.render_glyphs(6, glyphs.SEEDS["test"])
    assert np.mean(network(glyphs.to_images(counts))["logits"].argmax(axis=1) == labels) > 0.93


def test_outputs_do_not_depend_on_the_batch_they_came_in(digits_cnn):
    images = enlarge(digit_counts()[0][:300])
    whole, alone = digits_cnn(images), digits_cnn(images[290:291])
    assert whole["features"].shape == (300, 48) and whole["logits"].shape == (300, 10)
    for name in ("features", "logits"):
        assert whole[name].dtype == np.float32
        np.testing.assert_allclose(whole[name][290:291], alone[name], atol=1e-5)


def test_no_images_give_no_rows(digits_cnn):
    assert digits_cnn(np.zeros((0, 16, 16, 1), np.uint8))["features"].shape == (0, 48)


def test_networks_satisfy_the_interface_of_metrics(digits_cnn):
    assert isinstance(digits_cnn, features.FeatureNetwork)
    assert digits_cnn.name == "digits_cnn" and len(digits_cnn.sha256) == 64


def test_images_of_another_size_are_refused(digits_cnn):
    with pytest.raises(UserError, match="images for digits_cnn: '32x32x3'.*16x16x1"):
        digits_cnn(np.zeros((2, 32, 32, 3), np.uint8))


def test_an_unknown_network_is_refused_with_the_names_there_are():
    with pytest.raises(UserError, match="digits_cnn, letters_cnn.*did you mean digits_cnn"):
        features.load("digit_cnn")


def test_shipped_files_are_small_and_match_their_records():
    for name in small_cnn.SHIPPED:
        path = small_cnn.WEIGHTS / f"{name}.safetensors"
        record = json.loads(path.with_suffix(".json").read_text())
        assert path.stat().st_size <= 250_000
        assert record["sha256"] == small_cnn.load(name).sha256
        assert record["parameters"] == pytest.approx(58_000, rel=0.05)


def test_weights_that_are_not_those_of_the_record_are_refused(tmp_path):
    path = tmp_path / "mine.safetensors"
    content = bytearray((small_cnn.WEIGHTS / "digits_cnn.safetensors").read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="mine.json"):
        small_cnn.load(path)
    path.with_suffix(".json").write_text((small_cnn.WEIGHTS / "digits_cnn.json").read_text())
    with pytest.raises(UserError, match="sha256"):
        small_cnn.load(path)


def test_saving_keeps_the_values_of_transposed_arrays(tmp_path, digits_cnn):
    images = enlarge(digit_counts()[0][:4])
    path = tmp_path / "copy.safetensors"
    params = {
        layer: {name: np.asfortranarray(leaf) for name, leaf in leaves.items()}
        for layer, leaves in digits_cnn.params.items()
    }
    small_cnn.save(path, params, digits_cnn.info)
    np.testing.assert_array_equal(small_cnn.load(path)(images)["logits"], digits_cnn(images)["logits"])


def test_training_learns_and_is_a_function_of_its_seed(tmp_path):
    files = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        path = tmp_path / f"{name}.safetensors"
        short = train_small_cnn.Training(steps=40, batch=64, seed=seed)
        record = train_small_cnn.train_and_save("digits", path, short)
        assert record["test_accuracy"] > 0.6
        files.append(path.read_bytes())
    assert files[0] == files[1] != files[2]
