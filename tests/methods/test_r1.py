"""R1: closed form on a linear critic, where the slope is taken, who pays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gantransfer.methods import parse_method
from gantransfer.methods.hooks import MethodState
from gantransfer.models.family import Judgement

WEIGHT = jax.random.normal(jax.random.key(0), (4, 4, 1))
IMAGES = jax.random.normal(jax.random.key(1), (5, 4, 4, 1))
LABELS = jnp.arange(5) % 2


def linear(x, c):
    return Judgement((1.0 + c) * jnp.sum(x * WEIGHT, axis=(1, 2, 3)))


@pytest.mark.parametrize("gamma", [1.0, 10.0])
def test_value_is_half_gamma_times_the_squared_slope_at_the_reals_and_their_labels(make_play, gamma):
    total, logged = parse_method(f"r1(gamma={gamma})").loss(
        make_play("discriminator", linear, IMAGES, LABELS), MethodState()
    )
    expected = 0.5 * jnp.mean((1.0 + LABELS) ** 2) * jnp.sum(WEIGHT**2)
    np.testing.assert_allclose(total, gamma * expected, rtol=1e-5)
    np.testing.assert_allclose(logged["penalty"], expected, rtol=1e-5)


def test_generator_pays_nothing_and_nobody_pays_for_no_strength(make_play):
    assert parse_method("r1").loss(make_play("generator", linear, IMAGES, LABELS), MethodState()) is None
    off = parse_method("r1(gamma=0.0)")
    assert off.loss(make_play("discriminator", linear, IMAGES, LABELS), MethodState()) is None


def test_raw_slope_goes_through_the_views_and_the_augmented_one_does_not(make_play):
    play = make_play("discriminator", linear, IMAGES, LABELS, view=lambda x: 3 * x)
    plain = make_play("discriminator", linear, IMAGES, LABELS)
    raw, augmented = parse_method("r1"), parse_method("r1(point='augmented')")
    base = raw.loss(plain, MethodState())[0]
    np.testing.assert_allclose(raw.loss(play, MethodState())[0], 9 * base, rtol=1e-5)
    np.testing.assert_allclose(augmented.loss(play, MethodState())[0], base, rtol=1e-5)


def test_augmented_slope_is_taken_at_the_augmented_image(make_play):
    def square(x, c):
        return Judgement(jnp.sum(x**2, axis=(1, 2, 3)))

    play = make_play("discriminator", square, IMAGES, LABELS, view=lambda x: x + 1)
    augmented = parse_method("r1(gamma=1.0, point='augmented')").loss(play, MethodState())[0]
    np.testing.assert_allclose(augmented, 0.5 * jnp.mean(jnp.sum((2 * (IMAGES + 1)) ** 2, axis=(1, 2, 3))), rtol=1e-5)
