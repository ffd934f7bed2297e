"""Classification accuracy score (Ravuri and Vinyals 2019): what does a classifier learn from samples alone?

Two classifiers of one kind: one learns from samples, one from real images, as many. Both are judged on real images
that neither has seen. Published code of the measure lets gradients pile up over an epoch; this one does not, so its
numbers compare with each other, by the protocol, and not with published tables.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, UInt8

from gantransfer.errors import UserError
from gantransfer.metrics.accuracy import classification_accuracy_score
from gantransfer.metrics.pictures import Pictures
from gantransfer.pretrained.source import in_batches

RATE, MOMENTUM, DECAY = 0.05, 0.9, 1e-4
GROUPS = 8
SMALLEST_MAP_PX = 4


class SmallClassifier(nn.Module):
    """3x3 convolutions with group norm, halving the picture down to 4 px; mean over the map; a linear head."""

    width: int
    num_classes: int

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n k"]:
        """Logits of pictures in [-1, 1]."""
        width = self.width
        x = nn.relu(nn.GroupNorm(GROUPS)(nn.Conv(width, (3, 3))(x)))
        while min(x.shape[1:3]) > SMALLEST_MAP_PX:
            width = min(2 * width, 8 * self.width)
            x = nn.relu(nn.GroupNorm(GROUPS)(nn.Conv(width, (3, 3), (2, 2))(x)))
        return nn.Dense(self.num_classes)(x.mean((1, 2)))


def accuracy_scores(fake: Pictures, real: Pictures, settings: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The score, the same of a classifier trained on real images, and their ratio.

    Half of the real images, class by class, train the second classifier; the other half judges both. The first gets as
    many samples.

    Args:
      fake: samples with labels.
      real: real images with labels.
      settings: `epochs`, `batch`, `width` of the first layer, `repetitions` over seeds.
      seed: of weights, orders and halves.

    Returns:
      `cas`, `cas_real_on_real`, `cas_ratio`, means over repetitions, and `spreads` and `details`.

    Raises:
      UserError: for a class with a single real image.
    """
    classes = int(max(fake.labels.max(), real.labels.max())) + 1
    train, test = halves(real.labels, seed)
    count = min(len(train), len(fake))
    drawn = np.random.Generator(np.random.PCG64(seed)).permutation(len(fake))[:count]
    judged = real.read(test)
    logits: dict[str, list[np.ndarray]] = {"fake": [], "real": []}
    for kind, side, rows in (("fake", fake, drawn), ("real", real, train)):
        images, labels = side.read(rows), np.asarray(side.labels)[rows]
        for repetition in range(settings["repetitions"]):
            key = jax.random.fold_in(jax.random.key(seed), repetition)
            logits[kind].append(_learnt(key, images, labels, judged, classes, settings))
    scores = [
        classification_accuracy_score(ours, theirs, real.labels[test])
        for ours, theirs in zip(logits["fake"], logits["real"], strict=True)
    ]
    names = {"cas": "value", "cas_real_on_real": "real_on_real", "cas_ratio": "ratio"}
    return {
        **{ours: float(np.mean([score[theirs] for score in scores])) for ours, theirs in names.items()},
        "spreads": {ours: float(np.std([score[theirs] for score in scores])) for ours, theirs in names.items()},
        "details": {"trained_on": count, "judged_on": len(test), "classes": classes},
    }


def halves(labels: Int[np.ndarray, " n"], seed: int) -> tuple[Int[np.ndarray, " a"], Int[np.ndarray, " b"]]:
    """Rows of two halves, class by class, in a seeded order; `UserError` for a class of one image."""
    rng, first, second = np.random.Generator(np.random.PCG64(seed)), [], []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        if len(members) < 2:
            raise UserError("cas", f"class {label} has one real image", "at least 2 of each class")
        first.append(members[: len(members) // 2])
        second.append(members[len(members) // 2 :])
    return np.concatenate(first), np.concatenate(second)


def _learnt(
    key: Array,
    images: UInt8[np.ndarray, "n h w c"],
    labels: Int[np.ndarray, " n"],
    judged: UInt8[np.ndarray, "m h w c"],
    classes: int,
    settings: Mapping[str, Any],
) -> Float[np.ndarray, "m k"]:
    """Logits, on images that are judged, of a classifier trained on others."""
    network = SmallClassifier(settings["width"], classes)
    batch = min(settings["batch"], len(images))
    steps = settings["epochs"] * (len(images) // batch)
    params = _trained(network, batch, steps, key, images, labels)
    return in_batches(partial(_judge, network, params), judged)


def _floats(images: UInt8[Array, "n h w c"]) -> Float[Array, "n h w c"]:
    return images.astype(jnp.float32) / 127.5 - 1


@partial(jax.jit, static_argnums=(0, 1, 2))
def _trained(network: SmallClassifier, batch: int, steps: int, key: Array, images: Array, labels: Array) -> Any:
    """Parameters after training: momentum with a rate that falls as a cosine, a new order each epoch."""
    optimizer = optax.chain(
        optax.add_decayed_weights(DECAY),
        optax.sgd(optax.cosine_decay_schedule(RATE, steps), momentum=MOMENTUM, nesterov=True),
    )
    params = network.init(jax.random.fold_in(key, 0), _floats(images[:1]))
    per_epoch = len(images) // batch

    def loss(params: Any, x: Array, y: Array) -> Array:
        return optax.softmax_cross_entropy_with_integer_labels(network.apply(params, x), y).mean()

    def step(carry: Any, number: Array) -> tuple[Any, None]:
        params, state = carry
        order = jax.random.permutation(jax.random.fold_in(key, 1 + number // per_epoch), len(images))
        rows = jax.lax.dynamic_slice_in_dim(order, number % per_epoch * batch, batch)
        gradient = jax.grad(loss)(params, _floats(images[rows]), labels[rows])
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(steps))
    return params


@partial(jax.jit, static_argnums=0)
def _judge(network: SmallClassifier, params: Any, images: Array) -> Array:
    return network.apply(params, _floats(images))
