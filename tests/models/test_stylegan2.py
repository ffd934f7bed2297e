"""StyleGAN2: forms and precisions agree, what the compiled program must not hold, what the family declares."""

import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import InvalidRngError
from flax.traverse_util import flatten_dict, unflatten_dict

from gantransfer import models
from gantransfer.errors import UserError
from gantransfer.models.convolution import FORMS
from gantransfer.models.resampling import make_filter
from gantransfer.models.stylegan2_layers import Recipe, modulated_convolution
from gantransfer.objectives.penalties import r1_penalty
from gantransfer.pretrained.fresh import variable_shapes

SMALL = {
    "resolution": 16,
    "z_dim": 6,
    "w_dim": 8,
    "channel_base": 64,
    "channel_max": 12,
    "mapping_layers": 2,
    "mapping_layers_d": 2,
    "minibatch_group": 2,
}
ARCHITECTURES = ("skip", "resnet", "orig")
LABELS = jnp.array([0, 2, 1, 2])


@cache
def built(**options):
    """Networks, variables of both with noise and biases that are not zero, latents and images."""
    networks = models.get_family("stylegan2").build(**SMALL | options)
    numbers = np.random.default_rng(0)
    size = networks.resolution
    z = jnp.asarray(numbers.normal(size=(4, networks.z_dim)), jnp.float32)
    x = jnp.asarray(numbers.uniform(-1, 1, (4, size, size, networks.channels)), jnp.float32)

    def filled(shapes):
        leaves = {}
        for path, leaf in sorted(flatten_dict(dict(shapes), sep="/").items()):
            values = numbers.normal(size=leaf.shape)
            if path.endswith(("bias", "strength")):
                values = 0.1 * values + path.endswith("affine/bias")
            elif path.endswith("avg"):
                values = 0 * values
            elif "mapper/" in path:
                # The mapping network learns at a hundredth of the rate, and divides by it.
                values = 100 * values
            leaves[path] = jnp.asarray(values, jnp.float32)
        return unflatten_dict(leaves, sep="/")

    return networks, *map(filled, variable_shapes(networks)), z, x


@cache
def compiled(network, **static):
    """`network.apply` with few optimisations, which cost more than they save on networks of this size."""
    run = lambda *args, rngs=None: network.apply(*args, rngs=rngs, **static)
    return jax.jit(run, compiler_options={"xla_backend_optimization_level": 0})


def assert_close(a, b, tolerance):
    """Compares trees relative to the largest value of each."""
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert left.shape == right.shape and left.dtype == right.dtype
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(b))
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(left, right, rtol=0, atol=tolerance * largest)


@pytest.fixture(autouse=True)
def exact_products():
    with jax.default_matmul_precision("highest"):
        yield


# Penalties whose second derivatives training takes.


def r1_term(networks, variables, x, params):
    judge = lambda x: networks.discriminator.apply({**variables, "params": params}, x, LABELS).logits
    return r1_penalty(judge, x)


def path_length_term(networks, variables, z, directions, params):
    run = partial(networks.generator.apply, {**variables, "params": params})
    ws = run(z, LABELS, method="mapping")
    slope = jax.grad(lambda ws: jnp.vdot(run(ws, method="synthesis").images, directions))(ws)
    return jnp.sqrt(jnp.square(slope).sum(2).mean(1)).mean()


def game_terms(networks, generator, discriminator, z, params_g, params_d):
    images = networks.generator.apply({**generator, "params": params_g}, z, LABELS).images
    logits = networks.discriminator.apply({**discriminator, "params": params_d}, images, LABELS).logits
    return jax.nn.softplus(-logits).mean(), images


def everything(networks, generator, discriminator, z, x):
    """A function of both networks' parameters: images, the game's loss and both penalties, with all gradients."""

    def run(params_g, params_d):
        game = lambda g, d: game_terms(networks, generator, discriminator, z, g, d)
        (loss, images), grads = jax.value_and_grad(game, (0, 1), has_aux=True)(params_g, params_d)
        r1 = jax.value_and_grad(lambda p: r1_term(networks, discriminator, x, p))(params_d)
        path = jax.value_and_grad(lambda p: path_length_term(networks, generator, z, x, p))(params_g)
        return {"images": images, "loss": loss, "grads": grads, "r1": r1, "path": path}

    return run


@pytest.mark.parametrize(
    ("architecture", "architecture_d"),
    [
        ("skip", "resnet"),
        pytest.param("resnet", "skip", marks=pytest.mark.slow),
        pytest.param("orig", "orig", marks=pytest.mark.slow),
    ],
)
def test_forms_of_whole_networks_agree_to_second_order(architecture, architecture_d):
    # A smooth activation: the forms round differently, and a rectifier's edge between them is no error.
    options = {"architecture": architecture, "architecture_d": architecture_d}
    options |= {"activation": "swish", "resolution": 8}
    results = []
    for form in FORMS:
        networks, generator, discriminator, z, x = built(**options, convolution=form)
        run = jax.jit(
            everything(networks, generator, discriminator, z, x),
            compiler_options={"xla_backend_optimization_level": 0},
        )
        results.append(run(generator["params"], discriminator["params"]))
    for name in results[0]:
        assert_close(results[0][name], results[1][name], 5e-5)


@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize(("side", "up", "features"), [(3, 1, 5), (3, 2, 5), (1, 1, 3)])
def test_forms_of_a_modulated_convolution_agree_to_second_order(demodulate, side, up, features):
    numbers = np.random.default_rng(1)
    shapes = (3, 5, 5, 4), (side, side, 4, features), (3, 4)
    operands = [jnp.asarray(numbers.normal(size=shape), jnp.float32) for shape in shapes]

    @partial(jax.jit, static_argnums=0)
    def derivatives(form, *operands):
        recipe = Recipe(make_filter([1, 2, 4]), form=form)
        operate = partial(modulated_convolution, recipe=recipe, demodulate=demodulate, up=up, pads=side // 2)
        loss = lambda *operands: jnp.sin(operate(*operands)).sum()
        penalty = lambda *operands: sum((g**2).sum() for g in jax.grad(loss, (0, 2))(*operands))
        every = (0, 1, 2)
        return operate(*operands), jax.grad(loss, every)(*operands), jax.grad(penalty, every)(*operands)

    rewritten, plain = (derivatives(form, *operands) for form in FORMS)
    for a, b in zip(rewritten, plain, strict=True):
        assert_close(a, b, 5e-5)


# What a compiled step must not hold (docs/design.md).


def lowered(function, *args):
    return jax.jit(function).lower(*args).as_text()


def dilated(text):
    return len(re.findall(r"lhs_dilate = \[2, 2\]", text))


@pytest.fixture(scope="module")
def texts():
    networks, generator, discriminator, z, x = built(num_classes=3)
    train = partial(networks.generator.apply, train=True, rngs={"noise": jax.random.key(1)})
    g, d = generator["params"], discriminator["params"]
    picture = lambda p: train({**generator, "params": p}, z, LABELS).images
    judged = lambda p: networks.discriminator.apply({**discriminator, "params": p}, x, LABELS).logits
    return {
        "pictures": lowered(picture, g),
        "logits": lowered(judged, d),
        "game": lowered(jax.grad(lambda p: picture(p).sum()), g),
        "judging": lowered(jax.grad(lambda p: judged(p).sum()), d),
        "r1": lowered(jax.grad(lambda p: r1_term(networks, discriminator, x, p)), d),
        "path": lowered(jax.grad(lambda p: path_length_term(networks, generator, z, x, p)), g),
    }


def test_programs_hold_no_grouped_convolution_no_pooling_window_and_no_float64(texts):
    for name, text in texts.items():
        assert "stablehlo.convolution" in text, name
        assert set(re.findall(r"(?:feature|batch)_group_count = (\d+)", text)) == {"1"}, name
        assert "reduce_window" not in text and "select_and_scatter" not in text, name
        assert "f64" not in text, name


def test_zero_stuffed_convolutions_are_those_of_the_resampling_layers_only(texts):
    """One transposed convolution for each layer that changes the size, wherever its adjoint is not what is needed."""
    changes = 2
    counts = {name: dilated(text) for name, text in texts.items()}
    assert counts["pictures"] == changes and counts["logits"] == 0
    # G: the gradient of a transposed convolution is a strided one. D: of a strided one, a transposed one.
    assert counts["game"] == changes and counts["judging"] == changes
    # R1: D's first gradient, and the gradients of that; path lengths: the passes of G and of its cotangents.
    assert counts["r1"] == 2 * changes and counts["path"] == 2 * changes


# Behaviour.


def test_styles_are_made_once_and_give_the_same_picture():
    networks, generator, _, z, _ = built(num_classes=3)
    picture = compiled(networks.generator, want=("ws", "b8"))(generator, z, LABELS)
    ws = compiled(networks.generator, method="mapping")(generator, z, LABELS)
    assert ws.shape == (4, networks.generator.num_ws, 8) and networks.generator.num_ws == 6
    np.testing.assert_allclose(picture.stages["ws"], ws, atol=1e-6)
    again = compiled(networks.generator, method="synthesis")(generator, ws).images
    np.testing.assert_allclose(again, picture.images, atol=1e-5)
    assert picture.stages.keys() == {"ws", "b8"} and picture.stages["b8"].shape == (4, 8, 8, 8)
    with pytest.raises(UserError, match="b32"):
        compiled(networks.generator, want=("b32",))(generator, z, LABELS)


def test_truncation_of_zero_gives_all_latents_one_picture():
    networks, generator, _, z, _ = built(num_classes=3)
    moved = {**generator, "averages": {"mapper": {"w_avg": jnp.arange(8.0)}}}
    images = compiled(networks.generator, truncation=0.0)(moved, z, LABELS).images
    np.testing.assert_allclose(images, jnp.broadcast_to(images[:1], images.shape), atol=1e-5)
    half = compiled(networks.generator, truncation=0.5, cutoff=2, method="mapping")(moved, z, LABELS)
    whole = compiled(networks.generator, method="mapping")(moved, z, LABELS)
    np.testing.assert_allclose(half[:, :2], (whole[:, :2] + jnp.arange(8.0)) / 2, atol=1e-6)
    np.testing.assert_allclose(half[:, 2:], whole[:, 2:], atol=1e-6)


def test_class_weights_of_one_class_are_that_class():
    networks, generator, discriminator, z, x = built(num_classes=3)
    weights = jax.nn.one_hot(LABELS, 3)
    for network, variables, given in (
        (networks.generator, generator, z),
        (networks.discriminator, discriminator, x),
    ):
        run = compiled(network)
        by_label, by_weight, other = (run(variables, given, c)[0] for c in (LABELS, weights, LABELS * 0))
        np.testing.assert_allclose(by_label, by_weight, atol=1e-5)
        assert float(jnp.abs(by_label - other)[1:].max()) > 1e-4


def test_networks_without_classes_take_no_label():
    networks, generator, discriminator, z, x = built()
    assert not any("embed" in path for path in flatten_dict(generator["params"], sep="/"))
    for network, variables, given in (
        (networks.generator, generator, z),
        (networks.discriminator, discriminator, x),
    ):
        run = compiled(network)
        np.testing.assert_array_equal(run(variables, given)[0], run(variables, given, LABELS)[0])


def test_noise_is_drawn_in_training_and_constant_in_evaluation():
    networks, generator, _, z, _ = built()
    assert networks.streams == ("noise",)

    def pictures(seed=None, **static):
        rngs = None if seed is None else {"noise": jax.random.key(seed)}
        return np.asarray(compiled(networks.generator, **static)(generator, z, rngs=rngs).images)

    np.testing.assert_array_equal(pictures(), pictures(noise="const"))
    np.testing.assert_array_equal(pictures(1, train=True), pictures(1, noise="random"))
    assert np.abs(pictures(1, train=True) - pictures(2, train=True)).max() > 1e-3
    assert np.abs(pictures(noise="none") - pictures(noise="const")).max() > 1e-3
    with pytest.raises(InvalidRngError):
        pictures(train=True)
    with pytest.raises(UserError, match="sometimes"):
        pictures(noise="sometimes")
    with pytest.raises(UserError, match="b4/conv1"):
        networks.generator.apply(generator, z, noise={})


def test_networks_without_noise_have_no_leaf_of_it():
    networks, generator, _, z, _ = built(noise=False)
    assert networks.streams == () and "constants" not in generator
    assert not any("noise" in path for path in flatten_dict(generator["params"], sep="/"))
    compiled(networks.generator, train=True)(generator, z)


def test_running_mean_of_styles_moves_only_in_training_passes():
    networks, generator, _, z, _ = built(w_avg_decay=0.9, noise=False)

    def after(train):
        run = compiled(networks.generator, train=train, mutable="averages", method="mapping")
        return run(generator, z)[1]["averages"]["mapper"]["w_avg"]

    w = compiled(networks.generator, method="mapping")(generator, z)[:, 0]
    np.testing.assert_allclose(after(train=True), 0.1 * w.mean(0), atol=1e-6)
    np.testing.assert_array_equal(after(train=False), 0)


def test_half_precision_is_kept_to_the_highest_blocks():
    exact, generator, discriminator, z, x = built(num_classes=3)
    half, *_ = built(num_classes=3, dtype="bfloat16", half_blocks=1)
    picture = compiled(half.generator, want=("b8", "b16"))(generator, z, LABELS)
    assert [picture.stages[name].dtype for name in ("b8", "b16")] == [jnp.float32, jnp.bfloat16]
    judged = compiled(half.discriminator, want=("b16", "b8", "pooled"))(discriminator, x, LABELS)
    assert [judged.stages[name].dtype for name in ("b16", "b8")] == [jnp.bfloat16, jnp.float32]
    assert picture.images.dtype == judged.logits.dtype == judged.stages["pooled"].dtype == jnp.float32
    assert_close(picture.images, compiled(exact.generator)(generator, z, LABELS).images, 3e-2)
    assert_close(judged.logits, compiled(exact.discriminator)(discriminator, x, LABELS).logits, 1e-1)
    penalty = jax.jit(jax.grad(lambda p: r1_term(half, discriminator, x, p)))
    grads = penalty(discriminator["params"])
    assert all(leaf.dtype == jnp.float32 and bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(grads))


def test_clamp_limits_what_layers_return():
    networks, generator, _, z, _ = built(conv_clamp=0.25)
    stages = compiled(networks.generator, want=("b4", "b8", "b16"))(generator, z).stages
    assert [float(jnp.abs(stage).max()) for stage in stages.values()] == [0.25] * 3


def test_discriminator_refuses_a_batch_that_its_groups_do_not_divide():
    networks, _, discriminator, _, x = built(minibatch_group=4)
    run = compiled(networks.discriminator)
    with pytest.raises(UserError, match="batch: 6"):
        run(discriminator, jnp.concatenate([x, x[:2]]))
    # A batch smaller than a group is one group.
    assert run(discriminator, x[:3]).logits.shape == (3,)


# Declaration.


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_leaf_has_its_group_and_block(architecture):
    networks, generator, discriminator, *_ = built(
        architecture=architecture, architecture_d=architecture, num_classes=3
    )
    groups = {}
    for role, variables in (("generator", generator), ("discriminator", discriminator)):
        for path in flatten_dict(variables["params"], sep="/"):
            groups.setdefault((role, networks.group(role, path)), set()).add(networks.block(role, path))
    sizes = {"blocks.4": {0}, "blocks.8": {1}, "blocks.16": {2}}
    expected = {("generator", name): blocks for name, blocks in sizes.items()} | {
        ("generator", "mapping"): {None},
        ("generator", "class_embedding"): {None},
        ("generator", "conditional_norm"): {0, 1, 2},
        ("generator", "to_rgb"): {0, 1, 2} if architecture == "skip" else {2},
        ("discriminator", "blocks.16"): {0},
        ("discriminator", "blocks.8"): {1},
        ("discriminator", "from_rgb"): {0, 1} if architecture == "skip" else {0},
        ("discriminator", "head"): {None},
        ("discriminator", "mapping"): {None},
        ("discriminator", "class_embedding"): {None},
    }
    assert groups == expected


def test_class_rows_are_the_embeddings():
    networks, generator, discriminator, *_ = built(num_classes=3)
    for role, variables in (("generator", generator), ("discriminator", discriminator)):
        (rows,) = networks.class_rows[role]
        assert flatten_dict(variables["params"], sep="/")[rows.path].shape[rows.axis] == 3
    assert not any(built()[0].class_rows.values())


# Published totals of leaves that train: (options, generator, discriminator).
TOTALS = {
    "paper1024": ({"resolution": 1024}, 30_370_060, 29_012_513),
    "paper256": ({"resolution": 256, "channel_base": 16384}, 24_767_458, 24_001_089),
    "auto512": ({"resolution": 512, "mapping_layers": 2}, 28_700_647, 28_982_849),
    "cifar": (
        {"resolution": 32, "num_classes": 10, "mapping_layers": 2, "architecture_d": "orig"},
        20_215_315,
        23_089_664,
    ),
}


@pytest.mark.parametrize("name", TOTALS)
def test_published_configurations_have_their_published_sizes(name):
    options, *totals = TOTALS[name]
    networks = models.get_family("stylegan2").build(**options)
    side = networks.resolution
    for network, shape, total in zip(
        (networks.generator, networks.discriminator), ((1, 512), (1, side, side, 3)), totals, strict=True
    ):
        variables = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros(shape), jnp.zeros(1, jnp.int32))
        assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == total


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("resolution", 48),
        ("architecture", "dense"),
        ("mapping_layers", -1),
        ("mapping_layers", 0),
        ("z_dim", 0),
        ("noise", 1),
        ("conv_clamp", "256"),
        ("resample_filter", "1,3,3,1"),
        ("resample_filter", "1_-1"),
        ("channel_base", 8),
        ("minibatch_channels", 5),
        ("w_avg_decay", 1.5),
        ("width", 4),
    ],
)
def test_options_out_of_range_are_refused_by_name(option, value):
    with pytest.raises(UserError, match=f"model.{option}"):
        models.get_family("stylegan2").build(**SMALL | {option: value})
