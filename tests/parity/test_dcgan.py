"""DCGAN against numbers of PyTorch examples for CIFAR10 and MNIST: passes, statistics and gradients.

Fixtures: `parity/biggan/dcgan` of the shared folder (narrow random networks, legacy torch files). Tolerances are those
of its README: 1e-5 for passes and buffers, 1e-4 for gradients, relative to each array's largest value.
"""

from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gantransfer.objectives.losses import get_loss
from gantransfer.pretrained.layouts.dcgan import PYTORCH
from gantransfer.pretrained.readers import read
from tests.parity.published import assert_near, assert_round_trip, load, published

PASSES, TRAINING, GRADIENTS = 1e-5, 2e-5, 1e-4


@pytest.fixture(autouse=True)
def exact_products():
    with jax.default_matmul_precision("highest"):
        yield


class Case:
    """Networks with a fixture's weights, and its numbers in our layout."""

    def __init__(self, folder):
        self.loaded = load(PYTORCH, *(read(folder / name).states[""] for name in ("netG.pth", "netD.pth")))
        self.networks, self.variables = self.loaded.networks, self.loaded.variables
        self.stored = dict(np.load(folder / "outputs.npz"))
        self.z, self.c = jnp.asarray(self.stored["z"][:, :, 0, 0]), jnp.zeros(4, jnp.int32)
        self.reals = jnp.asarray((self.stored["x_real_u8"].astype(np.float32) / 127.5 - 1).transpose(0, 2, 3, 1))

    @cached_property
    def generate(self):
        return jax.jit(self.networks.generator.apply, static_argnames=("train", "mutable"))

    @cached_property
    def judge(self):
        return jax.jit(self.networks.discriminator.apply, static_argnames=("train", "mutable"))

    @cached_property
    def trained(self):
        return self.generate(self.variables["generator"], self.z, self.c, train=True, mutable="batch_stats")

    def assert_arrays(self, role, variables, prefix, tolerance):
        """Every stored array of a prefix, and nothing more, is what our variables hold."""
        expected = {k.removeprefix(prefix): v for k, v in self.stored.items() if k.startswith(prefix)}
        expected = {name: value for name, value in expected.items() if not name.endswith("num_batches_tracked")}
        ours = published(self.loaded, role, variables)
        assert ours.keys() == expected.keys()
        for name, value in expected.items():
            assert_near(ours[name], value, tolerance, f"{prefix}{name}")


@pytest.fixture(scope="module", params=["cifar10", "mnist"])
def case(shared, request):
    return Case(shared / "parity" / "biggan" / "dcgan" / request.param)


def test_evaluation_passes_match(case):
    images = case.generate(case.variables["generator"], case.z, case.c).images
    assert_near(images.transpose(0, 3, 1, 2), case.stored["G_eval"], PASSES)
    for name, x in (("fake", images), ("real", case.reals)):
        logits = case.judge(case.variables["discriminator"], x, case.c).logits
        assert_near(jax.nn.sigmoid(logits), case.stored[f"D_eval_{name}"], PASSES)


def test_training_pass_of_the_generator_and_its_statistics_match(case):
    picture, changed = case.trained
    assert_near(picture.images.transpose(0, 3, 1, 2), case.stored["G_train"], TRAINING)
    case.assert_arrays("generator", changed, "G_buffers_after_one_pass/", PASSES)


def test_discriminator_in_two_passes_matches(case):
    state, fakes = case.variables["discriminator"], case.trained[0].images
    for name, x in (("real", case.reals), ("fake", fakes)):
        judged, changed = case.judge(state, x, case.c, train=True, mutable="batch_stats")
        assert_near(jax.nn.sigmoid(judged.logits), case.stored[f"D_train_{name}"], TRAINING)
        state = {**state, **changed}
    case.assert_arrays("discriminator", changed, "D_buffers_after_two_passes/", PASSES)


def test_discriminator_gradients_match(case):
    fakes, loss = case.trained[0].images, get_loss("non_saturating")

    def objective(params):
        judge = lambda x: case.networks.discriminator.apply({**variables, "params": params}, x, case.c, train=True)
        halves = loss.discriminator(judge(case.reals).logits, judge(fakes).logits)
        return sum(halves), jnp.stack(halves)

    variables = case.variables["discriminator"]
    (_, halves), grads = jax.jit(jax.value_and_grad(objective, has_aux=True))(variables["params"])
    assert_near(halves, case.stored["D_loss_real_fake"], PASSES)
    case.assert_arrays("discriminator", {"params": grads}, "D_grad/", GRADIENTS)


def test_generator_gradients_match(case):
    def objective(params):
        images = case.networks.generator.apply({**variables, "params": params}, case.z, case.c, train=True).images
        judged = case.networks.discriminator.apply(case.variables["discriminator"], images, case.c, train=True)
        return get_loss("non_saturating").generator(judged.logits)

    variables = case.variables["generator"]
    loss, grads = jax.jit(jax.value_and_grad(objective))(variables["params"])
    assert_near(loss, case.stored["G_loss"], PASSES)
    case.assert_arrays("generator", {"params": grads}, "G_grad/", GRADIENTS)


def test_the_table_covers_the_networks_and_gives_the_files_back(case):
    assert_round_trip(case.loaded)
