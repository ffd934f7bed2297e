"""WGAN-GP's ResNet as a family: its forms are equal, groups and modes reach every leaf, and it trains."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from gantransfer import models
from gantransfer.models.wgangp_resnet import UniformRecipe
from gantransfer.pretrained.fresh import variable_shapes
from gantransfer.training.partition import get_mode, make_partition
from tests.contract import rig
from tests.invented import invented

TINY = {"resolution": 16, "channels": 1, "num_classes": 3, "width": 2, "z_dim": 6}


@pytest.fixture(scope="module")
def tiny():
    networks = models.get_family("wgangp_resnet").build(**TINY)
    return networks, *(jax.tree.map(jnp.asarray, variables) for variables in invented(networks))


def leaves(tree):
    return {path: np.asarray(leaf) for path, leaf in flatten_dict(dict(tree), sep="/").items()}


@pytest.mark.slow
def test_both_forms_of_convolutions_give_equal_images_and_gradients(tiny):
    """The slope's gradient too: a gradient penalty differentiates twice."""
    _, generator, discriminator = tiny
    z, c = jnp.asarray(np.random.default_rng(0).normal(size=(3, 6)), jnp.float32), jnp.arange(3)

    def gradients(form):
        networks = models.get_family("wgangp_resnet").build(**TINY, convolution=form)

        def loss(params_g, params_d):
            images = networks.generator.apply({**generator, "params": params_g}, z, c).images
            logits = lambda x: networks.discriminator.apply({"params": params_d}, x, c).logits.sum()
            slope = jax.grad(logits)(images)
            return logits(images) + (slope**2).sum(), images

        run = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
        with jax.default_matmul_precision("highest"):
            return run(generator["params"], discriminator["params"])

    (one, images), (other, plain) = gradients("rewritten"), gradients("plain")
    np.testing.assert_allclose(images, plain, atol=1e-5)
    for ours, theirs in zip(one, other, strict=True):
        theirs = leaves(theirs)
        for path, leaf in leaves(ours).items():
            allowed = 1e-4 * max(np.abs(theirs[path]).max(), 1e-3)
            np.testing.assert_allclose(leaf, theirs[path], rtol=0, atol=allowed, err_msg=path)


def test_every_leaf_has_a_group(tiny):
    networks, generator, discriminator = tiny
    groups = {path: networks.group("generator", path) for path in leaves(generator["params"])}
    assert {groups[path] for path in groups if path.endswith("gain")} == {"conditional_norm"}
    assert [groups[f"block_{i}/conv1/kernel"] for i in range(4)] == [f"blocks.{size}" for size in (2, 4, 8, 16)]
    assert groups["linear/bias"] == "linear" and groups["out_conv/kernel"] == "output"
    groups = {path: networks.group("discriminator", path) for path in leaves(discriminator["params"])}
    assert [groups[f"block_{i}/conv2/bias"] for i in range(4)] == [f"blocks.{size}" for size in (16, 8, 4, 2)]
    assert groups["input_conv/kernel"] == "blocks.16" and networks.block("discriminator", "input_conv/kernel") == 0
    assert groups["block_0/bn1/gain"] == "norm" and groups["class_head/kernel"] == "class_head"
    for role, variables in (("generator", generator), ("discriminator", discriminator)):
        for rows in networks.class_rows[role]:
            assert leaves(variables["params"])[rows.path].shape[rows.axis] == 3


def test_a_mode_trains_what_it_says(tiny):
    networks, generator, discriminator = tiny
    params = {"generator": generator["params"], "discriminator": discriminator["params"]}
    mode = get_mode("custom", ("conditional_norm",))
    trained = make_partition(networks, params, mode).trained("generator")
    assert trained == {path for path in leaves(generator["params"]) if "bn" in path}


def test_images_depend_on_their_batch_only_where_the_original_is_asked_for(tiny):
    _, generator, _ = tiny
    z, c = jnp.asarray(np.random.default_rng(0).normal(size=(3, 6)), jnp.float32), jnp.zeros(3, jnp.int32)
    apart = {}
    for statistics in ("running", "batch"):
        network = models.get_family("wgangp_resnet").build(**TINY, statistics_g=statistics).generator
        run = jax.jit(network.apply)
        apart[statistics] = np.abs(run(generator, z, c).images[:2] - run(generator, z[:2], c[:2]).images).max()
    assert apart["running"] < 1e-5 < 1e-2 < apart["batch"]


def test_class_weights_of_one_class_equal_its_label(tiny):
    networks, generator, _ = tiny
    run, z = jax.jit(networks.generator.apply), jnp.ones((2, 6))
    by_label = run(generator, z, jnp.array([2, 0])).images
    np.testing.assert_allclose(run(generator, z, jnp.eye(3)[jnp.array([2, 0])]).images, by_label, atol=1e-6)
    assert np.abs(by_label[0] - by_label[1]).max() > 1e-3


def test_without_classes_labels_are_ignored_and_there_is_no_class_head():
    networks = models.get_family("wgangp_resnet").build(**TINY | {"conditional": False, "class_head": False})
    assert networks.class_rows == {"generator": (), "discriminator": ()} and not networks.has_class_head
    shapes, _ = variable_shapes(networks)
    assert shapes["params"]["block_0"]["bn1"]["gain"].shape == (16,)
    assert networks.group("generator", "block_0/bn1/gain") == "norm"


def test_fresh_kernels_have_the_original_deviations():
    shape, key = (3, 3, 64, 128), jax.random.key(0)
    for spread in (1.0, 2.0):
        kernel = UniformRecipe(spread=spread).kernel_init()(key, shape)
        assert kernel.std() == pytest.approx((2 * spread / (9 * (64 + 128))) ** 0.5, rel=0.02)
        assert np.abs(kernel).max() <= 1.001 * (6 * spread / (9 * (64 + 128))) ** 0.5


def test_it_trains(monkeypatch, invented_weights):
    options = {name: value for name, value in TINY.items() if name != "num_classes"}
    monkeypatch.setitem(rig.OPTIONS, "wgangp_resnet", options)
    monkeypatch.setitem(rig.SETTINGS, "objective.loss", "wasserstein")
    task = rig.make_task((), "wgangp_resnet")
    start = jax.tree.map(np.array, jax.device_get(task.start))
    (after,) = rig.advance(task, start, 1)
    for role in ("generator", "discriminator"):
        before, moved = (rig.named(getattr(state, role)) for state in (start, after))
        assert all(np.isfinite(leaf).all() for leaf in moved.values())
        still = {path for path, leaf in moved.items() if (leaf == before[path]).all()}
        # Biases that a norm takes away have no gradient, and nothing asks the class head without its method.
        assert {path for path in still if not path.endswith("/bias") and "class_head" not in path} == set()
