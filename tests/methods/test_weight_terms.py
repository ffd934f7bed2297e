"""Weight decay and orthogonal regularisation: gradients over the trained leaves of the role, and over nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gantransfer.errors import UserError
from gantransfer.methods import parse_method
from gantransfer.methods.hooks import MethodState
from gantransfer.models.family import Judgement
from gantransfer.objectives.penalties import orthogonal

IMAGES, LABELS = jnp.zeros((2, 2, 2, 1)), jnp.zeros(2, jnp.int32)


def leaf(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


TREE = {
    "shared": {"embedding": leaf(0, 3, 4)},
    "embed": {"embedding": leaf(1, 3, 5)},
    "block_0": {"conv1": {"kernel": leaf(2, 3, 3, 2, 4), "bias": leaf(3, 4)}},
}


@pytest.fixture
def slopes(make_play):
    """Returns `slopes(line, role)`: the gradient of a method's term in the trained tree; None where it adds none."""

    def gradient(line, role):
        method = parse_method(line)

        def term(trained):
            play = make_play(role, lambda x, c: Judgement(jnp.zeros(2)), IMAGES, LABELS, trained=trained)
            result = method.loss(play, MethodState())
            return None if result is None else result[0]

        return None if term(TREE) is None else jax.grad(term)(TREE)

    return gradient


def assert_close(tree, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), tree, expected)


@pytest.mark.parametrize(("role", "strength"), [("generator", 0.1), ("discriminator", 0.3)])
def test_weight_decay_adds_strength_times_weight_to_the_gradient(slopes, role, strength):
    line = "weight_decay(strength_g=0.1, strength_d=0.3)"
    assert_close(slopes(line, role), jax.tree.map(lambda w: strength * w, TREE))


def test_orthogonal_counts_every_weight_of_the_discriminator(slopes):
    found = slopes("orthogonal_regularization(strength_d=0.01)", "discriminator")
    counted = {"embed": TREE["embed"], "shared": TREE["shared"], "conv": {"kernel": TREE["block_0"]["conv1"]["kernel"]}}
    expected = jax.tree.map(lambda g: 0.01 * g, jax.grad(orthogonal)(counted))
    assert_close(found["block_0"]["conv1"]["kernel"], expected["conv"]["kernel"])
    assert_close(found["embed"], expected["embed"])
    assert_close(found["shared"], expected["shared"])
    assert not found["block_0"]["conv1"]["bias"].any()


def test_orthogonal_leaves_the_generators_shared_embedding_alone(slopes):
    found = slopes("orthogonal_regularization(strength_g=0.01)", "generator")
    assert not found["shared"]["embedding"].any()
    assert found["embed"]["embedding"].any()
    assert found["block_0"]["conv1"]["kernel"].any()


@pytest.mark.parametrize("name", ["weight_decay", "orthogonal_regularization"])
def test_no_strength_is_no_term(slopes, name):
    assert slopes(f"{name}(strength_g=0.0, strength_d=1.0)", "generator") is None
    assert slopes(f"{name}(strength_g=1.0, strength_d=0.0)", "discriminator") is None


@pytest.mark.parametrize("name", ["weight_decay", "orthogonal_regularization"])
def test_negative_strengths_are_refused(name):
    for setting in ("strength_g", "strength_d"):
        with pytest.raises(UserError, match=rf"{name}\.{setting}: -1\.0"):
            parse_method(f"{name}({setting}=-1.0)")
