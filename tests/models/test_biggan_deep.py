"""BigGAN-deep as a family: its forms are equal, groups and modes reach every leaf, and it trains."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from gantransfer import models
from gantransfer.errors import UserError
from gantransfer.models.biggan_deep import rows_at
from gantransfer.models.layers import standing_statistics
from gantransfer.training.partition import MODES, make_partition
from tests.contract import rig
from tests.invented import invented

TINY = {"resolution": 16, "channels": 1, "num_classes": 3, "width": 4, "z_dim": 6, "class_head": True}
HUB = {"statistics": 3, "latent_first": True, "stored_vectors_g": True, "output_width": 4, "shared_dim": 5}


@pytest.fixture(scope="module")
def tiny():
    networks = models.get_family("biggan_deep").build(**TINY | HUB)
    return networks, *(jax.tree.map(jnp.asarray, variables) for variables in invented(networks))


def leaves(tree):
    return {path: np.asarray(leaf) for path, leaf in flatten_dict(dict(tree), sep="/").items()}


@pytest.mark.slow
def test_both_forms_of_convolutions_give_equal_images_and_gradients(tiny):
    _, generator, discriminator = tiny
    z, c = jnp.asarray(np.random.default_rng(0).normal(size=(3, 6)), jnp.float32), jnp.arange(3)

    def gradients(form):
        networks = models.get_family("biggan_deep").build(**TINY | HUB, convolution=form)

        def loss(params_g, params_d):
            images = networks.generator.apply({**generator, "params": params_g}, z, c, truncation=0.7).images
            judged = networks.discriminator.apply({**discriminator, "params": params_d}, images, c)
            return judged.logits.mean() + judged.classes[:, 0].mean(), images

        run = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
        with jax.default_matmul_precision("highest"):
            return run(generator["params"], discriminator["params"])

    (one, images), (other, plain) = gradients("rewritten"), gradients("plain")
    # Ten blocks of random weights: rounding grows to 1.3e-5 in one of 768 values.
    np.testing.assert_allclose(images, plain, rtol=0, atol=5e-5)
    for ours, theirs in zip(one, other, strict=True):
        theirs = leaves(theirs)
        for path, leaf in leaves(ours).items():
            np.testing.assert_allclose(leaf, theirs[path], rtol=0, atol=1e-4 * np.abs(theirs[path]).max(), err_msg=path)
    used = leaves(one[0])["out_conv/kernel"]
    assert np.abs(used[..., 0]).max() > 1e-6


def test_every_leaf_has_a_group_and_blocks_are_counted_from_the_image_or_latent(tiny):
    networks, generator, discriminator = tiny
    groups = {path: networks.group("generator", path) for path in leaves(generator["params"])}
    assert groups["shared/embedding"] == "class_embedding" and groups["linear/kernel"] == "linear"
    assert [groups[f"block_{i}/conv1/kernel"] for i in range(4)] == ["blocks.4", "blocks.8", "blocks.8", "blocks.16"]
    assert groups["block_3/bn4/gain/kernel"] == "conditional_norm" and groups["out_conv/bias"] == "output"
    groups = {path: networks.group("discriminator", path) for path in leaves(discriminator["params"])}
    assert groups["input_conv/kernel"] == "blocks.16" and networks.block("discriminator", "input_conv/kernel") == 0
    assert [groups[f"block_{i}/conv1/kernel"] for i in range(4)] == ["blocks.16", "blocks.8", "blocks.8", "blocks.4"]
    assert {"head", "projection", "class_head"} < set(groups.values())
    for role, variables in (("generator", generator), ("discriminator", discriminator)):
        for rows in networks.class_rows[role]:
            assert leaves(variables["params"])[rows.path].shape[rows.axis] == 3


def test_stages_are_the_features_that_the_groups_name(tiny):
    networks, generator, discriminator = tiny

    def run(z, x, c):
        picture = networks.generator.apply(generator, z, c, want=("b4", "b8", "b16"))
        judged = networks.discriminator.apply(discriminator, x, c, want=("b16", "b8", "b4", "pooled"))
        return picture.stages, judged.stages

    made, given = jax.eval_shape(run, jnp.zeros((2, 6)), jnp.zeros((2, 16, 16, 1)), jnp.zeros(2, jnp.int32))
    assert {name: stage.shape[1:] for name, stage in made.items()} == {
        "b4": (4, 4, 16),
        "b8": (8, 8, 8),
        "b16": (16, 16, 4),
    }
    assert given["pooled"].shape == (2, 16) and given["b16"].shape[1:] == (8, 8, 8)


def test_a_mode_trains_what_it_says(tiny):
    networks, generator, discriminator = tiny
    params = {"generator": generator["params"], "discriminator": discriminator["params"]}
    assert make_partition(networks, params, MODES["class_embedding_only"]).trained("generator") == {"shared/embedding"}
    norms = make_partition(networks, params, MODES["class_embedding_and_norms"]).trained("generator")
    assert {path.split("/")[1][:2] for path in norms if path.startswith("block_")} == {"bn"}


def test_truncation_reads_its_row_of_statistics(tiny):
    networks, generator, _ = tiny
    z, c = jnp.ones((2, 6)), jnp.arange(2)
    assert rows_at(0.75, 3, "linear") == ((1, 0.5), (2, 0.5)) and rows_at(0.5, 3, "hub_port") == ((1, 1.0),)
    stats = jax.tree.map(lambda rows: np.stack([rows[0], rows[1], rows[1]]), generator["batch_stats"])
    same = {**generator, "batch_stats": stats}
    run = jax.jit(networks.generator.apply, static_argnames="truncation")
    low, high = (np.asarray(run(same, z, c, truncation=t).images) for t in (0.5, 1.0))
    np.testing.assert_array_equal(low, high)
    assert np.abs(np.asarray(run(generator, z, c, truncation=1.0).images) - high).max() > 1e-3
    for wrong in (0, 1.5):
        with pytest.raises(UserError, match="truncation"):
            networks.generator.apply(generator, z, c, truncation=wrong)


def test_standing_statistics_fill_every_row(tiny):
    networks, generator, _ = tiny
    z, c = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 6)), jnp.float32), jnp.zeros((2, 4), jnp.int32)
    after = jax.jit(lambda variables: standing_statistics(networks.generator, variables, z, c))(generator)
    for path, rows in leaves(after["batch_stats"]).items():
        assert rows.shape == leaves(generator["batch_stats"])[path].shape
        np.testing.assert_array_equal(rows[0], rows[2])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"width": 1}, "model.width"),
        ({"output_width": 2, "channels": 3}, "output_width"),
        ({"stored_vectors_g": True, "spectral_g": False}, "stored_vectors_g"),
        ({"attention_g": "128"}, "attention_g"),
        ({"depth_g": 0}, "depth_g"),
        ({"shared": True}, "model.shared"),
    ],
)
def test_options_that_cannot_be_are_named(options, words):
    with pytest.raises(UserError, match=words):
        models.get_family("biggan_deep").build(**{"resolution": 16} | options)


def test_other_depths_make_the_same_sizes():
    for depth in (1, 3):
        networks = models.get_family("biggan_deep").build(**TINY, depth_g=depth, depth_d=depth)
        run = lambda z, c, net=networks: net.generator.init_with_output(jax.random.key(0), z, c)[0].images
        assert jax.eval_shape(run, jnp.zeros((2, 6)), jnp.zeros(2, jnp.int32)).shape == (2, 16, 16, 1)


def test_it_trains(monkeypatch, invented_weights):
    """Steps of the real training: losses are finite, every trained leaf moves, and so do rows and stored vectors."""
    options = {**TINY, **HUB, "spectral_d": False}
    del options["num_classes"]
    monkeypatch.setitem(rig.OPTIONS, "biggan_deep", options)
    task = rig.make_task((), "biggan_deep")
    start = jax.tree.map(np.array, jax.device_get(task.start))
    (after,) = rig.advance(task, start, 1)
    before, moved = rig.named(start.generator), rig.named(after.generator)
    assert all(np.isfinite(leaf).all() for leaf in moved.values())
    still = {path for path, leaf in moved.items() if (leaf == before[path]).all()}
    # Biases of convolutions that a batch norm follows have no gradient but rounding errors.
    assert {path for path in still if path.startswith("trained/") and not path.endswith("/bias")} == set()
    rows = [leaf for path, leaf in moved.items() if "batch_stats" in path and path.endswith("mean")]
    assert all(leaf.shape[0] == 3 and (leaf[0] != 0).any() for leaf in rows)
    assert any(path.endswith("/v") and path not in still for path in moved)
    assert rig.distance(start.discriminator, after.discriminator) > 0
