"""One record of everything the quickstart measures of a set of samples, with the protocol it was measured under."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

import gantransfer
from gantransfer.errors import one_of
from gantransfer.features import FeatureNetwork
from gantransfer.metrics.accuracy import class_accuracy, within_class_deviation
from gantransfer.metrics.frechet import frechet_distance
from gantransfer.metrics.memorisation import memorisation_ratio
from gantransfer.metrics.precision_recall import precision_recall_density_coverage

REFERENCES = ("auto", "held_out", "all")
# Below this, the reference's own covariance is too noisy for leaving out the training images to be a gain.
ENOUGH_HELD_OUT = 500
MEMORISATION_SAMPLES = 500
DRAW_SEED = 0


@dataclass(frozen=True)
class _References:
    """The real images that samples are compared with, and those that were not trained on."""

    rule: str
    images: UInt8[np.ndarray, "n h w c"]
    labels: Int[np.ndarray, " n"]
    held_out: UInt8[np.ndarray, "m h w c"]


def evaluate_images(
    images: UInt8[np.ndarray, "n h w c"],
    labels: Int[np.ndarray, " n"],
    real_images: UInt8[np.ndarray, "m h w c"],
    real_labels: Int[np.ndarray, " m"],
    train_images: UInt8[np.ndarray, "t h w c"],
    network: FeatureNetwork,
    *,
    k: int = 3,
    reference: str = "auto",
    seed: int | None = None,
) -> dict[str, Any]:
    """Measures samples against real images.

    Args:
      images, labels: samples and the classes they were asked for.
      real_images, real_labels: real images; may contain the training images.
      train_images: what the generator was finetuned on.
      network: a feature network whose logits count the classes that labels do.
      k: neighbour that sets the radius of precision, recall, density and coverage.
      reference: `held_out` compares with the real images that were not trained on; `all` with all of them, which
        flatters memorising; `auto` is `held_out` where at least 500 are left, else `all`.
      seed: of the samples, for the record.

    Returns:
      JSON-ready: `class_accuracy`, `frechet_distance`, `precision`, `recall`, `density`, `coverage`, `memorisation`
      (None where every real image was trained on), `within_class_deviation`, and `protocol`, a dict: two records
      compare only where their protocols are equal.

    Raises:
      UserError: for an unknown reference, one of no more than `k` images, or images that the network does not take.
    """
    real = _choose_reference(reference, real_images, real_labels, train_images)
    fake_out, real_out = network(images), network(real.images)
    fake_features, real_features = fake_out["features"], real_out["features"]
    n = min(len(images), len(real.images))
    balls = precision_recall_density_coverage(_draw(real_features, n), _draw(fake_features, n), k)
    judged = _draw(images, min(MEMORISATION_SAMPLES, len(images)))
    memorisation = (
        memorisation_ratio(judged, train_images, real.held_out, seed=DRAW_SEED) if len(real.held_out) else None
    )
    return {
        "class_accuracy": class_accuracy(fake_out["logits"], labels),
        "frechet_distance": frechet_distance(real_features, fake_features),
        **balls,
        "memorisation": memorisation,
        "within_class_deviation": within_class_deviation(images, labels, real.images, real.labels),
        "protocol": {
            "n_generated": len(images),
            "n_real": len(real.images),
            "n_precision_recall": n,
            "n_memorisation": len(judged),
            "n_train": len(train_images),
            "reference": real.rule,
            "k": k,
            "divisor": "n - 1",
            "draw_seed": DRAW_SEED,
            "seed": seed,
            "resolution": images.shape[1],
            "network": network.name,
            "network_sha256": network.sha256,
            "versions": {"gantransfer": gantransfer.__version__, "jax": jax.__version__, "numpy": np.__version__},
        },
    }


def _choose_reference(
    reference: str,
    images: UInt8[np.ndarray, "n h w c"],
    labels: Int[np.ndarray, " n"],
    train_images: UInt8[np.ndarray, "t h w c"],
) -> _References:
    one_of("reference", reference, REFERENCES)
    trained_on = _is_among(images, train_images)
    held_out = images[~trained_on]
    if reference == "held_out" or (reference == "auto" and len(held_out) >= ENOUGH_HELD_OUT):
        return _References("real images that were not trained on", held_out, labels[~trained_on], held_out)
    rule = f"all real images, {int(trained_on.sum())} of them trained on"
    return _References(rule, images, labels, held_out)


def _is_among(images: UInt8[np.ndarray, "n h w c"], known: UInt8[np.ndarray, "t h w c"]) -> Bool[np.ndarray, " n"]:
    """Which images equal one of the known ones, pixel for pixel."""
    seen = {image.tobytes() for image in known}
    return np.array([image.tobytes() in seen for image in images], bool)


def _draw(rows: UInt8[np.ndarray, "n ..."] | Float[np.ndarray, "n ..."], count: int) -> np.ndarray:
    """`count` rows drawn by a fixed seed: the first ones of a set sorted by class would be its first classes."""
    if count == len(rows):
        return rows
    return rows[np.random.Generator(np.random.PCG64(DRAW_SEED)).permutation(len(rows))[:count]]
