"""Our variables under the names and in the layouts of BigGAN-PyTorch, so that both sides start from equal weights."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np


def to_reference(role: str, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Entries of the state dict of the reference's network of this role ("generator" or "discriminator")."""
    out: dict[str, np.ndarray] = {}
    for (collection, *layer, leaf), value in leaves(variables):
        if collection == "constants":
            continue
        value, prefix, first = np.asarray(value), layer_name(role, layer), layer == ["linear"]
        if collection == "spectral":
            # u is (s, outputs) and sigma (s,): the reference has one entry for each of the s.
            for i, one in enumerate(value):
                one = channels_first(one) if first and leaf == "u" else one
                out[f"{prefix}.u{i}" if leaf == "u" else f"{prefix}.sv{i}"] = (
                    one.reshape(1, -1) if leaf == "u" else one.reshape(1)
                )
            continue
        if leaf == "kernel":
            value = np.moveaxis(value, (-1, -2), (0, 1))
        if first:
            value = channels_first(value)
        out[f"{prefix}.{NAMES.get(leaf, leaf)}"] = np.ascontiguousarray(value)
    return out


NAMES = {"kernel": "weight", "embedding": "weight", "mean": "stored_mean", "var": "stored_var"}


def leaves(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Paths and arrays of a nested mapping."""
    if not isinstance(tree, Mapping):
        yield path, tree
        return
    for name, child in tree.items():
        yield from leaves(child, (*path, name))


def layer_name(role: str, layer: list[str]) -> str:
    """Name of a module in the reference: blocks are lists of a residual block and, where there is one, attention."""
    name = re.sub(r"^block_(\d+)", r"blocks.\1.0", ".".join(layer))
    name = re.sub(r"^attn_(\d+)", r"blocks.\1.1", name)
    name = {"out_bn": "output_layer.0", "out_conv": "output_layer.2"}.get(name, name)
    return "linear" if role == "discriminator" and name == "head" else name


def channels_first(value: np.ndarray) -> np.ndarray:
    """The outputs of the first linear layer, (4, 4, channels) with us, as (channels, 4, 4); they are the leading
    axis.
    """
    return np.moveaxis(value.reshape(4, 4, -1, *value.shape[1:]), 2, 0).reshape(value.shape)
