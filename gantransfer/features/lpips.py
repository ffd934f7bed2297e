"""LPIPS's published heads (Zhang et al. 2018, version 0.1) and the stages of the trunks that they belong to."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from gantransfer.errors import UserError, one_of
from gantransfer.features import published
from gantransfer.features.state_dicts import read_states
from gantransfer.pretrained.download import PublishedFile

# After the last ReLU before each pool, and after the last.
STAGES = {
    "vgg16": ("features.3", "features.8", "features.15", "features.22", "features.29"),
    "alexnet": ("features.1", "features.4", "features.7", "features.9", "features.11"),
}
CHANNELS = {"vgg16": (64, 128, 256, 512, 512), "alexnet": (64, 192, 384, 256, 256)}
# What files of heads call the trunks.
SHORT = {"vgg16": "vgg", "alexnet": "alex"}
_SHA256 = {
    "vgg16": "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
    "alexnet": "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
}
_BYTES = {"vgg16": 7289, "alexnet": 6009}
_PAGE = "https://github.com/richzhang/PerceptualSimilarity"

Heads = tuple[Float[np.ndarray, " _c"], ...]


def _published(trunk: str) -> published.Weights:
    file = f"{SHORT[trunk]}.pth"
    url = f"{_PAGE}/raw/master/lpips/weights/v0.1/{file}"
    found = PublishedFile(f"lpips_v0.1_{file}", url, bytes=_BYTES[trunk], sha256=_SHA256[trunk])
    return published.Weights(found, published.BSD2, _PAGE)


def load_heads(trunk: str, heads: str | Path | Mapping[str, Any] | None = None) -> Heads:
    """One weight per channel for each stage of a trunk, float32, none below 0.

    Args:
      trunk: "vgg16" or "alexnet".
      heads: the published file, or one in which the heads of several trunks are called `vgg/lin0` and so on, or such
        arrays by key; None looks for the published file as `features.load` does.

    Raises:
      UserError: for another trunk, a file that cannot be had, or heads of another trunk.
    """
    one_of("trunk of LPIPS", trunk, STAGES)
    if heads is None:
        heads, _ = published.find(f"lpips_v0.1_{SHORT[trunk]}", (_published(trunk),))
    found: dict[int, np.ndarray] = {}
    for key, value in read_states(heads)[0].items():
        named = re.fullmatch(rf"(?:{SHORT[trunk]}/)?lin(\d)(?:\.model\.1\.weight)?", key)
        if named:
            found[int(named[1])] = np.asarray(value, np.float32).ravel()
    channels = tuple(len(found[k]) for k in sorted(found))
    if channels != CHANNELS[trunk] or any((head < 0).any() for head in found.values()):
        raise UserError(f"LPIPS heads of {trunk}", f"channels {channels}", f"{CHANNELS[trunk]}, none below 0")
    return tuple(found[k] for k in sorted(found))
