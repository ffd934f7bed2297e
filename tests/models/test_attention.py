"""Attention's products: both forms are equal to second order, and no derivative turns the large weights over."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gantransfer.models.attention import mixed, scores
from gantransfer.models.layers import Attention, Recipe

N, Q, K, C, V = 2, 24, 6, 3, 5


def attended(form):
    def attend(query, key, value):
        return mixed(jax.nn.softmax(scores(query, key, form)), value, form)

    return attend


@pytest.fixture(scope="module")
def operands():
    draw = np.random.default_rng(0)
    shapes = ((N, Q, C), (N, K, C), (N, K, V), (N, Q, V))
    return [jnp.asarray(draw.standard_normal(shape), jnp.float32) for shape in shapes]


def derivatives(form):
    """Values, first derivatives, and those of a function of the first ones, as a gradient penalty takes them."""

    def penalty(query, key, value, g):
        _, pullback = jax.vjp(attended(form), query, key, value)
        firsts = pullback(g)
        return sum(jnp.square(first).sum() for first in firsts), firsts

    def run(query, key, value, g):
        seconds, firsts = jax.grad(penalty, (0, 1, 2, 3), has_aux=True)(query, key, value, g)
        return attended(form)(query, key, value), firsts, seconds

    return jax.jit(run)


def test_both_forms_are_equal_to_second_order(operands):
    plain, rewritten = (derivatives(form)(*operands) for form in ("plain", "rewritten"))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(rewritten), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(("form", "turned"), [("plain", True), ("rewritten", False)])
def test_only_the_plain_form_sums_over_the_rows_of_its_left_operand(form, turned):
    """The slow product: the large weights `(n, 64, 16)` on the left, contracted over their queries."""
    x = jnp.zeros((2, 8, 8, 16))
    layer = Attention(Recipe(form=form))
    variables = layer.init(jax.random.key(0), x)
    compiled = jax.jit(jax.grad(lambda v: layer.apply(v, x).sum())).lower(variables).compile().as_text()
    dots = re.findall(r"= f32\[([\d,]+)\]\S* dot\(.*lhs_contracting_dims=\{1\}.*rhs_contracting_dims=\{1\}", compiled)
    assert bool([shape for shape in dots if shape.startswith("2,16,")]) == turned


def test_half_precision_keeps_the_type_of_each_operand(operands):
    query, key, value, g = (a.astype(jnp.bfloat16) for a in operands)
    weights = scores(query, key, "rewritten")
    assert weights.dtype == jnp.float32
    out, pullback = jax.vjp(
        lambda *a: mixed(scores(*a[:2], "rewritten").astype(a[2].dtype), a[2], "rewritten"), query, key, value
    )
    assert out.dtype == jnp.bfloat16
    assert {part.dtype for part in pullback(g)} == {jnp.dtype(jnp.bfloat16)}
