"""The core of surgery that changes shapes: new networks, with every leaf kept, rewritten, drawn afresh or dropped."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from gantransfer.models.family import ROLES, Role
from gantransfer.pretrained.fresh import build_networks, initial_leaves, variable_shapes
from gantransfer.pretrained.source import Source, Variables, with_info
from gantransfer.pretrained.surgery_report import Status, SurgeryReport

Leaves = Mapping[str, Any]
# From a network's leaves in the source, and the shapes that they must have, to the leaves that change.
Rewrite = Callable[[Leaves, Leaves], dict[str, np.ndarray]]
# Families whose layers divide by the root of their number of inputs (equalised learning rate), class tables included.
EQUALISED = ("stylegan2",)


def row_scale(family: str, before: int, after: int) -> float:
    """Factor of raw weights that keeps a layer's effective weights where its number of inputs changes."""
    return (after / before) ** 0.5 if family in EQUALISED else 1.0


def rebuild(
    source: Source,
    what: str,
    options: Mapping[str, Any],
    class_names: Sequence[str],
    rewrites: Mapping[Role, Rewrite],
    step0: tuple[str, ...],
    seed: int,
    **reported: Any,
) -> tuple[Source, SurgeryReport]:
    """Builds networks with other options, and moves a source's leaves into them.

    A leaf that a rewrite gives is taken from there; one that is in the source with its shape is kept; any other is
    drawn as in a network that was never trained. What the new networks have no place for is dropped.

    Args:
      source: what to start from; not modified.
      what: the operation in words.
      options: architecture options of the new networks.
      class_names: of the new networks.
      rewrites: per role; absent: nothing is rewritten.
      step0: laws for the report.
      seed: of fresh leaves.
      reported: further fields of the report.
    """
    networks, complete = build_networks(source.info.family, dict(options) | {"num_classes": 1}, class_names)
    shapes = {role: flatten_dict(dict(t), sep="/") for role, t in zip(ROLES, variable_shapes(networks), strict=True)}
    trees: dict[str, tuple[Role, Variables]] = {"ema": ("generator", source.ema)}
    if source.generator is not source.ema:
        trees["generator"] = ("generator", source.generator)
    if source.discriminator is not None:
        trees["discriminator"] = ("discriminator", source.discriminator)
    flat = {name: flatten_dict(dict(tree), sep="/") for name, (_, tree) in trees.items()}
    moved = {}
    for name, (role, _) in trees.items():
        rewritten = rewrites[role](flat[name], shapes[role]) if role in rewrites else {}
        kept = {p: v for p, v in flat[name].items() if p in shapes[role] and v.shape == shapes[role][p].shape}
        moved[name] = kept | {path: np.asarray(v, shapes[role][path].dtype) for path, v in rewritten.items()}
    lacking = sorted({f"{r}/{p}" for name, (r, _) in trees.items() for p in shapes[r].keys() - moved[name].keys()})
    random = initial_leaves(networks, seed, lacking) if lacking else {}
    leaves: dict[str, Status] = {}
    made: dict[str, Variables] = {}
    for name, (role, _) in trees.items():
        drawn = {p: random[f"{role}/{p}"] for p in shapes[role].keys() - moved[name].keys()}
        wrong = [p for p, v in moved[name].items() if v.shape != shapes[role][p].shape]
        if wrong:
            raise ValueError(f"{what} gives {wrong[0]} a shape that {source.info.family} does not take")
        made[name] = unflatten_dict(jax.device_put(moved[name] | drawn), sep="/")
        leaves |= {f"{role}/{p}": _fate(p, flat[name], moved[name]) for p in shapes[role]}
        leaves |= {f"{role}/{p}": "dropped" for p in flat[name].keys() - shapes[role].keys()}
    target = dataclasses.replace(
        source,
        networks=networks,
        ema=made["ema"],
        generator=made.get("generator", made["ema"]),
        discriminator=made.get("discriminator"),
    )
    sizes = {"resolution": networks.resolution, "channels": networks.channels, "z_dim": networks.z_dim}
    target = with_info(target, class_names=tuple(class_names), options=complete, **sizes)
    return target, SurgeryReport(what, dict(sorted(leaves.items())), step0=step0, **reported)


def _fate(path: str, before: Leaves, moved: Leaves) -> Status:
    if path not in before or path not in moved:
        return "fresh"
    return "kept" if moved[path] is before[path] else "reshaped"
