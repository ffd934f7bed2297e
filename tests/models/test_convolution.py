"""Every rewritten convolution equals its plain form: values, gradients and second derivatives."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gantransfer.models import convolution

# name: (operation, shape of x, shape of the kernel)
CONVOLUTIONS = {
    "conv3x3": (convolution.conv3x3, (2, 6, 4, 3), (3, 3, 3, 9)),
    "conv3x3 to few channels": (convolution.conv3x3, (2, 4, 6, 9), (3, 3, 9, 3)),
    "conv3x3 of one channel": (convolution.conv3x3, (2, 4, 4, 1), (3, 3, 1, 2)),
    "conv3x3 to one channel": (convolution.conv3x3, (2, 4, 4, 8), (3, 3, 8, 1)),
    "conv1x1": (convolution.conv1x1, (2, 4, 6, 3), (1, 1, 3, 5)),
    "upsample_conv3x3": (convolution.upsample_conv3x3, (2, 4, 3, 3), (3, 3, 3, 5)),
    "upsample_conv3x3 in phases": (convolution.upsample_conv3x3, (2, 8, 9, 3), (3, 3, 3, 5)),
    "conv3x3_pool": (convolution.conv3x3_pool, (2, 6, 4, 3), (3, 3, 3, 5)),
    "conv3x3_pool with a gradient in phases": (convolution.conv3x3_pool, (2, 16, 18, 3), (3, 3, 3, 5)),
    "upsample_conv1x1": (convolution.upsample_conv1x1, (2, 4, 3, 3), (1, 1, 3, 5)),
    "conv1x1_pool": (convolution.conv1x1_pool, (2, 6, 4, 3), (1, 1, 3, 5)),
    "conv_same of an odd kernel": (convolution.conv_same, (2, 6, 5, 3), (5, 5, 3, 2)),
    "conv_same of an even kernel": (convolution.conv_same, (2, 6, 5, 3), (4, 4, 3, 2)),
    "conv_valid": (convolution.conv_valid, (2, 6, 5, 3), (4, 4, 3, 5)),
    "conv_down by 4x4": (convolution.conv_down, (2, 6, 4, 3), (4, 4, 3, 5)),
    "conv_down by 5x5": (convolution.conv_down, (2, 6, 4, 3), (5, 5, 3, 5)),
    "conv_down of an odd size": (convolution.conv_down, (2, 7, 5, 3), (4, 4, 3, 5)),
    "conv_up by 4x4": (convolution.conv_up, (2, 4, 3, 3), (4, 4, 3, 5)),
    "conv_up by 4x4 in phases": (convolution.conv_up, (2, 8, 9, 3), (4, 4, 3, 5)),
    "conv_up by 5x5": (convolution.conv_up, (2, 4, 3, 3), (5, 5, 3, 5)),
}
RESAMPLINGS = {
    "upsample2": convolution.upsample2,
    "mean_pool2": convolution.mean_pool2,
    "max_pool2": convolution.max_pool2,
}


def draw(*shapes):
    numbers = np.random.default_rng(0)
    return tuple(jnp.asarray(numbers.normal(size=shape), jnp.float32) for shape in shapes)


def assert_close(a, b, tolerance=2e-5):
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert left.shape == right.shape and left.dtype == right.dtype
        np.testing.assert_allclose(left, right, rtol=0, atol=tolerance * float(jnp.abs(right).max()))


@partial(jax.jit, static_argnums=0)
def derivatives(function, *operands):
    """Value, first derivatives, and the derivatives of the squared gradient in the first operand (as R1 takes them)."""

    def loss(*operands):
        return jnp.sin(function(*operands)).sum()

    def penalty(*operands):
        return (jax.grad(loss)(*operands) ** 2).sum()

    every = tuple(range(len(operands)))
    return function(*operands), jax.grad(loss, every)(*operands), jax.grad(penalty, every)(*operands)


@pytest.fixture(autouse=True)
def exact_products():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_rewritten_convolution_equals_the_plain_one_to_second_order(name):
    operation, *shapes = CONVOLUTIONS[name]
    operands = draw(*shapes)
    rewritten, plain = (derivatives(partial(operation, form=form), *operands) for form in convolution.FORMS)
    assert_close(rewritten, plain)


@pytest.mark.parametrize("name", RESAMPLINGS)
def test_rewritten_resampling_equals_the_plain_one_to_second_order(name):
    operands = draw((2, 4, 6, 3))
    rewritten, plain = (derivatives(partial(RESAMPLINGS[name], form=form), *operands) for form in convolution.FORMS)
    assert_close(rewritten, plain)


def test_upsampling_repeats_and_pooling_reduces_squares():
    (x,) = draw((1, 2, 4, 1))
    for form in convolution.FORMS:
        up = convolution.upsample2(x, form)
        for row in range(2):
            for column in range(2):
                assert_close(up[:, row::2, column::2], x)
        assert_close(convolution.mean_pool2(up, form), x)
        assert_close(convolution.max_pool2(x, form)[0, 0, 0, 0], x[0, :2, :2].max())


# Sizes where the strided convolution leaves rows unused are the ones that padding rules get wrong.
TRIPLES = [
    (3, 1, 1, (5, 4)),
    (4, 2, 1, (6, 8)),
    (4, 2, 1, (7, 5)),
    (4, 2, 1, (16, 20)),
    (3, 2, 0, (7, 6)),
    (5, 3, 2, (8, 9)),
    (1, 1, 0, (3, 3)),
]


@pytest.mark.parametrize(("kernel", "stride", "padding", "size"), TRIPLES)
def test_the_three_maps_are_adjoint(kernel, stride, padding, size):
    u, k = draw((2, *size, 3), (kernel, kernel, 3, 4))
    out = convolution.convolve(u, k, stride, padding)
    (x,) = draw(out.shape)
    expected = jnp.vdot(out, x)
    assert_close(jnp.vdot(u, convolution.transposed(x, k, stride, padding, size)), expected, 1e-4)
    assert_close(jnp.vdot(k, convolution.kernel_gradient(u, x, stride, padding, (kernel, kernel))), expected, 1e-4)


def test_derivatives_of_each_map_are_the_other_two():
    u, k, x = draw((2, 6, 6, 3), (4, 4, 3, 5), (2, 3, 3, 5))

    def by_autodiff(u, k):
        return jax.lax.conv_general_dilated(u, k, (2, 2), [(1, 1)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def adjoint_in_input(x, k):
        return jax.vjp(lambda u: by_autodiff(u, k), u)[1](x)[0]

    def adjoint_in_kernel(u, x):
        return jax.vjp(lambda k: by_autodiff(u, k), k)[1](x)[0]

    for ours, plain, operands in (
        (lambda u, k: convolution.convolve(u, k, 2, 1), by_autodiff, (u, k)),
        (lambda x, k: convolution.transposed(x, k, 2, 1, (6, 6)), adjoint_in_input, (x, k)),
        (lambda u, x: convolution.kernel_gradient(u, x, 2, 1, (4, 4)), adjoint_in_kernel, (u, x)),
    ):
        assert_close(derivatives(ours, *operands), derivatives(plain, *operands))


def test_kernel_gradient_of_a_large_batch_is_the_sum_of_its_parts(monkeypatch):
    u, x = draw((8, 4, 4, 3), (8, 4, 4, 32))
    whole = convolution.kernel_gradient(u, x, 1, 1, (3, 3))
    monkeypatch.setattr(convolution, "_CACHED_VALUES", 1500)
    program = jax.jit(lambda u, x: convolution.kernel_gradient(u, x, 1, 1, (3, 3))).lower(u, x)
    assert program.as_text().count("stablehlo.convolution") == 4
    assert_close(program.compile()(u, x), whole)


def test_bfloat16_operands_give_bfloat16_and_finite_gradients():
    x, kernel = draw((2, 4, 4, 8), (3, 3, 8, 8))
    value, gradients, _ = derivatives(
        partial(convolution.upsample_conv3x3, form="rewritten"), x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    )
    assert {leaf.dtype for leaf in jax.tree.leaves((value, gradients))} == {jnp.dtype(jnp.bfloat16)}
    exact = convolution.upsample_conv3x3(x, kernel, "plain")
    assert_close(value.astype(jnp.float32), exact, 3e-2)


def test_no_transposed_convolution_has_a_kernel_larger_than_its_operand():
    # XLA computes such a convolution on a CPU in a plain loop, some twenty times slower.
    x, k = jnp.zeros((1, 4, 3, 2)), jnp.zeros((5, 5, 2, 3))
    traced = jax.make_jaxpr(lambda x, k: convolution.conv_up(x, k, "rewritten"))(x, k)
    (found,) = [e for e in _equations(traced.jaxpr) if e.primitive.name == "conv_general_dilated"]
    operand, kernel = (variable.aval.shape for variable in found.invars)
    assert min(operand[1:3]) >= max(kernel[:2])
    assert found.outvars[0].aval.shape == (1, 8, 6, 3)


def _equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(tuple(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
            if hasattr(value, "eqns"):
                yield from _equations(getattr(value, "jaxpr", value))
