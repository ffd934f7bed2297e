"""The three products of attention, each the derivative of the others, in orders of operands that are quick everywhere.

With queries `(n, q, c)`, keys `(n, k, c)` and weights `(n, q, k)`:

    scores(a, b)   sum over channels: (n, q, c), (n, k, c) -> (n, q, k)
    mixed(p, b)    sum over keys:     (n, q, k), (n, k, c) -> (n, q, c)
    gathered(p, a) sum over queries:  (n, q, k), (n, q, c) -> (n, k, c)

The derivative of each in either operand is one of the others, so derivatives of every order are made of these three.
"plain" leaves differentiation to JAX, which writes the sum over queries with the weights as its left operand: a CPU
takes ten times as long for it as for the same sum with the weights on the right. Both forms give equal numbers.

The rewritten form has no forward-mode derivative (`jax.jvp`).
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from gantransfer.models.convolution import Form

Queries = Float[Array, "n q c"]
Keys = Float[Array, "n k c"]
Weights = Float[Array, "n q k"]


def scores(a: Queries, b: Keys, form: Form) -> Weights:
    """Products of every query with every key, float32."""
    return (_plain_scores if form == "plain" else _scores)(a, b)


def mixed(p: Weights, b: Keys, form: Form) -> Queries:
    """Sums of values over keys, in the precision of the values."""
    return (_plain_mixed if form == "plain" else _mixed)(p, b)


def _plain_scores(a, b):
    return jnp.einsum("nqc,nkc->nqk", a, b, preferred_element_type=jnp.float32)


def _plain_mixed(p, b):
    return jnp.einsum("nqk,nkc->nqc", p, b)


_scores = jax.custom_vjp(_plain_scores)
_mixed = jax.custom_vjp(_plain_mixed)


@jax.custom_vjp
def _gathered(p: Weights, a: Queries) -> Keys:
    # Without the barrier XLA would turn the product around to save the transposition.
    return lax.optimization_barrier(jnp.einsum("nqc,nqk->nck", a, p)).swapaxes(1, 2)


def _scores_back(operands, g):
    a, b = operands
    return _mixed(g, b.astype(g.dtype)).astype(a.dtype), _gathered(g, a.astype(g.dtype)).astype(b.dtype)


def _mixed_back(operands, g):
    p, b = operands
    return _scores(g, b).astype(p.dtype), _gathered(p, g).astype(b.dtype)


def _gathered_back(operands, g):
    p, a = operands
    return _scores(a, g).astype(p.dtype), _mixed(p, g).astype(a.dtype)


_scores.defvjp(lambda a, b: (_plain_scores(a, b), (a, b)), _scores_back)
_mixed.defvjp(lambda p, b: (_plain_mixed(p, b), (p, b)), _mixed_back)
_gathered.defvjp(lambda p, a: (_gathered(p, a), (p, a)), _gathered_back)
