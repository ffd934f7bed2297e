"""DCGAN as a family: options, groups, forms of convolution, latents, and a step of training in every kind of mode."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from gantransfer import config as fields
from gantransfer.data.image_set import ArrayPixels, ImageSet
from gantransfer.errors import UserError
from gantransfer.models import get_family
from gantransfer.pretrained.fresh import fresh, initial_variables
from gantransfer.pretrained.layouts.dcgan_releases import DIGITS as DIGITS_RELEASE
from gantransfer.pretrained.source import latents
from gantransfer.training import draws, prepare

TINY = {"resolution": 16, "channels": 1, "width": 4, "z_dim": 6}
# Programs that run once on tiny arrays are compiled with few optimisations.
QUICK = {"xla_backend_optimization_level": 0}
# The release for digits by class, narrow.
DIGITS = {
    "resolution": 28,
    "channels": 1,
    "z_dim": 3,
    "class_dim": 4,
    "base": 7,
    "widths_g": "6_5_4",
    "steps_g": "nearest3_nearest3_keep3",
    "first_activation": False,
    "norm_eps": 0.8,
    "bias_g": "all",
    "widths_d": "4_5",
    "norm_d": "none",
    "bias_d": True,
}
FORMS = {
    "example": TINY,
    "faces": TINY | {"widths_g": "6_5_4", "steps_g": "keep3_up4_up4", "activation": "leaky_relu", "latent": "uniform"},
    "theano": TINY | {"steps_g": "up5_up5", "first_norm": "feature", "kernel_d": 5, "statistics_d": "batch"},
    "keras": TINY | {"widths_g": "6_5_4", "steps_g": "up4_up4_keep4", "norm_last": True, "output": "sigmoid"},
    "digits": DIGITS,
}


def variables_of(networks, seed=0):
    """Variables whose statistics, gains and biases are not at their start."""
    c = jnp.zeros(1, jnp.int32)
    made = (
        networks.generator.init(jax.random.key(seed), jnp.zeros((1, networks.z_dim)), c),
        networks.discriminator.init(
            jax.random.key(seed), jnp.zeros((1, *(networks.resolution,) * 2, networks.channels)), c
        ),
    )
    numbers = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: leaf + 0.1 * np.abs(numbers.normal(size=leaf.shape)).astype(np.float32), made)


def loss_and_gradients(networks, both, z, x, c):
    """A sum over logits of fakes and reals with its gradients, the images, and the logits of the fakes."""

    def loss(params):
        g, d = ({**v, "params": p} for v, p in zip(both, params, strict=True))
        images = networks.generator.apply(g, z, c, train=True).images
        fake, real = (networks.discriminator.apply(d, given, c, train=True).logits for given in (images, x))
        return jnp.sum(jnp.sin(fake)) + jnp.sum(jnp.cos(real)), (images, fake)

    return jax.value_and_grad(loss, has_aux=True)([v["params"] for v in both])


@pytest.mark.parametrize(
    "name", ["example", *(pytest.param(name, marks=pytest.mark.slow) for name in FORMS if name != "example")]
)
def test_rewritten_convolutions_give_the_numbers_and_gradients_of_plain_ones(name):
    results = []
    for form in ("rewritten", "plain"):
        networks = get_family("dcgan").build(**FORMS[name], num_classes=3, convolution=form)
        numbers = np.random.default_rng(1)
        z = jnp.asarray(numbers.normal(size=(4, networks.z_dim)), jnp.float32)
        x = jnp.asarray(numbers.uniform(-1, 1, (4, *(networks.resolution,) * 2, 1)), jnp.float32)
        with jax.default_matmul_precision("highest"):
            run = jax.jit(partial(loss_and_gradients, networks), compiler_options=QUICK)
            results.append(run(variables_of(networks), z, x, jnp.arange(4) % 3))
    # Biases before a norm have no gradient, so what they show is rounding of the size of the others'.
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(results[1]))
    for one, other in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-4 * np.abs(other).max() + 1e-6 * largest)


def test_sizes_follow_the_resolution_and_what_is_too_much_is_cut_off():
    for resolution, maps in ((64, 4), (32, 3), (28, 3), (16, 2)):
        networks = get_family("dcgan").build(**TINY | {"resolution": resolution})
        g, d = jax.eval_shape(lambda n=networks: variables_of(n))
        assert len([path for path in flatten_dict(g["params"]) if path[-2] == "conv"]) == maps - 1
        picture = jax.eval_shape(lambda v, n=networks: n.generator.apply(v, jnp.zeros((2, 6)), jnp.zeros(2, int)), g)
        assert picture.images.shape == (2, resolution, resolution, 1)
        assert d["params"]["head"]["kernel"].shape[1] == 1


def test_a_discriminator_halves_down_to_a_map_of_four_pixels_at_most():
    for resolution, side in ((64, 4), (32, 4), (28, 3), (24, 3), (16, 4), (8, 4)):
        networks = get_family("dcgan").build(**TINY | {"resolution": resolution})
        _, d = jax.eval_shape(lambda n=networks: variables_of(n))
        blocks = sum(path.startswith("block_") for path in d["params"])
        assert d["params"]["head"]["kernel"].shape == (side**2 * 4 * 2 ** (blocks - 1), 1)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("steps_g", "up4_up6"),
        ("steps_g", "up4_up4_up4"),
        ("steps_g", "keep3_up4"),
        ("widths_g", "8_4_2"),
        ("widths_g", "8_four"),
        ("widths_d", "4_4_4_4_4_4"),
        ("latent", "gaussian"),
        ("norm_eps", -1.0),
        ("kernel_d", 3),
        ("class_dim", True),
        ("colour", 1),
    ],
)
def test_options_that_do_not_fit_are_refused_by_name(option, value):
    given = TINY | {option: value}
    if value == "8_4_2":
        given |= {"steps_g": "up4_up4"}
    with pytest.raises(UserError, match=f"model.{option}"):
        get_family("dcgan").build(**given)


def test_groups_and_blocks_name_every_leaf():
    networks = get_family("dcgan").build(**DIGITS, num_classes=3)
    shapes = jax.eval_shape(lambda: variables_of(networks))
    expected = (
        {"class_embedding": 1, "linear": 2, "norm": 6, "blocks.14": 2, "blocks.28": 2, "output": 2},
        {"blocks.28": 2, "blocks.14": 2, "head": 2, "projection": 1},
    )
    for role, variables, counts in zip(("generator", "discriminator"), shapes, expected, strict=True):
        paths = ["/".join(path) for path in flatten_dict(variables["params"])]
        groups = [networks.group(role, path) for path in paths]
        assert {group: groups.count(group) for group in groups} == counts
        for path in paths:
            assert networks.block(role, path) == (int(path[6]) if path.startswith("block_") else None)
        (rows,) = networks.class_rows[role]
        assert flatten_dict(variables["params"], sep="/")[rows.path].shape[rows.axis] == 3


def test_stages_are_named_by_size():
    networks = get_family("dcgan").build(**TINY)
    g, d = variables_of(networks)
    c = jnp.zeros(2, jnp.int32)
    picture = networks.generator.apply(g, jnp.ones((2, 6)), c, want=("b8",))
    assert picture.stages["b8"].shape == (2, 8, 8, 4)
    judged = networks.discriminator.apply(d, picture.images, c, want=("b16", "b8", "pooled"))
    assert [judged.stages[name].shape for name in ("b16", "b8", "pooled")] == [(2, 8, 8, 4), (2, 4, 4, 8), (2, 8)]
    with pytest.raises(UserError, match="want"):
        networks.discriminator.apply(d, picture.images, c, want=("b4",))


def test_uniform_latents_are_drawn_in_sampling_and_in_training():
    z = latents(200, 9, seed=0, latent="uniform")
    assert -1 <= z.min() < -0.99 and 0.99 < z.max() < 1 and abs(z.var() - 1 / 3) < 0.02
    np.testing.assert_array_equal(z[:3], latents(3, 9, seed=0, latent="uniform"))
    task = make_task("faces", "full")
    drawn = draws.draw_fakes(task.recipe, task.held, jnp.arange(300), "generator").z
    assert np.abs(drawn).max() <= 1 and abs(np.var(drawn) - 1 / 3) < 0.02
    source = task.source
    sampled = source.generate(latents(2, 6, 5, latent="uniform"), [0, 1])
    rounded = np.clip(np.floor((sampled + 1) * 127.5 + 0.5), 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(source.sample(2, seed=5), rounded)


def test_a_fresh_critic_of_the_release_for_digits_lets_images_through_to_its_logits():
    release = {name: value for name, value in DIGITS.items() if name != "widths_d"} | dict(DIGITS_RELEASE.assumed)
    networks = get_family("dcgan").build(**release, num_classes=10)
    _, variables = initial_variables(networks, seed=0)
    images = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (64, 28, 28, 1)), jnp.float32)
    judge = jax.jit(networks.discriminator.apply, compiler_options=QUICK)
    judged = [np.asarray(judge(variables, images, jnp.full(64, c)).logits) for c in (0, 7)]
    # With N(0, 0.02) the spread is 0.007: a generator then runs ahead of whatever this discriminator learns.
    assert 0.05 < judged[0].std() < 2
    # Rows of unit length would shift the logits of a class by more than images differ.
    assert 0 < np.abs(judged[0].mean() - judged[1].mean()) < 0.5


# Training.


@cache
def make_task(form, mode):
    """A run on twelve images of noise in three classes, on one device."""
    source = fresh("dcgan", FORMS[form], ("one", "two", "three"), seed=0)
    size = source.info.resolution
    pixels = np.random.default_rng(0).integers(0, 256, (12, size, size, 1), dtype=np.uint8)
    rows = np.arange(12, dtype=np.int32)
    images = ImageSet(
        "noise", size, 1, source.info.class_names, rows % 3, tuple(map(str, rows)), ArrayPixels(pixels), rows, ""
    )
    config = fields.defaults()
    settings = {"batch": 4, "mode": mode, "devices.count": 1, "optimizer.lr_g": 0.01, "optimizer.lr_d": 0.01}
    for name, value in settings.items():
        fields.set_field(config, name, value)
    return prepare.prepare(config, source, images)


def moved(task):
    """Leaves of both networks that one step has changed, and whether all are finite."""
    before, start = jax.device_get(task.start), task.initial_state()
    after = jax.device_get(task.step(start, task.held, due=frozenset()))
    changed = {}
    for role in ("generator", "discriminator"):
        one, other = (
            {"/".join(map(str, path)): leaf for path, leaf in flatten_dict(dict(getattr(state, role).trained)).items()}
            for state in (before, after)
        )
        assert all(np.isfinite(leaf).all() for leaf in other.values())
        changed[role] = {path for path, leaf in other.items() if not np.array_equal(leaf, one[path])}
    return changed, before, after


@pytest.mark.parametrize("form", ["example", "digits"])
def test_a_step_moves_every_parameter_and_the_running_statistics(form):
    task = make_task(form, "full")
    changed, before, after = moved(task)
    assert changed["generator"] == task.partition.trained("generator")
    # A bias that goes to all logits alike, and biases before a norm, get gradients that are zero or rounding.
    assert task.partition.trained("discriminator") - changed["discriminator"] <= {"head/bias"}
    means = [
        flatten_dict(dict(state.generator.stats["batch_stats"]), sep="/")["first_bn/mean"] for state in (before, after)
    ]
    assert not np.array_equal(*means)


def test_class_embedding_alone_trains_against_a_fresh_discriminator():
    task = make_task("digits", "class_embedding_only")
    assert task.partition.trained("generator") == {"classes/embedding"}
    assert task.partition.count("generator", True) == 12
    changed, *_ = moved(task)
    assert changed["generator"] == {"classes/embedding"}
    assert {"embed/embedding", "head/kernel", "block_0/conv/kernel"} <= changed["discriminator"]
