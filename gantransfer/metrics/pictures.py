"""The two sides of a comparison as numbered pictures: real ones of a set, generated ones of a source.

Both are functions of a number: picture i is the same whatever the batch, the number of pictures or of devices. So
features can be computed in any portions, and a few pictures can be made again where a metric wants to see them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, UInt8

from gantransfer.data.image_set import ImageSet, in_threads
from gantransfer.errors import UserError, one_of
from gantransfer.features import pixels
from gantransfer.metrics.batch_norm import BatchNorm, choose_batch_norm, whole_groups, with_standing_statistics
from gantransfer.pretrained.source import Source, in_batches, latents

LABEL_RULES = ("turn", "uniform", "data")
QUANTISATION = "trunc(clamp(127.5 x + 128, 0, 255))"

# What turns the arguments of a batch into pictures, inside the program of the feature networks.
Maker = Callable[..., tuple[UInt8[Array, "b h w c"], Float[Array, " b"]]]
# Generators make pictures in [-1, 1]; what lies far outside says that the range is another, or that G diverged.
FAR_OUTSIDE = 1.5


@dataclass(frozen=True, eq=False)
class RealPictures:
    """Pictures of a set.

    This is what a side is, for both kinds of it: a name for messages, `shape` of a picture, `labels`, `identity` (what
    the pictures are a function of), `constants` (arrays that every batch needs), `arguments` (what the host hands over
    for some of them), `group` (how many of them in a row depend on each other) and `maker`: `maker(constants,
    *arguments)` gives uint8 pictures, and of each the share of values far outside [-1, 1], NaN where one is not finite.

    Attributes:
      images: the set.
      mirror: whether their mirror images count as further pictures, after all others.
    """

    images: ImageSet
    mirror: bool = False
    constants: Any = ()
    group: int = 1

    @property
    def name(self) -> str:
        """The set's."""
        return self.images.name

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width, channels."""
        return self.images.resolution, self.images.resolution, self.images.channels

    @cached_property
    def labels(self) -> Int[np.ndarray, " n"]:
        """The set's, twice where pictures are mirrored."""
        return np.tile(self.images.labels, 2 if self.mirror else 1)

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        """Content and mirroring."""
        return {"fingerprint": self.images.fingerprint, "mirror": self.mirror}

    def __len__(self) -> int:
        return len(self.images) * (2 if self.mirror else 1)

    def arguments(self, rows: Int[np.ndarray, " b"]) -> tuple[np.ndarray, ...]:
        """The pictures."""
        return (self.read(rows),)

    @property
    def maker(self) -> Maker:
        """Takes the pictures as they are."""
        return _as_they_are

    def read(self, rows: Int[np.ndarray, " b"]) -> UInt8[np.ndarray, "b h w c"]:
        """Decodes pictures, in threads."""
        count, found = len(self.images), np.empty((len(rows), *self.shape), np.uint8)

        def fill(i: int) -> None:
            image, _ = self.images.read(int(rows[i]) % count)
            found[i] = image[:, ::-1] if rows[i] >= count else image

        in_threads(fill, len(rows))
        return found


@dataclass(frozen=True, eq=False)
class GeneratedPictures:
    """Samples of a source: picture i has latent i of the seed, as in `Source.sample`, and the averaged weights.

    Attributes:
      source: what generates.
      count: how many.
      seed: of latents and of drawn labels.
      truncation: as `Source.sample` takes it.
      rule: labels: the classes in `turn`, drawn `uniform`ly over the classes, or drawn from the labels of the `data`.
      data_labels: for the rule `data`: the labels of the real pictures, in the source's numbering.
      batch_norm: what the generator normalises by; None: what is usual for it.
    """

    source: Source
    count: int
    seed: int = 0
    truncation: float = 1.0
    rule: str = "turn"
    data_labels: Int[np.ndarray, " m"] | None = None
    batch_norm: BatchNorm | None = None

    def __post_init__(self) -> None:
        one_of("labels", self.rule, LABEL_RULES)
        if self.rule == "data" and self.data_labels is None:
            raise UserError("labels", self.rule, "turn or uniform, where there are no real labels to draw from")
        if self.batch_norm is None:
            object.__setattr__(self, "batch_norm", choose_batch_norm(self.source))

    @property
    def name(self) -> str:
        """The source's."""
        return f"samples of {self.source.info.name}"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width, channels."""
        info = self.source.info
        return info.resolution, info.resolution, info.channels

    @cached_property
    def labels(self) -> Int[np.ndarray, " n"]:
        """By the rule; the first n labels do not depend on how many there are."""
        return self._filled_labels[: self.count]

    @property
    def group(self) -> int:
        """How many samples in a row depend on each other."""
        return self.batch_norm.group

    @property
    def _filled(self) -> int:
        """How many samples there are when the last group is filled."""
        return -(-self.count // self.group) * self.group

    @cached_property
    def _filled_labels(self) -> Int[np.ndarray, " n"]:
        classes, count = self.source.info.num_classes, self._filled
        if self.rule == "turn":
            return (np.arange(count) % classes).astype(np.int32)
        bound = classes if self.rule == "uniform" else len(self.data_labels)
        drawn = np.random.Generator(np.random.PCG64([self.seed, bound])).integers(0, bound, count)
        return (drawn if self.rule == "uniform" else np.asarray(self.data_labels)[drawn]).astype(np.int32)

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        """Weights, latents and labels; not how many there are, so that a larger request begins with the same."""
        drawn = {} if self.rule != "data" else {"data_labels": np.asarray(self.data_labels).tolist()}
        if self.batch_norm.kind not in ("none", "stored"):
            drawn["batch_norm"] = self.batch_norm.described
        return {
            "generator": self.source.fingerprint(),
            "seed": self.seed,
            "truncation": self.truncation,
            "rule": self.rule,
            **drawn,
        }

    @cached_property
    def z(self) -> Float32[np.ndarray, "n z"]:
        """The latents, scaled where truncation means that."""
        networks = self.source.networks
        cut = networks.truncation != "call" and self.truncation < 1
        drawn = latents(self._filled, networks.z_dim, self.seed, cut, networks.latent)
        return drawn if networks.truncation == "call" else drawn * np.float32(self.truncation)

    @cached_property
    def constants(self) -> Any:
        """The generator's averaged weights, and the statistics that it normalises by."""
        if self.batch_norm.kind != "standing":
            return self.source.ema
        return with_standing_statistics(self.source, self.batch_norm, self.seed, self.truncation)

    def __len__(self) -> int:
        return self.count

    def again(self, seed: int) -> "GeneratedPictures":
        """As many samples of another seed."""
        return replace(self, seed=seed)

    def arguments(self, rows: Int[np.ndarray, " b"]) -> tuple[np.ndarray, ...]:
        """Latents and labels; beyond the last group they are those of its last sample."""
        rows = np.minimum(rows, self._filled - 1)
        return self.z[rows], self._filled_labels[rows]

    @property
    def maker(self) -> Maker:
        """The generator and the rule that makes bytes of its floats."""
        networks = self.source.networks
        given = None if networks.truncation == "latents" else self.truncation
        return Generating(networks.generator, given, self.group)

    def read(self, rows: Int[np.ndarray, " b"]) -> UInt8[np.ndarray, "b h w c"]:
        """Generates some of the pictures again."""
        own, where = (rows, np.arange(len(rows))) if self.group == 1 else whole_groups(rows)
        # A group has as many samples as one call takes at most.
        return in_batches(partial(_made, self.maker, self.constants), *self.arguments(own))[where]


@dataclass(frozen=True)
class Generating:
    """A generator as a pure function of weights, latents and labels to bytes; equal for equal modules.

    Attributes:
      generator: the module.
      truncation: what its call is given; None: nothing.
      group: 1, or samples that are normalised by their common moments.
    """

    generator: nn.Module
    truncation: float | None
    group: int = 1

    def __call__(
        self, variables: Any, z: Float[Array, "b z"], labels: Int[Array, " b"]
    ) -> tuple[UInt8[Array, "b h w c"], Float[Array, " b"]]:
        """Pictures, and of each the share of values far outside [-1, 1]; NaN where one is not finite."""
        given = {} if self.truncation is None else {"truncation": self.truncation}
        if self.group == 1:
            images = self.generator.apply(variables, z, labels, **given).images
        else:
            call = lambda z, c: self.generator.apply(variables, z, c, train=True, **given).images
            images = jax.vmap(call)(z.reshape(-1, self.group, z.shape[1]), labels.reshape(-1, self.group))
            images = images.reshape(len(z), *images.shape[2:])
        images = images.astype(jnp.float32)
        outside = jnp.where(jnp.isfinite(images), (jnp.abs(images) > FAR_OUTSIDE).astype(jnp.float32), jnp.nan)
        return pixels.to_uint8(images), outside.mean(axis=(1, 2, 3))


@partial(jax.jit, static_argnums=0)
def _made(maker: Maker, constants: Any, *arguments: Array) -> UInt8[Array, "b h w c"]:
    return maker(constants, *arguments)[0]


def _as_they_are(constants: Any, images: UInt8[Array, "b h w c"]) -> tuple[UInt8[Array, "b h w c"], Float[Array, " b"]]:
    return images, jnp.zeros(len(images))


Pictures = RealPictures | GeneratedPictures


def check_sizes(a: Pictures, b: Pictures) -> None:
    """Raises `UserError` where two sides differ in size: resizing one of them moves every number."""
    if a.shape != b.shape:
        sizes = " and ".join("x".join(map(str, side.shape)) for side in (a, b))
        raise UserError("images", f"{a.name} and {b.name}: {sizes}", "two sets of one size and as many channels")
