"""Frozen feature networks for metrics and discriminators, and where their published weights are."""

import difflib
import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Shaped

from gantransfer.errors import UserError, one_of

if TYPE_CHECKING:
    from gantransfer.features.network import Architecture

# Files of this folder that declare networks: each has `ARCHITECTURES`.
FILES = ("inception", "vgg", "resnet", "mobile", "lenet", "vit", "swin")
RANDOM = "random:"


@runtime_checkable
class FeatureNetwork(Protocol):
    """What every feature network is: a function of uint8 images with a name and the hash of its weights.

    Attributes:
      name: what records call it.
      outputs: names of its outputs.
      stages: names of intermediate stages that can be asked for.
      sha256: of its weights.
      info: where the weights are from, their licence, how images are prepared.
    """

    name: str
    outputs: tuple[str, ...]
    stages: tuple[str, ...]
    sha256: str
    info: Mapping[str, Any]

    def __call__(self, images: Shaped[np.ndarray, "n h w c"], want: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
        """Returns the outputs or stages asked for; with none, all outputs and `features`, `(n, ...)` float32."""
        ...


def architectures() -> "dict[str, Architecture]":
    """Every published architecture by name."""
    found = (importlib.import_module(f"{__name__}.{file}").ARCHITECTURES for file in FILES)
    return {architecture.name: architecture for part in found for architecture in part}


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
    return lines | {name: architecture.described for name, architecture in architectures().items()}


def load(
    name: str,
    weights: str | Path | Mapping[str, Any] | None = None,
    pipeline: str | None = None,
    **settings: Any,
) -> FeatureNetwork:
    """Returns a feature network.

    Args:
      name: one of `gantransfer list features`; with `random:` before it for random weights.
      weights: a published file in any format, or its state dict as arrays by published key. None looks for the file in
        the folder that `$GANTRANSFER_FEATURES` names, then among the downloads that are kept, then downloads it.
      pipeline: resize images as `legacy_tensorflow`, `legacy_pytorch`, `clean` or `friendly`; None takes the network's
        own rule.
      **settings: `mean`, `std`, `fold`, `precision`, `dtype`, `batch` of `network.Settings`; `seed` of random weights.

    Raises:
      UserError: for an unknown name, with the names there are; weights that are not the network's, or cannot be found.
    """
    from gantransfer.features import small_cnn

    if name in small_cnn.SHIPPED:
        if weights is not None or pipeline is not None or settings:
            raise UserError(
                f"feature network {name}", weights or pipeline or settings, "no weights and no settings: it ships"
            )
        return small_cnn.load(name)
    from gantransfer.features import network

    known = architectures()
    seed = int(settings.pop("seed", 0))
    for setting in settings:
        one_of("setting of a feature network", setting, ("mean", "std", "fold", "precision", "dtype", "batch", "seed"))
    chosen = network.Settings(pipeline=pipeline, **settings)
    if name.startswith(RANDOM):
        plain = name.removeprefix(RANDOM)
        if weights is not None:
            raise UserError(
                f"weights of {name}", weights, f"none: they are random; features.load({plain!r}) takes them"
            )
        return network.load(known[one_of("feature network", plain, known)], None, chosen, seed)
    if name not in known:
        # What ships comes first: it needs nothing else.
        near = difflib.get_close_matches(name, (*small_cnn.SHIPPED, *known), n=1)
        meant = f" (did you mean {near[0]}?)" if near else ""
        raise UserError("feature network", name, ", ".join((*small_cnn.SHIPPED, *sorted(known))) + meant)
    return network.load(known[name], weights, chosen)
