"""A source: a pretrained generator, its discriminator where there is one, and what is known about them.

A `Source` generates, judges and samples; nothing in it changes. Images of `sample` are functions of (weights, seed,
index): asking for more of them, or for fewer, gives the same ones.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float, Float32, UInt8

from gantransfer.errors import UserError, one_of
from gantransfer.models.family import Latent, Networks

Variables = Mapping[str, Any]  # collections of a network: params, batch_stats, spectral, constants
ClassName = str | int | np.integer
LARGEST_BATCH = 64


@dataclass(frozen=True)
class SourceInfo:
    """What is known about a source.

    Attributes:
      name: what people call it.
      family: name of the model family.
      options: every architecture option of the family, by name.
      resolution, channels: of its images, in pixels and colour channels.
      z_dim: length of its latents.
      class_names: one name per class, in the order of the labels; an unconditional source has one class.
      licence: of the weights, as an SPDX identifier or in words; empty where unknown.
      origin: where the weights are from.
      trained_on: the data set.
      images_seen: real images shown to the discriminator so far; None where unknown.
      has_generator: whether raw (not averaged) weights of the generator are known.
      has_ema: whether averaged weights of the generator are known.
      has_discriminator: whether there is a discriminator.
      sample_defaults: recommended settings of `sample`, such as `{"truncation": 0.7}`.
    """

    name: str
    family: str
    options: Mapping[str, Any]
    resolution: int
    channels: int
    z_dim: int
    class_names: tuple[str, ...]
    licence: str = ""
    origin: str = ""
    trained_on: str = ""
    images_seen: int | None = None
    has_generator: bool = True
    has_ema: bool = True
    has_discriminator: bool = True
    sample_defaults: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        """Number of classes, at least 1."""
        return len(self.class_names)


@dataclass(frozen=True, eq=False)
class Source:
    """A pretrained pair of networks.

    Attributes:
      info: what is known about it.
      networks: the modules.
      generator: collections of the raw generator, the start of training; the object `ema` where only one is known.
      ema: collections of the generator that makes images.
      discriminator: collections of the discriminator, or None.
    """

    info: SourceInfo
    networks: Networks
    generator: Variables
    ema: Variables
    discriminator: Variables | None = None

    def generate(
        self,
        z: np.ndarray | Array,
        labels: np.ndarray | Array | Sequence[int] | None = None,
        truncation: float | int = 1.0,
    ) -> Float32[np.ndarray, "n h w c"]:
        """Generates images from given latents, in evaluation mode with the averaged weights.

        Args:
          z: latents `(n, z_dim)`, of the distribution `networks.latent`.
          labels: class indices `(n,)` or class weights `(n, num_classes)`; None: the classes in turn, image i of
            class i mod num_classes.
          truncation: what it does is declared by the family (`Networks.truncation`). For most it is a factor of z,
            which makes it the deviation of the latents (Brock et al. 2019, section 3.1).

        Returns:
          Images `(n, h, w, channels)` in [-1, 1].

        Raises:
          UserError: a shape, label or truncation that does not fit.
        """
        z = np.asarray(z, np.float32)
        if z.ndim != 2 or z.shape[1] != self.networks.z_dim:
            raise UserError("z", z.shape, f"an array of shape (n, {self.networks.z_dim})")
        truncation, meant = _checked_truncation(truncation), self.networks.truncation
        given = None if meant == "latents" else truncation
        if meant != "call":
            z = z * np.float32(truncation)
        weights = self._cycle(len(z)) if labels is None else self._checked_labels(labels, len(z))
        return in_batches(partial(_pictures, self.networks.generator, given, self.ema), z, weights)

    def judge(
        self, images: np.ndarray | Array, labels: np.ndarray | Array | Sequence[int] | None = None
    ) -> Float32[np.ndarray, " n"]:
        """Returns the discriminator's logits `(n,)` of images `(n, h, w, channels)` in [-1, 1], in evaluation mode.

        `labels` are as for `generate`, and may be left out only where there is one class. The logits of several heads
        are averaged.

        Raises:
          UserError: the source has no discriminator, or images or labels do not fit.
        """
        if self.discriminator is None:
            raise UserError("source", self.info.name, "a source with a discriminator; this one has only a generator")
        images = check_images("images", images, self.networks)
        if labels is None and self.info.num_classes > 1:
            raise UserError("labels", None, f"one class index of 0..{self.info.num_classes - 1} per image")
        weights = self._cycle(len(images)) if labels is None else self._checked_labels(labels, len(images))
        return in_batches(partial(_logits, self.networks.discriminator, self.discriminator), images, weights)

    def sample(
        self,
        n: int,
        seed: int = 0,
        classes: Sequence[ClassName] | np.ndarray | ClassName | None = None,
        truncation: float | int = 1.0,
    ) -> UInt8[np.ndarray, "n h w c"]:
        """Samples `n` images as bytes.

        Image i has latent `latents(n, seed)[i]`, whatever `n` is. Where truncation scales latents, below 1 they are
        drawn from the normal cut at two standard deviations and then scaled (Brock et al. 2019, section 3.1: values
        outside are drawn again).

        Args:
          n: number of images.
          seed: of the latents.
          classes: indices or names that the images take in turn; None: all classes in turn.
          truncation: as for `generate`.

        Raises:
          UserError: an unknown class (with the nearest name), n below 1, or a truncation below 0.
        """
        if n < 1:
            raise UserError("n", n, "at least 1")
        chosen = self.class_indices(classes)
        cut = self.networks.truncation != "call" and _checked_truncation(truncation) < 1
        z = latents(n, self.networks.z_dim, seed, cut, self.networks.latent)
        return to_uint8(self.generate(z, chosen[np.arange(n) % len(chosen)], truncation))

    def interpolate(
        self,
        start: tuple[np.ndarray | Array, ClassName],
        end: tuple[np.ndarray | Array, ClassName],
        steps: int = 8,
        truncation: float | int = 1.0,
    ) -> UInt8[np.ndarray, "n h w c"]:
        """Returns `steps` images on the way from one (latent, class) pair to another, end points included.

        The way is linear in the latent `(z_dim,)` and in the class weights, hence in the embedded class.
        """
        if steps < 2:
            raise UserError("steps", steps, "at least 2, the end points")
        ends = np.stack([np.asarray(z, np.float32) for z, _ in (start, end)])
        corners = np.eye(self.info.num_classes, dtype=np.float32)[[self.class_index(c) for _, c in (start, end)]]
        t = np.linspace(0, 1, steps, dtype=np.float32)[:, None]
        z = (1 - t) * ends[:1] + t * ends[1:]
        return to_uint8(self.generate(z, (1 - t) * corners[:1] + t * corners[1:], truncation))

    def class_index(self, name: ClassName) -> int:
        """Returns the label of a class given by name or index; raises `UserError` naming the nearest."""
        return find_class("classes", name, self.info.class_names)

    def class_indices(self, classes: Sequence[ClassName] | np.ndarray | ClassName | None) -> np.ndarray:
        """Returns the labels of classes given by name or index; None gives all in order."""
        if classes is None:
            return np.arange(self.info.num_classes, dtype=np.int32)
        listed = [classes] if isinstance(classes, ClassName) else list(classes)
        if not listed:
            raise UserError("classes", classes, "at least one class, or None for all")
        return np.array([self.class_index(name) for name in listed], np.int32)

    def fingerprint(self) -> str:
        """Returns the SHA-256 of all weights and statistics, as `fingerprint` defines it."""
        trees = {"ema": self.ema}
        if self.generator is not self.ema:
            trees["generator"] = self.generator
        if self.discriminator is not None:
            trees["discriminator"] = self.discriminator
        return fingerprint(trees)

    def _cycle(self, n: int) -> np.ndarray:
        return (np.arange(n) % self.info.num_classes).astype(np.int32)

    def _checked_labels(self, labels: Any, n: int) -> np.ndarray:
        labels, k = np.asarray(labels), self.info.num_classes
        if labels.shape == (n, k) and labels.dtype.kind == "f":
            return labels.astype(np.float32)
        if labels.shape != (n,) or labels.dtype.kind not in "iu":
            raise UserError(
                "labels", f"{labels.dtype}{list(labels.shape)}", f"integers ({n},) or class weights ({n}, {k})"
            )
        # An index out of range would silently read the last row.
        if n and not 0 <= labels.min() <= labels.max() < k:
            raise UserError("labels", f"{labels.min()}..{labels.max()}", f"class indices 0..{k - 1}")
        return labels.astype(np.int32)


def latents(n: int, z_dim: int, seed: int, cut: bool = False, latent: Latent = "normal") -> Float32[np.ndarray, "n z"]:
    """Draws latents of the distribution `Networks.latent`; row i depends on `seed` and i only, not on `n`.

    With `cut`, normal values beyond two standard deviations are drawn again (the truncated normal of [-2, 2]).
    """
    draw = lambda indices: _latents(jax.random.key(seed), indices, z_dim, cut, latent)
    return in_batches(draw, np.arange(n, dtype=np.int32))


def to_uint8(images: Float[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    """Turns [-1, 1] into bytes: (x + 1) * 127.5, rounded half up, cut to 0..255.

    Bytes b read back as b / 127.5 - 1 return to b.
    """
    return np.clip(np.floor((images + 1) * 127.5 + 0.5), 0, 255).astype(np.uint8)


def fingerprint(trees: Mapping[str, Variables]) -> str:
    """Returns the SHA-256 over (path, shape, dtype, little-endian bytes) of all leaves, sorted by path."""
    digest = hashlib.sha256()
    for path, leaf in sorted(flatten_dict(dict(trees), sep="/").items()):
        leaf = np.ascontiguousarray(leaf).reshape(np.shape(leaf))
        little = leaf.astype(leaf.dtype.newbyteorder("<"), copy=False)
        digest.update(f"{path} {list(leaf.shape)} {leaf.dtype.name}\n".encode())
        digest.update(little.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def find_class(field_name: str, name: ClassName, class_names: Sequence[str]) -> int:
    """Returns the index of a class given by name or index; a text that is no name may be an index.

    Raises:
      UserError: for `field_name`, with the nearest name.
    """
    if isinstance(name, str) and (name in class_names or not name.isdecimal()):
        return list(class_names).index(one_of(field_name, name, class_names))
    if not 0 <= int(name) < len(class_names):
        raise UserError(field_name, name, f"a class name or an index 0..{len(class_names) - 1}")
    return int(name)


def check_images(field_name: str, images: Any, networks: Networks) -> Float32[np.ndarray, "n h w c"]:
    """Returns images as float32; raises `UserError` where shape, type or range are not what the networks take."""
    images = np.asarray(images)
    shape = networks.image_shape
    if images.ndim != 4 or images.shape[1:] != shape:
        raise UserError(field_name, images.shape, f"an array of shape (n, {', '.join(map(str, shape))})")
    if images.dtype.kind != "f" or (images.size and np.abs(images).max() > 1.01):
        raise UserError(field_name, str(images.dtype), "floats in [-1, 1] (bytes b are b / 127.5 - 1)")
    return images.astype(np.float32)


def with_info(source: Source, **changes: Any) -> Source:
    """Returns the source with fields of its `info` replaced."""
    return dataclasses.replace(source, info=dataclasses.replace(source.info, **changes))


def _checked_truncation(truncation: float | int) -> float:
    if not (np.isfinite(truncation) and truncation >= 0):
        raise UserError("truncation", truncation, "a finite number of at least 0")
    return float(truncation)


def in_batches(function: Any, *arrays: np.ndarray) -> np.ndarray:
    """Applies a compiled function to at most `LARGEST_BATCH` rows at a time, padded so that few sizes are compiled."""
    n = len(arrays[0])
    size = min(LARGEST_BATCH, 1 << max(n - 1, 0).bit_length())
    parts = []
    for start in range(0, max(n, 1), size):
        # Rows that are there are repeated: an empty request is padded with zeros and cut to nothing.
        rows = np.minimum(np.arange(start, start + size), max(n - 1, 0))
        padded = [array[rows] if n else np.zeros((size, *array.shape[1:]), array.dtype) for array in arrays]
        parts.append(np.asarray(function(*padded))[: n - start])
    return np.concatenate(parts)


def images_of(generator: nn.Module, truncation: float | None, variables: Variables, z: Array, c: Array) -> Array:
    """Images `(n, h, w, channels)`, float32, in evaluation mode: what is compiled for `Source.generate`."""
    given = {} if truncation is None else {"truncation": truncation}
    return generator.apply(variables, z, c, **given).images.astype(jnp.float32)


_pictures = jax.jit(images_of, static_argnums=(0, 1))


@partial(jax.jit, static_argnums=0)
def _logits(discriminator: nn.Module, variables: Variables, x: Array, c: Array) -> Array:
    logits = discriminator.apply(variables, x, c).logits
    heads = logits if isinstance(logits, tuple) else (logits,)
    return (sum(head.reshape(len(x), -1).mean(1) for head in heads) / len(heads)).astype(jnp.float32)


@partial(jax.jit, static_argnums=(2, 3, 4))
def _latents(key: Array, indices: Array, z_dim: int, cut: bool, latent: Latent) -> Array:
    def one(index: Array) -> Array:
        own = jax.random.fold_in(key, index)
        if latent == "uniform":
            return jax.random.uniform(own, (z_dim,), minval=-1, maxval=1)
        return jax.random.truncated_normal(own, -2, 2, (z_dim,)) if cut else jax.random.normal(own, (z_dim,))

    return jax.vmap(one)(indices)
