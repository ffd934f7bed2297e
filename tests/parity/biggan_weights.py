"""Turns states of the reference BigGAN (torch names and layouts) into variables of ours, and back for comparison."""

from functools import cache
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from gantransfer.pretrained.layouts import biggan
from gantransfer.pretrained.layouts.layout import to_ours, to_theirs
from gantransfer.pretrained.readers import read

DEFAULTS = {
    "dim_z": 128,
    "shared_dim": 0,
    "G_shared": False,
    "hier": False,
    "G_attn": "64",
    "D_attn": "64",
    "G_param": "SN",
    "num_G_SVs": 1,
    "num_D_SVs": 1,
    "num_G_SV_itrs": 1,
    "num_D_SV_itrs": 1,
    "SN_eps": 1e-8,
    "BN_eps": 1e-5,
    "mybn": False,
    "G_init": "ortho",
    "D_wide": True,
}


def options_of(config):
    """Our architecture options for the options of the reference; those that a config leaves out keep its defaults."""
    return dict(biggan.PYTORCH.from_config(DEFAULTS | dict(config)))


def to_variables(role, state, options):
    """Our variables for (part of) a torch state dict (NumPy arrays), such as moments of its parameters."""
    leaves = [leaf for leaf in biggan.PYTORCH.leaves(role, options) if set(leaf.names) <= set(state)]
    found = {name for leaf in leaves for name in leaf.names}
    assert [name for name in state if name not in found and biggan.PYTORCH.reason(name) is None] == []
    ours = to_ours(leaves, state) | biggan.PYTORCH.absent(role, options)
    return unflatten_dict({path: jnp.asarray(value) for path, value in ours.items()}, sep="/")


def to_reference(role, variables):
    """Torch names and layouts for (part of) our variables, such as a tree of gradients `{"params": grads}`."""
    ours = {path: np.asarray(leaf) for path, leaf in flatten_dict(dict(variables), sep="/").items()}
    svs = next((len(value) for path, value in ours.items() if path.endswith("/sigma")), 1)
    table = _largest_table(role, svs)
    leaves = [table[path] for path in ours if not path.startswith("constants/")]
    return to_theirs(leaves, ours)


@cache
def _largest_table(role, svs):
    """Every leaf that a network of any size has, by its place with us."""
    options = {"resolution": 512, "width": 8, "num_svs_g": svs, "num_svs_d": svs}
    options |= {"attention_g": "8_16_32_64_128_256_512", "attention_d": "4_8_16_32_64_128_256"}
    shared, tables = (
        biggan.PYTORCH.leaves(role, options | {"shared": shared, "hierarchical": shared}) for shared in (True, False)
    )
    return {leaf.ours: leaf for leaf in (*tables, *shared)}


def load_reference(source, config, generator="G"):
    """Reads both networks of a reference run.

    Args:
      source: a folder with `G.pth` and `D.pth`, or a mapping (an opened npz) with entries `G/<key>` and `D/<key>`.
      config: the reference's options.
      generator: which of the folder's generator files to read: "G" or "G_ema".

    Returns:
      (options for `build`, generator variables, discriminator variables).
    """
    options = options_of(config)
    if isinstance(source, str | Path):
        states = {"generator": f"{generator}.pth", "discriminator": "D.pth"}
        states = {role: read(Path(source) / name).states[""] for role, name in states.items()}
    else:
        prefixes = {"generator": "G/", "discriminator": "D/"}
        states = {
            role: {k.removeprefix(prefix): source[k] for k in source if k.startswith(prefix)}
            for role, prefix in prefixes.items()
        }
    return options, *(to_variables(role, states[role], options) for role in ("generator", "discriminator"))
