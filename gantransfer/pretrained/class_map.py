"""Which source classes a target's classes take their rows from.

Policies are data (`POLICIES`); `resolve` turns one into a map with a weight per source class. Three of them look at
the target's images through the source's discriminator, so that no further network is needed.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Array

from gantransfer.errors import UserError
from gantransfer.models.family import ClassRows
from gantransfer.pretrained.source import ClassName, Source, Variables, check_images, find_class, in_batches
from gantransfer.pretrained.spectral_vectors import used_sigma

FIELD = "transfer.classes"
POLICIES: dict[str, str] = {
    "mean": "the mean of all source rows",
    "nearest": "the source class whose projection row fits the target's images best (needs D and images)",
    "random": "a random source class, none twice while there are enough",
    "list": "the source class that transfer.class_map names, or the mean of those that it names",
    "copy": "the source class of the same name, of transfer.class_map, or of the same index",
    "from_images": "the source class that D's class head sees in the target's images (needs D and images)",
    "from_images_weighted": "source rows weighted by the probabilities of D's class head (needs D and images)",
    "fresh": "random rows, as in a network that was never trained",
}
IMAGE_POLICIES = ("nearest", "from_images", "from_images_weighted")
ClassMap = Mapping[ClassName, ClassName | Sequence[ClassName] | None]


@dataclass(frozen=True)
class MappedClass:
    """Where the rows of one target class come from.

    Attributes:
      name: of the target class.
      sources: indices of source classes; empty for fresh rows.
      names: of the source classes.
      weights: of their rows, with sum 1.
      score: what the choice was made by (mean projection or mean probability), where images were looked at.
    """

    name: str
    sources: tuple[int, ...]
    names: tuple[str, ...]
    weights: tuple[float, ...]
    score: float | None = None

    def __str__(self) -> str:
        score = "" if self.score is None else f" (score {self.score:.3g})"
        if not self.sources:
            return f"{self.name} <- fresh"
        if len(self.sources) == 1:
            return f"{self.name} <- {self.names[0]} [{self.sources[0]}]{score}"
        largest = sorted(zip(self.weights, self.names, strict=True), key=lambda part: -part[0])[:3]
        parts = " + ".join(f"{weight:.2f} {name}" for weight, name in largest)
        return f"{self.name} <- {parts}{' + ...' if len(self.sources) > 3 else ''}{score}"


def parse_class_map(lines: Sequence[str]) -> dict[ClassName, Sequence[ClassName]] | None:
    """Reads `target=source` or `target=source+source` lines, names or indices; no lines give None."""
    read: dict[ClassName, Sequence[ClassName]] = {}
    for line in lines:
        target, equals, sources = line.partition("=")
        if not (target and equals and sources) or target in read:
            raise UserError("transfer.class_map", line, "target=source or target=source+source, each target once")
        read[target] = sources.split("+")
    return read or None


def resolve(
    source: Source,
    class_names: tuple[str, ...],
    policy: str,
    class_map: ClassMap | None,
    images: np.ndarray | Array | None,
    labels: np.ndarray | Array | Sequence[int] | None,
    seed: int,
) -> tuple[MappedClass, ...]:
    """Turns a policy into one `MappedClass` per target class.

    Arguments and errors are those of `surgery.change_classes`, with a policy that is known.
    """
    n, names = source.info.num_classes, source.info.class_names

    def of(name: str, sources: Sequence[int], weights: Sequence[float] | None = None, score: float | None = None):
        shares = [1 / len(sources) for _ in sources] if weights is None else weights
        return MappedClass(name, tuple(sources), tuple(names[c] for c in sources), tuple(shares), score)

    if policy == "mean":
        return tuple(of(name, range(n)) for name in class_names)
    if policy == "fresh":
        return tuple(of(name, ()) for name in class_names)
    if policy == "random":
        draw = np.random.default_rng([seed, zlib.crc32(FIELD.encode())])
        rows = draw.choice(n, len(class_names), replace=len(class_names) > n).tolist()
        return tuple(of(name, (row,)) for name, row in zip(class_names, rows, strict=True))
    if policy in ("list", "copy"):
        return tuple(of(name, sources) for name, sources in _listed(source, class_names, policy, class_map))
    scores = _scores(source, class_names, policy, images, labels)
    if policy == "from_images_weighted":
        return tuple(of(name, range(n), row.tolist(), row.max()) for name, row in zip(class_names, scores, strict=True))
    best = [int(np.flatnonzero(row >= row.max() - 1e-6 * np.ptp(row))[0]) for row in scores]
    return tuple(of(name, (c,), score=float(row[c])) for name, row, c in zip(class_names, scores, best, strict=True))


def _listed(
    source: Source, class_names: tuple[str, ...], policy: str, class_map: ClassMap | None
) -> list[tuple[str, tuple[int, ...]]]:
    """Target names with source indices for `list` and `copy`."""
    names, field_name = source.info.class_names, "transfer.class_map"
    if class_map is None and policy == "copy":
        if set(class_names) <= set(names):
            class_map = {name: name for name in class_names}
        elif len(class_names) == len(names):
            class_map = {name: i for i, name in enumerate(class_names)}
    if class_map is None:
        missing = [name for name in class_names if name not in names]
        allowed = "needs transfer.class_map"
        raise UserError(
            FIELD, policy, allowed + (f": the source has no class {', '.join(missing[:6])}" if policy == "copy" else "")
        )
    resolved: dict[int, tuple[int, ...]] = {}
    for target, chosen in class_map.items():
        several = [] if chosen is None else [chosen] if isinstance(chosen, ClassName) else list(chosen)
        if policy == "copy" and len(several) != 1:
            raise UserError(field_name, f"{target}={chosen}", "one source class per target class; list takes several")
        resolved[find_class(field_name, target, class_names)] = tuple(find_class(field_name, c, names) for c in several)
    missing = [name for t, name in enumerate(class_names) if t not in resolved]
    if missing:
        raise UserError(
            field_name, sorted(map(str, class_map)), f"every target class; missing {', '.join(missing[:6])}"
        )
    return [(name, resolved[t]) for t, name in enumerate(class_names)]


def _scores(
    source: Source,
    class_names: tuple[str, ...],
    policy: str,
    images: np.ndarray | Array | None,
    labels: np.ndarray | Array | Sequence[int] | None,
) -> np.ndarray:
    """Mean scores `(target classes, source classes)` of the target's images by the source's discriminator, float64."""
    if source.discriminator is None:
        others = [name for name in POLICIES if name not in IMAGE_POLICIES]
        raise UserError(FIELD, policy, f"with a source that has no discriminator, one of {', '.join(others)}")
    if images is None or labels is None:
        raise UserError(FIELD, policy, "only with images and labels of the target")
    images, labels = check_images(FIELD, images, source.networks), np.asarray(labels)
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise UserError(
            FIELD, f"labels {labels.dtype}{list(labels.shape)}", f"one integer label per image, ({len(images)},)"
        )
    absent = [name for t, name in enumerate(class_names) if t not in labels]
    if absent or labels.max() >= len(class_names) or labels.min() < 0:
        raise UserError(
            FIELD, f"{policy}, no image of {', '.join(absent[:6])}", "images of every target class and of no other"
        )
    discriminator = source.networks.discriminator
    if source.networks.has_class_head and policy != "nearest":
        scores = in_batches(partial(_probabilities, discriminator, source.discriminator), images).astype(np.float64)
    else:
        pooled = in_batches(partial(_pooled, discriminator, source.discriminator), images)
        scores = pooled.astype(np.float64) @ _projection_rows(source, policy).T
        if policy == "from_images_weighted":
            scores = np.exp(scores - scores.max(axis=1, keepdims=True))
            scores /= scores.sum(axis=1, keepdims=True)
    means = np.stack([scores[labels == t].mean(axis=0) for t in range(len(class_names))])
    return means / means.sum(axis=1, keepdims=True) if policy == "from_images_weighted" else means


def _projection_rows(source: Source, policy: str) -> np.ndarray:
    """The projection rows that the discriminator uses, `(source classes, features)`, float64."""
    group = partial(source.networks.group, "discriminator")
    rows = next((r for r in source.networks.class_rows["discriminator"] if group(r.path) == "projection"), None)
    if rows is None:
        raise UserError(
            FIELD, policy, "with a discriminator that has neither class head nor projection, another policy"
        )
    flat = flatten_dict(dict(source.discriminator), sep="/")
    table = by_class(flat, rows)
    if not rows.spectral:
        return table
    layer = rows.path.rpartition("/")[0]
    return table * float(flat["constants/projection_scale"]) / used_sigma(flat, layer, by_class(flat, rows))


@partial(jax.jit, static_argnums=0)
def _pooled(discriminator: nn.Module, variables: Variables, x: Array) -> Array:
    labels = jnp.zeros(len(x), jnp.int32)
    return discriminator.apply(variables, x, labels, want=("pooled",)).stages["pooled"]


@partial(jax.jit, static_argnums=0)
def _probabilities(discriminator: nn.Module, variables: Variables, x: Array) -> Array:
    labels = jnp.zeros(len(x), jnp.int32)
    return jax.nn.softmax(discriminator.apply(variables, x, labels).classes)


def by_class(flat: Mapping[str, Any], rows: ClassRows) -> np.ndarray:
    """A leaf with its classes first, float64."""
    return np.moveaxis(np.asarray(flat[f"params/{rows.path}"], np.float64), rows.axis, 0)
