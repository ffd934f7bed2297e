"""LPIPS, the diversity made of it, and perceptual path length: what must hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gantransfer.errors import UserError
from gantransfer.metrics import (
    intra_cluster_diversity,
    lerp,
    lpips,
    lpips_map,
    pairwise_diversity,
    path_length,
    path_pictures,
    path_step,
    slerp,
)


@pytest.fixture(scope="module")
def stages():
    rng = np.random.Generator(np.random.PCG64(0))
    shapes = ((3, 8, 6, 4), (3, 4, 3, 7))
    return [[np.maximum(rng.standard_normal(shape, dtype=np.float32), 0) for shape in shapes] for _ in range(2)]


@pytest.fixture(scope="module")
def heads():
    return [np.linspace(0.1, 1, channels, dtype=np.float32) for channels in (4, 7)]


def test_a_distance_is_zero_for_equal_pictures_symmetric_and_grows(stages, heads):
    a, b = stages
    np.testing.assert_array_equal(lpips(a, a, heads), np.zeros(3))
    np.testing.assert_allclose(lpips(a, b, heads), lpips(b, a, heads), rtol=1e-6)
    steps = [np.asarray(lpips(a, [x + s * (y - x) for x, y in zip(a, b, strict=True)], heads)) for s in (0.1, 0.4, 1)]
    assert np.all(steps[0] < steps[1]) and np.all(steps[1] < steps[2])


def test_gradients_are_finite_where_every_channel_is_zero(stages, heads):
    a, b = stages
    dead = [a[0].copy(), a[1]]
    dead[0][:, :2] = 0
    gradients = jax.jit(jax.grad(lambda x: lpips(x, b, heads).sum()))([jnp.asarray(stage) for stage in dead])
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    assert np.abs(gradients[0][:, 4:]).max() > 0


def test_the_map_of_a_picture_of_the_stage_size_has_the_distance_as_its_mean(stages, heads):
    a, b = ([side[0]] for side in stages)
    maps = lpips_map(a, b, heads[:1], (8, 6))
    np.testing.assert_allclose(maps.mean(axis=(1, 2)), lpips(a, b, heads[:1]), rtol=1e-5)


def test_stages_that_do_not_belong_together_are_refused(stages, heads):
    a, b = stages
    with pytest.raises(UserError, match="stages"):
        lpips(a, b[::-1], heads)
    with pytest.raises(UserError, match="stages"):
        lpips(a, b, heads[:1])
    with pytest.raises(UserError, match="stages"):
        lpips([], [], None)


def test_diversity_takes_every_pair_once_where_there_are_few():
    points = np.array([0.0, 1.0, 3.0])
    seen = []

    def distance(i, j):
        seen.extend(zip(i.tolist(), j.tolist(), strict=True))
        return np.abs(points[i] - points[j])

    assert pairwise_diversity(distance, 3) == pytest.approx(2)
    assert seen == [(0, 1), (0, 2), (1, 2)]
    seen.clear()
    assert 0 < pairwise_diversity(distance, 3, pairs=2, seed=1) <= 3
    assert len(seen) == 2 and all(i != j for i, j in seen)
    with pytest.raises(UserError, match="at least 2 pictures"):
        pairwise_diversity(distance, 1)


def test_copies_of_training_images_have_no_diversity_inside_clusters():
    training, noise = np.array([0.0, 10.0, 20.0, 30.0]), np.random.Generator(np.random.PCG64(0)).normal(size=300)
    nearest = np.append(np.arange(299) % 3, 3)

    def of(points):
        return intra_cluster_diversity(nearest, lambda i, j: np.abs(points[i] - points[j]), 4, limit=20)

    assert of(training[nearest]) == {"value": 0, "clusters_without_pairs": 1}
    # The mean distance of two normal draws is 2 / sqrt(pi).
    assert of(training[nearest] + noise)["value"] == pytest.approx(2 / np.sqrt(np.pi), rel=0.15)
    with pytest.raises(UserError, match="two samples"):
        intra_cluster_diversity(np.array([0, 1]), lambda i, j: np.zeros(len(i)), 4)
    with pytest.raises(UserError, match="nearest: 3 .*0 to 2"):
        intra_cluster_diversity(nearest, lambda i, j: np.zeros(len(i)), 3)


def test_paths_go_from_one_end_to_the_other():
    rng = np.random.Generator(np.random.PCG64(0))
    a, b = rng.standard_normal((2, 5, 8)).astype(np.float32)
    zeros, ones = np.zeros(5, np.float32), np.ones(5, np.float32)
    np.testing.assert_allclose(lerp(a, b, zeros), a)
    np.testing.assert_allclose(lerp(a, b, ones), b, atol=1e-6)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b)]
    np.testing.assert_allclose(slerp(a, b, zeros), unit[0], atol=1e-6)
    np.testing.assert_allclose(slerp(a, b, ones), unit[1], atol=1e-6)
    half = slerp(a, b, 0.5 * ones)
    np.testing.assert_allclose(np.linalg.norm(half, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(np.sum(half * unit[0], axis=1), np.sum(half * unit[1], axis=1), atol=1e-6)


def test_steps_have_the_length_asked_for_and_need_precision():
    rng = np.random.Generator(np.random.PCG64(0))
    a, b, t = rng.standard_normal((4, 8)), rng.standard_normal((4, 8)), rng.random(4)
    with jax.enable_x64(True):
        first, second = path_step(a, b, t, "w", 1e-3)
        np.testing.assert_allclose(np.linalg.norm(second - first, axis=1), 1e-3 * np.linalg.norm(b - a, axis=1))
        first, second = path_step(a, b, t, "z", 1e-3)
        cosine = np.sum(a * b, axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        np.testing.assert_allclose(np.linalg.norm(second - first, axis=1), 1e-3 * np.arccos(cosine), rtol=1e-5)
    with pytest.raises(UserError, match="latents: 'bfloat16'"):
        path_step(jnp.zeros((2, 3), jnp.bfloat16), jnp.ones((2, 3), jnp.bfloat16), jnp.zeros(2))
    with pytest.raises(UserError, match="space: 'x'"):
        path_step(a, b, t, "x")


def test_pictures_are_cropped_averaged_and_not_clipped():
    images = np.zeros((1, 512, 512, 1), np.float32)
    images[0, ::2] = 3.0
    got = np.asarray(path_pictures(images))
    assert got.shape == (1, 256, 256, 1)
    np.testing.assert_allclose(got, (1.5 + 1) * 127.5, rtol=1e-6)
    cropped = path_pictures(np.arange(64, dtype=np.float32).reshape(1, 8, 8, 1), crop=True)
    np.testing.assert_allclose(cropped[0, :, :, 0] / 127.5 - 1, np.arange(64).reshape(8, 8)[3:7, 2:6], rtol=1e-6)
    with pytest.raises(UserError, match="picture size"):
        path_pictures(np.zeros((1, 300, 300, 3), np.float32))


def test_a_path_length_leaves_out_the_tails():
    values = np.ones(1000)
    values[:10], values[-10:] = 0, 1e9
    # Of 1000, the 10th and the 991st are the bounds, and count with all that equal them.
    assert path_length(values) == pytest.approx((980 + 10 * 1e9) / 1000)
    assert path_length(np.full(5, 7.0)) == 7
    with pytest.raises(UserError, match="path distances"):
        path_length(np.array([1.0, np.nan]))
