"""Published StyleGAN2s: stylegan2-ada-pytorch, and what keeps its names (the networks of that family in stylegan3).

The files of NVIDIA's releases are licensed for research and evaluation only (NVIDIA Source Code License), and what is
derived from them stays under it.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from gantransfer.errors import UserError
from gantransfer.models.family import Role
from gantransfer.models.resampling import prepare_taps
from gantransfer.models.stylegan2 import widths
from gantransfer.pretrained.layouts.layout import (
    KERNEL,
    MATRIX,
    SAME,
    Change,
    Found,
    Layout,
    Leaf,
    Options,
    Shapes,
    State,
    reshaped,
    transposed,
)

# The constant input: (channels, 4, 4) to (4, 4, channels).
CONST = transposed(1, 2, 0)


def _flat_features(channels: int, made: int) -> Change:
    """A linear layer on features flattened channels first, `(made, channels * 16)`, to ours."""
    split = reshaped((made, channels * 16), (made, channels, 4, 4))
    return split.then(transposed(2, 3, 1, 0)).then(reshaped((4, 4, channels, made), (16 * channels, made)))


# Tables.


def _linear(theirs: str, ours: str) -> tuple[Leaf, ...]:
    return Leaf(f"{theirs}.weight", f"params/{ours}/kernel", MATRIX), Leaf(f"{theirs}.bias", f"params/{ours}/bias")


def _convolution(theirs: str, ours: str, bias: bool = True) -> tuple[Leaf, ...]:
    kernel = Leaf(f"{theirs}.weight", f"params/{ours}/kernel", KERNEL)
    return (kernel, Leaf(f"{theirs}.bias", f"params/{ours}/bias")) if bias else (kernel,)


def _mapping(layers: int, classes: int) -> Iterator[Leaf]:
    for name in (["embed"] if classes > 1 else []) + [f"fc{i}" for i in range(layers)]:
        yield from _linear(f"mapping.{name}", f"mapper/{name}")


def _generator_leaves(o: Options) -> Iterator[Leaf]:
    count = o["resolution"].bit_length() - 2
    for i in range(count):
        size = 4 << i
        theirs, ours = f"synthesis.b{size}", f"b{size}"
        if i == 0:
            yield Leaf(f"{theirs}.const", f"params/{ours}/const", CONST)
        for name in ("conv0", "conv1") if i else ("conv1",):
            yield from _convolution(f"{theirs}.{name}", f"{ours}/{name}")
            yield from _linear(f"{theirs}.{name}.affine", f"{ours}/{name}/affine")
            if o["noise"]:
                yield Leaf(f"{theirs}.{name}.noise_strength", f"params/{ours}/{name}/noise_strength")
                yield Leaf(f"{theirs}.{name}.noise_const", f"constants/{ours}/{name}/noise_const")
        if o["architecture"] == "skip" or i == count - 1:
            yield from _convolution(f"{theirs}.torgb", f"{ours}/torgb")
            yield from _linear(f"{theirs}.torgb.affine", f"{ours}/torgb/affine")
        if o["architecture"] == "resnet" and i:
            yield from _convolution(f"{theirs}.skip", f"{ours}/skip", bias=False)
    yield from _mapping(o["mapping_layers"], o["num_classes"])
    yield Leaf("mapping.w_avg", "averages/mapper/w_avg", SAME)


def _discriminator_leaves(o: Options) -> Iterator[Leaf]:
    channels = _widths_d(o)
    for i in range(len(channels) - 1, 0, -1):
        name = f"b{4 << i}"
        if i == len(channels) - 1 or o["architecture_d"] == "skip":
            yield from _convolution(f"{name}.fromrgb", f"{name}/fromrgb")
        yield from _convolution(f"{name}.conv0", f"{name}/conv0")
        yield from _convolution(f"{name}.conv1", f"{name}/conv1")
        if o["architecture_d"] == "resnet":
            yield from _convolution(f"{name}.skip", f"{name}/skip", bias=False)
    if o["architecture_d"] == "skip":
        yield from _convolution("b4.fromrgb", "b4/fromrgb")
    yield from _convolution("b4.conv", "b4/conv")
    yield Leaf("b4.fc.weight", "params/b4/fc/kernel", _flat_features(channels[0], channels[0]))
    yield Leaf("b4.fc.bias", "params/b4/fc/bias")
    yield from _linear("b4.out", "b4/out")
    if o["num_classes"] > 1:
        yield from _mapping(o["mapping_layers_d"], o["num_classes"])


def _widths_d(o: Options) -> tuple[int, ...]:
    return widths(o["resolution"], o["channel_base_d"] or o["channel_base"], o["channel_max_d"] or o["channel_max"])


def _leaves(role: Role, options: Options) -> tuple[Leaf, ...]:
    return tuple((_generator_leaves if role == "generator" else _discriminator_leaves)(options))


def _filters(role: Role, options: Options) -> State:
    """The taps of resampling, which the code keeps beside every convolution and in every block."""
    taps = np.asarray([float(tap) for tap in options["resample_filter"].split("_")])
    taps = prepare_taps(taps).astype(np.float32)
    layers = (str(leaf.theirs).removesuffix(".weight") for leaf in _leaves(role, options) if leaf.change is KERNEL)
    names = {name for name in layers if not name.endswith("torgb")}
    blocks = {name.rpartition(".")[0] for name in names}
    return {f"{name}.resample_filter": taps for name in sorted(names | (blocks - {"b4"}))}


# What names and shapes say.


def channel_options(channels: tuple[int, ...], suffix: str = "") -> dict[str, int] | None:
    """The options that make these channels (from 4 px on), as small as the release's where several do; None where no
    two numbers make them."""
    top, resolution = channels[0], 4 << (len(channels) - 1)
    below = [width * (4 << i) for i, width in enumerate(channels) if width < top]
    base = max(below) if below else max(32768, top * resolution)
    largest = max(512, top) if base // 4 == top else top
    if widths(resolution, base, largest) != channels:
        return None
    return {f"channel_base{suffix}": base, f"channel_max{suffix}": largest}


def _mapping_options(shapes: Shapes, suffix: str) -> dict[str, int]:
    layers = 0
    while len(shapes.get(f"mapping.fc{layers}.weight", ())) == 2:
        layers += 1
    options = {f"mapping_layers{suffix}": layers}
    if layers > 1:
        options[f"mapping_width{suffix}"] = shapes["mapping.fc0.weight"][0]
    embed = shapes.get("mapping.embed.weight", ())
    return options | ({f"embedding_dim{suffix}": embed[0]} if len(embed) == 2 else {})


def _sizes(shapes: Shapes, name: str) -> list[tuple[int, ...]]:
    """Shapes of one kernel of the blocks from 8 px on, up to the first that lacks it."""
    found = []
    while len(shape := shapes.get(name.format(8 << len(found)), ())) == 4:
        found.append(shape)
    return found


def _classes(shapes: Shapes) -> int:
    embed = shapes.get("mapping.embed.weight", ())
    return embed[1] if len(embed) == 2 else 1


def _recognise_generator(shapes: Shapes) -> Found | None:
    const, kernels = shapes.get("synthesis.b4.const", ()), _sizes(shapes, "synthesis.b{}.conv0.weight")
    styles = shapes.get("synthesis.b4.conv1.affine.weight", ())
    last = shapes.get(f"synthesis.b{4 << len(kernels)}.torgb.weight", ())
    if len(const) != 3 or not kernels or len(styles) != 2 or len(last) != 4:
        return None
    channels = channel_options((const[0], *(kernel[0] for kernel in kernels)))
    options = _mapping_options(shapes, "")
    first = shapes.get("mapping.fc0.weight", ())
    if channels is None or len(first) != 2:
        return None
    skip = "skip" if "synthesis.b4.torgb.weight" in shapes else "orig"
    return Found(
        "generator",
        {
            "resolution": 4 << len(kernels),
            "channels": last[0],
            "num_classes": _classes(shapes),
            "z_dim": first[1] - options.get("embedding_dim", 0),
            "w_dim": styles[1],
            "architecture": "resnet" if "synthesis.b8.skip.weight" in shapes else skip,
            "noise": "synthesis.b4.conv1.noise_strength" in shapes,
        }
        | channels
        | options,
    )


def _recognise_discriminator(shapes: Shapes) -> Found | None:
    kernels, end = _sizes(shapes, "b{}.conv1.weight"), shapes.get("b4.conv.weight", ())
    first, out = shapes.get(f"b{4 << len(kernels)}.fromrgb.weight", ()), shapes.get("b4.out.weight", ())
    if not kernels or len(end) != 4 or len(first) != 4 or len(out) != 2:
        return None
    channels = channel_options((end[0], *(kernel[1] for kernel in kernels)), "_d")
    if channels is None:
        return None
    skip = "skip" if "b4.fromrgb.weight" in shapes else "orig"
    options = {
        "resolution": 4 << len(kernels),
        "channels": first[1],
        "num_classes": _classes(shapes),
        "architecture_d": "resnet" if "b8.skip.weight" in shapes else skip,
        "minibatch_channels": end[1] - end[0],
    }
    if options["num_classes"] > 1:
        options |= {"class_dim": out[0]} | _mapping_options(shapes, "_d")
    return Found("discriminator", options | channels)


# What the arguments of constructors say.


def _from_config(config: Mapping[str, Any]) -> Options:
    """Options from the arguments of constructors: one network's, or several under their names."""
    given = [config, *(value for value in config.values() if isinstance(value, Mapping))]
    networks = [kwargs for kwargs in given if "img_resolution" in kwargs]
    options: dict[str, Any] = {}
    for kwargs in sorted(networks, key=lambda kwargs: "w_dim" in kwargs):
        options |= _generator_config(kwargs) if "w_dim" in kwargs else _discriminator_config(kwargs)
    return options


def _common(kwargs: Mapping[str, Any], blocks: Mapping[str, Any], mapping: Mapping[str, Any], suffix: str, dim: int):
    classes, resolution = max(kwargs.get("c_dim", 0), 1), kwargs["img_resolution"]
    if mapping.get("activation", "lrelu") != "lrelu":
        raise UserError("mapping_kwargs.activation", mapping["activation"], "lrelu")
    channels = widths(resolution, blocks.get("channel_base", 32768), blocks.get("channel_max", 512))
    options = {"resolution": resolution, "channels": kwargs["img_channels"], "num_classes": classes}
    options |= channel_options(channels, suffix) or {}
    taps = np.asarray(blocks.get("resample_filter", [1, 3, 3, 1]))
    if taps.ndim != 1:
        raise UserError("resample_filter", taps.tolist(), "a list of taps")
    options["resample_filter"] = "_".join(f"{tap:g}" for tap in taps)
    options["activation"] = blocks.get("activation", "lrelu")
    if not suffix or classes > 1:
        layers = mapping.get("num_layers", 8)
        options[f"mapping_layers{suffix}"] = layers
        options[f"mapping_rate{suffix}"] = float(mapping.get("lr_multiplier", 0.01))
        if layers > 1:
            options[f"mapping_width{suffix}"] = mapping.get("layer_features") or dim
        if classes > 1:
            options[f"embedding_dim{suffix}"] = mapping.get("embed_features") or dim
    return options, channels


def _generator_config(kwargs: Mapping[str, Any]) -> Options:
    # stylegan3 gives the options of synthesis among the others, and has defaults of its own.
    newer = "synthesis_kwargs" not in kwargs
    mapping, blocks = kwargs.get("mapping_kwargs", {}), {**kwargs, **kwargs.get("synthesis_kwargs", {})}
    blocks = {**blocks, **blocks.get("block_kwargs", {})}
    options, _ = _common(kwargs, blocks, mapping, "", kwargs["w_dim"])
    clamp = blocks.get("conv_clamp", 256 if newer else None)
    return options | {
        "z_dim": kwargs["z_dim"],
        "w_dim": kwargs["w_dim"],
        "architecture": blocks.get("architecture", "skip"),
        "noise": blocks.get("use_noise", True),
        "conv_clamp": float(clamp or 0),
        "w_avg_decay": float(mapping.get("w_avg_beta", 0.998 if newer else 0.995)),
    }


def _discriminator_config(kwargs: Mapping[str, Any]) -> Options:
    blocks = {**kwargs, **kwargs.get("block_kwargs", {})}
    end, mapping = kwargs.get("epilogue_kwargs", {}), kwargs.get("mapping_kwargs", {})
    top = min(blocks.get("channel_base", 32768) // 4, blocks.get("channel_max", 512))
    options, channels = _common(kwargs, blocks, mapping, "_d", kwargs.get("cmap_dim") or top)
    if options["num_classes"] > 1:
        options["class_dim"] = kwargs.get("cmap_dim") or channels[0]
    if "conv_clamp" in blocks:
        options["conv_clamp"] = float(blocks["conv_clamp"] or 0)
    return options | {
        "architecture_d": kwargs.get("architecture", "resnet"),
        "minibatch_group": end.get("mbstd_group_size", 4) or 0,
        "minibatch_channels": end.get("mbstd_num_channels", 1),
    }


def _to_config(o: Options) -> dict[str, Any]:
    """The arguments of both constructors of stylegan2-ada-pytorch."""
    clamp, half = o["conv_clamp"] or None, 0 if o["dtype"] == "float32" else o["half_blocks"]
    image = {
        "c_dim": o["num_classes"] if o["num_classes"] > 1 else 0,
        "img_resolution": o["resolution"],
        "img_channels": o["channels"],
    }
    taps = [float(tap) for tap in o["resample_filter"].split("_")]
    blocks = {"activation": o["activation"], "resample_filter": taps}

    def sizes(suffix: str) -> dict[str, Any]:
        widest = {name: o[name + suffix] or o[name] for name in ("channel_base", "channel_max")}
        return widest | {"num_fp16_res": half, "conv_clamp": clamp}

    def mapping(suffix: str) -> dict[str, Any]:
        return {
            "num_layers": o[f"mapping_layers{suffix}"],
            "embed_features": o[f"embedding_dim{suffix}"] or None,
            "layer_features": o[f"mapping_width{suffix}"] or None,
            "lr_multiplier": o[f"mapping_rate{suffix}"],
        }

    synthesis = sizes("") | {"architecture": o["architecture"], "use_noise": o["noise"]} | blocks
    generator = {"z_dim": o["z_dim"], "w_dim": o["w_dim"]} | image
    generator |= {
        "mapping_kwargs": mapping("") | {"w_avg_beta": o["w_avg_decay"]},
        "synthesis_kwargs": synthesis,
    }
    end = {"mbstd_group_size": o["minibatch_group"] or None, "mbstd_num_channels": o["minibatch_channels"]}
    discriminator = {"architecture": o["architecture_d"], "cmap_dim": o["class_dim"] or None} | image | sizes("_d")
    discriminator |= {
        "block_kwargs": blocks,
        "mapping_kwargs": mapping("_d"),
        "epilogue_kwargs": end | {"activation": o["activation"]},
    }
    return {"G": generator, "D": discriminator}


ADA = Layout(
    name="stylegan2-ada-pytorch",
    family="stylegan2",
    about="G, G_ema and D of stylegan2-ada-pytorch, and of the stylegan2 configurations of stylegan3",
    recognise=lambda shapes: _recognise_generator(shapes) or _recognise_discriminator(shapes),
    leaves=_leaves,
    assumed={"resample_filter": "1_3_3_1", "activation": "lrelu", "minibatch_group": 4, "conv_clamp": 256.0},
    from_config=_from_config,
    to_config=_to_config,
    notice="weights that NVIDIA has released, and whatever is derived from them, are for research and evaluation only",
    dropped=(("*resample_filter", "taps of resampling, which are a constant of the architecture here"),),
    made=_filters,
)
