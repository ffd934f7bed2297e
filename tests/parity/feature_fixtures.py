"""Closed-form weights and inputs of the feature-network fixtures, by the rules of their README."""

import json
import zlib
from pathlib import Path

import numpy as np

TABLES = (
    "pos_embed", "positional_embedding", "cls_token", "class_embedding", "mask_token", "register_tokens",
    "relative_position_bias_table",
)  # fmt: skip
UNFILLED = ("num_batches_tracked", "relative_position_index", "attn_mask")


def uniform(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """U of the README: float64 in [0, 1)."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    return rng.random(int(np.prod(shape))).reshape(shape)


def fill(net: str, key: str, shape: tuple[int, ...], gain: float) -> np.ndarray:
    """The array of one key, float32, in the published layout."""
    u, last = uniform(f"{net}/{key}", shape), key.rpartition(".")[2]
    if last == "running_mean":
        value = 0.2 * u - 0.1
    elif last == "running_var":
        value = 0.5 + u
    elif any(table in key for table in TABLES):
        value = 0.2 * u - 0.1
    elif last == "gamma":
        value = 0.3 + 0.4 * u
    elif last == "bias" or key.endswith("_bias"):
        value = 0.1 * u - 0.05
    elif len(shape) <= 1:
        value = 0.8 + 0.4 * u
    else:
        value = (2 * u - 1) * np.sqrt(3 / np.prod(shape[1:])) * gain
    return value.astype(np.float32)


def keys(root: Path, net: str) -> dict[str, tuple[int, ...]]:
    """Published keys and shapes."""
    return {key: tuple(shape) for key, shape in json.loads((root / f"keys_{net}.json").read_text())}


def weights(root: Path, net: str, gain: float) -> dict[str, np.ndarray]:
    """The state dict of a network."""
    wanted = keys(root, net).items()
    return {key: fill(net, key, shape, gain) for key, shape in wanted if not key.endswith(UNFILLED)}


def picture(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The input rule: NCHW in [0, 1], float32."""
    b, c, i, j = np.ogrid[: shape[0], : shape[1], : shape[2], : shape[3]]
    ramp = ((i * (c + 1) + 2 * j + 5 * b) % 32) / 31
    return (0.5 * uniform(f"input/{name}", shape) + 0.5 * ramp).astype(np.float32)


def cotangent(net: str, output: str, shape: tuple[int, ...]) -> np.ndarray:
    """What the gradient of an output is weighed with; in the published layout."""
    return 2 * uniform(f"cotangent/{net}/{output}", shape) - 1


def to_published(array: np.ndarray) -> np.ndarray:
    """Maps as NCHW; the rest as it is."""
    return np.transpose(array, (0, 3, 1, 2)) if array.ndim == 4 else array


def summary(array: np.ndarray) -> dict[str, np.ndarray]:
    """Shape and statistics as the fixtures record them."""
    flat = np.asarray(array, np.float64).ravel()
    stats = np.array([flat.mean(), flat.std(), flat.min(), flat.max(), np.linalg.norm(flat)])
    return {"shape": np.array(array.shape), "stats": stats}
