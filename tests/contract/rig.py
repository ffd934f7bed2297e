"""Tiny runs for the battery: every task, program and run is made once and shared by all checks."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from gantransfer import config as fields
from gantransfer.data.image_set import ArrayPixels, ImageSet
from gantransfer.methods.hooks import REGISTRY
from gantransfer.models import FAMILIES
from gantransfer.models.family import ROLES, Role
from gantransfer.pretrained.fresh import fresh
from gantransfer.pretrained.source import Source
from gantransfer.training import devices, prepare
from gantransfer.training.partition import merge
from gantransfer.training.state import GanState, Held, copy
from gantransfer.training.step import step
from tests.contract import toy_family
from tests.contract.toys import TOYS

STEPS = 4
OPTIONS = {
    "toy": {},
    "biggan": {"resolution": 16, "channels": 1, "width": 4, "z_dim": 6, "class_head": True}
    # Spectral norm has tests of its own and doubles what there is to compile.
    | {"spectral_g": False, "spectral_d": False},
}
SETTINGS = {
    "batch": 4,
    "optimizer.lr_g": 0.01,
    "optimizer.lr_d": 0.01,
    "optimizer.lr_class_embedding": 0.01,
    # Far above rounding: Adam divides by the gradient's own size, so a bias whose gradient is only noise would walk.
    "optimizer.eps": 1e-3,
    "ema.decay": 0.5,
}


@dataclass(frozen=True, eq=False)
class Run:
    """A task and the state before the first step and after each, copied to the host."""

    task: prepare.Task
    states: tuple[GanState, ...]

    @property
    def last(self) -> GanState:
        """The state after the last step."""
        return self.states[-1]


@contextmanager
def with_toys() -> Iterator[None]:
    """The test-only family and methods are known inside."""
    with mock.patch.dict(FAMILIES, toy=toy_family.FAMILY), mock.patch.dict(REGISTRY, TOYS):
        yield


@cache
def source(family: str) -> Source:
    """Networks with random weights and three classes."""
    with with_toys():
        return fresh(family, OPTIONS[family], ("one", "two", "three"), seed=0)


@cache
def images(size: int) -> ImageSet:
    """Twelve grey images of noise."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, size, size, 1), dtype=np.uint8)
    rows = np.arange(12, dtype=np.int32)
    return ImageSet(
        "noise", size, 1, ("one", "two", "three"), rows % 3, tuple(map(str, rows)), ArrayPixels(pixels), rows, ""
    )


def make_task(lines: tuple[str, ...], family: str = "toy", count: int = 1) -> prepare.Task:
    """Prepares a run with these methods on the first `count` devices."""
    config = fields.defaults()
    for name, value in (SETTINGS | {"methods": lines, "devices.count": count}).items():
        fields.set_field(config, name, value)
    with with_toys():
        return prepare.prepare(config, source(family), images(source(family).info.resolution))


@cache
def task(lines: tuple[str, ...], family: str = "toy", count: int = 1) -> prepare.Task:
    """The shared task of these methods; its programs are compiled once."""
    return make_task(lines, family, count)


def advance(task: prepare.Task, state: GanState, steps: int, held: Held | None = None) -> tuple[GanState, ...]:
    """Runs steps from a host copy of a state; returns host copies after each."""
    state, states = devices.place(copy(state), task.shardings), []
    for _ in range(steps):
        due = task.recipe.due(int(state.images_seen) // task.recipe.images_per_step)
        state = task.step(state, held or task.held, due=due)
        states.append(jax.tree.map(np.array, jax.device_get(state)))
    return tuple(states)


@cache
def run(lines: tuple[str, ...], family: str = "toy", count: int = 1, steps: int = STEPS) -> Run:
    """The shared run of these methods."""
    shared = task(lines, family, count)
    start = jax.tree.map(np.array, jax.device_get(shared.start))
    return Run(shared, (start, *advance(shared, start, steps)))


def run_with_only(role: Role, lines: tuple[str, ...], steps: int = 2) -> GanState:
    """The state after a few steps in which the other network stands still: its rate is 0, in the same program."""
    shared = task(lines)
    other = ROLES[1 - ROLES.index(role)]
    rates = shared.held.rates | {other: jax.tree.map(jnp.zeros_like, shared.held.rates[other])}
    return advance(shared, shared.start, steps, shared.held.replace(rates=rates))[-1]


def params(task: prepare.Task, state: GanState, role: Role) -> dict:
    """All parameters of a network, trained and frozen."""
    return merge(getattr(state, role).trained, task.frozen[role].get("params", {}))


def named(tree: object) -> dict[str, np.ndarray]:
    """Leaves by path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}


def digest(states: tuple[GanState, ...]) -> str:
    """A hash of the bytes of states."""
    leaves = [leaf for state in states for leaf in named(state).values()]
    return hashlib.sha256(b"".join(np.ascontiguousarray(leaf).tobytes() for leaf in leaves)).hexdigest()


def assert_same_bytes(one: object, other: object) -> None:
    """Holds two trees to equal bytes, naming the leaf that differs."""
    one, other = named(one), named(other)
    assert one.keys() == other.keys()
    for path, leaf in one.items():
        assert leaf.tobytes() == other[path].tobytes(), path


def assert_close(one: object, other: object, tolerance: float) -> None:
    """Holds two trees to each other, naming the leaf that differs."""
    one, other = named(one), named(other)
    assert one.keys() == other.keys()
    for path, leaf in one.items():
        np.testing.assert_allclose(leaf, other[path], rtol=tolerance, atol=tolerance, err_msg=path)


def distance(one: object, other: object) -> float:
    """Largest absolute difference between two trees."""
    return max(float(np.abs(a - b).max()) for a, b in zip(named(one).values(), named(other).values(), strict=True))


def program_text(task: prepare.Task) -> str:
    """The program of a step in which every method is due, before any compiler has touched it."""
    everything = frozenset(method.name for method in task.recipe.with_hook("loss"))
    return jax.jit(partial(step, task.recipe, everything), donate_argnums=0).lower(task.start, task.held).as_text()
