"""The class term: reals for the discriminator, fakes for the generator, soft labels, and who has no class head."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gantransfer.errors import UserError
from gantransfer.methods import parse_method
from gantransfer.methods.hooks import MethodState
from gantransfer.models import get_family
from gantransfer.models.family import Judgement

IMAGES = jax.random.normal(jax.random.key(1), (6, 2, 2, 1))
LABELS = jnp.array([0, 1, 2, 0, 1, 2])
WEIGHT = jax.random.normal(jax.random.key(2), (4, 3))


def judge(x, c):
    return Judgement(jnp.zeros(len(x)), {}, x.reshape(len(x), 4) @ WEIGHT)


def entropy(images):
    logits = np.asarray(images).reshape(6, 4) @ np.asarray(WEIGHT)
    return -(logits - np.log(np.exp(logits).sum(1, keepdims=True)))[np.arange(6), LABELS].mean()


def test_discriminator_learns_from_reals_only_unless_asked(make_play):
    play = make_play("discriminator", judge, IMAGES, LABELS)
    total, logged = parse_method("auxiliary_classifier(weight_d=2.0)").loss(play, MethodState())
    np.testing.assert_allclose(total, 2 * entropy(IMAGES), rtol=1e-5)
    assert set(logged) == {"real_cross_entropy", "real_accuracy"}
    both, _ = parse_method("auxiliary_classifier(weight_d=2.0, fakes=True)").loss(play, MethodState())
    np.testing.assert_allclose(both, 2 * (entropy(IMAGES) + entropy(-IMAGES)), rtol=1e-5)


def test_generator_learns_from_its_own_images(make_play):
    play = make_play("generator", judge, IMAGES, LABELS)
    total, logged = parse_method("auxiliary_classifier(weight_g=0.5)").loss(play, MethodState())
    np.testing.assert_allclose(total, 0.5 * entropy(-IMAGES), rtol=1e-5)
    right = (np.asarray(-IMAGES).reshape(6, 4) @ np.asarray(WEIGHT)).argmax(1) == np.asarray(LABELS)
    np.testing.assert_allclose(logged["fake_accuracy"], right.mean(), rtol=1e-6)


def test_class_weights_count_as_labels(make_play):
    method = parse_method("auxiliary_classifier")
    hard = method.loss(make_play("discriminator", judge, IMAGES, LABELS), MethodState())
    soft = method.loss(make_play("discriminator", judge, IMAGES, jax.nn.one_hot(LABELS, 3)), MethodState())
    np.testing.assert_allclose(soft[0], hard[0], rtol=1e-6)
    np.testing.assert_allclose(soft[1]["real_accuracy"], hard[1]["real_accuracy"])


def test_networks_without_a_class_head_are_refused():
    def build(class_head):
        return get_family("biggan").build(resolution=16, num_classes=3, width=4, class_head=class_head)

    method = parse_method("auxiliary_classifier")
    method.needs(build(True))
    with pytest.raises(UserError, match=r"methods: 'auxiliary_classifier' .*class head"):
        method.needs(build(False))


@pytest.mark.parametrize("settings", ["weight_d=-1.0", "weight_g=-0.1"])
def test_negative_weights_are_refused(settings):
    with pytest.raises(UserError, match=r"auxiliary_classifier\.weight_"):
        parse_method(f"auxiliary_classifier({settings})")
