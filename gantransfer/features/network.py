"""A frozen feature network: its architecture as published, its preprocessing, its weights, and the calls to use it."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from gantransfer.errors import UserError
from gantransfer.features import pixels, published, state_dicts
from gantransfer.features.layers import HIGHEST, BatchNorm, Graph
from gantransfer.features.state_dicts import Shapes, State

Params = Mapping[str, Any]
Pixels = Array | np.ndarray
Triple = tuple[float, ...]

IMAGENET: tuple[Triple, Triple] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
FEATURES = "features"
# How far the mean of a batch may be from 0 after normalisation; levels of 255 taken for [0, 1] are a hundred away.
LARGEST_MEAN = 5.0


@dataclass(frozen=True)
class Input:
    """How images become what a network takes.

    Attributes:
      size: height and width that images are resized to.
      rule: of `pixels.resize`.
      mean, std: per channel, for values in [0, 1].
      clip: whether what the resize overshoots is clipped.
      backbone: by what name `pixels.FRIENDLY_RULES` knows the network.
      channels: 3, or 1 for networks of grey images.
      pipeline: name of the published pipeline that this is, if it is one.
      in_bytes: whether images of bytes are resized to bytes, as Pillow does, with a rule of Pillow's. Others are not
        rounded in any case.
    """

    size: int
    rule: str
    mean: Triple
    std: Triple
    clip: bool = False
    backbone: str = ""
    channels: int = 3
    pipeline: str | None = None
    in_bytes: bool = False

    def by(self, pipeline: str) -> "Input":
        """This input with the resize of a published pipeline; the FID Inception network takes its range from it too.

        Raises:
          UserError: for an unknown pipeline, or `friendly` where StudioGAN has no filter for the network.
        """
        found = pixels.pipeline(pipeline, self.backbone)
        changed = dataclasses.replace(self, rule=found.rule, clip=found.clip, pipeline=pipeline, in_bytes=False)
        if self.backbone != "inception_tf":
            return changed
        return dataclasses.replace(changed, mean=(found.centre / 255,) * 3, std=(found.scale / 255,) * 3)

    def normalised(self, images: Shaped[Pixels, "n h w c"]) -> Float[Array, "n _h _w _c"]:
        """Levels 0 to 255 (uint8 or float) as the network takes them; grey becomes colour where it takes colour."""
        rgb = pixels.to_rgb(images) if self.channels == 3 else images
        if self.in_bytes and rgb.dtype == np.uint8:
            rgb = pixels.resize_uint8(rgb, (self.size, self.size), self.rule)
        levels = pixels.resize(rgb, (self.size, self.size), self.rule, clip=self.clip)
        return (levels / 255 - jnp.asarray(self.mean, levels.dtype)) / jnp.asarray(self.std, levels.dtype)

    @property
    def described(self) -> dict[str, Any]:
        """For records."""
        return {"pipeline": self.pipeline, "size": self.size, "resize": self.rule, "clip": self.clip} | {
            "mean": list(self.mean),
            "std": list(self.std),
            **({"in_bytes": True} if self.in_bytes else {}),
        }


@dataclass(frozen=True)
class Architecture:
    """What is known about a feature network before it has weights.

    Attributes:
      name: what users call it.
      about: one line.
      module: makes the graph from `folded` and `precision`.
      input: its preprocessing.
      outputs: names of its outputs with their widths; 0 for maps.
      feature: which output or stage distances are taken in by default.
      weights: published files, the usual one first.
      prefixes: what published files put before its keys.
      harmless: patterns of keys that published files have beside it.
      rename: from another published spelling of the keys to the one that the graph has.
      choose: from the shapes of the arrays given to the architecture they really belong to and a sentence about it;
        None where they belong to this one.
    """

    name: str
    about: str
    module: Callable[..., Graph]
    input: Input
    outputs: Mapping[str, int]
    feature: str
    weights: tuple[published.Weights, ...] = ()
    prefixes: tuple[str, ...] = ()
    harmless: tuple[str, ...] = ()
    rename: Callable[[State], State] | None = None
    choose: Callable[[Shapes], tuple["Architecture", str] | None] | None = None

    @property
    def described(self) -> str:
        """One line for lists: what it is, input, outputs with their widths, files with their licence and page."""
        size, channels = self.input.size, "grey" if self.input.channels == 1 else "colour"
        # Names of Inception's outputs are their widths.
        plain = [name if str(width) in ("0", name) else f"{name} {width}" for name, width in self.outputs.items()]
        files: dict[tuple[str, str], list[str]] = {}
        for weights in self.weights:
            files.setdefault((weights.licence, weights.page), []).append(weights.described)
        told = "; or ".join(f"{' or '.join(names)}, {licence}, {page}" for (licence, page), names in files.items())
        return f"{self.about}; {size}x{size} {channels}; {', '.join(plain)}; weights: {told or 'given by the user'}"

    @functools.cached_property
    def blueprint(self) -> "Blueprint":
        """Shapes of the published arrays, which batch norms fold into which kernels, and every stage."""
        return _blueprint(self)


@dataclass(frozen=True)
class Blueprint:
    """What a graph says about itself when it is traced.

    Attributes:
      shapes: of the published arrays, by key.
      folds: for each batch norm that folds: the kernel's layer, its own layer, its eps.
      taps: shapes of stages and outputs of one image at the usual size, in the order of the forward pass.
    """

    shapes: Shapes
    folds: tuple[tuple[str, str, float], ...]
    taps: Shapes


def _blueprint(architecture: Architecture) -> Blueprint:
    folds = []

    def watch(call, args, kwargs, context):
        if isinstance(context.module, BatchNorm) and context.method_name == "__call__" and context.module.kernel:
            folds.append((context.module.kernel, context.module.name, context.module.eps))
        return call(*args, **kwargs)

    graph, rule = architecture.module(), architecture.input
    shape = jax.ShapeDtypeStruct((1, rule.size, rule.size, rule.channels), jnp.float32)
    with nn.intercept_methods(watch):
        taps, variables = jax.eval_shape(lambda x: graph.init_with_output(jax.random.key(0), x, None), shape)
    leaves = state_dicts.flat(variables["params"])
    shapes = {key: state_dicts.published_shape(key, leaf.shape) for key, leaf in leaves.items()}
    return Blueprint(shapes, tuple(folds), {name: value.shape for name, value in taps.items()})


def fold(arrays: State, folds: tuple[tuple[str, str, float], ...]) -> State:
    """Puts the scales of batch norms into the kernels before them, in float64; arrays are in our layout."""
    folded = dict(arrays)
    for kernel, norm, eps in folds:
        weight, bias, mean, var = (
            folded.pop(f"{norm}.{leaf}").astype(np.float64)
            for leaf in ("weight", "bias", "running_mean", "running_var")
        )
        scale = weight / np.sqrt(var + eps)
        folded[f"{kernel}.weight"] = (folded[f"{kernel}.weight"] * scale).astype(np.float32)
        folded[f"{norm}.bias"] = (bias - mean * scale).astype(np.float32)
    return folded


@dataclass(frozen=True)
class Settings:
    """How a network is computed.

    Attributes:
      pipeline: name of a published pixel pipeline; None takes the network's own.
      mean, std: per channel, for values in [0, 1], where they shall not be the network's own.
      fold: whether batch norms are folded into kernels.
      precision: of products.
      dtype: type that `forward` and `apply` compute in; None takes that of the images (float32).
      batch: images of one compiled call of the network; more are cut into such parts.
    """

    pipeline: str | None = None
    mean: Triple | None = None
    std: Triple | None = None
    fold: bool = True
    precision: jax.lax.Precision = HIGHEST
    dtype: Any = None
    batch: int = 32


class FrozenNetwork:
    """A feature network with weights, none of which ever moves.

    Attributes:
      name: what records call it; begins with `random:` where the weights are random.
      architecture: what it is.
      input: its preprocessing.
      params: tree of parameters, an argument of `forward` and `apply`.
      outputs: names of its outputs, in order.
      stages: names of all intermediate stages.
      feature: which of these `features` is.
      sha256: of the unfolded parameters as float32 bytes in our layout, in the order of the sorted keys.
      info: origin, licence, file, preprocessing, whether random, notes.
    """

    def __init__(
        self, name: str, architecture: Architecture, state: State, info: Mapping[str, Any], settings: Settings
    ):
        blueprint = architecture.blueprint
        arrays = {key: state_dicts.to_ours(key, array) for key, array in state.items()}
        self.name, self.architecture, self.settings = name, architecture, settings
        self.input = architecture.input.by(settings.pipeline) if settings.pipeline else architecture.input
        own = {key: value for key, value in (("mean", settings.mean), ("std", settings.std)) if value is not None}
        self.input = dataclasses.replace(self.input, **own)
        self.outputs, self.feature = tuple(architecture.outputs), architecture.feature
        self.stages = tuple(tap for tap in blueprint.taps if tap not in architecture.outputs)
        self.sha256 = state_dicts.digest(arrays)
        self.info = {**info, "preprocessing": self.input.described}
        self.graph = architecture.module(folded=settings.fold, precision=settings.precision)
        kept = fold(arrays, blueprint.folds) if settings.fold else arrays
        self.params: Params = jax.tree.map(jnp.asarray, state_dicts.nested(kept))
        self._compiled = jax.jit(self.forward, static_argnames="want")

    def __call__(self, images: Shaped[np.ndarray, "n h w c"], want: Sequence[str] = ()) -> dict[str, np.ndarray]:
        """Outputs of images, on the host.

        Args:
          images: uint8, or float32 in levels from 0 to 255; any size; 1 or 3 channels.
          want: outputs or stages, exactly these; none takes all outputs and `features`.

        Returns:
          by name, `(n, ...)` float32; maps are channels-last.

        Raises:
          UserError: unknown names, other numbers of channels, NaN, or a range that is not 0 to 255.
        """
        want = self.named(want)
        self._check_images(images)
        parts = [self._compiled(self.params, part, want=want) for part in _parts(images, self.settings.batch)]
        if not parts:
            shapes = jax.eval_shape(functools.partial(self.forward, want=want), self.params, images)
            return {name: np.zeros(shapes[name].shape, np.float32) for name in want}
        return {name: np.concatenate([np.asarray(part[name]) for part in parts])[: len(images)] for name in want}

    def forward(self, params: Params, images: Shaped[Pixels, "n h w c"], want: Sequence[str] = ()) -> dict[str, Array]:
        """Outputs of levels 0 to 255 (uint8 or float): resized, normalised, computed; for use inside programs."""
        return self.apply(params, self.input.normalised(images), want)

    def apply(self, params: Params, x: Float[Pixels, "n h w c"], want: Sequence[str] = ()) -> dict[str, Array]:
        """Outputs of images that are normalised already, of any size that the network can take.

        Computes in the type of `x` unless the network was loaded with another; returns at least float32.

        Raises:
          UserError: unknown names; concrete images whose range is not the network's.
        """
        want = self.named(want)
        if not isinstance(x, jax.core.Tracer):
            self._check_range(np.asarray(x))
        x = jnp.asarray(x)
        taps = [self.feature if name == FEATURES else name for name in want]
        found = self.graph.apply(
            {"params": params}, x.astype(self.settings.dtype or x.dtype), tuple(dict.fromkeys(taps))
        )
        found = {name: value.astype(jnp.promote_types(value.dtype, jnp.float32)) for name, value in found.items()}
        return {name: found[tap] for name, tap in zip(want, taps, strict=True)}

    def named(self, want: Sequence[str]) -> tuple[str, ...]:
        """The names asked for; all outputs and `features` where none is.

        Raises:
          UserError: for a name that the network has not, with those that it has.
        """
        if isinstance(want, str):
            raise UserError("want", want, f"a tuple of names: ({want!r},)")
        for name in want:
            if name != FEATURES and name not in self.outputs and name not in self.stages:
                raise UserError("want", name, f"outputs {', '.join(self.outputs)}; stages {', '.join(self.stages)}")
        return tuple(want) or (*self.outputs, FEATURES)

    def _check_images(self, images: np.ndarray) -> None:
        allowed = (1, 3) if self.input.channels == 3 else (1,)
        if images.ndim != 4 or images.shape[-1] not in allowed:
            words = " or ".join(map(str, allowed))
            raise UserError(f"images for {self.name}", images.shape, f"(n, height, width, channels), channels {words}")
        if images.dtype == np.uint8:
            return
        if images.dtype != np.float32:
            raise UserError(f"images for {self.name}", str(images.dtype), "uint8, or float32 levels from 0 to 255")
        bad = int(np.count_nonzero(~np.isfinite(images).all(axis=(1, 2, 3))))
        if bad:
            raise UserError(f"images for {self.name}", f"{bad} of {len(images)} hold NaN or infinity", "finite pixels")
        if images.size and (images.min() < -64 or images.max() > 320 or 0 < np.abs(images).max() <= 1):
            found = f"values from {images.min():.3g} to {images.max():.3g}"
            raise UserError(f"images for {self.name}", found, "levels from 0 to 255, not [0, 1] or [-1, 1]")

    def _check_range(self, x: np.ndarray) -> None:
        if not x.size:
            return
        mean = float(np.mean(x, dtype=np.float64))
        if not np.isfinite(x).all():
            raise UserError(
                f"images for {self.name}", f"{np.count_nonzero(~np.isfinite(x))} values not finite", "finite"
            )
        if abs(mean) > LARGEST_MEAN:
            low, high = ((edge - np.asarray(self.input.mean)) / np.asarray(self.input.std) for edge in (0.0, 1.0))
            found = f"values from {x.min():.3g} to {x.max():.3g}, mean {mean:.3g}"
            allowed = f"normalised values from {low.min():.3g} to {high.max():.3g}; give pixels to `forward`"
            raise UserError(f"images for {self.name}", found, allowed)


def _parts(images: np.ndarray, batch: int):
    """Parts of at most `batch` images; the last is filled up to a power of two, so that few programs are compiled."""
    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        size = min(batch, 1 << (len(part) - 1).bit_length())
        yield np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)]) if size > len(part) else part


def load(
    architecture: Architecture,
    weights: str | Path | Mapping[str, Any] | None,
    settings: Settings,
    random_seed: int | None = None,
) -> FrozenNetwork:
    """Gives an architecture its weights.

    Args:
      architecture: which network.
      weights: a file, a published state dict, or None to look for the published file.
      settings: how it is computed.
      random_seed: makes random weights instead.

    Raises:
      UserError: the weights are not those of the network, or cannot be found.
    """
    info = {"network": architecture.name, "about": architecture.about, "random": random_seed is not None, "notes": []}
    if random_seed is not None:
        state = state_dicts.random_state(architecture.blueprint.shapes, random_seed)
        info |= {"origin": f"random weights of seed {random_seed}", "licence": None, "file": None}
        return FrozenNetwork(f"random:{architecture.name}", architecture, state, info, settings)
    known: published.Weights | None = None
    if weights is None:
        weights, known = published.find(architecture.name, architecture.weights)
    elif not isinstance(weights, Mapping):
        known = next((file for file in architecture.weights if file.file.name == Path(weights).name), None)
    candidates = [_prepared(architecture, state) for state in state_dicts.read_states(weights)]
    shapes = architecture.blueprint.shapes
    state = max(candidates, key=lambda candidate: len(set(shapes) & set(candidate)))
    if architecture.choose and (chosen := architecture.choose({key: value.shape for key, value in state.items()})):
        architecture, sentence = chosen
        info["notes"].append(sentence)
    state, unused = state_dicts.check(architecture.name, state, architecture.blueprint.shapes, architecture.harmless)
    if unused:
        info["notes"].append(f"{len(unused)} arrays are not used: {', '.join(unused[:5])}")
    info |= {
        "origin": known.page if known else "given by the user",
        "licence": known.licence if known else _usual_licence(architecture),
        "file": None if isinstance(weights, Mapping) else str(weights),
    }
    return FrozenNetwork(architecture.name, architecture, state, info, settings)


def _usual_licence(architecture: Architecture) -> str:
    usual = architecture.weights[0].licence if architecture.weights else "not known"
    return f"as their owner says; of the published weights: {usual}"


def _prepared(architecture: Architecture, state: State) -> State:
    state = state_dicts.cleaned(state, (), ())
    if architecture.rename:
        state = architecture.rename(state)
    return state_dicts.cleaned(state, architecture.prefixes, architecture.blueprint.shapes)
