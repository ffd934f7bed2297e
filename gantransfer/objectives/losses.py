"""Adversarial losses by name, and the class cross-entropy.

Each loss is a pair: `discriminator(real, fake)` gives the two halves of the discriminator's loss, `generator(fake)` the
generator's. Both are minimised by their player. Logits are raw (no sigmoid), and a mean runs over the whole batch.
Where a discriminator has several heads, its logits are a tuple and a loss is the mean of the loss over the heads, so
that neither learning rates nor the weights of penalties depend on how many heads there are (some published multi-head
code takes the sum; multiply the learning rate accordingly to follow it).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gantransfer.errors import one_of
from gantransfer.models.family import Labels

Scalar = Float[Array, ""]
Logits = Array | tuple[Array, ...]


class AdversarialLoss(NamedTuple):
    """One rule of the game.

    Attributes:
      discriminator: `(real logits, fake logits) -> (loss of the reals, loss of the fakes)`; their sum is minimised.
      generator: `fake logits -> loss`.
    """

    discriminator: Callable[[Logits, Logits], tuple[Scalar, Scalar]]
    generator: Callable[[Logits], Scalar]


def mean_over_heads(term: Callable[[Array], Array], logits: Logits) -> Scalar:
    """Returns the mean over heads of the mean of `term` over each head's logits."""
    heads = logits if isinstance(logits, tuple) else (logits,)
    return jnp.mean(jnp.stack([jnp.mean(term(head)) for head in heads]))


def _pair(
    real: Callable[[Array], Array], fake: Callable[[Array], Array], generator: Callable[[Array], Array]
) -> AdversarialLoss:
    """Makes a loss from its three terms, each a function of logits that acts element by element."""

    def discriminate(real_logits: Logits, fake_logits: Logits) -> tuple[Scalar, Scalar]:
        return mean_over_heads(real, real_logits), mean_over_heads(fake, fake_logits)

    def generate(fake_logits: Logits) -> Scalar:
        return mean_over_heads(generator, fake_logits)

    return AdversarialLoss(discriminate, generate)


LOSSES: dict[str, AdversarialLoss] = {
    # Goodfellow et al. 2014, section 3: the generator's loss that keeps its gradient where the discriminator wins.
    "non_saturating": _pair(lambda t: jax.nn.softplus(-t), jax.nn.softplus, lambda t: jax.nn.softplus(-t)),
    # The same game as a true minimax, kept for comparison.
    "saturating": _pair(lambda t: jax.nn.softplus(-t), jax.nn.softplus, lambda t: -jax.nn.softplus(t)),
    # Lim and Ye 2017; Miyato et al. 2018, equations 16 and 17; BigGAN's loss.
    "hinge": _pair(lambda t: jax.nn.relu(1 - t), lambda t: jax.nn.relu(1 + t), lambda t: -t),
    # Mao et al. 2017, with the halves of its equation 9: reals to 1, fakes to 0.
    "least_squares": _pair(lambda t: 0.5 * (t - 1) ** 2, lambda t: 0.5 * t**2, lambda t: 0.5 * (t - 1) ** 2),
    # Arjovsky et al. 2017; means nothing without a penalty or a norm that bounds the critic's slope.
    "wasserstein": _pair(lambda t: -t, lambda t: t, lambda t: -t),
}


def get_loss(name: str) -> AdversarialLoss:
    """Returns the loss called `name`; raises `UserError` with the names that exist."""
    return LOSSES[one_of("objective.loss", name, LOSSES)]


def class_cross_entropy(class_logits: Float[Array, "n k"], labels: Labels) -> Scalar:
    """Mean cross-entropy in nats of class logits against labels: int32 `(n,)`, or class weights `(n, k)` of sum 1."""
    log_probabilities = jax.nn.log_softmax(class_logits)
    if labels.ndim == 1:
        return -jnp.mean(jnp.take_along_axis(log_probabilities, labels[:, None], axis=1))
    return -jnp.mean(jnp.sum(labels * log_probabilities, axis=1))
