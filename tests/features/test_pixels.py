"""Pixel pipelines: stored pictures of published tools, and what each rule must keep."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gantransfer.errors import UserError
from gantransfer.features import pixels

# Name in the stored file -> our rule, whether it clips, tolerance in levels of 255.
STORED_RULES = {
    **{f"pil_float_clip_{f}": (f"pillow_{f}", True, 1e-3) for f in ("bicubic", "bilinear", "lanczos")},
    **{f"pil_float_noclip_{f}": (f"pillow_{f}", False, 1e-3) for f in ("bicubic", "bilinear", "lanczos")},
    "torch_bilinear_clip": ("torch_bilinear", True, 1e-3),
    "tf1_bilinear": ("tf1_bilinear", False, 1e-3),
    "tf1_bilinear_align_corners": ("align_corners", False, 1e-3),
    "torch_bicubic_noaa": ("torch_bicubic", False, 2e-3),
    "torch_bicubic_antialias": ("torch_bicubic_antialias", False, 2e-3),
    "torch_area": ("area", False, 1e-3),
    "torch_bilinear_align_corners": ("align_corners", False, 1e-3),
}
SYMMETRIC = [rule for rule in pixels.RULES if rule not in ("tf1_bilinear", "pillow_nearest", "pillow_box")]


@pytest.fixture(scope="module")
def stored(shared):
    with np.load(shared / "parity" / "metrics" / "resize.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def picture():
    return np.random.Generator(np.random.PCG64(0)).integers(0, 256, (2, 12, 18, 3), dtype=np.uint8)


def sizes_of(stored):
    """(image, size as it is spelt, height and width) of every stored picture."""
    found = sorted({tuple(key.split("/")[:2]) for key in stored if key.count("/") == 2 and "x" in key.split("/")[1]})
    return [(image, spelt, tuple(int(side) for side in spelt.split("x"))) for image, spelt in found]


@pytest.mark.parametrize("name", STORED_RULES)
def test_a_rule_equals_the_published_one(stored, name):
    rule, clip, tolerance = STORED_RULES[name]
    seen = 0
    for image, spelt, size in sizes_of(stored):
        if (key := f"{image}/{spelt}/{name}") in stored:
            got = pixels.resize(stored[f"{image}/in"][None], size, rule, clip=clip)[0]
            assert got.dtype == np.float32
            np.testing.assert_allclose(got, stored[key], rtol=0, atol=tolerance, err_msg=key)
            seen += 1
    assert seen >= 4


@pytest.mark.parametrize("filter_name", ["bicubic", "bilinear", "lanczos", "box", "nearest"])
def test_8_bit_resizing_equals_pillow_level_for_level(stored, filter_name):
    for image, spelt, size in sizes_of(stored):
        key = f"{image}/{spelt}/pil_uint8_{filter_name}"
        got = pixels.resize_uint8(stored[f"{image}/in"][None], size, f"pillow_{filter_name}")[0]
        np.testing.assert_array_equal(got, stored[key], err_msg=key)


def test_truncated_bilinear_is_within_one_level(stored):
    for image, spelt, size in sizes_of(stored):
        got = np.asarray(pixels.resize(stored[f"{image}/in"][None], size, "torch_bilinear")[0]).astype(int)
        assert np.abs(got - stored[f"{image}/{spelt}/torch_bilinear_uint8"].astype(int)).max() <= 1


@pytest.mark.parametrize("name", pixels.PIPELINES)
def test_a_pipeline_to_299_pixels_equals_the_published_one(stored, name):
    rows = stored["299_rows"]
    program = jax.jit(lambda images: pixels.PIPELINES[name].levels(images, (299, 299)))
    for image in ("sq32", "big"):
        got = np.asarray(program(stored[f"{image}/in"][None])[0], np.float64)
        sampled = got[np.ix_(rows, rows)]
        np.testing.assert_allclose(sampled, stored[f"{image}/299/{name}_sampled"], rtol=0, atol=1e-3)
        np.testing.assert_allclose(got.mean(axis=(0, 1)), stored[f"{image}/299/{name}_mean"], rtol=0, atol=1e-3)
        np.testing.assert_allclose(got.std(axis=(0, 1)), stored[f"{image}/299/{name}_std"], rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ["nvidia", "studiogan"])
def test_quantising_equals_the_published_rules(stored, name):
    np.testing.assert_array_equal(pixels.to_uint8(jnp.asarray(stored["quantise/in"])), stored[f"quantise/{name}"])


def test_quantising_a_decoded_picture_returns_it():
    levels = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(pixels.to_uint8(jnp.asarray(levels / 127.5 - 1, jnp.float32)), levels)


@pytest.mark.parametrize("rule", pixels.RULES)
def test_equal_sizes_return_the_picture_and_constants_stay(picture, rule):
    np.testing.assert_array_equal(pixels.resize(picture, (12, 18), rule), picture)
    np.testing.assert_allclose(pixels.resize_weights(rule, 18, 18), np.eye(18), atol=1e-15)
    for size in ((5, 31), (1, 1), (29, 7)):
        constant = pixels.resize(np.full_like(picture, 77), size, rule)
        assert constant.shape == (2, *size, 3)
        np.testing.assert_allclose(constant, 77, atol=1e-3)


@pytest.mark.parametrize("rule", ["area", "pillow_box", "pillow_bilinear", "pillow_bicubic", "pillow_lanczos"])
def test_shrinking_by_a_whole_number_keeps_the_mean(rule):
    # Away from the border, where filters are cut.
    picture = np.zeros((1, 24, 24, 1), np.uint8)
    picture[0, 8:16, 8:16] = np.random.Generator(np.random.PCG64(1)).integers(0, 256, (8, 8, 1))
    assert abs(float(pixels.resize(picture, (12, 12), rule).mean()) - picture.mean()) < 0.5


@pytest.mark.parametrize("rule", SYMMETRIC)
def test_mirroring_commutes_with_half_pixel_rules(picture, rule):
    mirrored = pixels.resize(picture[:, :, ::-1], (7, 31), rule)
    np.testing.assert_allclose(mirrored, pixels.resize(picture, (7, 31), rule)[:, :, ::-1], atol=2e-3)


def test_mirroring_does_not_commute_with_the_rule_of_tensorflow_1(picture):
    mirrored = pixels.resize(picture[:, :, ::-1], (7, 31), "tf1_bilinear")
    assert np.abs(mirrored - pixels.resize(picture, (7, 31), "tf1_bilinear")[:, :, ::-1]).max() > 10


def test_inception_gets_the_range_of_its_pipeline():
    ends = np.stack([np.zeros((4, 4, 1), np.uint8), np.full((4, 4, 1), 255, np.uint8)])
    expected = {"clean": (-1, 127 / 128), "legacy_tensorflow": (-1, 127 / 128), "legacy_pytorch": (-1, 1)}
    for name, (low, high) in expected.items():
        got = pixels.pipeline(name).inception(ends)
        assert got.shape == (2, 299, 299, 3)
        np.testing.assert_allclose([got[0].mean(), got[1].mean()], [low, high], atol=1e-5)


def test_the_friendly_filter_goes_with_the_backbone():
    assert pixels.pipeline("friendly", "swin").rule == "pillow_bicubic"
    assert pixels.pipeline("friendly").rule == "pillow_bilinear"
    with pytest.raises(UserError, match="backbone: 'vgg'"):
        pixels.pipeline("friendly", "vgg")
    with pytest.raises(UserError, match="did you mean clean"):
        pixels.pipeline("cleen")


def test_pictures_without_a_rule_are_refused(picture):
    with pytest.raises(UserError, match="heights and widths of at least 1"):
        pixels.resize(picture, (0, 4), "area")
    with pytest.raises(UserError, match="pixels: 'uint16'"):
        pixels.resize(picture.astype(np.uint16), (4, 4), "area")
    with pytest.raises(UserError, match="8-bit resize rule: 'area'"):
        pixels.resize_uint8(picture, (4, 4), "area")
    with pytest.raises(UserError, match="channels: 4 .*1 or 3"):
        pixels.to_rgb(jnp.zeros((1, 2, 2, 4), jnp.uint8))


def test_generated_images_that_are_not_finite_are_counted():
    images = np.zeros((5, 2, 2, 1), np.float32)
    images[0] = 1.6
    assert pixels.check_generated(images) == 0.2
    images[3, 0, 0, 0] = np.nan
    with pytest.raises(UserError, match="1 of 5 hold NaN"):
        pixels.check_generated(images)
