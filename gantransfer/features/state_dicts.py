"""From a published state dict to the parameters of a feature network: read, checked key by key, transposed, hashed."""

import hashlib
import zlib
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from gantransfer.errors import UserError
from gantransfer.pretrained.readers import read

State = dict[str, np.ndarray]
Shapes = Mapping[str, tuple[int, ...]]
# Never part of what a network computes.
HARMLESS = ("num_batches_tracked", "*.num_batches_tracked")
PAGES = (b"<!doctype html", b"<html", b"<?xml")


def read_states(weights: str | Path | Mapping[str, Any]) -> list[State]:
    """The state dicts of a file, or of a dictionary that may have one under `state_dict`.

    Raises:
      UserError: not a file of weights; a page of a web site is called one.
    """
    if isinstance(weights, Mapping):
        inner = [weights[key] for key in ("state_dict", "model") if isinstance(weights.get(key), Mapping)]
        return [{str(key): np.asarray(value) for key, value in (inner[0] if inner else weights).items()}]
    path = Path(weights)
    if path.is_file():
        with path.open("rb") as file:
            head = file.read(512).lstrip().lower()
        if head.startswith(PAGES):
            raise UserError(str(path), "a web page (HTML)", "the file of weights itself; the download went wrong")
    return [dict(state) for state in read(path).states.values()]


def cleaned(state: State, prefixes: Iterable[str], known: Iterable[str]) -> State:
    """The state dict without `num_batches_tracked` and without a prefix that its keys share.

    Args:
      state: published keys and arrays.
      prefixes: what networks put before the keys, beside `module.`; what lies outside a prefix belongs to other parts.
      known: keys of the network.
    """
    state = {key: value for key, value in state.items() if not any(fnmatchcase(key, rule) for rule in HARMLESS)}
    known = set(known)
    for prefix in ("module.", *prefixes):
        inside = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if len(known & set(inside)) > len(known & set(state)) or (prefix == "module." and len(inside) == len(state)):
            state = inside
    return state


def check(name: str, state: State, shapes: Shapes, harmless: tuple[str, ...]) -> tuple[State, list[str]]:
    """The arrays that the network uses, as float32, and the keys that were left out because they are harmless.

    Args:
      name: of the network, for messages.
      state: published keys and arrays.
      shapes: what the network needs.
      harmless: patterns of keys that may be there and are not used.

    Raises:
      UserError: keys are missing or unknown, an array has another shape, or values that are no finite numbers.
    """
    unused = [key for key in state if key not in shapes and any(fnmatchcase(key, rule) for rule in harmless)]
    missing = [key for key in shapes if key not in state]
    extra = [key for key in state if key not in shapes and key not in unused]
    if missing or extra:
        found = " and ".join(_listed(*part) for part in ((missing, "missing"), (extra, "unknown")) if part[0])
        raise UserError(f"weights of {name}", found, f"the {len(shapes)} keys of the published state dict, no others")
    wrong = {key: state[key].shape for key, shape in shapes.items() if state[key].shape != tuple(shape)}
    if wrong:
        said = [f"{key} {shape}, not {shapes[key]}" + _transposed(shape, shapes[key]) for key, shape in wrong.items()]
        raise UserError(f"weights of {name}", _listed(said, "of another shape"), "arrays of the published shapes")
    return {key: _as_float32(name, key, state[key]) for key in shapes}, unused


def _listed(keys: list[str], what: str) -> str:
    return f"{len(keys)} {what}: {', '.join(keys[:5])}" + (", ..." if len(keys) > 5 else "")


def _transposed(found: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    return " (transposed)" if len(found) > 1 and sorted(found) == sorted(wanted) else ""


def _as_float32(name: str, key: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "fV" and array.dtype.name != "bfloat16":
        raise UserError(f"weights of {name}", f"{key} of type {array.dtype}", "floating point numbers")
    array = np.asarray(array, np.float32)
    if not np.isfinite(array).all():
        raise UserError(
            f"weights of {name}", f"{key} with {np.count_nonzero(~np.isfinite(array))} NaN or infinite", "finite"
        )
    return array


# ------------------------------------------------------------------------------------------------------------- layout


def to_ours(key: str, array: np.ndarray) -> np.ndarray:
    """Kernels OIHW become HWIO, matrices (out, in) become (in, out); all other arrays stay as they are."""
    axes = _axes(key, array.ndim)
    return np.ascontiguousarray(array.transpose(axes)) if axes else array


def published_shape(key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in the state dict of an array that has this shape in our layout."""
    axes = _axes(key, len(shape))
    return tuple(shape[axes.index(axis)] for axis in range(len(shape))) if axes else tuple(shape)


def _axes(key: str, rank: int) -> tuple[int, ...] | None:
    last = key.rpartition(".")[2]
    if last != "weight" and not last.endswith("_weight"):
        return None
    return {4: (2, 3, 1, 0), 2: (1, 0)}.get(rank)


def nested(arrays: State) -> dict[str, Any]:
    """Flat keys as a tree of parameters: `layer1.0.conv1.weight` is the leaf `weight` of `layer1.0.conv1`."""
    tree: dict[str, Any] = {}
    for key, array in arrays.items():
        layer, dot, leaf = key.rpartition(".")
        (tree.setdefault(layer, {}) if dot else tree)[leaf] = array
    return tree


def flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a tree of parameters, as in the state dict."""
    keys: dict[str, Any] = {}
    for layer, value in tree.items():
        keys |= {f"{layer}.{leaf}": v for leaf, v in value.items()} if isinstance(value, Mapping) else {layer: value}
    return keys


def digest(arrays: State) -> str:
    """SHA-256 of the float32 bytes in our layout, in the order of the sorted keys."""
    sum256 = hashlib.sha256()
    for key in sorted(arrays):
        sum256.update(np.ascontiguousarray(arrays[key], "<f4").tobytes())
    return sum256.hexdigest()


def random_state(shapes: Shapes, seed: int) -> State:
    """Random weights in the published layout, a function of the seed and each key: normal, of variance 2 / fan-in."""
    return {key: _random(key, shape, seed) for key, shape in shapes.items()}


def _random(key: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    last = key.rpartition(".")[2]
    rng = np.random.Generator(np.random.PCG64([seed, zlib.crc32(key.encode())]))
    if last in ("running_mean", "bias") or last.endswith("_bias"):
        return np.zeros(shape, np.float32)
    if len(shape) == 1:
        return np.ones(shape, np.float32)
    # Tables of positions and tokens are not multiplied by anything.
    deviation = np.sqrt(2 / np.prod(shape[1:])) if _axes(key, len(shape)) else 0.02
    return (deviation * rng.standard_normal(shape, np.float32)).astype(np.float32)
