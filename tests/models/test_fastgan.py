"""FastGAN as a family: options, groups, noise, forms of convolution, and a step of training."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from gantransfer import config as fields
from gantransfer.data.image_set import ArrayPixels, ImageSet
from gantransfer.errors import UserError
from gantransfer.models import get_family
from gantransfer.models.fastgan_layers import pooled_to
from gantransfer.pretrained.fresh import fresh, variable_shapes
from gantransfer.pretrained.source import _logits, latents
from gantransfer.training import prepare
from gantransfer.training.step import step
from tests.invented import invented

TINY = {"resolution": 128, "channels": 1, "width": 2, "width_d": 4, "decoder_width": 1, "z_dim": 6}
# Programs that run once or twice are compiled with few optimisations.
quick_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
FORMS = {
    "official": TINY | {"variant": "official"},
    "projected": TINY | {"variant": "projected", "conditional": True},
    "projected_lite": TINY | {"variant": "projected_lite"},
}


def build(name, **options):
    return get_family("fastgan").build(**FORMS[name], num_classes=3, **options)


@pytest.fixture(scope="module")
def noisy():
    """The conditional generator with noise of some strength, its variables, and its compiled call."""
    networks = build("projected")
    variables, _ = invented(networks)
    leaves = flatten_dict(dict(variables["params"]), sep="/")
    strong = {path: leaf + 0.3 if path.endswith("/noise") else leaf for path, leaf in leaves.items()}
    return {**variables, "params": unflatten_dict(strong, sep="/")}, quick_jit(networks.generator.apply)


def test_an_image_is_a_function_of_its_latent_in_any_batch(noisy):
    variables, generate = noisy
    z, c = jnp.asarray(latents(4, 6, seed=0)), jnp.array([0, 1, 2, 0])
    images = generate(variables, z, c).images
    again = generate(variables, z[::-1], c[::-1]).images[::-1]
    np.testing.assert_allclose(images, again, rtol=0, atol=1e-5)
    # A program that differs in the last bit of a latent draws the same noise.
    np.testing.assert_allclose(generate(variables, z * (1 + 1e-7), c).images, images, rtol=0, atol=1e-4)


def test_noise_is_standard_normal_and_differs_between_latents(noisy):
    variables, generate = noisy
    z, c = jnp.asarray(latents(4, 6, seed=0)), jnp.zeros(4, jnp.int32)
    quiet = {**variables, "noise": {f"block_{i}": zeros(8 << i) for i in range(5)}}
    images = generate(variables, z, c).images
    assert np.abs(images - generate(quiet, z, c).images).max() > 1e-3
    flat = {**variables, "params": {**variables["params"], "block_4": loud(variables["params"]["block_4"])}}
    drowned = np.asarray(generate(flat, jnp.stack([z[0], z[0] + 1]), c[:2]).images)
    assert abs(np.corrcoef(drowned[0].ravel(), drowned[1].ravel())[0, 1]) < 0.2


def zeros(side):
    return {f"draw{j}": jnp.zeros((4, side, side, 1)) for j in (1, 2)}


def loud(block):
    return {**block, "noise": jnp.full((1,), 1e3)}


@pytest.mark.slow
def test_rewritten_convolutions_give_the_numbers_and_gradients_of_plain_ones():
    results = []
    for form in ("rewritten", "plain"):
        networks = build("projected", convolution=form)
        both = invented(networks)
        z, c = jnp.asarray(latents(2, 6, seed=1)), jnp.array([0, 2])
        x = jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (2, 128, 128, 1)), jnp.float32)
        with jax.default_matmul_precision("highest"):
            results.append(quick_jit(partial(loss_and_gradients, networks))(both, z, x, c))
    for one, other in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-3 * max(1e-3, np.abs(other).max()))


def loss_and_gradients(networks, both, z, x, c):
    """A sum over logits and reconstructions with its gradients, the images, and the logits."""
    want = ("reconstruction_big", "reconstruction_small", "reconstruction_part1")

    def loss(params):
        g, d = ({**v, "params": p} for v, p in zip(both, params, strict=True))
        images = networks.generator.apply(g, z, c).images
        judged = networks.discriminator.apply(d, images + x, c, want=want)
        squares = sum((stage**2).mean() for stage in judged.stages.values())
        return squares + sum(head.mean() for head in judged.logits), (images, judged.logits)

    return jax.value_and_grad(loss, has_aux=True)([v["params"] for v in both])


def test_groups_name_every_leaf_and_what_belongs_to_no_block():
    networks = build("projected")
    g, d = variable_shapes(networks)
    for role, variables, inside, outside in (
        (
            "generator",
            g,
            {"blocks.8", "blocks.16", "blocks.32", "blocks.64", "blocks.128", "conditional_norm"},
            {"class_embedding", "linear", "norm", "output"},
        ),
        (
            "discriminator",
            d,
            {"blocks.128", "blocks.64", "blocks.32", "blocks.16", "blocks.8", "norm"},
            {"head", "projection", "reconstruction", "norm"},
        ),
    ):
        flat = flatten_dict(dict(variables["params"]), sep="/")
        found = {True: set(), False: set()}
        for path in flat:
            found[networks.block(role, path) is not None].add(networks.group(role, path))
        assert found[True] == inside and found[False] == outside
        (rows,) = networks.class_rows[role]
        assert flat[rows.path].shape[rows.axis] == 3


def test_options_that_do_not_fit_are_refused_by_name():
    for option, value in (("resolution", 64), ("width", 1), ("width_d", 2), ("variant", "big"), ("conditional", True)):
        with pytest.raises(UserError, match=f"model.{option}"):
            get_family("fastgan").build(**FORMS["official"] | {"resolution": 256, option: value})


def test_maps_are_pooled_or_repeated_to_a_side():
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(pooled_to(x, 2)[0, :, :, 0], [[2.5, 4.5], [10.5, 12.5]])
    np.testing.assert_array_equal(pooled_to(x, 8)[0, ::2, 1::2], x[0])


def test_only_one_generator_makes_a_small_image_of_its_own():
    for name, has in (("official", True), ("projected_lite", False)):
        networks = build(name)
        g, d = variable_shapes(networks)
        call = partial(networks.generator.apply, want=("small",))
        given = g, jnp.zeros((2, 6)), jnp.zeros(2, jnp.int32)
        if has:
            picture = jax.eval_shape(call, *given)
            assert picture.stages["small"].shape == (2, 128, 128, 1)
            judge = partial(networks.discriminator.apply, small=jnp.zeros((2, 128, 128, 1)))
            logits = jax.eval_shape(judge, d, jnp.zeros((2, 128, 128, 1)), given[2]).logits
            assert [head.shape for head in logits] == [(2, 1), (2, 25)]
        else:
            with pytest.raises(UserError, match="want"):
                jax.eval_shape(call, *given)


@pytest.mark.slow
def test_a_step_trains_both_networks_and_moves_their_statistics(invented_weights):
    source = fresh("fastgan", FORMS["projected_lite"], ("one",), seed=0)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 128, 128, 1), dtype=np.uint8)
    rows = np.arange(8, dtype=np.int32)
    images = ImageSet("noise", 128, 1, ("one",), 0 * rows, tuple(map(str, rows)), ArrayPixels(pixels), rows, "")
    config = fields.defaults()
    for name, value in {"batch": 4, "devices.count": 1, "objective.loss": "hinge", "optimizer.lr_g": 0.01}.items():
        fields.set_field(config, name, value)
    task = prepare.prepare(config, source, images)
    before = jax.device_get(task.start)
    after = jax.device_get(quick_jit(partial(step, task.recipe, frozenset()))(task.start, task.held))
    for role in ("generator", "discriminator"):
        one, other = (flatten_dict(dict(getattr(state, role).trained), sep="/") for state in (before, after))
        still = {path for path, leaf in other.items() if np.array_equal(leaf, one[path])}
        assert all(path.startswith("decoder_") for path in still), still
        assert all(np.isfinite(leaf).all() for leaf in other.values())
        one, other = (flatten_dict(dict(getattr(state, role).stats), sep="/") for state in (before, after))
        for path in ("spectral/block_1/conv1/u", "batch_stats/block_1/bn1/mean"):
            assert not np.array_equal(one[path], other[path]), path
    # What a source says of an image is one number, the mean over all patches of both heads.
    trained, x, c = task.as_source(after, "after"), jnp.asarray(pixels[:3] / 127.5 - 1, jnp.float32), jnp.zeros(3, int)

    def judge(variables):
        network = trained.networks.discriminator
        return _logits.__wrapped__(network, variables, x, c), network.apply(variables, x, c).logits

    said, heads = quick_jit(judge)(trained.discriminator)
    assert [head.shape for head in heads] == [(3, 1), (3, 25)]
    np.testing.assert_allclose(said, sum(head.mean(1) for head in heads) / 2, rtol=1e-5)
