"""FastGAN's official networks, and the generators of Projected GAN's FastGAN."""

import re
from collections.abc import Iterable

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from gantransfer.models import fastgan
from gantransfer.models.family import Role
from gantransfer.models.fastgan_discriminator import CHANNELS as CHANNELS_D
from gantransfer.models.fastgan_discriminator import DECODER
from gantransfer.pretrained.layouts.layout import (
    KERNEL,
    MATRIX,
    Change,
    Found,
    Layout,
    Leaf,
    Options,
    Shapes,
    State,
    input_vector,
    transposed,
)

# Kernels of transposed convolutions: (in, out, height, width) of PyTorch to (height, width, in, out).
UP_KERNEL = transposed(2, 3, 0, 1)
DROPPED = (("*num_batches_tracked", "a count of batches that nothing reads"),)
# Projected GAN makes the parts for 256 px whatever the size, so files for 128 px hold weights that never run.
UNUSED = "a part for 256 px, which a network for 128 px has and never runs"


def _spectral(theirs: str, ours: str, change: Change, channels: int, side: int) -> tuple[Leaf, ...]:
    """A kernel with both vectors of its singular value."""
    return (
        Leaf(f"{theirs}.weight_orig", f"params/{ours}/kernel", change),
        Leaf(f"{theirs}.weight_u", f"spectral/{ours}/u"),
        Leaf(f"{theirs}.weight_v", f"spectral/{ours}/v", input_vector(channels, side)),
    )


def _conv(theirs: str, ours: str, channels: int, side: int) -> tuple[Leaf, ...]:
    return _spectral(theirs, ours, KERNEL, channels, side)


def _norm(theirs: str, ours: str) -> tuple[Leaf, ...]:
    return (
        Leaf(f"{theirs}.weight", f"params/{ours}/gain"),
        Leaf(f"{theirs}.bias", f"params/{ours}/bias"),
        Leaf(f"{theirs}.running_mean", f"batch_stats/{ours}/mean"),
        Leaf(f"{theirs}.running_var", f"batch_stats/{ours}/var"),
    )


def _class_norm(theirs: str, ours: str, embedded: int) -> tuple[Leaf, ...]:
    leaves: tuple[Leaf, ...] = (
        Leaf(f"{theirs}.stored_mean", f"batch_stats/{ours}/mean"),
        Leaf(f"{theirs}.stored_var", f"batch_stats/{ours}/var"),
    )
    for part in ("gain", "bias"):
        leaves += _spectral(f"{theirs}.{part}", f"{ours}/{part}", MATRIX, embedded, 1)
        leaves += (Leaf(f"{theirs}.{part}.bias", f"params/{ours}/{part}/bias"),)
    return leaves


def _gate(theirs: str, ours: str, small: int, large: int) -> tuple[Leaf, ...]:
    return _conv(f"{theirs}.main.1", f"{ours}/conv1", small, 4) + _conv(f"{theirs}.main.3", f"{ours}/conv2", large, 1)


# Generators.


def _sizes(resolution: int) -> list[int]:
    return [8 << i for i in range(resolution.bit_length() - 3)]


def _generator(options: Options) -> tuple[Leaf, ...]:
    width, z_dim, official = options["width"], options["z_dim"], options["variant"] == "official"
    channels = {side: int(share * width) for side, share in fastgan.CHANNELS.items()}
    leaves = _spectral("init.init.0", "init", UP_KERNEL, z_dim, 4) + _norm("init.init.1", "init_bn")
    for i, side in enumerate(_sizes(options["resolution"])):
        leaves += _block(f"feat_{side}", f"block_{i}", channels[side // 2], channels[side], side, options)
        if 64 <= side <= 512:
            leaves += _gate(f"se_{side}", f"gate_{i}", channels[side // 16], channels[side])
    leaves += _conv("to_big", "to_big", channels[options["resolution"]], 3)
    if official:
        return leaves + _conv("to_128", "to_small", channels[128], 1)
    leaves += (Leaf("to_big.bias", "params/to_big/bias"),)
    return (*leaves, Leaf("embed.weight", "params/embed/embedding")) if options["conditional"] else leaves


def _block(theirs: str, ours: str, given: int, made: int, side: int, options: Options) -> tuple[Leaf, ...]:
    variant = options["variant"]
    double = variant == "projected" or (variant == "official" and side in fastgan.DOUBLE)
    leaves: tuple[Leaf, ...] = ()
    for j in range(1, 2 + double):
        inputs = given if j == 1 else made
        if options["conditional"]:
            number = str(j) if double else ""
            leaves += _conv(f"{theirs}.conv{number}", f"{ours}/conv{j}", inputs, 3)
            leaves += _class_norm(f"{theirs}.bn{number}", f"{ours}/bn{j}", options["z_dim"])
        else:
            # Upsampling is 0, activations are counted, and noise where there is any.
            conv = 1 if j == 1 else 5
            leaves += _conv(f"{theirs}.{conv}", f"{ours}/conv{j}", inputs, 3)
            leaves += _norm(f"{theirs}.{conv + 1 + double}", f"{ours}/bn{j}")
            if double:
                leaves += (Leaf(f"{theirs}.{conv + 1}.weight", f"params/{ours}/noise{j}"),)
    if double and options["conditional"]:
        leaves += (Leaf(f"{theirs}.noise.weight", f"params/{ours}/noise"),)
    return leaves


def _recognise_generator(shapes: Shapes) -> Found | None:
    first, last = shapes.get("init.init.0.weight_orig", ()), shapes.get("to_big.weight_orig", ())
    sides = [int(m[1]) for name in shapes if (m := re.match(r"feat_(\d+)\.", name))]
    if len(first) != 4 or len(last) != 4 or not sides:
        return None
    width, official, conditional = first[1] // 32, "to_128.weight_orig" in shapes, "embed.weight" in shapes
    double = any(name in shapes for name in ("feat_16.5.weight_orig", "feat_16.conv2.weight_orig"))
    options = {
        "z_dim": first[0],
        "width": width,
        "channels": last[0],
        "variant": "official" if official else "projected" if double else "projected_lite",
        # Files for 128 px hold parts for 256 px too; the last layer tells.
        "resolution": 128 if max(sides) == 256 and last[1] == width else max(sides),
        "conditional": conditional,
    }
    return Found("generator", options | ({"num_classes": shapes["embed.weight"][0]} if conditional else {}))


# The discriminator.


def _discriminator(options: Options) -> tuple[Leaf, ...]:
    width, colours = options["width_d"], options["channels"]
    channels = {side: int(share * width) for side, share in CHANNELS_D.items()}
    leaves = _from_image(options["resolution"], channels, colours)
    for i, (name, given, made) in enumerate(
        (("4", 512, 256), ("8", 256, 128), ("16", 128, 64), ("32", 64, 32), ("64", 32, 16)), start=1
    ):
        theirs, ours = f"down_{name}", f"block_{i}"
        for place, number, inputs, side in (
            ("main.0", 1, channels[given], 4),
            ("main.3", 2, channels[made], 3),
            ("direct.1", 3, channels[given], 1),
        ):
            leaves += _conv(f"{theirs}.{place}", f"{ours}/conv{number}", inputs, side)
        for place, number in (("main.1", 1), ("main.4", 2), ("direct.2", 3)):
            leaves += _norm(f"{theirs}.{place}", f"{ours}/bn{number}")
    for theirs, i, small, large in (("se_2_16", 3, 512, 64), ("se_4_32", 4, 256, 32), ("se_8_64", 5, 128, 16)):
        leaves += _gate(theirs, f"gate_{i}", channels[small], channels[large])
    leaves += _conv("rf_big.0", "head_big/conv1", channels[16], 1) + _norm("rf_big.1", "head_big/bn1")
    leaves += _conv("rf_big.3", "head_big/conv2", channels[8], 4)
    leaves += _conv("down_from_small.0", "small_0/conv1", colours, 4)
    for i, given in enumerate((256, 128, 64), start=1):
        leaves += _conv(f"down_from_small.{i + 1}.main.0", f"small_{i}/conv1", channels[given], 4)
        leaves += _norm(f"down_from_small.{i + 1}.main.1", f"small_{i}/bn1")
    leaves += _conv("rf_small", "head_small/conv2", channels[32], 4)
    for name, given in (("big", 16), ("small", 32), ("part", 32)):
        leaves += _decoder(f"decoder_{name}", channels[given], options["decoder_width"])
    return leaves


def _from_image(resolution: int, channels: dict[int, int], colours: int) -> tuple[Leaf, ...]:
    leaves = _conv("down_from_big.0", "block_0/conv1", colours, 3 if resolution < 512 else 4)
    if resolution == 1024:
        leaves += _conv("down_from_big.2", "block_0/conv2", channels[1024], 4)
        leaves += _norm("down_from_big.3", "block_0/bn2")
    return leaves


def _decoder(name: str, given: int, width: int) -> tuple[Leaf, ...]:
    leaves: tuple[Leaf, ...] = ()
    for i, multiple in enumerate(DECODER):
        leaves += _conv(f"{name}.main.{i + 1}.1", f"{name}/conv{i}", given, 3)
        leaves += _norm(f"{name}.main.{i + 1}.2", f"{name}/bn{i}")
        given = multiple * width
    return leaves + _conv(f"{name}.main.5", f"{name}/out_conv", given, 3)


def _recognise_discriminator(shapes: Shapes) -> Found | None:
    first, head = shapes.get("down_from_big.0.weight_orig", ()), shapes.get("rf_big.0.weight_orig", ())
    decoder = shapes.get("decoder_big.main.5.weight_orig", ())
    if len(first) != 4 or len(head) != 4 or len(decoder) != 4:
        return None
    kernel_of_1024 = "down_from_big.2.weight_orig" in shapes
    options = {
        "width_d": head[0] // 16,
        "channels": first[1],
        "decoder_width": decoder[1],
        "resolution": 256 if first[2] == 3 else 1024 if kernel_of_1024 else 512,
    }
    return Found("discriminator", options)


def _recognise_official(shapes: Shapes) -> Found | None:
    found = _recognise_generator(shapes)
    if found is None:
        return _recognise_discriminator(shapes)
    return found if found.options["variant"] == "official" else None


def _recognise_projected(shapes: Shapes) -> Found | None:
    found = _recognise_generator(shapes)
    return None if found is None or found.options["variant"] == "official" else found


def _counts(leaves: Iterable[Leaf]) -> State:
    """PyTorch's count of batches for each of its own norms."""
    means = [str(leaf.theirs) for leaf in leaves if str(leaf.theirs).endswith(".running_mean")]
    return {name.replace("running_mean", "num_batches_tracked"): np.zeros((), np.int64) for name in means}


def _official_leaves(role: Role, options: Options) -> tuple[Leaf, ...]:
    return _generator(options) if role == "generator" else _discriminator(options)


def _projected_leaves(role: Role, options: Options) -> tuple[Leaf, ...]:
    return _generator(options) if role == "generator" else ()


def _projected_made(role: Role, options: Options) -> State:
    """Counts, and for 128 px zeros for the parts that never run."""
    if role == "discriminator":
        return {}
    counts = _counts(_generator(options))
    if options["resolution"] > 128:
        return counts
    whole = {**options, "resolution": 256}
    generator = fastgan.build(**whole).generator
    made = jax.eval_shape(generator.init, jax.random.key(0), np.zeros((1, options["z_dim"])), np.zeros(1, np.int32))
    shapes = {path: leaf.shape for path, leaf in flatten_dict(dict(made), sep="/").items()}
    used = {leaf.ours for leaf in _generator(options)}
    for leaf in (leaf for leaf in _generator(whole) if leaf.ours not in used):
        counts |= leaf.write(np.zeros(shapes[leaf.ours], np.float32))
    return _counts(_generator(whole)) | counts


OFFICIAL = Layout(
    name="fastgan-pytorch",
    family="fastgan",
    about="the authors' release (FastGAN-pytorch), both networks, 256 to 1024 px",
    recognise=_recognise_official,
    leaves=_official_leaves,
    dropped=DROPPED,
    made=lambda role, options: _counts(_official_leaves(role, options)),
)

PROJECTED = Layout(
    name="projected-gan-fastgan",
    family="fastgan",
    about="the generators of Projected GAN's configurations fastgan and fastgan_lite, with classes or without",
    recognise=_recognise_projected,
    leaves=_projected_leaves,
    dropped=(*DROPPED, ("feat_256.*", UNUSED), ("se_256.*", UNUSED)),
    made=_projected_made,
)
