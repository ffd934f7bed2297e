"""Slope penalty and orthogonality of weights against closed forms, stored values and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np

from gantransfer.objectives.penalties import orthogonal, r1_penalty


def test_r1_has_the_stored_value_on_a_quadratic_critic(shared):
    stored = np.load(shared / "parity/diffaugment/losses.npz")
    nhwc = {name: jnp.asarray(stored[name].transpose(0, 2, 3, 1)) for name in ("crit_a", "crit_b", "x_real")}

    def critic(x):
        return jnp.sum(nhwc["crit_a"] * x + 0.5 * nhwc["crit_b"] * x**2, axis=(1, 2, 3))

    np.testing.assert_allclose(r1_penalty(critic, nhwc["x_real"]), stored["r1_half"], rtol=1e-5)


def test_r1_of_a_linear_critic_is_half_its_squared_weight_wherever_the_images_are(key):
    weight = jax.random.normal(key, (4, 5, 3))
    images = jax.random.normal(jax.random.key(1), (6, 4, 5, 3))
    value = r1_penalty(lambda x: jnp.sum(x * weight, axis=(1, 2, 3)), images)
    np.testing.assert_allclose(value, 0.5 * jnp.sum(weight**2), rtol=1e-5)


def test_r1_of_equal_heads_is_that_of_one_also_where_a_head_has_many_logits(key):
    weight = jax.random.normal(key, (4, 4, 1))
    images = jax.random.normal(jax.random.key(1), (3, 4, 4, 1))

    def one(x):
        return jnp.sum(x * weight, axis=(1, 2, 3))

    expected = r1_penalty(one, images)
    np.testing.assert_allclose(r1_penalty(lambda x: (one(x), one(x)), images), expected, rtol=1e-5)
    np.testing.assert_allclose(r1_penalty(lambda x: jnp.stack([one(x), one(x)], axis=1), images), expected, rtol=1e-5)


def test_r1_is_differentiated_a_second_time(key):
    images = jax.random.normal(key, (2, 3, 3, 1))

    def penalty(weight):
        return r1_penalty(lambda x: jnp.sum(jnp.tanh(weight * x), axis=(1, 2, 3)), images)

    step = 1e-2
    numeric = (penalty(0.7 + step) - penalty(0.7 - step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(penalty)(0.7), numeric, rtol=1e-3)


def _released_gradient(w: np.ndarray) -> np.ndarray:
    """The gradient that BigGAN's authors add, for a weight whose first axis is its output."""
    rows = w.reshape(len(w), -1)
    return (2 * (rows @ rows.T * (1 - np.eye(len(rows)))) @ rows).reshape(w.shape)


def test_gradient_of_orthogonal_is_the_released_one_in_every_layout():
    rng = np.random.default_rng(0)
    conv, dense, table = (rng.normal(size=s).astype(np.float32) for s in ((3, 3, 2, 5), (6, 4), (3, 4)))
    tree = {"conv": {"kernel": conv}, "head": {"kernel": dense}, "embed": {"embedding": table}}
    slopes = jax.grad(orthogonal)(jax.tree.map(jnp.asarray, tree))
    np.testing.assert_allclose(
        slopes["conv"]["kernel"],
        _released_gradient(conv.transpose(3, 2, 0, 1)).transpose(2, 3, 1, 0),
        rtol=1e-4,
        atol=1e-4,
    )
    np.testing.assert_allclose(slopes["head"]["kernel"], _released_gradient(dense.T).T, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(slopes["embed"]["embedding"], _released_gradient(table), rtol=1e-4, atol=1e-4)


def test_orthogonal_rows_cost_nothing_whatever_their_length():
    assert orthogonal({"kernel": jnp.diag(jnp.array([1.0, 5.0, 0.2]))}) == 0
    assert orthogonal({"kernel": jnp.ones((2, 2))}) == 0.5 * 2 * 2**2
