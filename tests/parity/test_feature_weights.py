"""Feature networks with real published weights: stored outputs, and the accuracies that were measured with them."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from gantransfer import features

DEPTHS = (20, 32)


@pytest.fixture(scope="module")
def load(shared):
    made = {}

    def get(name, file):
        if file not in made:
            made[file] = features.load(name, weights=shared / "weights" / file)
        return made[file]

    return get


@pytest.mark.parametrize("layers", DEPTHS)
def test_cifar_networks_give_the_stored_features_and_logits(shared, load, layers):
    golden = np.load(shared / "weights" / "golden" / f"cifar_resnet{layers}.npz")
    network = load(f"cifar_resnet{layers}", f"cifar_resnet{layers}/resnet{layers}.npz")
    found = network(golden["x_uint8"].transpose(0, 2, 3, 1))
    np.testing.assert_allclose(found["features"], golden["features"], atol=1e-5)
    np.testing.assert_allclose(found["logits"], golden["logits"], atol=5e-5)
    wrong = network(golden["x_uint8"].transpose(0, 2, 3, 1)[..., ::-1])["logits"]
    assert np.abs(wrong - golden["logits"]).max() > 0.1, "colours in the other order must show"


def test_lenet_gives_the_stored_probabilities_from_every_file(shared, load):
    golden = np.load(shared / "weights" / "golden" / "mnist_lenet.npz")
    images = golden["x_uint8"].transpose(0, 2, 3, 1)
    networks = [
        load("mnist_lenet5", f"mnist_lenet/{file}")
        for file in ("lenet5.npz", "lenet5_epoch12.pth", "lenet5_zipformat.pth")
    ]
    assert len({network.sha256 for network in networks}) == 1
    found = networks[0](images)
    np.testing.assert_allclose(found["logprob"], golden["logprob"], atol=5e-5)
    assert np.mean(found["logits"].argmax(axis=1) == golden["labels"]) > 0.95
    assert found["features"].shape == (64, 84)


def pictures(file, mode):
    """Images and labels of a zip with one folder per class, in the order of the classes' names."""
    with zipfile.ZipFile(file) as archive:
        names = sorted(name for name in archive.namelist() if name.lower().endswith((".png", ".jpg", ".jpeg")))
        images = np.stack([np.asarray(Image.open(io.BytesIO(archive.read(name))).convert(mode)) for name in names])
    classes = sorted({name.split("/")[-2] for name in names})
    return images.reshape(*images.shape[:3], -1), np.array([classes.index(name.split("/")[-2]) for name in names])


@pytest.mark.slow
@pytest.mark.parametrize(("layers", "accuracy"), [(20, 0.819), (32, 0.826)])
def test_cifar_networks_reach_the_measured_accuracy(shared, load, layers, accuracy):
    images, labels = pictures(shared / "data" / "cifar10_test.zip", "RGB")
    network = load(f"cifar_resnet{layers}", f"cifar_resnet{layers}/resnet{layers}.npz")
    assert np.mean(network(images)["logits"].argmax(axis=1) == labels) == pytest.approx(accuracy, abs=6e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("padded", "accuracy"), [(False, 0.992), (True, 0.988)])
def test_lenet_reaches_the_measured_accuracy(shared, load, padded, accuracy):
    images, labels = pictures(shared / "data" / "mnist.zip", "L")
    if not padded:
        images = images[:, 2:-2, 2:-2]
    network = load("mnist_lenet5", "mnist_lenet/lenet5.npz")
    assert np.mean(network(images)["logits"].argmax(axis=1) == labels) == pytest.approx(accuracy, abs=6e-4)
