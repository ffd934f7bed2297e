"""What a published file holds: networks as flat names and arrays, and what stood beside them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

State = dict[str, np.ndarray]

FORMATS = (
    "torch-zip", "torch-legacy", "torchscript", "stylegan-pickle", "tensorflow", "safetensors", "huggingface",
    "theano", "npz", "pickle",
)  # fmt: skip


@dataclass(frozen=True)
class Contents:
    """What one file, or one folder of files that belong together, holds.

    Attributes:
      format: one of `FORMATS`; a folder of several torch files has the format of its weights.
      states: for each network its arrays by flat name. Networks are called "G", "D" and "G_ema" where the file uses
        one of the usual names for them (`notes` says which), else what the file calls them; a file with a single
        network that has no name has the state "". Arrays are in native byte order, read-only views of the file where
        that can be, and in the file's own layout.
      config: what stood beside the weights: Hugging Face's `config.json`, keyword arguments of a pickled network under
        the network's name, the fields of a training state.
      files: every file that was read, for hashing.
      extras: what is neither a network nor plain: optimizer states (`extras["G_optim"]`), lists of averaged arrays,
        augmentation pipes.
      notes: what was renamed, converted or left out, one sentence each.
    """

    format: str
    states: dict[str, State]
    config: dict[str, Any]
    files: tuple[Path, ...]
    extras: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def settled(array: np.ndarray) -> np.ndarray:
    """An array in a type that NumPy has by itself, in native byte order; the same object where it is one already.

    bfloat16 becomes float32, which holds all its values.
    """
    if array.dtype == ml_dtypes.bfloat16:
        return array.astype(np.float32)
    if not array.dtype.isnative:
        return array.astype(array.dtype.newbyteorder("="))
    return array


def settled_state(name: str, arrays: Mapping[str, np.ndarray]) -> tuple[State, list[str]]:
    """The arrays of one network, settled, and a note for what that changed."""
    wide = sum(array.dtype == ml_dtypes.bfloat16 for array in arrays.values())
    swapped = sum(not array.dtype.isnative for array in arrays.values())
    notes = [
        f"{count} arrays of {name or 'the network'} {what}"
        for count, what in ((wide, "were bfloat16 and are float32"), (swapped, "were in the other byte order"))
        if count
    ]
    return {key: settled(array) for key, array in arrays.items()}, notes
