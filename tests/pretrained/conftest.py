"""Tiny sources with invented weights: nothing is initialised or trained, so that only forward passes are compiled."""

import dataclasses

import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from gantransfer.pretrained.fresh import build_networks, variable_shapes
from gantransfer.pretrained.source import Source, SourceInfo
from tests.invented import invent

NAMES = ("apple", "banana", "cherry")
OPTIONS = {
    "resolution": 16,
    "channels": 1,
    "width": 4,
    "z_dim": 12,
    "shared_dim": 8,
    "class_head": True,
    "spectral_g": False,
}


def make_source(spectral=True, raw=True, **options):
    """A source of three classes; with `raw`, the generator's raw weights differ from the averaged ones."""
    networks, complete = build_networks("biggan", OPTIONS | {"spectral_d": spectral} | options, NAMES)
    shapes_g, shapes_d = variable_shapes(networks)
    info = SourceInfo(
        name="fruit",
        family="biggan",
        options=complete,
        resolution=networks.resolution,
        channels=networks.channels,
        z_dim=networks.z_dim,
        class_names=NAMES,
        licence="CC0-1.0",
        origin="invented for a test",
        trained_on="nothing",
        images_seen=640,
        sample_defaults={"truncation": 0.5},
    )
    ema = invent(shapes_g, 0)
    return Source(info, networks, invent(shapes_g, 1) if raw else ema, ema, invent(shapes_d, 2))


def make_of(family, names=("all",), raw=True, **options):
    """A source of any family, with invented weights."""
    networks, complete = build_networks(family, options, names)
    shapes_g, shapes_d = variable_shapes(networks)
    sizes = {"resolution": networks.resolution, "channels": networks.channels, "z_dim": networks.z_dim}
    info = SourceInfo(name="invented", family=family, options=complete, class_names=tuple(names), **sizes)
    ema = invent(shapes_g, 0)
    return Source(info, networks, invent(shapes_g, 1) if raw else ema, ema, invent(shapes_d, 2))


def without_discriminator(source):
    info = dataclasses.replace(source.info, has_discriminator=False)
    return dataclasses.replace(source, info=info, discriminator=None)


def replace_leaves(variables, **leaves):
    """The variables with some leaves replaced; "__" stands for "/"."""
    flat = flatten_dict(dict(variables), sep="/")
    new = {path.replace("__", "/"): np.asarray(value, np.float32) for path, value in leaves.items()}
    assert set(new) <= set(flat), set(new) - set(flat)
    return unflatten_dict(flat | new, sep="/")


def leaves(variables):
    return {path: np.asarray(leaf) for path, leaf in flatten_dict(dict(variables), sep="/").items()}


@pytest.fixture(scope="session")
def spectral_source():
    """Its discriminator divides its tables by their largest singular values."""
    return make_source(spectral=True)


@pytest.fixture(scope="session")
def plain_source():
    """Its discriminator uses its tables as they are."""
    return make_source(spectral=False)


@pytest.fixture(scope="session")
def tiny():
    """The helpers of this file, since test folders are not packages."""
    from types import SimpleNamespace

    return SimpleNamespace(
        names=NAMES,
        options=OPTIONS,
        make_source=make_source,
        make_of=make_of,
        without_discriminator=without_discriminator,
        replace_leaves=replace_leaves,
        leaves=leaves,
    )
