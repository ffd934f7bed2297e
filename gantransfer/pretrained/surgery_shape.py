"""Surgery on the images that networks make: their colour channels, and their highest resolution.

Colour to grey: what makes colours is combined to the luma of Rec. 601, what reads them is summed over them, so that
grey images are judged as they were in colour. Grey to colour: what makes grey is repeated, what reads it is divided
among the colours. An output after a tanh is equal before it only.

A layer under spectral normalisation has the size that its normalisation gives it, whatever its raw weights are. In a
generator, whose last layer follows a batch norm and a rectifier, the lost factor goes into the batch norm's scale and
bias; in a discriminator it becomes an option of the architecture, a factor on each of the two layers that see images.

Resolution, StyleGAN2 only: a block above the highest starts with layers of random weights whose colours are zero, so
that pictures are those of the source, upsampled; the discriminator's is random, and has no share in what the next block
is given until the method `fade_in` raises it. Without its highest block a generator makes the partial sum of its
colours at half the size.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Array

from gantransfer.errors import UserError
from gantransfer.models import resampling
from gantransfer.pretrained.source import Source, Variables, check_images, in_batches
from gantransfer.pretrained.spectral_vectors import exact_leaves, used_sigma
from gantransfer.pretrained.surgery_rebuild import Leaves, Rewrite, rebuild, row_scale
from gantransfer.pretrained.surgery_report import SurgeryReport

LUMA = np.array([0.299, 0.587, 0.114])
# Families of which tests show that the laws hold.
CHANNEL_FAMILIES = ("biggan", "dcgan", "stylegan2", "wgangp_resnet")
RIDGE = 1e-3
SLOPE, GAIN = 0.2, 2**0.5


def change_channels(source: Source, channels: int, seed: int = 0) -> tuple[Source, SurgeryReport]:
    """Makes a colour source grey, or a grey one colour.

    Raises:
      UserError: for `transfer.channels`: anything else than 3 to 1 or 1 to 3, or a family without this surgery.
    """
    field_name, family = "transfer.channels", source.info.family
    if {source.info.channels, channels} != {1, 3}:
        raise UserError(field_name, channels, f"1 or 3, and not the {source.info.channels} that {source.info.name} has")
    if family not in CHANNEL_FAMILIES:
        raise UserError(field_name, channels, f"nothing for {family}; networks of {', '.join(CHANNEL_FAMILIES)} change")
    bounded = family != "stylegan2"
    what = "the luma of the source's images" if channels == 1 else "the source's grey images in every channel"
    laws = [f"generator: {what}, within 1e-5" + (" before the tanh" if bounded and channels == 1 else "")]
    if source.discriminator is not None:
        judged = "grey images are judged as the source judges them in colour"
        if channels == 3:
            judged = "grey images in every channel are judged as the source judges them"
        laws.append(f"discriminator: {judged}, within 1e-5")
    return rebuild(
        source,
        f"{source.info.channels} to {channels} channels",
        dict(source.info.options) | {"channels": channels} | _lost_factors(source, channels),
        source.info.class_names,
        {"generator": _outputs(channels), "discriminator": _inputs(channels, family)},
        tuple(laws),
        seed,
    )


def change_resolution(
    source: Source, resolution: int, images: np.ndarray | Array | None = None, seed: int = 0
) -> tuple[Source, SurgeryReport]:
    """Adds or drops the block of the highest resolution.

    Args:
      source: a StyleGAN2 whose generator joins its blocks by skips.
      resolution: twice or half of the source's.
      images: of the target, `(n, resolution, resolution, channels)` in [-1, 1]: where the highest block is dropped and
        the discriminator sees the image in its first block only, the next block's layer from colours is fitted to
        them; without, it is random.
      seed: of fresh leaves.

    Raises:
      UserError: for `transfer.resolution`: another family or architecture, or another size.
    """
    field_name, old = "transfer.resolution", source.info.resolution
    if source.info.family != "stylegan2" or source.info.options["architecture"] != "skip":
        raise UserError(field_name, resolution, f"nothing but {old}: only stylegan2 with skips changes its size")
    if resolution not in (old // 2, old * 2):
        raise UserError(
            field_name, resolution, f"{old // 2} or {old * 2}, one block less or more than {source.info.name}"
        )
    source = without_fade(source)
    fading = source.info.options["fade_d"]
    if fading and resolution > old:
        raise UserError(field_name, resolution, f"at most {old} until the block that was added has faded in")
    options = dict(source.info.options) | {"resolution": resolution, "fade_d": False}
    if resolution > old and source.discriminator is not None and resolution >= 16:
        options["fade_d"] = True
    finish = partial(rebuild, source, f"{old} to {resolution} pixels", options, source.info.class_names)
    if resolution > old:
        colours = [f"params/b{resolution}/torgb/{leaf}" for leaf in ("kernel", "bias")]
        rewrite: Rewrite = lambda flat, shapes: {path: np.zeros(shapes[path].shape) for path in colours}
        rewrites, laws = {"generator": rewrite}, ["generator: the source's images, upsampled, within 1e-6"]
        if options["fade_d"]:
            rewrites["discriminator"] = partial(_fading, old)
            laws.append("discriminator: judges an image as the source judges it downsampled, within 1e-5")
        elif source.discriminator is not None:
            laws.append("discriminator: its first block is random")
        return finish(rewrites, tuple(laws), seed)
    laws = ("generator: the sum of the source's colours up to this size, bitwise",)
    if source.discriminator is None:
        return finish({}, laws, seed)
    if fading:
        rewrites = {"discriminator": partial(_without_block, resolution)}
        return finish(rewrites, (*laws, "discriminator: as it was before the block was added, as far as kept"), seed)
    if source.info.options["architecture_d"] == "skip":
        return finish({}, (*laws, "discriminator: from its second block on as the source's"), seed)
    if images is None:
        return finish({}, (*laws, "discriminator: its layer from colours is random, the rest kept"), seed)
    fitted, fit = _fitted_colours(source, check_images(field_name, images, finish({}, laws, seed)[0].networks))
    path = f"params/b{resolution}/fromrgb"
    rewrites = {"discriminator": lambda flat, shapes: {f"{path}/{leaf}": value for leaf, value in fitted.items()}}
    note = f"discriminator/{path} is fitted to {len(images)} images by least squares, R2 {fit:.3f}"
    return finish(rewrites, (*laws, "discriminator: close to the source's, not equal"), seed, notes=(note,))


def without_fade(source: Source) -> Source:
    """A source whose added block has faded in, without what was there before; any other as it is."""
    if source.discriminator is None or not source.info.options.get("fade_d"):
        return source
    if float(np.asarray(source.discriminator["params"]["fade"])) < 1:
        return source
    options = dict(source.info.options) | {"fade_d": False}
    return rebuild(source, "a block that has faded in", options, source.info.class_names, {}, (), 0)[0]


def _fading(old: int, flat: Leaves, shapes: Leaves) -> dict[str, np.ndarray]:
    """No share for the new block, and the layer from colours that read images of the old size."""
    before = {
        f"params/fade_fromrgb/{leaf}": np.asarray(flat[f"params/b{old}/fromrgb/{leaf}"])
        for leaf in ("kernel", "bias")
        if f"params/fade_fromrgb/{leaf}" in shapes
    }
    return before | {"params/fade": np.zeros(())}


def _without_block(resolution: int, flat: Leaves, shapes: Leaves) -> dict[str, np.ndarray]:
    """The layer from colours that was there before a block was added, where it has not been in use since."""
    kept = [leaf for leaf in ("kernel", "bias") if f"params/fade_fromrgb/{leaf}" in flat]
    return {f"params/b{resolution}/fromrgb/{leaf}": np.asarray(flat[f"params/fade_fromrgb/{leaf}"]) for leaf in kept}


# Channels.


def _flat(variables: Variables) -> dict[str, Any]:
    return flatten_dict(dict(variables), sep="/")


def _outputs(channels: int) -> Rewrite:
    """Combines, or repeats, the last axis of every leaf whose last axis counts colours."""

    def combine(leaf: np.ndarray) -> np.ndarray:
        return (leaf @ LUMA)[..., None] if channels == 1 else np.repeat(leaf, 3, axis=-1)

    def rewrite(flat: Leaves, shapes: Leaves) -> dict[str, np.ndarray]:
        made: dict[str, np.ndarray] = {}
        for path in _changing(flat, shapes, -1):
            leaf, layer = np.asarray(flat[path], np.float64), path.rpartition("/")[0].partition("/")[2]
            made[path] = combine(leaf)
            if not path.endswith("/kernel") or f"spectral/{layer}/u" not in flat:
                continue
            made[path] = combine(leaf / used_sigma(flat, layer, _outputs_first(leaf)))
            # relu(s x) = s relu(x) for s > 0: what the normalisation divides by, the batch norm before multiplies by.
            vectors, lost = exact_leaves(flat, layer, _outputs_first(made[path]))
            made |= vectors
            made |= {f"params/out_bn/{p}": np.asarray(flat[f"params/out_bn/{p}"]) * lost for p in ("gain", "bias")}
        return made

    return rewrite


def _inputs(channels: int, family: str) -> Rewrite:
    """Sums over, or divides among, colours the last axis but one of every kernel that reads them."""

    def rewrite(flat: Leaves, shapes: Leaves) -> dict[str, np.ndarray]:
        made: dict[str, np.ndarray] = {}
        for path in _changing(flat, shapes, -2):
            leaf, layer = np.asarray(flat[path], np.float64), path.rpartition("/")[0].partition("/")[2]
            made[path] = _read_as(leaf, channels) * row_scale(family, leaf.shape[-2], channels)
            if f"spectral/{layer}/u" in flat:
                made |= exact_leaves(flat, layer, _outputs_first(made[path]))[0]
        return made

    return rewrite


def _changing(flat: Leaves, shapes: Leaves, axis: int) -> list[str]:
    """Leaves of `params` that differ from what they must be in this axis only."""
    return [
        path
        for path, leaf in flat.items()
        if path.startswith("params/")
        and leaf.shape != shapes[path].shape
        and leaf.shape[:axis] == shapes[path].shape[:axis]
    ]


def _read_as(kernel: np.ndarray, channels: int) -> np.ndarray:
    """A kernel that reads so many colours, and makes of equal colours what the given one makes of them."""
    return kernel.sum(axis=-2, keepdims=True) if channels == 1 else np.repeat(kernel / 3, 3, axis=-2)


def _lost_factors(source: Source, channels: int) -> dict[str, float]:
    """Factors by which spectral normalisation would change what a discriminator's first layers make, as options."""
    flat = {} if source.discriminator is None else _flat(source.discriminator)
    factors = {}
    for name, option in (("conv1", "image_scale_d"), ("conv_sc", "shortcut_scale_d")):
        layer = f"block_0/{name}"
        if f"spectral/{layer}/u" in flat:
            kernel = np.asarray(flat[f"params/{layer}/kernel"], np.float64)
            _, after = exact_leaves(flat, layer, _outputs_first(_read_as(kernel, channels)))
            before = used_sigma(flat, layer, _outputs_first(kernel))
            factors[option] = source.info.options[option] * after / before
    return factors


def _outputs_first(kernel: np.ndarray) -> np.ndarray:
    return kernel.reshape(-1, kernel.shape[-1]).T


# Resolution.


def _fitted_colours(source: Source, images: np.ndarray) -> tuple[dict[str, np.ndarray], float]:
    """A layer from colours, at half the source's size, that gives what its highest block gives; and R squared.

    The highest block is asked about the images upsampled to its size; its outputs, put back through the rectifier, are
    what the new layer should give before its own.
    """
    options = source.info.options
    if options["activation"] != "lrelu":
        raise UserError(
            "transfer.resolution", source.info.resolution // 2, "no images to fit: only lrelu can be inverted"
        )
    filter = resampling.make_filter([float(tap) for tap in options["resample_filter"].split("_")])
    asked = partial(_block_outputs, source.networks.discriminator, filter, source.discriminator)
    features = in_batches(asked, images).astype(np.float64) / GAIN
    wanted = np.where(features > 0, features, features / SLOPE).reshape(-1, features.shape[-1])
    inputs = images.reshape(-1, images.shape[-1]).astype(np.float64)
    inputs = np.concatenate([inputs, np.ones((len(inputs), 1))], axis=1)
    square = inputs.T @ inputs + RIDGE * len(inputs) * np.diag([*np.ones(images.shape[-1]), 0.0])
    found = np.linalg.solve(square, inputs.T @ wanted)
    left = np.square(wanted - inputs @ found).sum() / np.square(wanted - wanted.mean(0)).sum()
    kernel = found[:-1] * images.shape[-1] ** 0.5
    return {"kernel": kernel[None, None], "bias": found[-1]}, float(1 - left)


@partial(jax.jit, static_argnums=(0, 1))
def _block_outputs(discriminator: nn.Module, filter: resampling.Filter, variables: Variables, x: Array) -> Array:
    large = resampling.upsampled(x, filter, "plain")
    stage = f"b{large.shape[1]}"
    labels = jnp.zeros(len(x), jnp.int32)
    return discriminator.apply(variables, large, labels, want=(stage,)).stages[stage].astype(jnp.float32)
