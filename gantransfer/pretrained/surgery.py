"""Surgery: fits a source to other classes, or gives it a discriminator, once and before training.

Surgery is a pure function from a source to a source and a report. It alone changes shapes. The rows that a network
holds per class (the generator's embedding; the discriminator's projection rows, class-head columns and biases) all
follow one resolved map from target classes to source classes, which the report prints.

A discriminator that divides its projection rows by their largest singular value couples them: replacing some rescales
all. `d_embed_scale="compensate"` multiplies the projection by sigma_target / sigma_source, a constant that is saved
and never trained, so that copied rows judge as before; `"none"` leaves the new scale, as a plain port of the rows
would. The source's sigma is the one that its discriminator divides by: one power iteration from the stored vectors.
"""

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array

from gantransfer.errors import UserError, one_of
from gantransfer.models.family import ROLES, Networks, Role
from gantransfer.pretrained.class_map import (
    FIELD,
    POLICIES,
    ClassMap,
    MappedClass,
    by_class,
    parse_class_map,
    resolve,
)
from gantransfer.pretrained.fresh import build_networks, initial_leaves, variable_shapes
from gantransfer.pretrained.source import Source, Variables, latents, with_info
from gantransfer.pretrained.spectral_vectors import exact_leaves, used_sigma
from gantransfer.pretrained.surgery_condition import add_classes, is_conditional, merge_classes
from gantransfer.pretrained.surgery_rebuild import row_scale
from gantransfer.pretrained.surgery_report import Status, SurgeryReport

__all__ = [
    "POLICIES",
    "SurgeryReport",
    "change_classes",
    "parse_class_map",
    "step0_difference",
    "with_fresh_discriminator",
]
SCALE = "constants/projection_scale"


def change_classes(
    source: Source,
    class_names: Sequence[str],
    *,
    policy: str | None = None,
    class_map: ClassMap | None = None,
    noise: float | int = 0.0,
    images: np.ndarray | Array | None = None,
    labels: np.ndarray | Array | Sequence[int] | None = None,
    d_embed_scale: str = "compensate",
    seed: int = 0,
) -> tuple[Source, SurgeryReport]:
    """Gives a source the classes of a target.

    Args:
      source: what to start from; not modified.
      class_names: of the target, in the order of its labels.
      policy: where rows come from, one of `POLICIES`. None keeps a source whose names agree, takes `copy` where only
        the number of classes agrees, and is refused otherwise. Not read where the source has no classes at all: then
        every class starts as the source (`surgery_condition`).
      class_map: for `list` and `copy`: target class to source class (names or indices), to several (their mean), or
        to None (fresh).
      noise: standard deviation of normal noise added to the generator's rows.
      images, labels: of the target, for `nearest`, `from_images` and `from_images_weighted`: `(n, h, w, c)` in [-1, 1]
        and target labels `(n,)`, at least one image per class. Without a class head, `from_images` takes projection
        scores, and `from_images_weighted` their softmax. Scores closer than 1e-6 of their range tie; the lowest index
        wins.
      d_embed_scale: `compensate` or `none`, see above.
      seed: of `random`, of noise and of fresh rows.

    Raises:
      UserError: for `transfer.classes`, `transfer.class_map`, `transfer.class_noise` or `transfer.projection_scale`.
    """
    class_names = tuple(class_names)
    one_of("transfer.projection_scale", d_embed_scale, ("compensate", "none"))
    if not (np.isfinite(noise) and noise >= 0):
        raise UserError("transfer.class_noise", noise, "a number of at least 0")
    if not is_conditional(source.networks) and len(class_names) > 1:
        return add_classes(source, class_names, seed)
    if policy is None:
        if class_names == source.info.class_names and class_map is None:
            return source, _untouched(source)
        if len(class_names) != source.info.num_classes:
            counts = f"{source.info.num_classes} source classes and {len(class_names)} target classes"
            raise UserError(FIELD, None, f"with {counts}, one of {', '.join(POLICIES)}")
        policy = "copy"
    one_of(FIELD, policy, POLICIES)
    if class_map is not None and policy not in ("list", "copy"):
        raise UserError(
            "transfer.class_map", dict(class_map), f"nothing with {FIELD}={policy}; list and copy take a map"
        )
    networks, options = build_networks(source.info.family, dict(source.info.options) | {"num_classes": 1}, class_names)
    classes = resolve(source, class_names, policy, class_map, images, labels, seed)
    if is_conditional(source.networks) and not is_conditional(networks):
        return merge_classes(source, classes[0], seed)
    random = None
    if not all(mapped.sources for mapped in classes):
        random = initial_leaves(networks, seed, _row_paths(networks))
    plan_g = _Plan("generator", source.info.family, networks, classes, random, float(noise), seed, False)
    ema, leaves, _ = _transplant(plan_g, source.ema)
    generator = ema if source.generator is source.ema else _transplant(plan_g, source.generator)[0]
    discriminator, sigmas = None, {}
    if source.discriminator is not None:
        # Rows that are all fresh have no former scale to keep.
        compensate = d_embed_scale == "compensate" and any(mapped.sources for mapped in classes)
        plan_d = _Plan("discriminator", source.info.family, networks, classes, random, 0.0, seed, compensate)
        discriminator, more, sigmas = _transplant(plan_d, source.discriminator)
        leaves |= more
    scale = None if discriminator is None else flatten_dict(dict(discriminator), sep="/").get(SCALE)
    report = SurgeryReport(
        what=f"classes by {policy}: {source.info.num_classes} -> {len(class_names)}",
        leaves=leaves,
        classes=classes,
        step0=_step0_laws(source, classes, float(noise), sigmas, d_embed_scale),
        singular_values=sigmas,
        projection_scale=None if scale is None else float(scale),
        noise=float(noise),
    )
    target = dataclasses.replace(source, networks=networks, generator=generator, ema=ema, discriminator=discriminator)
    return with_info(target, class_names=class_names, options=options), report


def with_fresh_discriminator(source: Source, seed: int) -> tuple[Source, SurgeryReport]:
    """Gives a source a new discriminator with random weights, in the architecture of its options; replaces one that
    is there.

    The generator is the source's, untouched. Until such a discriminator has learned something, the generator should
    not follow it.
    """
    _, shapes = variable_shapes(source.networks)
    paths = [f"discriminator/{path}" for path in flatten_dict(dict(shapes), sep="/")]
    discriminator = unflatten_dict(initial_leaves(source.networks, seed, paths), sep="/")["discriminator"]
    leaves: dict[str, Status] = {f"generator/{path}": "kept" for path in flatten_dict(dict(source.ema), sep="/")}
    leaves |= dict.fromkeys(paths, "fresh")
    target = dataclasses.replace(source, discriminator=discriminator)
    laws = ("generator: equal to the source's, bitwise", "discriminator: random")
    return with_info(target, has_discriminator=True), SurgeryReport("fresh discriminator", leaves, step0=laws)


def step0_difference(source: Source, target: Source, report: SurgeryReport) -> dict[str, float | None]:
    """Measures the largest absolute differences between a target and the source that its classes are mapped to.

    16 latents of seed 0 and the target's mapped classes in turn; images for the generators, and the logits of these
    images for the discriminators. None where there is nothing to compare.
    """
    mapped = [t for t, origin in enumerate(report.classes) if origin.sources]
    if not mapped:
        return {role: None for role in ROLES}
    labels = np.array([mapped[i % len(mapped)] for i in range(16)], np.int32)
    origins = [report.classes[t] for t in labels]
    if all(len(origin.sources) == 1 for origin in origins):
        same = np.array([origin.sources[0] for origin in origins], np.int32)
    else:
        same = np.zeros((len(origins), source.info.num_classes), np.float32)
        for i, origin in enumerate(origins):
            np.add.at(same[i], list(origin.sources), origin.weights)
    z = latents(len(labels), source.networks.z_dim, seed=0, latent=source.networks.latent)
    images = target.generate(z, labels)
    difference: dict[str, float | None] = {"generator": float(np.abs(images - source.generate(z, same)).max())}
    has_both = source.discriminator is not None and target.discriminator is not None
    logits = np.abs(target.judge(images, labels) - source.judge(images, same)).max() if has_both else None
    return difference | {"discriminator": None if logits is None else float(logits)}


# Moving rows.


class _Plan(NamedTuple):
    """How one network's class rows are replaced; `random` holds fresh rows by path, where a class needs one."""

    role: Role
    family: str
    networks: Networks
    classes: tuple[MappedClass, ...]
    random: Mapping[str, Array] | None
    noise: float
    seed: int
    compensate: bool


def _row_paths(networks: Networks) -> list[str]:
    return [f"{role}/params/{rows.path}" for role in ROLES for rows in networks.class_rows[role]]


def _transplant(
    plan: _Plan, variables: Variables
) -> tuple[Variables, dict[str, Status], dict[str, tuple[float, float]]]:
    """Replaces one network's class rows; returns its variables, the fate of each leaf, and singular values."""
    flat = flatten_dict(dict(variables), sep="/")
    random = None if plan.random is None else {path.removeprefix(f"{plan.role}/"): v for path, v in plan.random.items()}
    changed: dict[str, np.ndarray] = {}
    fates: dict[str, Status] = dict.fromkeys(flat, "kept")
    sigmas = {}
    for rows in plan.networks.class_rows[plan.role]:
        leaf, layer = f"params/{rows.path}", rows.path.rpartition("/")[0]
        old = by_class(flat, rows)
        old = old * row_scale(plan.family, len(old), len(plan.classes))
        table = _rows_of(old, None if random is None else by_class(random, rows), plan.classes)
        if plan.noise:
            draw = np.random.default_rng([plan.seed, zlib.crc32(rows.path.encode())])
            table = table + plan.noise * draw.standard_normal(table.shape)
        changed[leaf] = np.moveaxis(table, 0, rows.axis).astype(flat[leaf].dtype)
        fate: Status = "reshaped" if random is None else "fresh"
        fates[leaf] = fate
        if not rows.spectral:
            continue
        vectors, after = exact_leaves(flat, layer, by_class(changed, rows))
        changed |= vectors
        fates |= dict.fromkeys(vectors, fate)
        before = used_sigma(flat, layer, by_class(flat, rows))
        sigmas[rows.path] = before, after
        if plan.compensate and plan.networks.group(plan.role, rows.path) == "projection":
            changed[SCALE] = np.float32(float(flat[SCALE]) * after / before)
            fates[SCALE] = "reshaped"
    new = unflatten_dict({**flat, **jax.device_put(changed)}, sep="/")
    return new, {f"{plan.role}/{path}": fate for path, fate in fates.items()}, sigmas


def _rows_of(old: np.ndarray, random: np.ndarray | None, classes: tuple[MappedClass, ...]) -> np.ndarray:
    """One row per target class; a single source row passes through unchanged, bit for bit."""
    made = []
    for t, mapped in enumerate(classes):
        if not mapped.sources:
            made.append(random[t])
        elif len(mapped.sources) == 1:
            made.append(old[mapped.sources[0]])
        else:
            made.append(np.tensordot(mapped.weights, old[list(mapped.sources)], 1))
    return np.stack(made)


# Reporting.


def _untouched(source: Source) -> SurgeryReport:
    trees = {"generator": source.ema} | (
        {} if source.discriminator is None else {"discriminator": source.discriminator}
    )
    leaves: dict[str, Status] = dict.fromkeys(flatten_dict(trees, sep="/"), "kept")
    classes = tuple(MappedClass(name, (c,), (name,), (1.0,)) for c, name in enumerate(source.info.class_names))
    return SurgeryReport("classes agree", leaves, classes, ("both networks: equal to the source's, bitwise",))


def _step0_laws(
    source: Source,
    classes: tuple[MappedClass, ...],
    noise: float,
    sigmas: Mapping[str, tuple[float, float]],
    d_embed_scale: str,
) -> tuple[str, ...]:
    """What equals what before the first update."""
    all_mapped = all(mapped.sources for mapped in classes)
    if noise:
        laws = [f"generator: rows carry noise of deviation {noise:g}, images differ from the source's"]
    elif not all_mapped:
        laws = ["generator: classes with fresh rows equal nothing"]
    elif all(len(mapped.sources) == 1 for mapped in classes):
        exact = row_scale(source.info.family, source.info.num_classes, len(classes)) == 1
        laws = [f"generator: a class makes the images of its source class, {'bitwise' if exact else 'within 1e-5'}"]
    else:
        laws = ["generator: a class makes the source's images at the mixed row, within rounding"]
    if source.discriminator is None:
        return tuple(laws)
    if not all_mapped:
        return (*laws, "discriminator: features and unconditional logit equal, projection of fresh rows random")
    group = lambda path: source.networks.group("discriminator", path)
    ratios = {path: before / after for path, (before, after) in sigmas.items()}
    projection = [ratio for path, ratio in ratios.items() if group(path) == "projection"]
    if projection and d_embed_scale == "none":
        laws.append(f"discriminator: projection part of the logits times {projection[0]:.6g}, the rest equal")
    else:
        laws.append("discriminator: a class is judged as its source class, within 1e-5 of the logits")
    heads = [ratio for path, ratio in ratios.items() if group(path) == "class_head"]
    return (*laws, *(f"discriminator: class logits before the bias times {ratio:.6g}" for ratio in heads))
