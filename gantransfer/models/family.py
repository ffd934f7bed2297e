"""What a model family declares, so that steps, methods and surgery work on any of them.

A family is a pair of Linen networks with named parameter groups. Everything above this floor sees the two networks
through three things only: the calls below, the group of each leaf, and the leaves that hold one row per class.

Calls (NHWC, float32 outputs):

    generator(z, c, train=False, want=())      -> Picture
    discriminator(x, c, train=False, want=())  -> Judgement

Where `Networks.truncation` says so, the generator also takes `truncation=1.0`.

`z` is `(n, z_dim)`; `c` is int32 `(n,)` or class weights `(n, num_classes)`; `x` is `(n, h, w, channels)` in [-1, 1].
`train=True` uses batch statistics where the family has batch norm. What a forward pass changes (running averages,
spectral norm vectors) is written only to collections that the caller made mutable, so evaluation is `apply` with
nothing mutable. `want` names intermediate stages by resolution (`"b32"`), or `"pooled"` for a discriminator's pooled
features.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import flax.linen as nn
from jaxtyping import Array, Float, Int

from gantransfer.errors import UserError

Role = Literal["generator", "discriminator"]
ROLES: tuple[Role, Role] = ("generator", "discriminator")
Latent = Literal["normal", "uniform"]

Labels = Int[Array, " n"] | Float[Array, "n k"]


class Picture(NamedTuple):
    """What a generator returns: images `(n, h, w, channels)` in [-1, 1], and the stages that were asked for."""

    images: Float[Array, "n h w c"]
    stages: Mapping[str, Array] = {}


class Judgement(NamedTuple):
    """What a discriminator returns.

    Attributes:
      logits: raw outputs `(n,)`, or `(n, m)` where m patches are judged; a tuple of such arrays where there are several
        heads.
      stages: the stages that were asked for, by name.
      classes: class logits `(n, num_classes)` of the class head; None where the network has none.
    """

    logits: Array | tuple[Array, ...]
    stages: Mapping[str, Array] = {}
    classes: Float[Array, "n k"] | None = None


def wanted(stages: Mapping[str, Array], want: tuple[str, ...]) -> dict[str, Array]:
    """Returns the stages that were asked for; raises `UserError` with the names that exist."""
    for name in want:
        if name not in stages:
            raise UserError("want", name, ", ".join(stages))
    return {name: stages[name] for name in want}


@dataclass(frozen=True)
class ClassRows:
    """A leaf that holds one row per class: where it is and which of its axes counts classes."""

    path: str
    axis: int
    # True where the forward pass divides the whole table by its largest singular value, so that rows are coupled.
    spectral: bool = False


@dataclass(frozen=True)
class Networks:
    """A generator and a discriminator of one family, built for given options.

    Attributes:
      generator, discriminator: Linen modules with the calls of this file's docstring.
      z_dim: length of the latent that the generator really takes.
      resolution, channels: of the images, in pixels and colour channels.
      num_classes: at least 1; an unconditional set is one class.
      group: `group(role, path)` -> name of the parameter group of a leaf; `path` is joined with "/". Names:
        `class_embedding`, `conditional_norm`, `norm`, `linear`, `blocks.<resolution>` (attention included; a generator
        block counts by the size it makes, a discriminator block by the size it is given), `output`, `projection`,
        `head`, `class_head`, `reconstruction` (decoders of a discriminator); of style-based networks also `mapping` (of
        latents or labels to styles), `to_rgb`, `from_rgb`, and `conditional_norm` for the maps from styles to the
        scales of channels.
      block: `block(role, path)` -> number of the block that a leaf belongs to, in the order of the forward pass (a
        discriminator's block 0 sees the image); None outside the blocks.
      class_rows: per role, the leaves with one row per class.
      joint_pass: whether fakes and reals go through the discriminator as one batch (fakes first) unless a run says
        otherwise.
      has_class_head: whether `Judgement.classes` is there.
      latent: distribution of each number of a latent: standard normal, or uniform in [-1, 1).
      truncation: what a truncation below 1 does to a picture: it scales the latents ("latents"), it is given to the
        generator's call as `truncation` ("call"), or "both". Such a generator is called with a Python number, so that
        it may compute with it before anything is traced.
      streams: random streams that a training pass of the generator draws from: `rngs={name: key}` for each.
      layer: `layer(role, path)` -> number of the discriminator's layer that a leaf belongs to, counted from the image
        as published FreezeD settings of the family count; None for leaves that they never hold. None: no such settings.
    """

    generator: nn.Module
    discriminator: nn.Module
    z_dim: int
    resolution: int
    channels: int
    num_classes: int
    group: Callable[[Role, str], str]
    block: Callable[[Role, str], int | None]
    class_rows: Mapping[Role, tuple[ClassRows, ...]] = field(default_factory=dict)
    joint_pass: bool = True
    has_class_head: bool = False
    latent: Latent = "normal"
    truncation: Literal["latents", "call", "both"] = "latents"
    streams: tuple[str, ...] = ()
    layer: Callable[[Role, str], int | None] | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and colour channels of an image."""
        return self.resolution, self.resolution, self.channels


@dataclass(frozen=True)
class Option:
    """One architecture option of a family: its default, the type or values allowed, a line of help."""

    default: Any
    allowed: type | tuple
    help: str


@dataclass(frozen=True)
class Family:
    """A model family.

    Attributes:
      name: what configs and sources call it.
      options: architecture options by name; a source's `config.json` stores their values.
      build: `build(**options)` -> Networks; options left out take their defaults. Raises UserError naming an option
        that is out of range.
      paper: where the architecture is from.
    """

    name: str
    options: Mapping[str, Option]
    build: Callable[..., Networks]
    paper: str
