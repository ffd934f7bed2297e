"""Trains the two shipped character classifiers again: `python -m gantransfer.features.train_small_cnn digits`.

One seed, one machine and one JAX version give the same file, byte for byte. The training digits are those of
`data.counts.digits_split`; the test accuracy in the record is on images that the network has never seen.
"""

import argparse
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8

from gantransfer.data import glyphs
from gantransfer.data.counts import digit_counts, digits_split, enlarge
from gantransfer.features import small_cnn


@dataclass(frozen=True)
class Training:
    """How a classifier is trained: AdamW with a cosine schedule, small shifts, noise and label smoothing.

    Args:
      steps, batch: length of the training, images per step (drawn with replacement).
      rate, decay: peak learning rate and weight decay of AdamW.
      shift: largest shift in pixels, each way; the border is filled with black.
      noise: deviation of the normal noise added to images in [-1, 1].
      smoothing: share of each label that is spread over all classes.
      seed: of initialisation, batches and augmentation.
    """

    steps: int = 1200
    batch: int = 128
    rate: float = 2e-3
    decay: float = 1e-4
    shift: int = 1
    noise: float = 0.05
    smoothing: float = 0.05
    seed: int = 0


@dataclass(frozen=True)
class Task:
    """Images and labels to train on and to test on, and the names of the classes."""

    train_images: UInt8[np.ndarray, "n h w 1"]
    train_labels: Int[np.ndarray, " n"]
    test_images: UInt8[np.ndarray, "m h w 1"]
    test_labels: Int[np.ndarray, " m"]
    classes: tuple[str, ...]


def digits_task() -> Task:
    """1,437 training and 360 test digits."""
    counts, labels = digit_counts()
    images = enlarge(counts, small_cnn.RESOLUTION)
    train, test = digits_split()
    return Task(images[train], labels[train], images[test], labels[test], tuple("0123456789"))


def letters_task() -> Task:
    """11,100 training letters and 1,110 test letters of another seed."""
    train_images, train_labels, classes = glyphs.open_glyphs("train", small_cnn.RESOLUTION)
    test_images, test_labels, _ = glyphs.open_glyphs("test", small_cnn.RESOLUTION)
    return Task(train_images, train_labels, test_images, test_labels, classes)


TASKS = {"digits": (digits_task, Training(steps=1200)), "letters": (letters_task, Training(steps=1500))}


def train(task: Task, training: Training) -> dict[str, Any]:
    """Returns the trained parameters; every random number is folded from the seed and the step."""
    network = small_cnn.CharacterClassifier(len(task.classes))
    optimizer = optax.adamw(optax.cosine_decay_schedule(training.rate, training.steps), weight_decay=training.decay)
    images, labels = jnp.asarray(task.train_images), jnp.asarray(task.train_labels)

    def loss(params: Any, key: PRNGKeyArray) -> Float[Array, ""]:
        draw, augmentation = jax.random.split(key)
        chosen = jax.random.randint(draw, (training.batch,), 0, len(images))
        batch = _augment(augmentation, small_cnn.to_unit(images[chosen]), training)
        _, logits = network.apply({"params": params}, batch)
        targets = optax.smooth_labels(jax.nn.one_hot(labels[chosen], len(task.classes)), training.smoothing)
        return optax.softmax_cross_entropy(logits, targets).mean()

    @jax.jit
    def start(key: PRNGKeyArray) -> tuple[Any, Any]:
        params = network.init(key, small_cnn.to_unit(images[:1]))["params"]
        return params, optimizer.init(params)

    @jax.jit
    def step(params: Any, state: Any, key: PRNGKeyArray) -> tuple[Any, Any]:
        updates, state = optimizer.update(jax.grad(loss)(params, key), state, params)
        return optax.apply_updates(params, updates), state

    key = jax.random.key(training.seed)
    params, state = start(key)
    for number in range(training.steps):
        params, state = step(params, state, jax.random.fold_in(key, number))
    return jax.device_get(params)


def _augment(key: PRNGKeyArray, x: Float[Array, "n h w 1"], training: Training) -> Float[Array, "n h w 1"]:
    shift_key, noise_key = jax.random.split(key)
    reach = training.shift
    wide = jnp.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)), constant_values=-1)
    offsets = jax.random.randint(shift_key, (len(x), 2), 0, 2 * reach + 1)
    shifted = jax.vmap(lambda image, at: jax.lax.dynamic_slice(image, (at[0], at[1], 0), x.shape[1:]))(wide, offsets)
    return shifted + training.noise * jax.random.normal(noise_key, x.shape)


def train_and_save(name: str, path: Path, training: Training | None = None) -> Mapping[str, Any]:
    """Trains `digits` or `letters`, writes weights and record, and returns the record (test accuracy included)."""
    make_task, default = TASKS[name]
    training = training or default
    task = make_task()
    params = train(task, training)
    record = {
        "network": path.stem,
        "architecture": "small_cnn: three 3x3 convolutions 24-32-48, 48 features, linear head",
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "classes": list(task.classes),
        "command": f"python -m gantransfer.features.train_small_cnn {name}",
        "training": asdict(training),
        "train_images": len(task.train_images),
        "test_images": len(task.test_images),
        "versions": {"jax": jax.__version__, "numpy": np.__version__},
    }
    network = small_cnn.SmallCNN(path.stem, params, "", record)
    logits = network(task.test_images)["logits"]
    record["test_accuracy"] = float(np.mean(logits.argmax(1) == task.test_labels))
    small_cnn.save(path, params, record)
    return record


def main(argv: list[str]) -> int:
    """The command line: which classifier, and where its weights go."""
    parser = argparse.ArgumentParser(prog="python -m gantransfer.features.train_small_cnn", description=__doc__)
    parser.add_argument("name", choices=sorted(TASKS))
    parser.add_argument("--out", type=Path, help="the .safetensors file; default: the weights that ship")
    options = parser.parse_args(argv)
    path = options.out or small_cnn.WEIGHTS / f"{options.name}_cnn.safetensors"
    record = train_and_save(options.name, path)
    print(f"{path}: test accuracy {record['test_accuracy']:.4f} on {record['test_images']} images", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
