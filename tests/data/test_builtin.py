"""`digits` and `glyphs` as image sets."""

import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from gantransfer.data import glyphs, open_images
from gantransfer.data.counts import digits_split
from gantransfer.errors import UserError


def test_all_digits_are_there_in_order():
    images = open_images("digits")
    pixels, labels = images.arrays()
    assert pixels.shape == (1797, 16, 16, 1) and images.class_names == tuple("0123456789")
    np.testing.assert_array_equal(labels, load_digits().target)


def test_digits_are_enlarged_by_the_bilinear_rule():
    pixels, _ = open_images("digits", resolution=16).arrays()
    grey = np.rint(load_digits().images * 255 / 16)
    padded = np.pad(grey, ((0, 0), (1, 1), (1, 1)), mode="edge")
    # At twice the size half-pixel centres lie at quarters: weights 3/4 and 1/4, the nearer first.
    fine = np.empty((len(grey), 16, 10))
    fine[:, 0::2] = 0.75 * padded[:, 1:-1] + 0.25 * padded[:, :-2]
    fine[:, 1::2] = 0.75 * padded[:, 1:-1] + 0.25 * padded[:, 2:]
    expected = np.empty((len(grey), 16, 16))
    expected[:, :, 0::2] = 0.75 * fine[:, :, 1:-1] + 0.25 * fine[:, :, :-2]
    expected[:, :, 1::2] = 0.75 * fine[:, :, 1:-1] + 0.25 * fine[:, :, 2:]
    np.testing.assert_allclose(pixels[..., 0], expected, atol=0.5 + 1e-9)
    np.testing.assert_array_equal(open_images("digits", resolution=8).arrays()[0][..., 0], grey)


def test_train_and_test_digits_are_the_fixed_split():
    train, test = open_images("digits:train"), open_images("digits:test")
    assert (len(train), len(test)) == (1437, 360)
    whole, labels = open_images("digits").arrays()
    for part, rows in zip((train, test), digits_split(), strict=True):
        np.testing.assert_array_equal(part.arrays()[0], whole[rows])
        np.testing.assert_array_equal(part.labels, labels[rows])
    assert not set(train.files) & set(test.files)
    assert len({train.fingerprint, test.fingerprint, open_images("digits").fingerprint}) == 3


def test_channels_and_size_can_be_chosen():
    grey, colour = open_images("digits:test", resolution=32), open_images("digits:test", resolution=32, channels=3)
    assert (colour.resolution, colour.channels) == (32, 3)
    np.testing.assert_array_equal(np.repeat(grey.arrays()[0], 3, axis=-1), colour.arrays()[0])


def test_glyphs_open_as_a_set(monkeypatch, tmp_path):
    monkeypatch.setenv("GANTRANSFER_CACHE", str(tmp_path))
    monkeypatch.setitem(glyphs.PER_CLASS, "test", 1)
    images = open_images("glyphs:test")
    assert images.counts == (1,) * len(glyphs.CLASSES) and images.class_names == glyphs.CLASSES
    assert images.arrays()[0].shape == (37, 16, 16, 1)


@pytest.mark.parametrize(
    ("path", "options", "words"),
    [
        ("digits:validation", {}, "digits:validation.*digits:test"),
        ("glyphs:x", {}, "glyphs:test"),
        ("digits", {"resolution": 4}, "data.resolution.*8"),
        ("digits", {"classes": 9}, "10 classes.*9"),
    ],
)
def test_what_is_not_there_is_refused_by_name(path, options, words):
    with pytest.raises(UserError, match=words):
        open_images(path, **options)


def test_a_missing_package_names_the_extra(monkeypatch):
    from gantransfer.data.counts import digit_counts

    digit_counts.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match=r"pip install 'gantransfer\[quickstart\]'"):
        open_images("digits")
