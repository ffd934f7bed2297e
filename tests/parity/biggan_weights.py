"""Turns states of the reference BigGAN (torch names and layouts) into variables of ours, and back for comparison."""

import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from gantransfer import models
from tests.parity import torch_files

INITS = {"ortho": "orthogonal", "N02": "N02", "xavier": "xavier", "glorot": "xavier"}


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
    config = DEFAULTS | dict(config)
    return {
        "resolution": config["resolution"],
        "num_classes": config["n_classes"],
        "width": config["G_ch"],
        "width_d": config["D_ch"],
        "z_dim": config["dim_z"],
        "shared_dim": config["shared_dim"],
        "shared": config["G_shared"],
        "hierarchical": config["hier"],
        "attention_g": config["G_attn"],
        "attention_d": config["D_attn"],
        "spectral_g": config["G_param"] == "SN",
        "num_svs_g": config["num_G_SVs"],
        "num_svs_d": config["num_D_SVs"],
        "power_iterations_g": config["num_G_SV_itrs"],
        "power_iterations_d": config["num_D_SV_itrs"],
        "spectral_eps": config["SN_eps"],
        "norm_eps": config["BN_eps"],
        "running_variance": "biased" if config["mybn"] else "unbiased",
        "init": INITS[config["G_init"]],
        "thin_d": not config["D_wide"],
    }


def _path(role, key):
    """Where a torch entry lives with us: (collection, path), or None for what has no counterpart."""
    name = re.sub(r"^blocks\.(\d+)\.0\.", r"block_\1.", key)
    name = re.sub(r"^blocks\.(\d+)\.1\.", r"attn_\1.", name)
    name = name.replace("output_layer.0.", "out_bn.").replace("output_layer.2.", "out_conv.")
    if role == "discriminator":
        name = re.sub(r"^linear\.", "head.", name)
    *layer, last = name.split(".")
    if layer and layer[-1] == "bn":
        layer = layer[:-1]
    if last == "accumulation_counter":
        return None
    if last.startswith("stored_"):
        return "batch_stats", (*layer, last.removeprefix("stored_"))
    if match := re.fullmatch(r"(u|sv)(\d+)", last):
        return "spectral", (*layer, "u" if match[1] == "u" else "sigma", int(match[2]))
    return "params", (*layer, last)


def _tables(role, options):
    rows = models.get_family("biggan").build(**options).class_rows[role]
    return {row.path.removesuffix("/embedding") for row in rows}


def to_variables(role, state, options):
    """Our variables for a torch state dict (NumPy arrays)."""
    tables, out = _tables(role, options), {}
    for key, value in state.items():
        where = _path(role, key)
        if where is None:
            continue
        collection, path = where
        layer, value = path[:-1], np.asarray(value)
        if collection == "spectral":
            *path, number = path
            first = path[0] == "linear" and path[-1] == "u"
            slot = out.setdefault((collection, *path), {})
            slot[number] = _linear_rows(value[0]) if first else value[0]
            continue
        if path[0] == "linear":
            value = _linear_rows(value)
        if path[-1] == "weight":
            path = (*layer, "embedding" if "/".join(layer) in tables else "kernel")
            value = _kernel(value) if path[-1] == "kernel" else value
        out[(collection, *path)] = value
    out = {path: np.stack([v[i] for i in sorted(v)]) if isinstance(v, dict) else v for path, v in out.items()}
    if role == "discriminator":
        out["constants", "projection_scale"] = np.ones((), np.float32)
    return unflatten_dict({path: jnp.asarray(v) for path, v in out.items()})


def to_reference(role, variables):
    """Torch names and layouts for (part of) our variables, such as a tree of gradients `{"params": grads}`."""
    out = {}
    for (collection, *path), value in flatten_dict(dict(variables)).items():
        if collection == "constants":
            continue
        value = np.asarray(value)
        *layer, last = path
        prefix = _torch_layer(role, layer)
        if collection == "spectral":
            for i, one in enumerate(value):
                if last == "u" and layer == ["linear"]:
                    one = _linear_columns(one)
                out[f"{prefix}.{'u' if last == 'u' else 'sv'}{i}"] = (
                    one.reshape(1, -1) if last == "u" else one.reshape(1)
                )
            continue
        if last == "kernel":
            value = value.T if value.ndim == 2 else value.transpose(3, 2, 0, 1)
        if layer == ["linear"]:
            value = _linear_columns(value)
        names = {"kernel": "weight", "embedding": "weight", "mean": "stored_mean", "var": "stored_var"}
        out[f"{prefix}.{names.get(last, last)}"] = value
    return out


def _torch_layer(role, layer):
    name = re.sub(r"^block_(\d+)", r"blocks.\1.0", ".".join(layer))
    name = re.sub(r"^attn_(\d+)", r"blocks.\1.1", name)
    name = re.sub(r"^out_bn", "output_layer.0", re.sub(r"^out_conv", "output_layer.2", name))
    return re.sub(r"^head", "linear", name) if role == "discriminator" else name


def _kernel(value):
    return value.T if value.ndim == 2 else value.transpose(2, 3, 1, 0)


# The first linear layer makes (channels, 4, 4) in torch and (4, 4, channels) here.


def _linear_rows(value):
    rest = value.shape[1:]
    return value.reshape(-1, 4, 4, *rest).transpose(1, 2, 0, *range(3, 3 + len(rest))).reshape(-1, *rest)


def _linear_columns(value):
    rest = value.shape[1:]
    return value.reshape(4, 4, -1, *rest).transpose(2, 0, 1, *range(3, 3 + len(rest))).reshape(-1, *rest)


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
        states = {role: torch_files.load(Path(source) / name) for role, name in states.items()}
    else:
        prefixes = {"generator": "G/", "discriminator": "D/"}
        states = {
            role: {k.removeprefix(prefix): source[k] for k in source if k.startswith(prefix)}
            for role, prefix in prefixes.items()
        }
    return options, *(to_variables(role, states[role], options) for role in ("generator", "discriminator"))
