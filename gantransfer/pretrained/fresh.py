"""Networks of a family for given options and classes, and sources with random weights: the start of training from
scratch, and the shapes that everything read is held to.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array

from gantransfer.errors import UserError, one_of
from gantransfer.models import get_family
from gantransfer.models.family import Networks
from gantransfer.pretrained.source import Source, SourceInfo, Variables


def fresh(family_name: str, options: Mapping[str, Any], class_names: Sequence[str], seed: int) -> Source:
    """Makes a source with random weights, for training from scratch.

    Args:
      family_name: a model family.
      options: architecture options; those left out take the family's defaults, and the number of classes follows from
        the names.
      class_names: one name per class.
      seed: of the weights.

    Raises:
      UserError: an unknown family or option, a value out of range, or names that are missing or repeated.
    """
    networks, complete = build_networks(family_name, options, class_names)
    generator, discriminator = initial_variables(networks, seed)
    info = SourceInfo(
        name=f"fresh {family_name}",
        family=family_name,
        options=complete,
        resolution=networks.resolution,
        channels=networks.channels,
        z_dim=networks.z_dim,
        class_names=tuple(class_names),
        origin=f"random weights of seed {seed}",
        images_seen=0,
    )
    return Source(info, networks, generator, generator, discriminator)


def build_networks(
    family_name: str, options: Mapping[str, Any], class_names: Sequence[str]
) -> tuple[Networks, dict[str, Any]]:
    """Builds the networks of a family for the classes named; returns them and the complete options.

    Raises:
      UserError: an unknown family or option, a value out of range, or class names that are missing or repeated.
    """
    family = get_family(family_name)
    for option in options:
        one_of("model", option, family.options)
    repeated = sorted({name for name in class_names if list(class_names).count(name) > 1})
    if repeated or not class_names:
        raise UserError("class_names", repeated or list(class_names), "at least one name, each once")
    complete = {name: option.default for name, option in family.options.items()} | dict(options)
    complete["num_classes"] = len(class_names)
    return family.build(**complete), complete


def initial_variables(networks: Networks, seed: int) -> tuple[Variables, Variables]:
    """Returns random variables of both networks, all collections; same seed, same values."""
    both = unflatten_dict(_compiled_initial()(*_initial_arguments(networks), None, jax.random.key(seed)), sep="/")
    return both["generator"], both["discriminator"]


def initial_leaves(networks: Networks, seed: int, paths: Sequence[str]) -> dict[str, Array]:
    """Returns some leaves of `initial_variables` by path (`generator/params/...`), without computing the others."""
    return _compiled_initial()(*_initial_arguments(networks), tuple(paths), jax.random.key(seed))


def variable_shapes(networks: Networks) -> tuple[Variables, Variables]:
    """Returns shapes and dtypes of both networks' variables, without computing them."""
    shapes = jax.eval_shape(partial(_initial, *_initial_arguments(networks), None), jax.random.key(0))
    both = unflatten_dict(shapes, sep="/")
    return both["generator"], both["discriminator"]


def _initial_arguments(networks: Networks) -> tuple[Any, ...]:
    return networks.generator, networks.discriminator, networks.image_shape, networks.z_dim


def _initial(
    generator: nn.Module,
    discriminator: nn.Module,
    shape: tuple[int, int, int],
    z_dim: int,
    paths: tuple[str, ...] | None,
    key: Array,
) -> dict[str, Array]:
    """Leaves by path: those of `paths`, or all."""
    labels = jnp.zeros((1,), jnp.int32)
    key_of = lambda role: jax.random.fold_in(key, zlib.crc32(role.encode()))
    g = generator.init(key_of("generator"), jnp.zeros((1, z_dim)), labels)
    d = discriminator.init(key_of("discriminator"), jnp.zeros((1, *shape)), labels)
    flat = flatten_dict({"generator": g, "discriminator": d}, sep="/")
    return flat if paths is None else {path: flat[path] for path in paths}


@cache
def _compiled_initial() -> Callable[..., dict[str, Array]]:
    """One program for everything: made eagerly, many small operations would be compiled one by one."""
    # It runs once, so optimising does not pay: without, a 16 px pair takes 6 s of a CPU core to compile, not 35.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(_initial, static_argnums=(0, 1, 2, 3, 4), compiler_options=options)
