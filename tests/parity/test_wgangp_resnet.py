"""WGAN-GP's ResNet against its written definition: passes, gradient penalty, gradients, the names of its files.

Fixtures: `parity/wgangp_resnet` of the shared folder, made from the definition and not by the original code.
"""

import json
from functools import cache, cached_property

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file

from gantransfer import models
from gantransfer.objectives.losses import class_cross_entropy
from gantransfer.pretrained.fresh import variable_shapes
from gantransfer.pretrained.layouts.layout import to_ours, to_theirs
from gantransfer.pretrained.layouts.wgangp_resnet import PLAIN, TENSORFLOW
from tests.parity.nearness import assert_near, quick_jit

FORWARD, GRADIENTS = 1e-5, 1e-4
PREFIXES = {"generator": "Generator.", "discriminator": "Discriminator."}
CASES = ("uncond64", "cond32")


@pytest.fixture(autouse=True)
def exact_products():
    with jax.default_matmul_precision("highest"):
        yield


def parts_of(state):
    return {role: {k: v for k, v in state.items() if k.startswith(prefix)} for role, prefix in PREFIXES.items()}


def shapes_of(state):
    return {key: tuple(value.shape) for key, value in state.items()}


class Case:
    """Both networks with a fixture's weights, and its arrays in our layout."""

    def __init__(self, root, name):
        self.config = json.loads((root / f"{name}.json").read_text())
        self.states, self.options = parts_of(load_file(root / f"{name}.safetensors")), dict(PLAIN.assumed)
        self.found = {role: PLAIN.recognise(shapes_of(state)) for role, state in self.states.items()}
        for found in self.found.values():
            self.options |= found.options
        self.leaves, self.variables = {}, {}
        for role, state in self.states.items():
            leaves = PLAIN.leaves(role, self.options)
            self.leaves[role] = {leaf.ours: leaf for leaf in leaves}
            ours = to_ours(leaves, state) | PLAIN.absent(role, self.options)
            self.variables[role] = unflatten_dict({path: jnp.asarray(value) for path, value in ours.items()}, sep="/")
        self.networks = models.get_family("wgangp_resnet").build(**self.options)
        self.arrays = arrays = np.load(root / f"{name}.npz")
        self.z, self.alpha = jnp.asarray(arrays["z"]), jnp.asarray(arrays["alpha"])
        self.real, self.fake = (jnp.asarray(arrays[key].transpose(0, 2, 3, 1)) for key in ("real", "fake"))
        zeros = np.zeros(len(self.z), np.int32)
        self.labels = {
            side: jnp.asarray(arrays[f"labels_{side}"] if f"labels_{side}" in arrays else zeros, jnp.int32)
            for side in ("real", "fake")
        }

    def generate(self, params, c, **asked):
        return self.networks.generator.apply({**self.variables["generator"], "params": params}, self.z, c, **asked)

    def judge(self, params, x, c, **asked):
        return self.networks.discriminator.apply({"params": params}, x, c, **asked)

    def params(self, role):
        return self.variables[role]["params"]

    @cached_property
    def passes(self):
        @quick_jit
        def run(generator, discriminator):
            size, c = self.networks.resolution, self.labels
            made = tuple(f"b{size >> i}" for i in (3, 2, 1, 0))
            given = tuple(f"b{size >> i}" for i in range(4))
            picture = self.generate(generator, c["fake"], want=made)
            real = self.judge(discriminator, self.real, c["real"], want=given)
            fake = self.judge(discriminator, picture.images, c["fake"])
            stages = {f"G_Res{i + 1}": picture.stages[name] for i, name in enumerate(made)}
            stages |= {f"D_Res{i + 1}": real.stages[name] for i, name in enumerate(given)}
            return picture.images, real.logits, real.classes, fake.logits, stages

        return run(self.params("generator"), self.params("discriminator"))

    def penalty(self, params):
        """The gradient at the interpolates, its lengths and the penalty."""
        points = self.real + self.alpha[:, :, None, None] * (self.fake - self.real)
        slope = jax.grad(lambda x: self.judge(params, x, self.labels["real"]).logits.sum())(points)
        lengths = jnp.sqrt((slope**2).sum((1, 2, 3)))
        return slope, lengths, ((lengths - 1) ** 2).mean()


load_case = cache(Case)


@pytest.fixture(params=CASES)
def case(shared, request):
    return load_case(shared / "parity" / "wgangp_resnet", request.param)


def nchw(images):
    return np.asarray(images).transpose(0, 3, 1, 2)


def test_options_follow_from_the_weights(case):
    classes = case.config["n_classes"]
    assert [found.role for found in case.found.values()] == list(PREFIXES)
    expected = {"resolution": case.config["n_pixels"], "width": case.config["dim"], "width_d": case.config["dim"]}
    expected |= {"conditional": bool(classes), "class_head": bool(classes), "num_classes": classes or 1}
    expected |= {"z_dim": 128, "channels": 3, "statistics_g": "batch"}
    assert {key: case.options[key] for key in expected} == expected


def test_passes_and_every_block_match(case):
    images, real, classes, fake, stages = case.passes
    assert_near(nchw(images), case.arrays["fake"], FORWARD)
    assert_near(real, case.arrays["D_real"], FORWARD)
    assert_near(fake, case.arrays["D_fake"], FORWARD)
    for name, output in stages.items():
        assert_near(nchw(output)[:1], case.arrays[name], FORWARD, name)
    if case.options["class_head"]:
        assert_near(classes, case.arrays["D_real_acgan"], FORWARD)
    else:
        assert classes is None


def test_gradient_penalty_matches_with_its_own_gradients(case):
    def terms(params):
        slope, lengths, penalty = case.penalty(params)
        return penalty, (slope, lengths)

    (penalty, (slope, lengths)), grads = quick_jit(jax.value_and_grad(terms, has_aux=True))(
        case.params("discriminator")
    )
    assert_near(nchw(slope), case.arrays["gp_grad_x"], GRADIENTS)
    assert_near(lengths, case.arrays["gp_slopes"], FORWARD)
    assert_near(penalty, case.arrays["gp"], FORWARD)
    if any(key.startswith("gp_grad_D") for key in case.arrays):
        assert_gradients(case, "discriminator", grads, "gp_grad_", all_of_them=False)


def test_discriminator_gradients_match(case):
    def cost(params):
        real, fake = (
            case.judge(params, x, case.labels[side]) for x, side in ((case.real, "real"), (case.fake, "fake"))
        )
        wasserstein = fake.logits.mean() - real.logits.mean()
        total = wasserstein + 10 * case.penalty(params)[2]
        if case.options["class_head"]:
            total = total + class_cross_entropy(real.classes, case.labels["real"])
        return total, wasserstein

    (total, wasserstein), grads = quick_jit(jax.value_and_grad(cost, has_aux=True))(case.params("discriminator"))
    assert_near(wasserstein, case.arrays["wgan_cost"], FORWARD)
    assert_near(total, case.arrays["disc_cost"], FORWARD)
    assert_gradients(case, "discriminator", grads, "disc_grad_")


def test_generator_gradients_match(case):
    def cost(params):
        images = case.generate(params, case.labels["fake"]).images
        judged = case.judge(case.params("discriminator"), images, case.labels["fake"])
        total = -judged.logits.mean()
        if case.options["class_head"]:
            total = total + class_cross_entropy(judged.classes, case.labels["fake"])
        return total

    total, grads = quick_jit(jax.value_and_grad(cost))(case.params("generator"))
    assert_near(total, case.arrays["gen_cost"], FORWARD)
    assert_gradients(case, "generator", grads, "gen_grad_")


def assert_gradients(case, role, grads, prefix, all_of_them=True):
    """Relative to the leaf's largest value; leaves whose true gradient is zero (biases that a batch norm takes away)
    are noise, and held to a hundredth of the network's largest value."""
    ours = {path: np.asarray(leaf) for path, leaf in flatten_dict({"params": grads}, sep="/").items()}
    theirs = to_theirs([case.leaves[role][path] for path in ours], ours)
    stored = {key.removeprefix(prefix): case.arrays[key] for key in case.arrays if key.startswith(prefix)}
    stored.pop("x", None)
    assert stored.keys() == theirs.keys() if all_of_them else stored.keys() < theirs.keys()
    largest = max(np.abs(value).max() for value in stored.values())
    for key, value in stored.items():
        allowed = GRADIENTS * max(np.abs(value).max(), largest / 100)
        assert theirs[key].shape == value.shape and np.abs(theirs[key] - value).max() <= allowed, key


# Its files.


@pytest.mark.parametrize("role", PREFIXES)
def test_what_is_read_and_written_again_is_the_same_file(case, role):
    ours = {path: np.asarray(leaf) for path, leaf in flatten_dict(case.variables[role], sep="/").items()}
    written = to_theirs(case.leaves[role].values(), ours)
    assert written.keys() == case.states[role].keys()
    assert [key for key in written if written[key].tobytes() != case.states[role][key].tobytes()] == []
    shapes = dict(zip(PREFIXES, variable_shapes(case.networks), strict=True))[role]
    expected = {path: leaf.shape for path, leaf in flatten_dict(dict(shapes), sep="/").items()}
    assert {path: leaf.shape for path, leaf in ours.items()} == expected


def test_names_of_tensorflow_checkpoints_are_known(case):
    """A variable of a convolution or linear layer is in its layer's scope; running statistics are left out."""
    for role, state in case.states.items():
        scoped = {}
        for key, value in state.items():
            layer, _, part = key.rpartition(".")
            scoped[key if part in ("scale", "offset") else f"{layer}/{key}"] = value
        assert TENSORFLOW.recognise(shapes_of(state)) is None and PLAIN.recognise(shapes_of(scoped)) is None
        assert TENSORFLOW.recognise(shapes_of(scoped)) == case.found[role]
        assert {name for leaf in TENSORFLOW.leaves(role, case.options) for name in leaf.names} == scoped.keys()
        made = TENSORFLOW.made(role, case.options)
        assert all(TENSORFLOW.reason(name) for name in made)
        norms = sum(key.endswith(".scale") for key in state) if role == "generator" else 0
        assert len(made) == (0 if case.options["conditional"] else 2 * norms)
        for name, array in made.items():
            assert array.shape == state[name.rpartition(".")[0] + ".scale"].shape
    assert PLAIN.recognise({}) is None and PLAIN.recognise({"Generator.Input.W": (1,)}) is None


@pytest.mark.parametrize(("conditional", "generator"), [(False, 8_540_483), (True, 8_584_259)])
def test_the_published_width_has_the_published_number_of_parameters(conditional, generator):
    options = {"conditional": conditional, "class_head": conditional, "num_classes": 10 if conditional else 1}
    shapes = variable_shapes(models.get_family("wgangp_resnet").build(**options))
    counts = [sum(leaf.size for leaf in jax.tree.leaves(tree["params"])) for tree in shapes]
    assert counts == [generator, 7_491_841 + (81_930 if conditional else 0)]
