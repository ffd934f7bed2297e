"""Resampling: what it does to images, and that the rewritten form equals the plain one to second order."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gantransfer.models import resampling
from gantransfer.models.convolution import FORMS
from gantransfer.models.resampling import IDENTITY, convolve_resampled, make_filter, resample

SMOOTH = make_filter([1, 3, 3, 1])
LOPSIDED = make_filter([[1, 2, 3, 5], [4, 5, 6, 2], [7, 1, 1, 3]])

# name: (filter, options of `resample`)
CASES = {
    "blur": (SMOOTH, {"pads": ((2, 1), (2, 1))}),
    "blur of lopsided taps, correlated": (LOPSIDED, {"pads": ((2, 0), (1, 3)), "flip": True, "gain": 3.0}),
    "doubling": (SMOOTH, {"up": (2, 2), "pads": ((2, 1), (2, 1)), "gain": 4.0}),
    "halving": (SMOOTH, {"down": (2, 2), "pads": ((1, 1), (1, 1))}),
    "unequal factors and a crop": (LOPSIDED, {"up": (3, 2), "down": (2, 1), "pads": ((-1, 4), (5, -2))}),
    "phases that no tap reaches": (make_filter([1, 2]), {"up": (3, 3), "pads": ((1, 2), (0, 2))}),
    "zero taps": (make_filter([[1, 0, 2], [0, 0, 0], [0, 3, 0]]), {"pads": ((1, 1), (1, 1))}),
}
# name: (side of the kernel, options of `convolve_resampled`)
CONVOLUTIONS = {
    "plain": (3, {"pads": 1}),
    "one by one": (1, {}),
    "doubling, turned": (3, {"up": 2, "pads": 1, "turn_kernel": True}),
    "halving": (3, {"down": 2, "pads": 1}),
    "doubling one by one": (1, {"up": 2}),
    "halving one by one": (1, {"down": 2}),
    "both factors": (3, {"up": 2, "down": 3, "pads": ((1, 2), (0, 3))}),
}


def draw(*shapes):
    numbers = np.random.default_rng(0)
    return tuple(jnp.asarray(numbers.normal(size=shape), jnp.float32) for shape in shapes)


def assert_close(a, b, tolerance=2e-5):
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert left.shape == right.shape and left.dtype == right.dtype
        np.testing.assert_allclose(left, right, rtol=0, atol=tolerance * float(jnp.abs(right).max()))


@partial(jax.jit, static_argnums=0)
def derivatives(function, *operands):
    """Value, first derivatives, and the derivatives of the squared gradient in the first operand (as R1 takes them)."""

    def loss(*operands):
        return jnp.sin(function(*operands)).sum()

    def penalty(*operands):
        return (jax.grad(loss)(*operands) ** 2).sum()

    every = tuple(range(len(operands)))
    return function(*operands), jax.grad(loss, every)(*operands), jax.grad(penalty, every)(*operands)


@pytest.fixture(autouse=True)
def exact_products():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.mark.parametrize("name", CASES)
def test_rewritten_resampling_equals_the_plain_one_to_second_order(name):
    taps, options = CASES[name]
    operands = draw((2, 7, 6, 3))
    rewritten, plain = (derivatives(partial(resample, filter=taps, form=form, **options), *operands) for form in FORMS)
    assert_close(rewritten, plain)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_rewritten_convolution_equals_the_plain_one_to_second_order(name):
    side, options = CONVOLUTIONS[name]
    operands = draw((2, 8, 6, 3), (side, side, 3, 5))
    rewritten, plain = (
        derivatives(lambda x, k, form=form: convolve_resampled(x, k, SMOOTH, form, **options), *operands)
        for form in FORMS
    )
    assert_close(rewritten, plain)


@pytest.mark.parametrize("form", FORMS)
def test_plain_colours_stay_inside_and_sizes_follow_the_factor(form):
    ones = jnp.ones((1, 8, 6, 2))
    up = resampling.upsampled(ones, SMOOTH, form)
    down = resampling.downsampled(ones, SMOOTH, form)
    same = resampling.filtered(ones, SMOOTH, form)
    assert (up.shape, down.shape, same.shape) == ((1, 16, 12, 2), (1, 4, 3, 2), ones.shape)
    for result, border in ((up, 3), (down, 1), (same, 2)):
        np.testing.assert_allclose(result[:, border:-border, border:-border], 1.0, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_filters_are_turned_unless_correlated(form):
    """A single bright pixel becomes the filter itself; correlated, the filter turned by 180 degrees."""
    point = jnp.zeros((1, 9, 9, 1)).at[0, 4, 4, 0].set(1.0)
    spread = resample(point, LOPSIDED, form)[0, :, :, 0]
    turned = resample(point, LOPSIDED, form, flip=True)[0, :, :, 0]
    np.testing.assert_allclose(spread[4 - 2 : 5, 4 - 3 : 5], LOPSIDED.matrix()[:3, :4], atol=1e-6)
    np.testing.assert_allclose(turned[2:5, 1:5], LOPSIDED.matrix()[::-1, ::-1], atol=1e-6)


def test_identity_filter_stuffs_and_drops_samples():
    (x,) = draw((1, 4, 4, 1))
    stuffed = resample(x, IDENTITY, "rewritten", up=(2, 2))
    assert_close(stuffed[:, ::2, ::2], x)
    assert float(jnp.abs(stuffed).sum()) == pytest.approx(float(jnp.abs(x).sum()), rel=1e-6)
    assert_close(resample(stuffed, IDENTITY, "rewritten", down=(2, 2)), x)


def test_bfloat16_stays_bfloat16_in_value_and_gradients():
    (x,) = draw((2, 8, 8, 3))
    up = partial(resampling.upsampled, filter=SMOOTH, form="rewritten")
    value, gradients, _ = derivatives(lambda x: up(x), x.astype(jnp.bfloat16))
    assert {leaf.dtype for leaf in jax.tree.leaves((value, gradients))} == {jnp.dtype(jnp.bfloat16)}
    assert_close(value.astype(jnp.float32), up(x), 3e-2)


def test_separable_filters_are_one_product_and_others_few():
    assert len(SMOOTH.products) == 1 and SMOOTH.size == (4, 4)
    assert len(LOPSIDED.products) == 3 and LOPSIDED.size == (3, 4)
    assert SMOOTH.matrix().sum() == pytest.approx(1.0) and LOPSIDED.matrix().sum() == pytest.approx(1.0)
