"""Adversarial losses: stored values, signs of gradients, large logits, several heads; the class cross-entropy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gantransfer.errors import UserError
from gantransfer.objectives.losses import LOSSES, class_cross_entropy, get_loss

STORED = {"non_saturating": "logistic", "hinge": "hinge", "least_squares": "ls", "wasserstein": "wasserstein"}


@pytest.mark.parametrize(("name", "key"), STORED.items())
def test_values_are_those_of_the_stored_reference(shared, name, key):
    stored = np.load(shared / "parity/diffaugment/losses.npz")
    loss = get_loss(name)
    real, fake = jnp.asarray(stored["d_real"]), jnp.asarray(stored["d_fake"])
    np.testing.assert_allclose(sum(loss.discriminator(real, fake)), stored[f"d_{key}"], atol=1e-6)
    np.testing.assert_allclose(loss.generator(fake), stored[f"g_{key}"], atol=1e-6)


def test_saturating_plays_the_same_discriminator_and_the_opposite_generator():
    real, fake = jnp.array([0.5, -1.0]), jnp.array([2.0, -3.0])
    ours, other = get_loss("saturating"), get_loss("non_saturating")
    assert ours.discriminator(real, fake) == other.discriminator(real, fake)
    np.testing.assert_allclose(ours.generator(fake), -np.log1p(np.exp([2.0, -3.0])).mean(), rtol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_each_player_pulls_its_own_way(name):
    loss = get_loss(name)
    real, fake = jnp.array([-0.4, 0.2, 0.7]), jnp.array([0.3, -0.6, 0.1])
    slope_real, slope_fake = jax.grad(lambda r, f: sum(loss.discriminator(r, f)), argnums=(0, 1))(real, fake)
    assert (slope_real < 0).all()
    assert (jax.grad(loss.generator)(fake) < 0).all()
    # Least squares draws fakes to 0 from both sides; the others push them down for ever.
    expected = jnp.sign(fake) if name == "least_squares" else jnp.ones(3)
    np.testing.assert_array_equal(jnp.sign(slope_fake), expected)


def test_hinge_leaves_alone_what_is_judged_right_with_margin():
    slopes = jax.grad(lambda r, f: sum(get_loss("hinge").discriminator(r, f)), argnums=(0, 1))(
        jnp.array([1.5]), jnp.array([-1.5])
    )
    assert slopes == (0.0, 0.0)


@pytest.mark.parametrize("name", ["non_saturating", "saturating", "hinge", "wasserstein"])
@pytest.mark.parametrize("logit", [-1e4, 1e4])
def test_large_logits_stay_finite_with_slopes_of_at_most_one(name, logit):
    loss, at = get_loss(name), jnp.array([logit])
    for term in (lambda t: loss.discriminator(t, t)[0], lambda t: loss.discriminator(t, t)[1], loss.generator):
        value, slope = jax.value_and_grad(term)(at)
        assert np.isfinite(value)
        assert abs(slope[0]) <= 1
    assert jax.grad(get_loss("non_saturating").generator)(jnp.array([-1e4]))[0] == -1


@pytest.mark.parametrize("name", LOSSES)
def test_several_heads_count_by_their_mean(name):
    loss = get_loss(name)
    real, fake = jnp.array([0.5, 2.0]), jnp.array([-0.5, 1.0])
    other = jnp.array([[1.0, 3.0], [0.1, -2.0]])  # a head may have several logits per image
    one, two = loss.discriminator(real, fake), loss.discriminator(other, -other)
    both = loss.discriminator((real, other), (fake, -other))
    np.testing.assert_allclose(both, np.add(one, two) / 2, rtol=1e-6)
    np.testing.assert_allclose(loss.generator((fake, fake)), loss.generator(fake), rtol=1e-6)


def test_unknown_loss_is_refused_with_the_names_that_exist():
    with pytest.raises(UserError, match=r"objective\.loss: 'hing' .*wasserstein.*did you mean hinge"):
        get_loss("hing")


def test_class_cross_entropy_takes_indices_and_weights():
    logits = jnp.array([[2.0, -1.0, 0.5], [0.0, 0.3, -4.0]])
    labels = jnp.array([0, 2])
    by_hand = -np.log(np.exp(logits) / np.exp(logits).sum(1, keepdims=True))[[0, 1], [0, 2]].mean()
    np.testing.assert_allclose(class_cross_entropy(logits, labels), by_hand, rtol=1e-6)
    np.testing.assert_allclose(class_cross_entropy(logits, jax.nn.one_hot(labels, 3)), by_hand, rtol=1e-6)
    assert class_cross_entropy(jnp.zeros((2, 7)), labels) == pytest.approx(np.log(7))
