"""Surgery on the images that networks make: their colour channels, and their highest resolution.

Colour to grey: what makes colours is combined to the luma of Rec. 601, what reads them is summed over them, so that
grey images are judged as they were in colour. Grey to colour: what makes grey is repeated, what reads it is divided
among the colours. An output after a tanh is equal before it only.

A layer under spectral normalisation has the size that its normalisation gives it, whatever its raw weights are. Where
a batch norm and a rectifier, or a gate, stand before it (BigGAN's last layer, FastGAN's decoders), the lost factor goes
into the batch norm's scale and bias; in a discriminator it becomes an option of the architecture, a factor on each of
the layers that see images. FastGAN's generator has no such batch norm where there are classes, and its raw and averaged
weights share their options: its outputs are turned, by a map that keeps lengths, so that singular values stay and the
factor is the same for any weights; grey is then the first of three outputs.

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
from gantransfer.models.fastgan_discriminator import DECODER
from gantransfer.pretrained.source import Source, Variables, check_images, in_batches
from gantransfer.pretrained.spectral_vectors import exact_leaves, used_sigma
from gantransfer.pretrained.surgery_rebuild import Leaves, Rewrite, rebuild, row_scale
from gantransfer.pretrained.surgery_report import SurgeryReport

LUMA = np.array([0.299, 0.587, 0.114])
# Families of which tests show that the laws hold.
CHANNEL_FAMILIES = ("biggan", "biggan_deep", "dcgan", "fastgan", "stylegan2", "wgangp_resnet")
# Layers of discriminators that see images, and the options that are factors on them.
SEEING = {
    "biggan": {"block_0/conv1": "image_scale_d", "block_0/conv_sc": "shortcut_scale_d"},
    "biggan_deep": {"input_conv": "image_scale_d"},
    "fastgan": {"block_0/conv1": "image_scale_d", "small_0/conv1": "small_scale_d"},
}
# Layers of generators that make images and may have outputs to spare.
MAKING = ("out_conv", "to_big", "to_small")
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
    bounded = family not in ("stylegan2", "fastgan") or (family == "fastgan" and source.info.resolution == 1024)
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
        dict(source.info.options) | {"channels": channels} | _output_options(source) | _lost_factors(source, channels),
        source.info.class_names,
        {
            "generator": _turned if family == "fastgan" else _outputs(channels),
            "discriminator": _inputs(channels, family),
        },
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


def _output_options(source: Source) -> dict[str, Any]:
    """What becomes of outputs to spare, and FastGAN's factor on its outputs."""
    options, before = source.info.options, source.info.channels
    width = options.get("output_width")
    if width is None:
        return {}
    if source.info.family != "fastgan":
        return {"output_width": max(width, 4 - before) if width else 0}
    after = (width or before) + (0 if before == 3 else 2)
    scale = options["image_scale_g"] * (np.linalg.norm(LUMA) if before == 3 else 3**0.5)
    return {"output_width": after, "image_scale_g": float(scale)}


def _mixed(leaf: np.ndarray, channels: int, width: int) -> np.ndarray:
    """Colours, the first entries of the last axis, combined or repeated; outputs to spare stay, up to `width`."""
    made = (leaf[..., :3] @ LUMA)[..., None] if channels == 1 else np.repeat(leaf[..., :1], 3, axis=-1)
    return np.concatenate([made, leaf[..., channels:]], axis=-1)[..., :width]


def _outputs(channels: int) -> Rewrite:
    """Combines, or repeats, the last axis of every leaf whose last axis counts colours."""

    def rewrite(flat: Leaves, shapes: Leaves) -> dict[str, np.ndarray]:
        made: dict[str, np.ndarray] = {}
        for path in _making(flat, shapes):
            leaf, layer = np.asarray(flat[path], np.float64), path.rpartition("/")[0].partition("/")[2]
            width = shapes[path].shape[-1]
            made[path] = _mixed(leaf, channels, width)
            if not path.endswith("/kernel") or f"spectral/{layer}/u" not in flat:
                continue
            made[path] = _mixed(leaf / used_sigma(flat, layer, _outputs_first(leaf)), channels, width)
            # relu(s x) = s relu(x) for s > 0: what the normalisation divides by, the batch norm before multiplies by.
            vectors, lost = exact_leaves(flat, layer, _outputs_first(made[path]))
            made |= vectors
            made |= {f"params/out_bn/{p}": np.asarray(flat[f"params/out_bn/{p}"]) * lost for p in ("gain", "bias")}
        return made

    return rewrite


def _turned(flat: Leaves, shapes: Leaves) -> dict[str, np.ndarray]:
    """FastGAN's outputs, turned so that the first ones are what is wanted times a factor that no weights change."""
    made: dict[str, np.ndarray] = {}
    for layer in (layer for layer in MAKING if f"params/{layer}/kernel" in flat):
        kernel = np.asarray(flat[f"params/{layer}/kernel"], np.float64)
        before, after = kernel.shape[-1], shapes[f"params/{layer}/kernel"].shape[-1]
        turn = np.zeros((before, after))
        if before == after:
            # The reflection that takes the first output to the luma: rows and columns are of length 1.
            apart = np.eye(3)[0] - LUMA / np.linalg.norm(LUMA)
            turn[:] = np.eye(before)
            turn[:3, :3] -= 2 * np.outer(apart, apart) / (apart @ apart)
        else:
            turn[0, :3] = 3**-0.5
            turn[1:, 3:] = np.eye(before - 1)
        made[f"params/{layer}/kernel"] = kernel @ turn
        made[f"spectral/{layer}/u"] = np.asarray(flat[f"spectral/{layer}/u"], np.float64) @ turn
        made[f"spectral/{layer}/v"] = np.asarray(flat[f"spectral/{layer}/v"])
        if f"params/{layer}/bias" in flat:
            bias = np.asarray(flat[f"params/{layer}/bias"], np.float64)
            made[f"params/{layer}/bias"] = _mixed(bias, 1 if before == after else 3, after)
    return made


def _inputs(channels: int, family: str) -> Rewrite:
    """Sums over, or divides among, colours the last axis but one of every kernel that reads them; decoders, which make
    images, as generators.
    """

    def rewrite(flat: Leaves, shapes: Leaves) -> dict[str, np.ndarray]:
        made: dict[str, np.ndarray] = {}
        for path in _changing(flat, shapes, -2):
            leaf, layer = np.asarray(flat[path], np.float64), path.rpartition("/")[0].partition("/")[2]
            made[path] = _read_as(leaf, channels) * row_scale(family, leaf.shape[-2], channels)
            if f"spectral/{layer}/u" in flat:
                made |= exact_leaves(flat, layer, _outputs_first(made[path]))[0]
        for path in _changing(flat, shapes, -1):
            made |= _decoder(flat, path, channels)
        return made

    return rewrite


def _decoder(flat: Leaves, path: str, channels: int) -> dict[str, np.ndarray]:
    """A decoder's last kernel, and the batch norm before it, of whose outputs the second half only gates the first."""
    layer = path.rpartition("/")[0].partition("/")[2]
    leaf, norm = np.asarray(flat[path], np.float64), f"params/{layer.rpartition('/')[0]}/bn{len(DECODER) - 1}"
    kernel = _mixed(leaf / used_sigma(flat, layer, _outputs_first(leaf)), channels, channels)
    vectors, lost = exact_leaves(flat, layer, _outputs_first(kernel))
    made = {path: kernel} | vectors
    for part in ("gain", "bias"):
        values = np.array(flat[f"{norm}/{part}"])
        values[: len(values) // 2] *= lost
        made[f"{norm}/{part}"] = values
    return made


def _making(flat: Leaves, shapes: Leaves) -> list[str]:
    """Leaves of a generator's layers that make images: those that change their number of outputs, or have some to
    spare.
    """
    spare = [path for path in flat if path.startswith(tuple(f"params/{layer}/" for layer in MAKING))]
    return list(dict.fromkeys([*_changing(flat, shapes, -1), *spare]))


def _changing(flat: Leaves, shapes: Leaves, axis: int) -> list[str]:
    """Leaves of `params` that differ from what they must be in this axis only."""
    without = lambda shape: (*shape[:axis], *shape[len(shape) + axis + 1 :])
    return [
        path
        for path, leaf in flat.items()
        if path.startswith("params/")
        and path in shapes
        and leaf.shape != shapes[path].shape
        and len(leaf.shape) == len(shapes[path].shape)
        and without(leaf.shape) == without(shapes[path].shape)
    ]


def _read_as(kernel: np.ndarray, channels: int) -> np.ndarray:
    """A kernel that reads so many colours, and makes of equal colours what the given one makes of them."""
    return kernel.sum(axis=-2, keepdims=True) if channels == 1 else np.repeat(kernel / 3, 3, axis=-2)


def _lost_factors(source: Source, channels: int) -> dict[str, float]:
    """Factors by which spectral normalisation would change what a discriminator's first layers make, as options."""
    flat = {} if source.discriminator is None else _flat(source.discriminator)
    factors = {}
    for layer, option in SEEING.get(source.info.family, {}).items():
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
