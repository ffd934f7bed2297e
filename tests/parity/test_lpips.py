"""LPIPS with its networks against numbers of the published package: values, layers, gradient, heads in every format.

Fixtures: `parity/feature_nets/lpips_*.npz` of the shared folder: trunks filled by the rule, heads as published.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gantransfer.errors import UserError
from gantransfer.features.lpips import SHORT, load_heads
from gantransfer.metrics.perceptual import lpips
from gantransfer.metrics.perceptual_network import load_lpips
from tests.parity import feature_fixtures as fx
from tests.parity.nearness import quick_jit

TRUNKS = ("vgg16", "alexnet")


def trunk_weights(root, trunk):
    wanted = {key: shape for key, shape in fx.keys(root, trunk).items() if key.startswith("features.")}
    return {key: fx.fill(trunk, key, shape, 1.4) for key, shape in wanted.items()}


@pytest.fixture(scope="module", params=TRUNKS)
def case(request, shared):
    """LPIPS with heads, the fixture, and a function of the type: layers, the value without heads, the gradient."""
    root, short = shared / "parity" / "feature_nets", SHORT[request.param]
    made = load_lpips(request.param, trunk_weights(root, request.param), root / f"lpips_heads_v0.1_{short}.npz")
    fixture = dict(np.load(root / f"lpips_{short}.npz"))

    def measured(params, a, b):
        sides = [made.features(params, x) for x in (a, b)]
        layers = [lpips([x], [y], [head]) for x, y, head in zip(*sides, made.heads, strict=True)]
        return sum(layer.sum() for layer in layers), (jnp.stack(layers), lpips(*sides, None))

    compiled = quick_jit(jax.value_and_grad(measured, argnums=1, has_aux=True))

    def run(kind):
        with jax.enable_x64(kind is np.float64):
            return compiled(made.network.params, *(fixture[name].transpose(0, 2, 3, 1).astype(kind) for name in "ab"))

    return made, fixture, run


@pytest.mark.parametrize("kind", [pytest.param(np.float32, marks=pytest.mark.slow), np.float64])
def test_distances_and_their_gradient_are_the_published_ones(case, kind):
    _, fixture, run = case
    (_, (layers, baseline)), gradient = run(kind)
    tolerance = 1e-6 if kind is np.float64 else 1e-4
    np.testing.assert_allclose(layers, fixture["per_layer"], rtol=tolerance)
    np.testing.assert_allclose(layers.sum(axis=0), fixture["value"], rtol=tolerance)
    np.testing.assert_allclose(baseline, fixture["baseline_value"], rtol=tolerance)
    ours = gradient.transpose(0, 3, 1, 2)[:, :, ::4, ::4]
    # ReLU units flip between precisions, so single values of the gradient compare in float64 only.
    error = np.linalg.norm(ours - fixture["grad_a"]) / np.linalg.norm(fixture["grad_a"])
    assert error <= (1e-5 if kind is np.float64 else 1e-3)


def test_equal_pictures_have_no_distance_and_pairs_come_in_any_order(case):
    made, fixture, _ = case
    a, b = (fixture[name].transpose(0, 2, 3, 1) for name in "ab")
    there, back, same = made(a, b), made(b, a), made(a, a)
    np.testing.assert_allclose(there, fixture["value_f32"], rtol=1e-4)
    np.testing.assert_allclose(there, back, rtol=1e-5)
    np.testing.assert_array_equal(same, np.zeros(3))
    np.testing.assert_allclose(made(a[1:2], b[1:2]), there[1:2], rtol=1e-5)


def test_the_gradient_is_finite_where_no_unit_is_active(shared):
    root = shared / "parity" / "feature_nets"
    weights = {
        key: np.where("bias" in key, -1e3, 0 * value).astype(np.float32)
        for key, value in trunk_weights(root, "alexnet").items()
    }
    made = load_lpips("alexnet", weights, root / "lpips_heads_v0.1_alex.npz")
    a, b = np.full((2, 1, 64, 64, 3), 0.25, np.float32)
    gradient = quick_jit(jax.grad(lambda x: made.distance(made.network.params, x, b).sum()))(a)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("trunk", TRUNKS)
def test_heads_are_equal_from_every_format(shared, trunk):
    short = SHORT[trunk]
    files = (
        shared / "parity" / "feature_nets" / f"lpips_heads_v0.1_{short}.npz",
        shared / "weights" / "lpips_heads" / "heads.npz",
        shared / "weights" / "lpips_heads" / f"{short}.pth",
    )
    first, *others = (load_heads(trunk, file) for file in files)
    for other in others:
        for mine, theirs in zip(first, other, strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_heads_of_the_other_trunk_are_refused(shared):
    with pytest.raises(UserError, match="LPIPS heads of alexnet"):
        load_heads("alexnet", shared / "weights" / "lpips_heads" / "vgg.pth")


def test_pictures_that_lpips_cannot_take_are_refused(case):
    made, fixture, _ = case
    a = fixture["a"].transpose(0, 2, 3, 1)
    with pytest.raises(UserError, match="at least 64"):
        made(a[:, :32], a[:, :32])
    with pytest.raises(UserError, match=r"\[-1, 1\]"):
        made(a * 127, a)
    assert made(((a + 1) * 127.5).astype(np.uint8), ((a + 1) * 127.5).astype(np.uint8)).max() == 0
