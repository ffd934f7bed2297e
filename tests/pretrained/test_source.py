"""A source generates, judges and samples as its public face promises."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gantransfer.errors import UserError
from gantransfer.pretrained.sample_statistics import sample_statistics
from gantransfer.pretrained.source import Source, fingerprint, latents, to_uint8


def test_generated_images_have_the_shape_type_and_range_of_the_public_face(plain_source):
    z = latents(3, plain_source.networks.z_dim, seed=0)
    images = plain_source.generate(z, [0, 1, 2])
    assert images.shape == (3, 16, 16, 1)
    assert images.dtype == np.float32
    assert np.abs(images).max() <= 1
    assert images.std() > 0.01


def test_generation_uses_the_averaged_weights(plain_source):
    z = latents(4, plain_source.networks.z_dim, seed=0)
    labels = [0, 1, 2, 0]
    swapped = Source(plain_source.info, plain_source.networks, plain_source.ema, plain_source.generator)
    apply = jax.jit(plain_source.networks.generator.apply)
    expected = apply(plain_source.ema, jnp.array(z), jnp.array(labels)).images
    np.testing.assert_allclose(plain_source.generate(z, labels), expected, atol=1e-5)
    assert np.abs(swapped.generate(z, labels) - expected).max() > 0.01


def test_an_image_does_not_depend_on_its_neighbours(plain_source):
    z = latents(70, plain_source.networks.z_dim, seed=1)
    together = plain_source.generate(z)
    assert together.shape == (70, 16, 16, 1)
    for i in (0, 63, 66):
        np.testing.assert_allclose(plain_source.generate(z[i : i + 4]), together[i : i + 4], atol=1e-5)


def test_truncation_scales_the_latent(plain_source):
    z = latents(4, plain_source.networks.z_dim, seed=0)
    np.testing.assert_array_equal(plain_source.generate(z, None, 0.5), plain_source.generate(z * np.float32(0.5)))
    at_zero = plain_source.generate(z, [0, 0, 1, 1], 0.0)
    np.testing.assert_array_equal(at_zero[0], at_zero[1])


def test_class_weights_of_one_class_equal_its_label(plain_source):
    z = latents(3, plain_source.networks.z_dim, seed=0)
    by_weight = plain_source.generate(z, np.eye(3, dtype=np.float32)[[2, 0, 1]])
    np.testing.assert_allclose(by_weight, plain_source.generate(z, [2, 0, 1]), atol=1e-6)


def test_judging_equals_the_discriminator_itself(plain_source):
    images = plain_source.generate(latents(3, plain_source.networks.z_dim, seed=0))
    logits = plain_source.judge(images, [0, 1, 2])
    apply = jax.jit(plain_source.networks.discriminator.apply)
    expected = apply(plain_source.discriminator, jnp.array(images), jnp.array([0, 1, 2])).logits
    assert logits.shape == (3,) and logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


def test_judging_without_a_discriminator_is_refused(plain_source, tiny):
    with pytest.raises(UserError, match="only a generator"):
        tiny.without_discriminator(plain_source).judge(np.zeros((1, 16, 16, 1), np.float32), [0])


@pytest.mark.parametrize(
    ("z_shape", "labels", "named"),
    [((2, 7), None, "z"), ((2, 12), [0, 3], "labels"), ((2, 12), [0], "labels"), ((2, 12), [[0.5], [0.5]], "labels")],
)
def test_inputs_that_do_not_fit_are_named(plain_source, z_shape, labels, named):
    given = None if labels is None else np.array(labels)
    with pytest.raises(UserError) as caught:
        plain_source.generate(np.zeros(z_shape, np.float32), given)
    assert caught.value.field == named


@pytest.mark.parametrize("images", [np.zeros((1, 8, 8, 1), np.float32), np.zeros((1, 16, 16, 1), np.uint8)])
def test_images_that_do_not_fit_are_named(plain_source, images):
    with pytest.raises(UserError, match="images"):
        plain_source.judge(images, [0])


def test_samples_of_a_seed_do_not_depend_on_how_many_there_are(plain_source):
    many = plain_source.sample(16, seed=3)
    assert many.shape == (16, 16, 16, 1) and many.dtype == np.uint8
    few = plain_source.sample(3, seed=3)
    assert np.abs(many[:3].astype(int) - few.astype(int)).max() <= 1
    assert (many != plain_source.sample(16, seed=4)).any()
    np.testing.assert_array_equal(latents(100, 5, seed=3)[:7], latents(7, 5, seed=3))


def test_latents_are_standard_normal_and_cut_ones_stay_within_two():
    z, cut = latents(4000, 8, seed=0), latents(4000, 8, seed=0, cut=True)
    assert abs(z.mean()) < 0.02 and abs(z.std() - 1) < 0.02 and np.abs(z).max() > 3
    # Deviation of the normal cut at two standard deviations: 0.8796.
    assert np.abs(cut).max() <= 2 and abs(cut.std() - 0.8796) < 0.02


def test_truncated_samples_come_from_the_cut_normal(plain_source):
    z = latents(4, plain_source.networks.z_dim, seed=5, cut=True) * np.float32(0.6)
    expected = to_uint8(plain_source.generate(z, [0, 1, 2, 0]))
    np.testing.assert_array_equal(plain_source.sample(4, seed=5, truncation=0.6), expected)


def test_classes_are_taken_in_turn_by_name_or_index(plain_source):
    z = latents(4, plain_source.networks.z_dim, seed=0)
    by_name = plain_source.sample(4, classes=["cherry", 0])
    np.testing.assert_array_equal(by_name, to_uint8(plain_source.generate(z, [2, 0, 2, 0])))
    np.testing.assert_array_equal(plain_source.sample(4), to_uint8(plain_source.generate(z, [0, 1, 2, 0])))


def test_an_unknown_class_names_the_nearest(plain_source):
    with pytest.raises(UserError, match=r"bananna.*did you mean banana\?"):
        plain_source.sample(1, classes=["bananna"])
    with pytest.raises(UserError, match="index 0..2"):
        plain_source.sample(1, classes=[3])


def test_interpolation_starts_and_ends_at_its_end_points(plain_source):
    z = latents(2, plain_source.networks.z_dim, seed=0)
    walk = plain_source.interpolate((z[0], "apple"), (z[1], 2), steps=3)
    middle = z.mean(axis=0, keepdims=True), np.array([[0.5, 0, 0.5]], np.float32)
    weights = np.concatenate([np.eye(3, dtype=np.float32)[:1], middle[1], np.eye(3, dtype=np.float32)[2:]])
    expected = to_uint8(plain_source.generate(np.concatenate([z[:1], middle[0], z[1:]]), weights))
    assert walk.shape == (3, 16, 16, 1)
    assert np.abs(walk.astype(int) - expected.astype(int)).max() <= 1


def test_bytes_survive_the_way_to_floats_and_back():
    every = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(to_uint8(every.astype(np.float32) / 127.5 - 1), every)
    np.testing.assert_array_equal(to_uint8(np.array([-2.0, 0.0, 2.0], np.float32)), [0, 128, 255])


def test_the_fingerprint_is_the_documented_digest():
    trees = {"ema": {"params": {"b": np.arange(3, dtype=np.float32), "a": np.float32(2.5)}}}
    digest = hashlib.sha256()
    digest.update(b"ema/params/a [] float32\n" + np.float32(2.5).tobytes())
    digest.update(b"ema/params/b [3] float32\n" + np.arange(3, dtype=np.float32).tobytes())
    assert fingerprint(trees) == digest.hexdigest()


def test_the_fingerprint_sees_every_network_and_the_smallest_change(plain_source, tiny):
    moved = np.array(tiny.leaves(plain_source.discriminator)["params/head/bias"])
    moved = np.nextafter(moved, np.float32(9))
    other = tiny.replace_leaves(plain_source.discriminator, params__head__bias=moved)
    changed = Source(plain_source.info, plain_source.networks, plain_source.generator, plain_source.ema, other)
    alone = Source(plain_source.info, plain_source.networks, plain_source.ema, plain_source.ema, other)
    prints = {plain_source.fingerprint(), changed.fingerprint(), alone.fingerprint()}
    assert len(prints) == 3
    # The layout in memory is no part of what is hashed.
    assert fingerprint({"x": {"k": np.eye(4)[:, :3]}}) == fingerprint(
        {"x": {"k": np.ascontiguousarray(np.eye(4)[:, :3])}}
    )


def test_sample_statistics_describe_the_sixteen_samples(plain_source):
    statistics = sample_statistics(plain_source)
    images = plain_source.sample(16, seed=0) / 255
    assert statistics["mean"] == pytest.approx(images.mean(), abs=1e-6)
    assert len(statistics["image_means"]) == 16
