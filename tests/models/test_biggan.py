"""BigGAN is laid out, grouped, numbered, drawn and refused as it declares."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from gantransfer.errors import UserError
from gantransfer.models import get_family
from gantransfer.models.biggan import LAYOUTS, OPTIONS
from gantransfer.models.family import ROLES

# Seven classes and no other seven, so that axes over classes can be told.
TINY = {"resolution": 16, "channels": 1, "num_classes": 7, "width": 2, "z_dim": 9, "shared_dim": 5, "init": "fan_in"}
QUICKLY = {"xla_backend_optimization_level": 0}


@cache
def build(**options):
    return get_family("biggan").build(**TINY | options)


def inputs(networks, n=1):
    size = (n, networks.resolution, networks.resolution, networks.channels)
    return {"generator": jnp.zeros((n, networks.z_dim)), "discriminator": jnp.zeros(size)}


def init(networks, role, want=()):
    """What a network makes of two samples, and its fresh variables."""
    network, first = getattr(networks, role), inputs(networks, 2)[role]
    return network.init_with_output(jax.random.key(0), first, jnp.zeros(2, jnp.int32), want=want)


def outlined(networks, role, want=()):
    """Shapes of the output and of all variables."""
    return jax.eval_shape(lambda: init(networks, role, want))


def shapes(networks, role):
    """Shapes of the leaves of `params` by path."""
    return {path: leaf.shape for path, leaf in flatten_dict(outlined(networks, role)[1]["params"], sep="/").items()}


class Bound:
    """Both networks with random weights, compiled; calls give `(output, what changed)`."""

    def __init__(self, **options):
        self.networks = build(**options)
        self.G, self.D = map(self._call, ROLES)

    @cache  # noqa: B019 (lives as long as the module's tests)
    def variables(self, role):
        return jax.jit(lambda: init(self.networks, role)[1], compiler_options=QUICKLY)()

    def _call(self, role):
        network = getattr(self.networks, role)

        def apply(variables, first, c, train, keep, want):
            return network.apply(variables, first, c, train=train, want=want, mutable=list(keep))

        jitted = jax.jit(apply, static_argnums=(3, 4, 5), compiler_options=QUICKLY)
        return lambda first, c, train=False, keep=(), want=(), variables=None: jitted(
            variables or self.variables(role), first, c, train, keep, want
        )

    def draws(self, n):
        z, x = jax.random.split(jax.random.key(1))
        size = (n, self.networks.resolution, self.networks.resolution, self.networks.channels)
        return jax.random.normal(z, (n, self.networks.z_dim)), jax.random.uniform(x, size, minval=-1)


bound = cache(lambda **options: Bound(**options))


# Layout.


@pytest.mark.parametrize("resolution", LAYOUTS)
def test_stages_have_the_sizes_and_widths_of_the_layout(resolution):
    networks, layout = build(resolution=resolution, z_dim=16), LAYOUTS[resolution]
    sizes = [8 * 2**i for i in range(len(layout.generator) - 1)]
    assert sizes[-1] == resolution
    picture, _ = outlined(networks, "generator", tuple(f"b{size}" for size in sizes))
    assert picture.images.shape == (2, resolution, resolution, 1)
    made = {name: stage.shape for name, stage in picture.stages.items()}
    assert made == {f"b{s}": (2, s, s, 2 * m) for s, m in zip(sizes, layout.generator[1:], strict=True)}
    given = [resolution >> min(i, layout.pooled) for i in range(len(layout.discriminator))]
    judged, _ = outlined(networks, "discriminator", (*dict.fromkeys(f"b{size}" for size in given), "pooled"))
    assert judged.logits.shape == (2,)
    for i, size in enumerate(given):
        if i + 1 == len(given) or given[i + 1] != size:
            side = size // 2 if i < layout.pooled else size
            assert judged.stages[f"b{size}"].shape == (2, side, side, 2 * layout.discriminator[i])
    assert judged.stages["pooled"].shape == (2, 2 * layout.discriminator[-1])


def test_the_layout_of_16_pixels_is_two_doublings_and_two_halvings():
    g = shapes(build(), "generator")
    d = shapes(build(), "discriminator")
    kernels = lambda leaves: {path[:-7]: shape for path, shape in leaves.items() if path.endswith("/kernel")}
    # Latents of 9 in three parts of 3; conditions are the embedding of 5 and a part.
    assert kernels(g) == {
        "linear": (3, 16 * 8),
        **{f"block_0/bn{i}/{part}": (8, width) for i, width in ((1, 8), (2, 4)) for part in ("gain", "bias")},
        "block_0/conv1": (3, 3, 8, 4),
        "block_0/conv2": (3, 3, 4, 4),
        "block_0/conv_sc": (1, 1, 8, 4),
        **{f"block_1/bn{i}/{part}": (8, width) for i, width in ((1, 4), (2, 2)) for part in ("gain", "bias")},
        "block_1/conv1": (3, 3, 4, 2),
        "block_1/conv2": (3, 3, 2, 2),
        "block_1/conv_sc": (1, 1, 4, 2),
        "out_conv": (3, 3, 2, 1),
    }
    assert kernels(d) == {
        "block_0/conv1": (3, 3, 1, 2),
        "block_0/conv2": (3, 3, 2, 2),
        "block_0/conv_sc": (1, 1, 1, 2),
        "block_1/conv1": (3, 3, 2, 4),
        "block_1/conv2": (3, 3, 4, 4),
        "block_1/conv_sc": (1, 1, 2, 4),
        "block_2/conv1": (3, 3, 4, 8),
        "block_2/conv2": (3, 3, 8, 8),
        "block_2/conv_sc": (1, 1, 4, 8),
        "head": (8, 1),
    }


def test_widths_of_the_networks_are_set_apart():
    networks = build(width=2, width_d=3)
    assert shapes(networks, "generator")["out_conv/kernel"] == (3, 3, 2, 1)
    assert shapes(networks, "discriminator")["block_2/conv2/kernel"] == (3, 3, 12, 12)
    thin = shapes(build(thin_d=True), "discriminator")
    assert thin["block_1/conv1/kernel"] == (3, 3, 2, 2)
    assert thin["block_1/conv2/kernel"] == (3, 3, 2, 4)


def attended(networks, role):
    return sorted({path.split("/")[0] for path in shapes(networks, role) if path.startswith("attn_")})


@pytest.mark.parametrize(
    ("resolution", "named", "g", "d"),
    [
        (64, "32", ["attn_2"], ["attn_0"]),
        (64, "16_8", ["attn_0", "attn_1"], ["attn_1", "attn_2"]),
        (128, "64", ["attn_3"], ["attn_0"]),
        # The release names all blocks of its 32 px discriminator "16".
        (32, "16", ["attn_1"], ["attn_0", "attn_1", "attn_2", "attn_3"]),
        (64, "0", [], []),
    ],
)
def test_attention_is_at_the_named_sizes(resolution, named, g, d):
    networks = build(resolution=resolution, z_dim=16, width=8, attention_g=named, attention_d=named)
    assert attended(networks, "generator") == g
    assert attended(networks, "discriminator") == d


# Groups, blocks and rows.

EVERYTHING = {"resolution": 64, "z_dim": 16, "width": 4, "attention_g": "32", "attention_d": "16", "class_head": True}


def test_every_leaf_has_a_group_and_every_group_its_leaves():
    networks = build(**EVERYTHING)
    groups = {role: {} for role in ROLES}
    for role in ROLES:
        for path in shapes(networks, role):
            groups[role].setdefault(networks.group(role, path), set()).add(path)
    g, d = groups["generator"], groups["discriminator"]
    assert set(g) == {"class_embedding", "linear", "conditional_norm", "norm", "output"} | {
        f"blocks.{size}" for size in (8, 16, 32, 64)
    }
    assert set(d) == {"head", "projection", "class_head"} | {f"blocks.{size}" for size in (64, 32, 16, 8, 4)}
    assert g["class_embedding"] == {"shared/embedding"}
    assert g["linear"] == {"linear/kernel", "linear/bias"}
    assert g["norm"] == {"out_bn/gain", "out_bn/bias"}
    norms = (f"block_{i}/bn{k}/{part}/kernel" for i in range(4) for k in (1, 2) for part in ("gain", "bias"))
    assert g["conditional_norm"] == set(norms)
    convolutions = {f"block_2/{conv}/{part}" for conv in ("conv1", "conv2", "conv_sc") for part in ("kernel", "bias")}
    assert g["blocks.32"] == convolutions | {f"attn_2/{part}/kernel" for part in ("theta", "phi", "g", "o")} | {
        "attn_2/gamma"
    }
    assert d["projection"] == {"embed/embedding"}
    assert {path.split("/")[0] for path in d["blocks.32"]} == {"block_1", "attn_1"}
    # The first block is given the image.
    assert shapes(networks, "discriminator")["block_0/conv1/kernel"][2] == networks.channels
    assert "block_0/conv1/kernel" in d["blocks.64"]


def test_a_size_that_several_blocks_are_given_is_one_group():
    networks = build(resolution=32, z_dim=16)
    blocks = {networks.block("discriminator", path) for path in shapes(networks, "discriminator")}
    assert blocks == {0, 1, 2, 3, None}
    groups = [networks.group("discriminator", f"block_{i}/conv1/kernel") for i in range(4)]
    assert groups == ["blocks.32", "blocks.16", "blocks.8", "blocks.8"]


def test_blocks_are_numbered_in_the_order_of_the_pass_and_count_their_attention():
    networks = build(**EVERYTHING)
    for role in ROLES:
        for path in shapes(networks, role):
            first = path.split("/")[0]
            expected = int(first.split("_")[1]) if first.startswith(("block_", "attn_")) else None
            assert networks.block(role, path) == expected, path


@pytest.mark.parametrize("options", [{}, {"class_head": True}, {"shared": False, "hierarchical": False}])
def test_rows_of_classes_are_all_axes_that_count_classes(options):
    networks = build(**options)
    for role in ROLES:
        declared = {(rows.path, rows.axis) for rows in networks.class_rows[role]}
        counted = {(p, shape.index(7)) for p, shape in shapes(networks, role).items() if 7 in shape}
        assert declared == counted


def test_rows_are_coupled_where_a_table_is_divided_as_a_whole():
    spectral = lambda networks, role: {rows.path for rows in networks.class_rows[role] if rows.spectral}
    networks = build(class_head=True)
    assert spectral(networks, "generator") == set()
    assert spectral(networks, "discriminator") == {"embed/embedding", "class_head/kernel"}
    assert "u" in outlined(networks, "discriminator")[1]["spectral"]["class_head"]
    assert spectral(build(class_head=True, spectral_d=False), "discriminator") == set()


# Passes.


def test_nothing_is_kept_that_nobody_wants_and_unknown_stages_are_refused_with_the_known_ones():
    networks = build()
    for role, known in (("generator", "b8, b16"), ("discriminator", "b16, b8, b4, pooled")):
        assert outlined(networks, role)[0].stages == {}
        with pytest.raises(UserError, match=rf"want: 'b7' is not accepted; allowed: {known}(\n|$)"):
            outlined(networks, role, ("b7",))


def test_pooled_features_are_scaled_sums_of_the_last_stage():
    for scale in (1.0, 0.25):
        pair = bound() if scale == 1 else bound(pool_scale=scale)
        _, x = pair.draws(3)
        given = bound().variables("discriminator")
        judged, _ = pair.D(x, jnp.zeros(3, jnp.int32), want=("b4", "pooled"), variables=given)
        expected = scale * np.maximum(judged.stages["b4"], 0).sum((1, 2))
        np.testing.assert_allclose(judged.stages["pooled"], expected, rtol=1e-5, atol=1e-6)


def test_logits_are_the_head_and_the_projection_on_the_row_of_the_class():
    pair = bound(spectral_d=False)
    _, x = pair.draws(3)
    labels = jnp.asarray([6, 0, 3])
    judged, _ = pair.D(x, labels, want=("pooled",))
    params, pooled = pair.variables("discriminator")["params"], judged.stages["pooled"]
    linear = (pooled @ params["head"]["kernel"])[:, 0] + params["head"]["bias"]
    rows = params["embed"]["embedding"][labels]
    np.testing.assert_allclose(judged.logits, linear + (rows * pooled).sum(1), rtol=1e-4, atol=1e-5)


def test_labels_are_class_weights_with_one_one():
    pair = bound()
    z, x = pair.draws(3)
    labels = jnp.asarray([6, 0, 3])
    for call, first in ((pair.G, z), (pair.D, x)):
        same, other = (call(first, c)[0][0] for c in (jax.nn.one_hot(labels, 7), labels[::-1]))
        np.testing.assert_allclose(call(first, labels)[0][0], same, rtol=1e-5, atol=1e-6)
        assert np.abs(same - other)[0].max() > 1e-3


def test_each_part_of_the_latent_is_read_from_its_block_on():
    pair, want = bound(), ("b8", "b16")
    (z, _), c = pair.draws(2), jnp.zeros(2, jnp.int32)
    before = pair.G(z, c, want=want)[0]
    # Part 0 goes into the first layer, part i + 1 into block i.
    for part, same, moved in ((0, (), ("b8", "b16")), (1, (), ("b8", "b16")), (2, ("b8",), ("b16",))):
        after = pair.G(z.at[:, 3 * part : 3 * part + 3].add(1.0), c, want=want)[0]
        for name in same:
            np.testing.assert_array_equal(after.stages[name], before.stages[name])
        for name in moved:
            assert np.abs(after.stages[name] - before.stages[name]).max() > 1e-3


def test_a_latent_is_as_long_as_its_parts_make_it():
    assert build(z_dim=10).z_dim == 9
    assert build(z_dim=10, hierarchical=False).z_dim == 10
    assert build(resolution=128, z_dim=128).z_dim == 126


def test_statistics_move_in_passes_that_keep_them_and_in_no_others():
    pair = bound()
    (z, x), c = pair.draws(4), jnp.zeros(4, jnp.int32)
    keep = ("batch_stats", "spectral")
    before = pair.variables("generator")
    _, nothing = pair.G(z, c)
    assert not nothing
    _, trained = pair.G(z, c, train=True, keep=keep)
    for name in keep:
        pairs = zip(jax.tree.leaves(before[name]), jax.tree.leaves(trained[name]), strict=True)
        assert all(np.abs(old - new).max() > 0 for old, new in pairs), name
    _, evaluated = pair.G(z, c, train=False, keep=("batch_stats",))
    jax.tree.map(np.testing.assert_array_equal, evaluated["batch_stats"], before["batch_stats"])
    _, judged = pair.D(x, c, train=True, keep=keep)
    assert set(judged) == {"spectral"}


def test_training_couples_the_images_of_a_batch_and_evaluation_does_not():
    pair, c = bound(), jnp.zeros(4, jnp.int32)
    z, _ = pair.draws(4)
    other = z.at[1:].add(1.0)
    first = lambda z, train: pair.G(z, c, train=train)[0].images[0]
    np.testing.assert_allclose(first(z, False), first(other, False), rtol=1e-6, atol=1e-6)
    assert np.abs(first(z, True) - first(other, True)).max() > 1e-3


def test_a_class_head_judges_classes_and_leaves_logits_as_they_are():
    plain, headed, scaled = bound(), bound(class_head=True), bound(class_head=True, class_head_scale=0.5)
    (_, x), c = plain.draws(3), jnp.zeros(3, jnp.int32)
    assert plain.D(x, c)[0].classes is None
    variables = headed.variables("discriminator")
    judged = headed.D(x, c, variables=variables)[0]
    assert judged.classes.shape == (3, 7)
    # Fresh biases are zero under this init.
    half = scaled.D(x, c, variables=variables)[0]
    np.testing.assert_allclose(half.classes, 0.5 * judged.classes, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(half.logits, judged.logits)
    assert headed.networks.has_class_head and not plain.networks.has_class_head


def test_without_spectral_norm_there_are_no_vectors_and_a_set_is_judged_in_two_passes():
    networks = build(spectral_g=False, spectral_d=False)
    for role in ROLES:
        assert not {"spectral", "constants"} & set(outlined(networks, role)[1])
    assert not networks.joint_pass
    networks = build()
    assert {"spectral", "constants"} <= set(outlined(networks, "discriminator")[1])
    assert networks.joint_pass


def test_both_forms_and_bfloat16_give_one_picture():
    plain, rewritten, half = bound(convolution="plain"), bound(), bound(dtype="bfloat16")
    (z, x), c = plain.draws(2), jnp.asarray([1, 2])
    for call, first in (("G", z), ("D", x)):
        role = {"G": "generator", "D": "discriminator"}[call]
        given = {"first": first, "c": c, "variables": plain.variables(role)}
        exact, same, rough = (getattr(pair, call)(**given)[0][0] for pair in (plain, rewritten, half))
        assert exact.dtype == same.dtype == rough.dtype == jnp.float32
        np.testing.assert_allclose(same, exact, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(rough, exact, rtol=0.1, atol=0.1)
        assert np.abs(rough - exact).max() > 1e-5
    assert np.abs(plain.G(z, c)[0].images).max() <= 1


def test_fresh_weights_take_the_deviations_of_their_options():
    options = {"embedding_std": 0.3, "condition_std": 0.2, "projection_std": 0.7, "num_classes": 400, "shared_dim": 61}
    pair = bound(**options, width=8)
    g, d = (pair.variables(role)["params"] for role in ROLES)
    assert g["shared"]["embedding"].std() == pytest.approx(0.3, rel=0.05)
    # Conditions are 61 numbers of the embedding and 3 of the latent.
    assert g["block_0"]["bn1"]["gain"]["kernel"].std() == pytest.approx(0.2 / 8, rel=0.1)
    assert d["embed"]["embedding"].std() == pytest.approx(0.7, rel=0.05)
    assert g["block_0"]["conv1"]["kernel"].std() == pytest.approx((9 * 32) ** -0.5, rel=0.1)


# What is refused.


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"resolution": 48}, "model.resolution: 48 .* 16 or 32 or 64 or 128 or 256 or 512"),
        ({"num_classes": 0}, "model.num_classes: 0 .* a whole number above 0"),
        ({"num_classes": 2.5}, "model.num_classes: 2.5 .* a whole number above 0"),
        ({"width": -4}, "model.width: -4 .* a whole number above 0"),
        ({"width_d": -1}, "model.width_d: -1 .* a whole number at least 0"),
        ({"channels": True}, "model.channels: True .* a whole number above 0"),
        ({"spectral_g": 1}, "model.spectral_g: 1 .* a bool"),
        ({"spectral_eps": 0.0}, "model.spectral_eps: 0.0 .* a number above 0"),
        ({"pool_scale": "1"}, "model.pool_scale: '1' .* a number above 0"),
        ({"init": "he"}, "model.init: 'he' .* 'orthogonal' or 'N02' or 'xavier' or 'fan_in'"),
        ({"dtype": "float16"}, "model.dtype: 'float16' .* 'float32' or 'bfloat16'"),
        ({"convolution": "fast"}, "model.convolution: 'fast' .* 'rewritten' or 'plain'"),
        ({"attention_g": "32"}, "model.attention_g: '32' .* 8, 16 joined"),
        ({"attention_d": "8_16"}, "model.attention_d: '8_16' .* 8, 4 joined"),
        ({"attention_g": "16"}, "model.attention_g: '16' .* at least 8 channels"),
        ({"z_dim": 2}, "model.z_dim: 2 .* at least 3"),
        ({"shared": False}, "model.hierarchical: True .* False where model.shared is False"),
        ({"depth": 2}, "model.depth: 2 .* one of the options resolution, channels"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_option_out_of_range_is_refused_by_name(options, words):
    with pytest.raises(UserError, match=words):
        build(**options)


def test_every_option_says_what_it_is_and_its_default_is_allowed():
    assert all(option.help for option in OPTIONS.values())
    networks = get_family("biggan").build(**{name: option.default for name, option in OPTIONS.items()})
    assert (networks.resolution, networks.channels, networks.num_classes, networks.z_dim) == (32, 3, 10, 128)
