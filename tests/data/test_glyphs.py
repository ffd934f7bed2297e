"""Letters and digits as data: drawn as a function of a key, with the digits' statistics and enlarging rule."""

import numpy as np
import pytest
from PIL import Image

from gantransfer.data import glyphs
from gantransfer.data.counts import digit_counts, digits_split, enlarge
from gantransfer.errors import UserError


def test_a_letter_does_not_depend_on_how_many_or_which_others_are_drawn():
    few, _ = glyphs.render_glyphs(2, seed=3, classes=("A", "g"))
    many, _ = glyphs.render_glyphs(4, seed=3, classes=("q", "g", "A"))
    np.testing.assert_array_equal(few[:2], many[8:10])
    np.testing.assert_array_equal(few[2:], many[4:6])


def test_seeds_and_numbers_give_different_letters():
    first, _ = glyphs.render_glyphs(3, seed=0, classes=("R",))
    second, _ = glyphs.render_glyphs(3, seed=1, classes=("R",))
    pictures = {counts.tobytes() for counts in np.concatenate([first, second])}
    assert len(pictures) == 6


def test_every_font_draws_every_letter_in_its_own_shape():
    drawn = {font: [glyphs._typeset(c, font, 48.0) for c in glyphs.CLASSES] for font in glyphs.FONTS}
    for font, letters in drawn.items():
        assert len({letter.tobytes() for letter in letters}) == len(glyphs.CLASSES), font
    assert len({letters[0].tobytes() for letters in drawn.values()}) == len(glyphs.FONTS)


def test_letters_have_the_ink_statistics_of_the_digits():
    letters, labels = glyphs.render_glyphs(8, seed=0)
    digits, _ = digit_counts()
    assert letters.max() == 16
    np.testing.assert_array_equal(labels, np.repeat(np.arange(37), 8))
    assert abs(letters.mean() - digits.mean()) < 0.3
    assert abs(np.mean(letters == 0) - np.mean(digits == 0)) < 0.03
    assert abs(np.mean(letters == 16) - np.mean(digits == 16)) < 0.02
    np.testing.assert_allclose(letters.mean(axis=(0, 1)), digits.mean(axis=(0, 1)), atol=2.5)


def test_a_letter_fills_the_height_and_stays_off_the_outer_columns():
    letters, _ = glyphs.render_glyphs(2, seed=5)
    assert (letters[:, 0].sum(axis=1) > 0).all() and (letters[:, -1].sum(axis=1) > 0).all()
    assert letters[:, :, [0, 7]].mean() < 1


def test_open_glyphs_renders_once_and_then_reads_its_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GANTRANSFER_CACHE", str(tmp_path))
    monkeypatch.setattr(glyphs, "PER_CLASS", {"train": 2, "test": 1})
    images, labels, names = glyphs.open_glyphs("train")
    assert (images.shape, images.dtype, labels.shape, len(names)) == ((74, 16, 16, 1), np.uint8, (74,), 37)

    def refuse(*_, **__):
        raise AssertionError("rendered again")

    monkeypatch.setattr(glyphs, "render_glyphs", refuse)
    again, _, _ = glyphs.open_glyphs("train")
    np.testing.assert_array_equal(images, again)
    with pytest.raises(AssertionError, match="rendered again"):
        glyphs.open_glyphs("test")


def test_an_unknown_split_is_refused_by_name():
    with pytest.raises(UserError, match="glyphs split: 'validation'.*test, train"):
        glyphs.open_glyphs("validation")


@pytest.mark.parametrize("resolution", [8, 16, 24, 32])
def test_enlarging_is_half_pixel_bilinear_of_the_rounded_grey(resolution):
    counts, _ = digit_counts()
    images = enlarge(counts[:20], resolution)
    for counted, image in zip(counts[:20], images, strict=True):
        grey = Image.fromarray(np.rint(counted * (255 / 16)).astype(np.float32))
        expected = np.asarray(grey.resize((resolution, resolution), Image.Resampling.BILINEAR))
        assert np.abs(image[..., 0] - expected).max() <= 0.501


def test_enlarging_keeps_constants_and_spans_the_range():
    constant = np.stack([np.full((8, 8), count, np.uint8) for count in range(17)])
    images = enlarge(constant)
    np.testing.assert_array_equal(images[:, 3, 5, 0], np.rint(np.arange(17) * 255 / 16))
    assert (images == images[:, :1, :1]).all() and images.max() == 255


def test_shrinking_is_refused():
    with pytest.raises(UserError, match="data.resolution: 4"):
        enlarge(np.zeros((1, 8, 8), np.uint8), 4)


def test_the_digits_split_is_stratified_disjoint_and_fixed():
    _, labels = digit_counts()
    train, test = digits_split()
    assert (len(train), len(test)) == (1437, 360)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), np.arange(1797))
    shares = np.bincount(labels[test]) / np.bincount(labels)
    assert np.abs(shares - 360 / 1797).max() < 0.004
    # The shipped digits classifier was trained on the rest: another split would leak.
    np.testing.assert_array_equal(test[:8], [5, 9, 12, 14, 16, 17, 19, 23])
    assert int(test.sum()) == 326571
