"""Where arrays live: a (`data`, `model`) mesh, batches split over `data`, parameters by rules on their paths.

The scaling engine is JAX's own: `jax.jit` with `NamedSharding`. Batch statistics are global by construction, random
numbers do not depend on the mesh, and the same program runs on one device and on many.
"""

from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gantransfer.errors import UserError

Tree = Any

# Output channels are the last axis of every kernel, and the axis that needs no communication in the forward pass.
DEFAULT_RULES = ("*/kernel=-1",)


def chosen(count: int | None) -> list:
    """Returns the first `count` devices, or all of them for None; raises `UserError` if there are not so many."""
    devices = jax.devices()
    if count is None:
        return devices
    if jax.process_count() > 1:
        raise UserError("devices.count", count, "None where several hosts take part: they use all of their devices")
    if count > len(devices):
        raise UserError("devices.count", count, f"from 1 to {len(devices)}, or None for all")
    return devices[:count]


def make_mesh(model: int = 1, devices: list | None = None) -> Mesh:
    """Returns a mesh over all devices with `model` of them along the model axis; raises `UserError` if that does not
    divide.
    """
    devices = jax.devices() if devices is None else devices
    if len(devices) % model:
        sizes = [n for n in range(1, len(devices) + 1) if len(devices) % n == 0]
        raise UserError(
            "devices.model", model, f"a divisor of the {len(devices)} devices: {', '.join(map(str, sizes))}"
        )
    # Auto and not the default Explicit axes: gathers and batch slices of Linen networks do not resolve under Explicit.
    return jax.make_mesh(
        (len(devices) // model, model), ("data", "model"), axis_types=(AxisType.Auto, AxisType.Auto), devices=devices
    )


def check_batch(mesh: Mesh, batch: int, accumulate: int) -> None:
    """Raises `UserError` unless every micro-batch divides over the mesh's data axis."""
    data = mesh.shape["data"]
    if batch % (data * accumulate):
        raise UserError(
            "batch",
            batch,
            f"a multiple of {data * accumulate} ({data} devices along data x {accumulate} micro-batches)",
        )


def batch_constraint(mesh: Mesh) -> Callable[[Tree], Tree]:
    """Returns a function that splits the leading axis of every array of a batch over `data`."""
    if mesh.size == 1:
        return lambda tree: tree
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    return lambda tree: jax.tree.map(lambda a: jax.lax.with_sharding_constraint(a, sharding), tree)


def parse_rules(rules: tuple[str, ...]) -> tuple[tuple[str, int], ...]:
    """Reads rules such as `"*/kernel=-1"` into (pattern, axis); raises `UserError` naming a bad one."""
    parsed = []
    for rule in rules:
        pattern, _, axis = rule.rpartition("=")
        if not pattern or not axis.removeprefix("-").isdecimal():
            raise UserError("devices.rules", rule, '"pattern=axis", such as "*/kernel=-1"')
        parsed.append((pattern, int(axis)))
    return tuple(parsed)


def shardings(mesh: Mesh, tree: Tree, rules: tuple[str, ...] = ()) -> Tree:
    """Returns a tree of `NamedSharding`s: a leaf whose path matches a rule is split over `model`, everything else
    replicated.

    Paths are those of the state, so a rule for a parameter also covers its average and its optimizer moments. The
    default rules pass over leaves that do not divide; a rule that the user wrote must fit every leaf that it matches.

    Raises:
      UserError: a matched leaf's axis does not exist or does not divide over the model axis; a rule matches nothing.
    """
    size = mesh.shape["model"]
    parsed = parse_rules(rules or (DEFAULT_RULES if size > 1 else ()))
    used = set()

    def spec(path: Any, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        for pattern, axis in parsed:
            if not fnmatchcase(name, pattern) or leaf.ndim == 0:
                continue
            fits = -leaf.ndim <= axis < leaf.ndim and leaf.shape[axis] % size == 0
            if fits:
                used.add(pattern)
                names: list[str | None] = [None] * leaf.ndim
                names[axis] = "model"
                return NamedSharding(mesh, PartitionSpec(*names))
            if rules:
                raise UserError(
                    "devices.rules",
                    f"{pattern}={axis}",
                    f"an axis of {name} {tuple(leaf.shape)} that {size} devices divide",
                )
        return NamedSharding(mesh, PartitionSpec())

    result = jax.tree_util.tree_map_with_path(spec, tree)
    for pattern, axis in parsed if rules else ():
        if pattern not in used:
            raise UserError("devices.rules", f"{pattern}={axis}", "a pattern that matches a leaf of the state")
    return result


def place(tree: Tree, where: Tree) -> Tree:
    """Puts every leaf where the tree of shardings says."""
    return jax.tree.map(jax.device_put, tree, where)
