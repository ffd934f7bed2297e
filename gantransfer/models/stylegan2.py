"""StyleGAN2: style-modulated generator and residual discriminator, 8 to 1024 pixels, with or without classes.

Paper: Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN", arXiv:1912.04958; layouts and
defaults are those of the authors' PyTorch release of StyleGAN2-ADA (arXiv:2006.06676), whose files load without loss.

What differs from the release: arrays are NHWC, so the features before the discriminator's linear layers are flattened
in this order; equal rewrites of convolutions and resampling (see `convolution` and `resampling`); half precision is
bfloat16, whose range needs none of the scaling that the release does for float16; noise is constant in evaluation
unless it is asked for.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gantransfer.errors import UserError
from gantransfer.models import convolution
from gantransfer.models.family import ClassRows, Family, Networks, Option, Role
from gantransfer.models.resampling import Filter, make_filter
from gantransfer.models.stylegan2_layers import ACTIVATIONS, Recipe
from gantransfer.models.stylegan2_networks import ARCHITECTURES, Discriminator, Generator, MappingPlan

SIZES = tuple(8 << i for i in range(8))

OPTIONS: dict[str, Option] = {
    "resolution": Option(256, SIZES, "side of the images, in pixels"),
    "channels": Option(3, int, "colour channels of the images"),
    "num_classes": Option(1, int, "number of classes; 1 for networks without labels"),
    "z_dim": Option(512, int, "length of the latent"),
    "w_dim": Option(512, int, "length of the styles"),
    "channel_base": Option(
        32768, int, "the generator's channels at a size are this over the size, at most channel_max"
    ),
    "channel_max": Option(512, int, "largest number of the generator's channels"),
    "channel_base_d": Option(0, int, "channel_base of the discriminator; 0 takes the generator's"),
    "channel_max_d": Option(0, int, "channel_max of the discriminator; 0 takes the generator's"),
    "architecture": Option("skip", ARCHITECTURES, "how the generator's blocks are joined"),
    "architecture_d": Option("resnet", ARCHITECTURES, "how the discriminator's blocks are joined"),
    "mapping_layers": Option(8, int, "layers of the generator's mapping network"),
    "mapping_layers_d": Option(8, int, "layers of the discriminator's mapping of classes"),
    "mapping_width": Option(0, int, "width between the layers of the generator's mapping network; 0 takes w_dim"),
    "mapping_width_d": Option(0, int, "width between the layers of the discriminator's mapping; 0 takes class_dim"),
    "mapping_rate": Option(0.01, float, "multiplier of the learning rate of the generator's mapping layers"),
    "mapping_rate_d": Option(0.01, float, "multiplier of the learning rate of the discriminator's mapping layers"),
    "embedding_dim": Option(0, int, "length of the generator's class embedding; 0 takes w_dim"),
    "embedding_dim_d": Option(0, int, "length of the discriminator's class embedding; 0 takes class_dim"),
    "class_dim": Option(0, int, "length of the discriminator's class vector; 0 takes its channels at 4 pixels"),
    "w_avg_decay": Option(0.995, float, "decay of the running mean of styles, per training pass"),
    "noise": Option(True, bool, "the generator's layers add noise"),
    "minibatch_group": Option(4, int, "samples per group of the minibatch's standard deviation; 0 takes the batch"),
    "minibatch_channels": Option(1, int, "channels of the minibatch's standard deviation; 0 leaves it out"),
    "fade_d": Option(False, bool, "the discriminator's first block is being faded in (transfer.resolution adds it)"),
    "resample_filter": Option("1_3_3_1", str, "taps of all resampling, joined with '_'"),
    "activation": Option("lrelu", tuple(ACTIVATIONS), "activation of convolutions and of the discriminator's end"),
    "conv_clamp": Option(256.0, float, "largest magnitude that a convolutional layer returns; 0 for no limit"),
    "half_blocks": Option(4, int, "how many of the highest resolutions compute in bfloat16 where dtype says so"),
    "convolution": Option(
        "rewritten", convolution.FORMS, "form in which convolutions are computed; both give equal numbers"
    ),
    "dtype": Option(
        "float32", ("float32", "bfloat16"), "precision of convolutions in half_blocks; parameters stay float32"
    ),
}
_POSITIVE = (
    "channels",
    "num_classes",
    "z_dim",
    "w_dim",
    "channel_base",
    "channel_max",
    "mapping_rate",
    "mapping_rate_d",
)


def build(**options: Any) -> Networks:
    """Makes both networks; see `OPTIONS` for the settings and `family.Networks` for what comes back."""
    o = _checked(options)
    generator, discriminator = _generator(o), _discriminator(o)
    rows = (ClassRows("mapper/embed/kernel", 0),) if o["num_classes"] > 1 else ()
    return Networks(
        generator=generator,
        discriminator=discriminator,
        z_dim=o["z_dim"],
        resolution=o["resolution"],
        channels=o["channels"],
        num_classes=o["num_classes"],
        group=_group,
        block=lambda role, path: _block(role, path, o["resolution"]),
        class_rows={"generator": rows, "discriminator": rows},
        # The deviation within a minibatch would mix fakes with reals.
        joint_pass=False,
        truncation="call",
        streams=("noise",) if o["noise"] else (),
        layer=lambda role, path: _layer(role, path, o["resolution"], o["architecture_d"]),
    )


def widths(resolution: int, base: int, largest: int) -> tuple[int, ...]:
    """Channels of each size from 4 pixels to `resolution`."""
    return tuple(min(base // (4 << i), largest) for i in range(resolution.bit_length() - 2))


def _checked(options: Mapping[str, Any]) -> dict[str, Any]:
    """All options with their values, or a `UserError` that names the one that is wrong."""
    for name, value in options.items():
        if name not in OPTIONS:
            raise UserError(f"model.{name}", value, f"one of the options {', '.join(OPTIONS)}")
        allowed = OPTIONS[name].allowed
        if isinstance(allowed, tuple):
            if value not in allowed:
                raise UserError(f"model.{name}", value, " or ".join(map(repr, allowed)))
        elif allowed in (bool, str):
            if not isinstance(value, allowed):
                raise UserError(f"model.{name}", value, f"a {allowed.__name__}")
        else:
            kinds = (int, float) if allowed is float else (int,)
            right = isinstance(value, kinds) and not isinstance(value, bool)
            if not right or value < 0 or (name in _POSITIVE and not value):
                kind, least = "a whole" if allowed is int else "a", "above 0" if name in _POSITIVE else "at least 0"
                raise UserError(f"model.{name}", value, f"{kind} number {least}")
    o = {name: option.default for name, option in OPTIONS.items()} | dict(options)
    if o["fade_d"] and o["resolution"] < 16:
        raise UserError("model.fade_d", True, "False below 16 pixels, where nothing was added")
    if o["w_avg_decay"] > 1:
        raise UserError("model.w_avg_decay", o["w_avg_decay"], "at most 1")
    for name in ("channel_base", "channel_base_d"):
        if 0 < o[name] < o["resolution"]:
            raise UserError(f"model.{name}", o[name], f"at least the resolution, {o['resolution']}")
    if not o["mapping_layers"] and (o["num_classes"] > 1 or o["z_dim"] != o["w_dim"]):
        raise UserError("model.mapping_layers", 0, "at least 1, unless z is w: w_dim equal to z_dim, without labels")
    return o


def _filter(taps: str) -> Filter:
    try:
        numbers = [float(tap) for tap in taps.split("_")]
    except ValueError:
        raise UserError("model.resample_filter", taps, "numbers joined with '_', such as 1_3_3_1") from None
    if not sum(numbers):
        raise UserError("model.resample_filter", taps, "numbers of a sum other than 0")
    return make_filter(numbers)


def _recipes(o: Mapping[str, Any], count: int) -> tuple[Recipe, ...]:
    """Of each block from 4 px on; the highest ones, but never that of 4 px, take `dtype`."""
    exact = Recipe(
        _filter(o["resample_filter"]), o["activation"], float(o["conv_clamp"]) or None, "float32", o["convolution"]
    )
    half = replace(exact, dtype=o["dtype"])
    return tuple(half if i >= max(count - o["half_blocks"], 1) else exact for i in range(count))


def _generator(o: Mapping[str, Any]) -> Generator:
    channels = widths(o["resolution"], o["channel_base"], o["channel_max"])
    return Generator(
        plan=MappingPlan(
            features=o["w_dim"],
            layers=o["mapping_layers"],
            width=o["mapping_width"] or o["w_dim"],
            embedding=o["embedding_dim"] or o["w_dim"],
            num_classes=o["num_classes"],
            rate=o["mapping_rate"],
            decay=o["w_avg_decay"],
        ),
        widths=channels,
        channels=o["channels"],
        architecture=o["architecture"],
        use_noise=o["noise"],
        recipes=_recipes(o, len(channels)),
    )


def _discriminator(o: Mapping[str, Any]) -> Discriminator:
    largest = o["channel_max_d"] or o["channel_max"]
    channels = widths(o["resolution"], o["channel_base_d"] or o["channel_base"], largest)
    if o["minibatch_channels"] and channels[0] % o["minibatch_channels"]:
        raise UserError("model.minibatch_channels", o["minibatch_channels"], f"a divisor of {channels[0]}")
    plan, features = None, o["class_dim"] or channels[0]
    if o["num_classes"] > 1:
        plan = MappingPlan(
            features=features,
            layers=o["mapping_layers_d"],
            width=o["mapping_width_d"] or features,
            embedding=o["embedding_dim_d"] or features,
            num_classes=o["num_classes"],
            rate=o["mapping_rate_d"],
        )
        if not plan.layers and plan.embedding != features:
            raise UserError("model.embedding_dim_d", plan.embedding, f"{features}, without mapping layers")
    return Discriminator(
        widths=channels[::-1],
        architecture=o["architecture_d"],
        recipes=_recipes(o, len(channels))[::-1],
        plan=plan,
        group=o["minibatch_group"],
        deviations=o["minibatch_channels"],
        fade=o["fade_d"],
    )


# What the family declares.


def _block(role: Role, path: str, resolution: int) -> int | None:
    top = path.split("/")[0]
    if top.startswith("fade"):
        return 0
    if top == "mapper" or (role == "discriminator" and top == "b4"):
        return None
    size = int(top.removeprefix("b"))
    return (size // 4).bit_length() - 1 if role == "generator" else (resolution // size).bit_length() - 1


def _layer(role: Role, path: str, resolution: int, architecture: str) -> int | None:
    block = _block(role, path, resolution)
    if role == "generator" or block is None or path.startswith("fade"):
        return None
    layers = ["conv0", "conv1"] + (["skip"] if architecture == "resnet" else [])
    # The first block, or every one, has a layer from RGB before the others.
    first = architecture != "skip" and block > 0
    own = (layers if first else ["fromrgb", *layers]).index(path.split("/")[1])
    before = block * len(layers) + (block if architecture == "skip" else min(block, 1))
    return before + own


def _group(role: Role, path: str) -> str:
    if path.startswith("fade"):
        return "fade" if path == "fade" else "from_rgb"
    top, part = path.split("/")[:2]
    if top == "mapper":
        return "class_embedding" if part == "embed" else "mapping"
    if role == "discriminator" and top == "b4":
        return "head"
    if part in ("torgb", "fromrgb") and "/affine/" not in path:
        return "to_rgb" if part == "torgb" else "from_rgb"
    # Modulation is this family's conditional normalisation: its maps give each channel the scale that a style asks for.
    return "conditional_norm" if "/affine/" in path else f"blocks.{top.removeprefix('b')}"


FAMILY = Family("stylegan2", OPTIONS, build, "Karras et al. 2020, arXiv:1912.04958 and arXiv:2006.06676")
