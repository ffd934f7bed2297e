"""Weights of sensible sizes without the program that draws fresh ones, which takes long to compile."""

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from gantransfer.pretrained.fresh import variable_shapes


def invent(shapes, seed):
    """Fills a tree of shapes with numbers of sensible sizes."""
    draw = np.random.default_rng(seed)
    flat = {}
    for path, leaf in sorted(flatten_dict(dict(shapes), sep="/").items()):
        values = draw.standard_normal(leaf.shape)
        if path.endswith("/kernel"):
            values /= np.sqrt(np.prod(leaf.shape[:-1]))
        elif path.endswith(("/var", "/sigma", "projection_scale")):
            values = np.ones(leaf.shape)
        elif path.endswith(("/bias", "/mean")):
            values *= 0.1
        flat[path] = np.asarray(values, leaf.dtype)
    for layer in [path.split("/", 1)[1][:-2] for path in flat if path.startswith("spectral/") and path.endswith("/v")]:
        # Stored vectors belong to their weights: of invented ones the singular value could be anything.
        table = flat.get(f"params/{layer}/kernel")
        rows = flat[f"params/{layer}/embedding"].T if table is None else table.reshape(-1, table.shape[-1])
        left, _, right = np.linalg.svd(rows, full_matrices=False)
        flat |= {f"spectral/{layer}/v": left[:, 0], f"spectral/{layer}/u": right[0]}
    return unflatten_dict(flat, sep="/")


def invented(networks, seed=0):
    """Variables of both networks: stands in for `gantransfer.pretrained.fresh.initial_variables`."""
    return tuple(invent(shapes, 2 * seed + number) for number, shapes in enumerate(variable_shapes(networks)))
