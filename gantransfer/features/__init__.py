"""Frozen feature networks for metrics, and where their published weights are."""

import json
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8

from gantransfer.errors import one_of


@runtime_checkable
class FeatureNetwork(Protocol):
    """What every feature network is: a function of uint8 images with a name and the hash of its weights.

    Attributes:
      name: what records call it.
      sha256: of its weights file.
      info: where the weights are from and what they were measured to do.
    """

    name: str
    sha256: str
    info: Mapping[str, Any]

    def __call__(self, images: UInt8[np.ndarray, "n h w c"]) -> dict[str, Float[np.ndarray, "n _"]]:
        """Returns `features` `(n, d)` and, where the network classifies, `logits` `(n, k)`, float32."""
        ...


def available() -> dict[str, str]:
    """Returns a line about each feature network, by name."""
    from gantransfer.features import small_cnn

    lines = {}
    for name in small_cnn.SHIPPED:
        record = json.loads((small_cnn.WEIGHTS / f"{name}.json").read_text("utf-8"))
        classes, size = len(record["classes"]), small_cnn.RESOLUTION
        lines[name] = (
            f"{classes} classes of {size}x{size} grey images, {small_cnn.FEATURES} features, "
            f"right on {100 * record['test_accuracy']:.1f} % of {record['test_images']} images it was not trained on"
        )
    return lines


def load(name: str) -> FeatureNetwork:
    """Returns a feature network by name.

    Raises:
      UserError: for an unknown name, with the names there are.
    """
    from gantransfer.features import small_cnn

    loaders = {shipped: small_cnn.load for shipped in small_cnn.SHIPPED}
    return loaders[one_of("feature network", name, loaders)](name)
