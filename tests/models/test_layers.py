"""Shared layers do what their papers say: singular values, batch statistics, attention, class tables, fresh weights."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gantransfer.models import convolution
from gantransfer.models.layers import (
    Attention,
    BatchNorm,
    ClassTable,
    ConditionalBatchNorm,
    Conv,
    Dense,
    NormRule,
    Recipe,
    SpectralNorm,
    class_vector,
    normalised,
    standing_statistics,
)

PLAIN = Recipe()
SPECTRAL = Recipe(SpectralNorm())


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def close(a, b, tolerance=1e-5):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def conv(features, size, recipe):
    operation = convolution.conv3x3 if size == 3 else convolution.conv1x1
    return Conv(features, size, operation, recipe)


def kept_passes(layer, variables, x, count):
    """Variables after passes that keep their spectral vectors."""
    one = jax.jit(lambda variables: layer.apply(variables, x, mutable=["spectral"])[1]["spectral"])
    for _ in range(count):
        variables = {**variables, "spectral": one(variables)}
    return variables


# Spectral normalisation.

# layer, input, name of its weight, weight -> matrix
SPECTRAL_LAYERS = {
    "dense": (Dense(6, SPECTRAL), draw(3, 5), "kernel", lambda w: w),
    "convolution": (conv(6, 3, SPECTRAL), draw(2, 4, 4, 3), "kernel", lambda w: w.reshape(-1, w.shape[-1])),
    "table": (ClassTable(4, 6, SPECTRAL, spectral=SpectralNorm()), jnp.arange(4), "embedding", lambda w: w),
}


@pytest.mark.parametrize("name", SPECTRAL_LAYERS)
def test_sigma_becomes_the_largest_singular_value_of_the_whole_weight(name):
    layer, x, leaf, matrix = SPECTRAL_LAYERS[name]
    variables = layer.init(jax.random.key(0), x)
    # Far from orthogonal, so that singular values differ.
    variables["params"][leaf] = draw(*variables["params"][leaf].shape)
    true = np.linalg.svd(matrix(variables["params"][leaf]), compute_uv=False)[0]
    early = kept_passes(layer, variables, x, 1)["spectral"]["sigma"][0]
    late = kept_passes(layer, variables, x, 60)["spectral"]["sigma"][0]
    assert early < true * (1 + 1e-6)
    close(late, true, 1e-4)


def test_a_layer_computes_with_its_kernel_over_sigma():
    layer, x = Dense(6, SPECTRAL), draw(3, 5)
    variables = kept_passes(layer, layer.init(jax.random.key(0), x), x, 60)
    kernel, bias = 3 * draw(5, 6), variables["params"]["bias"]
    variables = kept_passes(layer, {**variables, "params": {"kernel": kernel, "bias": bias}}, x, 60)
    close(layer.apply(variables, x), x @ kernel / np.linalg.norm(kernel, 2) + bias, 1e-4)


def test_evaluation_takes_one_fresh_iteration_and_keeps_nothing():
    layer, x = Dense(6, Recipe(SpectralNorm(iterations=7))), draw(3, 5)
    variables = layer.init(jax.random.key(0), x)
    kernel, u = variables["params"]["kernel"], variables["spectral"]["u"][0]
    v = kernel @ u / jnp.linalg.norm(kernel @ u)
    sigma = jnp.linalg.norm(v @ kernel)
    out, changed = layer.apply(variables, x, mutable=[])
    assert not changed
    close(out, x @ kernel / sigma + variables["params"]["bias"])


def test_several_iterations_of_a_kept_pass_are_several_passes():
    x = draw(3, 5)
    once, thrice = (Dense(6, Recipe(SpectralNorm(iterations=n))) for n in (1, 3))
    variables = once.init(jax.random.key(0), x)
    variables["params"]["kernel"] = draw(5, 6)
    close(kept_passes(thrice, variables, x, 1)["spectral"]["u"], kept_passes(once, variables, x, 3)["spectral"]["u"])


def test_following_several_singular_values_divides_by_the_first():
    x, kernel = draw(3, 5), draw(5, 6)
    one, two = (Dense(6, Recipe(SpectralNorm(num_svs=n))) for n in (1, 2))
    variables = two.init(jax.random.key(0), x)
    variables["params"]["kernel"] = kernel
    variables = kept_passes(two, variables, x, 200)
    close(variables["spectral"]["sigma"], np.linalg.svd(kernel, compute_uv=False)[:2], 1e-3)
    first = {name: leaf[:1] for name, leaf in variables["spectral"].items()}
    close(two.apply(variables, x), one.apply({**variables, "spectral": first}, x))


def test_the_gradient_sees_that_sigma_follows_the_weight():
    """A weight over its singular value does not change with the weight's length, so no gradient lies along it."""
    layer, x = Dense(6, SPECTRAL), draw(3, 5)
    variables = layer.init(jax.random.key(0), x)
    loss = lambda kernel: jnp.sin(
        layer.apply({**variables, "params": {**variables["params"], "kernel": kernel}}, x)
    ).sum()
    kernel = draw(5, 6)
    gradient = jax.grad(loss)(kernel)
    assert jnp.linalg.norm(gradient) > 0.1
    assert abs(jnp.vdot(gradient, kernel)) < 1e-5 * jnp.linalg.norm(gradient) * jnp.linalg.norm(kernel)


def test_a_layer_without_vectors_takes_its_kernel_as_it_is():
    layer, x = Dense(6, SPECTRAL), draw(3, 5)
    params = layer.init(jax.random.key(0), x)["params"]
    params["kernel"] = 5 * params["kernel"]
    close(layer.apply({"params": params}, x), x @ params["kernel"] + params["bias"])


class Pair(nn.Module):
    """Two layers, to fold one of them."""

    @nn.compact
    def __call__(self, x):
        return Dense(3, SPECTRAL, name="second")(nn.relu(Dense(6, SPECTRAL, name="first")(x)))


def test_folding_leaves_outputs_as_they_are_and_takes_the_vectors_of_what_it_folds():
    x = draw(4, 5)
    variables = Pair().init(jax.random.key(0), x)
    variables["params"]["first"]["kernel"] = draw(5, 6)
    before = variables["params"]["first"]["kernel"].copy()
    folded = normalised(variables, lambda path: path == "first/kernel")
    assert set(folded["spectral"]) == {"second"}
    close(Pair().apply(folded, x), Pair().apply(variables, x))
    assert np.abs(folded["params"]["first"]["kernel"] - before).max() > 0.1
    np.testing.assert_array_equal(variables["params"]["first"]["kernel"], before)
    assert set(variables["spectral"]) == {"first", "second"}
    everything = normalised(variables, lambda path: True)
    assert "spectral" not in everything
    close(Pair().apply(everything, x), Pair().apply(variables, x))


# Batch normalisation.


@pytest.mark.parametrize("rule", ["unbiased", "biased"])
def test_running_values_follow_the_batch_by_the_stated_rule(rule):
    layer, x = BatchNorm(NormRule(decay=0.75, running_variance=rule), PLAIN), 2 * draw(3, 2, 2, 4) + 5
    variables = layer.init(jax.random.key(0), x, True)
    close(variables["batch_stats"]["mean"], np.zeros(4))
    close(variables["batch_stats"]["var"], np.ones(4))
    _, after = layer.apply(variables, x, True, mutable=["batch_stats"])
    flat = np.asarray(x, np.float64).reshape(-1, 4)
    close(after["batch_stats"]["mean"], 0.25 * flat.mean(0))
    close(after["batch_stats"]["var"], 0.75 + 0.25 * flat.var(0, ddof=int(rule == "unbiased")))


def test_training_normalises_with_the_batch_and_evaluation_with_the_running_values():
    layer, x = BatchNorm(NormRule(eps=1e-3), PLAIN), 2 * draw(8, 4, 4, 3) + 5
    gain, bias = jnp.asarray([1.0, 2.0, 3.0]), jnp.asarray([0.0, 1.0, -1.0])
    stats = {"mean": jnp.asarray([1.0, 2.0, 3.0]), "var": jnp.asarray([4.0, 1.0, 0.25])}
    variables = {"params": {"gain": gain, "bias": bias}, "batch_stats": stats}
    trained = layer.apply(variables, x, True)
    close(trained.mean((0, 1, 2)), bias, 1e-4)
    close(trained.std((0, 1, 2)), gain, 1e-3)
    evaluated, changed = layer.apply(variables, x, False, mutable=["batch_stats"])
    close(evaluated, (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-3) * gain + bias, 1e-4)
    close(changed["batch_stats"]["mean"], stats["mean"])


def test_a_constant_channel_far_from_zero_stays_finite():
    layer, x = BatchNorm(NormRule(), PLAIN), jnp.full((4, 8, 8, 1), 1000.1)
    out = layer.apply(layer.init(jax.random.key(0), x, True), x, True)
    # Without a bound, the difference of two rounded means would be the root of a negative number.
    assert np.isfinite(out).all()


def test_conditional_gain_and_bias_are_those_of_each_sample():
    layer, x, condition = ConditionalBatchNorm(NormRule(), PLAIN), draw(3, 4, 4, 2), draw(3, 5)
    variables = layer.init(jax.random.key(0), x, condition, True)
    gain, bias = (condition @ variables["params"][name]["kernel"] for name in ("gain", "bias"))
    assert all("bias" not in leaf for leaf in variables["params"].values())
    plain = BatchNorm(NormRule(), PLAIN)
    normal = plain.apply(plain.init(jax.random.key(0), x, True), x, True)
    expected = normal * (1 + gain[:, None, None]) + bias[:, None, None]
    close(layer.apply(variables, x, condition, True), expected, 1e-4)


def test_class_tables_of_a_norm_are_read_by_label_and_never_divided():
    layer = ConditionalBatchNorm(NormRule(), SPECTRAL, num_classes=3)
    x, labels = draw(3, 4, 4, 2), jnp.asarray([2, 0, 1])
    variables = layer.init(jax.random.key(0), x, labels, False)
    assert "spectral" not in variables
    gain = variables["params"]["gain"]["embedding"][labels]
    bias = variables["params"]["bias"]["embedding"][labels]
    expected = x / np.sqrt(1 + 1e-5) * (1 + gain[:, None, None]) + bias[:, None, None]
    close(layer.apply(variables, x, labels, False), expected)


class Small(nn.Module):
    """A generator of one layer and one normalisation, for standing statistics."""

    @nn.compact
    def __call__(self, z, c, train=False):
        x = Dense(4, SPECTRAL, name="linear")(z + c[:, None])[:, None, None]
        return BatchNorm(NormRule(), PLAIN, name="norm")(x, train)


def test_standing_statistics_are_means_over_batches_of_their_own_moments():
    z, c = draw(3, 6, 2), jnp.zeros((3, 6), jnp.int32).at[1].set(4)
    variables = Small().init(jax.random.key(0), z[0], c[0])
    variables["batch_stats"]["norm"]["mean"] = jnp.full(4, 100.0)
    standing = standing_statistics(Small(), variables, z, c)
    means, spectral = [], variables["spectral"]
    squares = []
    for batch in range(3):
        given = {**variables, "spectral": spectral}
        layer = {"params": variables["params"]["linear"], "spectral": spectral["linear"]}
        out = Dense(4, SPECTRAL).apply(layer, z[batch] + c[batch][:, None])
        means.append(out.mean(0))
        squares.append(out.var(0))
        spectral = Small().apply(given, z[batch], c[batch], train=True, mutable=["spectral"])[1]["spectral"]
    close(standing["batch_stats"]["norm"]["mean"], np.mean(means, 0), 1e-4)
    close(standing["batch_stats"]["norm"]["var"], np.mean(squares, 0), 1e-4)
    close(standing["spectral"]["linear"]["u"], spectral["linear"]["u"])
    assert set(standing) == {"params", "spectral", "batch_stats"}
    close(variables["batch_stats"]["norm"]["mean"], np.full(4, 100.0))


# Attention and class tables.


@pytest.mark.parametrize("form", convolution.FORMS)
def test_attention_mixes_pooled_values_by_unscaled_products(form):
    layer, x = Attention(Recipe(form=form)), draw(2, 4, 6, 8)
    variables = layer.init(jax.random.key(0), x)
    np.testing.assert_array_equal(layer.apply(variables, x), x)
    theta, phi, g, o = (np.asarray(variables["params"][name]["kernel"][0, 0]) for name in ("theta", "phi", "g", "o"))
    assert (theta.shape, phi.shape, g.shape, o.shape) == ((8, 1), (8, 1), (8, 4), (4, 8))
    pool = lambda a: a.reshape(2, 2, 2, 3, 2, -1).max((2, 4)).reshape(2, 6, -1)
    scores = np.einsum("nqc,nkc->nqk", (x @ theta).reshape(2, 24, -1), pool(x @ phi))
    shares = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    mixed = np.einsum("nqk,nkc->nqc", shares, pool(x @ g)).reshape(2, 4, 6, 4) @ o
    variables["params"]["gamma"] = jnp.float32(0.5)
    close(layer.apply(variables, x), x + 0.5 * mixed, 1e-4)


def test_class_weights_mix_rows():
    table = draw(3, 5)
    close(class_vector(table, jnp.asarray([2, 0])), table[jnp.asarray([2, 0])])
    close(class_vector(table, jnp.eye(3)[jnp.asarray([2, 0])]), table[jnp.asarray([2, 0])])
    close(class_vector(table, jnp.asarray([[0.25, 0.0, 0.75]])), 0.25 * table[:1] + 0.75 * table[2:])


# Fresh weights.


def fresh(init, shape=(3, 3, 32, 64), **settings):
    recipe = Recipe(init=init)
    layer = conv(shape[-1], 3, recipe) if len(shape) == 4 else Dense(shape[-1], recipe, **settings)
    x = jnp.zeros((1, 4, 4, shape[2])) if len(shape) == 4 else jnp.zeros((1, shape[0]))
    return jax.tree.map(np.asarray, layer.init(jax.random.key(0), x)["params"])


def test_orthogonal_kernels_have_orthonormal_outputs():
    kernel = fresh("orthogonal")["kernel"].reshape(-1, 64)
    close(kernel.T @ kernel, np.eye(64), 1e-4)


def test_n02_kernels_are_normal_with_deviation_two_hundredths():
    kernel = fresh("N02")["kernel"]
    assert kernel.std() == pytest.approx(0.02, rel=0.02)
    # A normal draw, not a uniform one of this deviation.
    assert (np.abs(kernel) > 0.05).mean() == pytest.approx(0.0124, rel=0.15)


def test_xavier_kernels_are_uniform_within_the_bound_of_both_fans():
    kernel, bound = fresh("xavier")["kernel"], (6 / (9 * 32 + 9 * 64)) ** 0.5
    assert 0.99 * bound < np.abs(kernel).max() <= bound
    assert kernel.std() == pytest.approx(bound / 3**0.5, rel=0.02)


def test_fan_in_kernels_keep_the_size_of_what_they_are_given():
    assert fresh("fan_in")["kernel"].std() == pytest.approx((9 * 32) ** -0.5, rel=0.02)
    assert fresh("fan_in", (64, 300), gain=0.5)["kernel"].std() == pytest.approx(0.5 / 8, rel=0.02)


def test_biases_start_at_zero_under_fan_in_and_uniform_elsewhere():
    assert not fresh("fan_in", (64, 300))["bias"].any()
    for init in ("orthogonal", "N02", "xavier"):
        bias = fresh(init, (64, 300))["bias"]
        assert 0.9 / 8 < np.abs(bias).max() <= 1 / 8


def test_tables_take_their_own_deviation_under_fan_in_only():
    rows = lambda init: ClassTable(40, 50, Recipe(init=init), std=0.25).init(jax.random.key(0), jnp.zeros(1, int))
    assert rows("fan_in")["params"]["embedding"].std() == pytest.approx(0.25, rel=0.05)
    assert rows("N02")["params"]["embedding"].std() == pytest.approx(0.02, rel=0.05)


# Precision.


BFLOAT = Recipe(SpectralNorm(), dtype="bfloat16")
HALF = {
    "dense": (Dense(6, BFLOAT), (draw(3, 8),), jnp.float32),
    "convolution": (conv(6, 3, BFLOAT), (draw(2, 4, 4, 8),), jnp.bfloat16),
    "norm": (BatchNorm(NormRule(), BFLOAT), (draw(2, 4, 4, 8), True), jnp.bfloat16),
    "attention": (Attention(BFLOAT), (draw(2, 4, 4, 8).astype(jnp.bfloat16),), jnp.bfloat16),
}


@pytest.mark.parametrize("name", HALF)
def test_under_bfloat16_everything_that_is_kept_stays_float32(name):
    layer, inputs, expected = HALF[name]
    variables = layer.init(jax.random.key(0), *inputs)
    out, changed = layer.apply(variables, *inputs, mutable=["spectral", "batch_stats"])
    assert out.dtype == expected
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, changed))} == {jnp.dtype(jnp.float32)}


def test_under_bfloat16_products_are_those_of_rounded_operands():
    x, layer = draw(3, 64), Dense(6, Recipe(dtype="bfloat16"))
    variables = layer.init(jax.random.key(0), x)
    round_off = lambda a: np.asarray(a.astype(jnp.bfloat16), np.float64)
    kernel, bias = variables["params"]["kernel"], variables["params"]["bias"]
    close(layer.apply(variables, x), round_off(x) @ round_off(kernel) + np.asarray(bias), 1e-4)
    assert np.abs(layer.apply(variables, x) - (x @ kernel + bias)).max() > 1e-4
