"""Frozen feature networks for metrics, and where their published weights are."""

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


def load(name: str) -> FeatureNetwork:
    """Returns a feature network by name.

    Raises:
      UserError: for an unknown name, with the names there are.
    """
    from gantransfer.features import small_cnn

    loaders = {shipped: small_cnn.load for shipped in small_cnn.SHIPPED}
    return loaders[one_of("feature network", name, loaders)](name)
