"""Fixtures of StyleGAN2: networks with stored weights in our layout, arrays by name, and how far numbers may differ."""

import json
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file

from gantransfer import models
from gantransfer.pretrained.layouts.layout import to_ours, to_theirs
from gantransfer.pretrained.layouts.stylegan2 import ADA

NAMES = ("u32", "c32", "u64")


def quick_jit(function, **static):
    """Compiles with few optimisations: these programs are large, and each runs a few times on tiny arrays."""
    compiled = jax.jit(function, compiler_options={"xla_backend_optimization_level": 0}, **static)
    return lambda *args, **kwargs: jax.device_get(compiled(*args, **kwargs))


def assert_near(ours, reference, tolerance, name="", scale=None):
    """Compares relative to the reference's largest value, or to `scale`."""
    ours, reference = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    assert ours.shape == reference.shape, f"{name}: {ours.shape} {reference.shape}"
    error = np.abs(ours - reference).max() / (scale or max(np.abs(reference).max(), 1e-30))
    assert error <= tolerance, f"{name}: relative to the largest value {error:.2e} > {tolerance:.0e}"


def nhwc(array):
    """Images or maps with channels last."""
    return jnp.asarray(array).transpose(0, 2, 3, 1)


def nchw(array):
    """Images or maps with channels first, as stored."""
    return np.asarray(array).transpose(0, 3, 1, 2)


def options_for(*states):
    """All options of the family for stored states, as their names and shapes say."""
    options = {name: option.default for name, option in models.get_family("stylegan2").options.items()} | ADA.assumed
    for state in states:
        options |= ADA.recognise({name: array.shape for name, array in state.items()}).options
    return options


def variables_of(role, state, options):
    """Our variables for a stored state."""
    flat = to_ours(ADA.leaves(role, options), state)
    return unflatten_dict({path: jnp.asarray(array) for path, array in flat.items()}, sep="/")


def stored_names(role, variables, options):
    """Arrays under their stored names for (part of) our variables, such as a tree of gradients `{"params": grads}`."""
    flat = flatten_dict(jax.device_get(variables), sep="/")
    return to_theirs([leaf for leaf in ADA.leaves(role, options) if leaf.ours in flat], flat)


class Case:
    """Networks of one fixture with their weights, and its arrays."""

    def __init__(self, root: Path, name: str):
        self.root, self.name = root, name
        self.config = json.loads((root / f"{name}_config.json").read_text())
        self.states = {which: load_file(root / f"{name}_{which}.safetensors") for which in ("G", "D")}
        self.options = options_for(*self.states.values())
        self.options |= ADA.from_config({side: self.config[f"{side}_init_kwargs"] for side in ("G", "D")})
        self.networks = models.get_family("stylegan2").build(**self.options)
        self.generator = variables_of("generator", self.states["G"], self.options)
        self.discriminator = variables_of("discriminator", self.states["D"], self.options)

    def arrays(self, part):
        """Arrays of one file of the fixture."""
        return load_arrays(self.root / f"{self.name}_{part}.npz")

    def labels(self, one_hot):
        """Stored one-hot vectors as labels; None where there are no classes."""
        return jnp.asarray(one_hot.argmax(1), jnp.int32) if one_hot.shape[1] else None

    def noise(self, arrays, prefix):
        """Stored draws by our names of layers."""
        return {
            key.removeprefix(prefix).replace(".", "/"): nhwc(value)
            for key, value in arrays.items()
            if key.startswith(prefix)
        }


@cache
def load_arrays(path):
    """Arrays by name."""
    return dict(np.load(path))


load_case = cache(Case)


@cache
def synthesiser(generator, mode):
    """Images and outputs of every layer for styles; `mode` is a kind of noise, or "random" for given draws."""

    def run(variables, ws, draws):
        return generator.apply(
            variables,
            ws,
            noise=draws if mode == "random" else mode,
            method="synthesis",
            capture_intermediates=lambda module, _: bool(module.name),
            mutable=["intermediates"],
        )

    return quick_jit(run)
