"""LPIPS with its networks: a trunk, the published heads, and distances of pictures or of whole batches of them."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Shaped

from gantransfer import features
from gantransfer.errors import UserError
from gantransfer.features.lpips import STAGES, Heads, load_heads
from gantransfer.features.network import FrozenNetwork
from gantransfer.metrics.perceptual import Device, lpips, lpips_map, scaling_layer

SMALLEST_PX = 64


class Lpips:
    """The distance of Zhang et al. 2018, version 0.1, of pictures in [-1, 1].

    Attributes:
      name: `lpips_vgg16` or `lpips_alexnet`; ends in `_baseline` without heads.
      network: the trunk.
      heads: a weight per channel and stage; None weighs all by 1.
      stages: of the trunk, in order.
      sha256: of trunk and heads.
      info: of the trunk.
    """

    def __init__(self, trunk: FrozenNetwork, heads: Heads | None):
        plain = trunk.name.removeprefix(features.RANDOM)
        self.network, self.heads, self.stages = trunk, heads, STAGES[plain]
        self.name = f"lpips_{trunk.name}" + ("" if heads is not None else "_baseline")
        whole = hashlib.sha256(trunk.sha256.encode())
        for head in heads or ():
            whole.update(np.ascontiguousarray(head, "<f4").tobytes())
        self.sha256, self.info = whole.hexdigest(), trunk.info
        self._compiled = jax.jit(self.distance)

    def features(self, params: Any, images: Float[Device, "n h w 3"]) -> list[Float[Array, "n _h _w _c"]]:
        """Stages of pictures in [-1, 1], for use inside programs: one side that stays can be computed once."""
        found = self.network.apply(params, scaling_layer(images), self.stages)
        return [found[name] for name in self.stages]

    def distance(self, params: Any, a: Float[Device, "n h w 3"], b: Float[Device, "n h w 3"]) -> Float[Array, " n"]:
        """Distances of pairs, differentiable, for use inside programs; `params` are `network.params`."""
        return lpips(self.features(params, a), self.features(params, b), self.heads)

    def map(self, params: Any, a: Float[Device, "n h w 3"], b: Float[Device, "n h w 3"]) -> Float[Array, "n h w"]:
        """Where pairs differ, in the size of the pictures."""
        return lpips_map(self.features(params, a), self.features(params, b), self.heads, a.shape[1:3])

    def __call__(
        self, a: Shaped[np.ndarray, "n h w 3"], b: Shaped[np.ndarray, "n h w 3"], batch: int = 32
    ) -> Float[np.ndarray, " n"]:
        """Distances of pairs on the host.

        Args:
          a, b: uint8, or float in [-1, 1]; equally many, of one size, at least 64 pixels high and wide.
          batch: pairs of one compiled call.

        Raises:
          UserError: sizes differ or are too small, or values are not finite or outside [-1, 1].
        """
        if a.shape != b.shape or a.ndim != 4 or a.shape[-1] != 3 or min(a.shape[1:3]) < SMALLEST_PX:
            allowed = f"two equal ones (n, h, w, 3), at least {SMALLEST_PX} pixels high and wide"
            raise UserError("pictures for LPIPS", f"{a.shape} and {b.shape}", allowed)
        pairs = [(_in_range(a[i : i + batch]), _in_range(b[i : i + batch])) for i in range(0, len(a), batch)]
        return np.concatenate(
            [np.zeros(0, np.float32), *(self._compiled(self.network.params, *pair) for pair in pairs)]
        )


def load_lpips(
    trunk: str = "vgg16",
    weights: str | Path | Mapping[str, Any] | None = None,
    heads: str | Path | Mapping[str, Any] | None = None,
    *,
    baseline: bool = False,
    **settings: Any,
) -> Lpips:
    """Returns LPIPS.

    Args:
      trunk: "vgg16" (NVIDIA's path length, torch-fidelity) or "alexnet" (the paper's recommendation), also random ones.
      weights: of the trunk, as `features.load` takes them; its linear layers may be missing.
      heads: as `features.lpips.load_heads` takes them.
      baseline: all channels weigh 1, without heads.
      **settings: of `features.load`.

    Raises:
      UserError: files that cannot be had or are not those of the networks.
    """
    plain = trunk.removeprefix(features.RANDOM)
    found = None if baseline else load_heads(plain, heads)
    network = features.load(trunk, weights, **settings)
    return Lpips(network, found)


def _in_range(images: Shaped[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n h w 3"]:
    if images.dtype == np.uint8:
        return images.astype(np.float32) / 127.5 - 1
    if not np.isfinite(images).all() or np.abs(images).max() > 1.5:
        found = f"float pictures from {images.min():.3g} to {images.max():.3g}"
        raise UserError("pictures for LPIPS", found, "uint8, or finite values in [-1, 1]")
    return images
