"""Published BigGANs-deep of BigGAN-PyTorch: `G.pth`, `G_ema.pth` and `D.pth` of its option `BigGANdeep`."""

from collections.abc import Mapping, Sequence
from typing import Any

from gantransfer.models.biggan import LAYOUTS
from gantransfer.models.biggan_deep import Discriminator, Generator, build
from gantransfer.models.family import Role
from gantransfer.pretrained.layouts.biggan import (
    DROPPED,
    attention_leaves,
    conditional_leaves,
    config_options,
    count,
    counters,
    have,
    head_leaves,
    joined,
    module_leaves,
    output_leaves,
    scale,
    spectral_options,
    to_config,
)
from gantransfer.pretrained.layouts.layout import Found, Layout, Leaf, Options, Shapes

CONVOLUTIONS = ("conv1", "conv2", "conv3", "conv4")


def _svs(recipe: Any) -> int:
    return recipe.spectral.num_svs if recipe.spectral else 0


def _generator_leaves(generator: Generator) -> tuple[Leaf, ...]:
    svs, own = _svs(generator.recipe), generator.norm.running_variance == "biased"
    leaves = module_leaves("shared", "shared", "table", 0, bias=False)
    leaves += module_leaves("linear", "linear", "linear", svs, spatial=True)
    for i in range((len(generator.widths) - 1) * generator.depth):
        for conv in CONVOLUTIONS:
            leaves += module_leaves(f"blocks.{i}.0.{conv}", f"block_{i}/{conv}", "conv", svs)
        for norm in ("bn1", "bn2", "bn3", "bn4"):
            leaves += conditional_leaves(f"blocks.{i}.0.{norm}", f"block_{i}/{norm}", "linear", svs, own, True)
        if i in generator.attention:
            leaves += attention_leaves(f"blocks.{i}.1", f"attn_{i}", svs, True)
    return leaves + output_leaves(2, svs, own, True)


def _discriminator_leaves(discriminator: Discriminator) -> tuple[Leaf, ...]:
    svs, widths, depth = _svs(discriminator.recipe), discriminator.widths, discriminator.depth
    leaves = module_leaves("input_conv", "input_conv", "conv", svs)
    for i in range((len(widths) - 1) * depth):
        stage, number = divmod(i, depth)
        wider = number == 0 and widths[stage + 1] > widths[stage]
        for conv in (*CONVOLUTIONS, *(("conv_sc",) if wider else ())):
            leaves += module_leaves(f"blocks.{stage}.{number}.{conv}", f"block_{i}/{conv}", "conv", svs)
        if i in discriminator.attention:
            leaves += attention_leaves(f"blocks.{stage}.{depth}", f"attn_{i}", svs, True)
    return leaves + head_leaves(svs)


def _leaves(role: Role, options: Options) -> tuple[Leaf, ...]:
    networks = build(**options)
    if role == "generator":
        return _generator_leaves(networks.generator)
    return _discriminator_leaves(networks.discriminator)


def resolution_of(ways: Sequence[tuple[int, int]]) -> tuple[int, int, int] | None:
    """Finds the generator whose blocks have these widths: (resolution, width unit, blocks per stage), or None.

    Args:
      ways: per block, channels in and out.
    """
    for resolution, layout in LAYOUTS.items():
        stages, unit = len(layout.generator) - 1, ways[-1][1] // layout.generator[-1]
        depth = len(ways) // stages
        widths = [unit * m for m in layout.generator]
        expected = []
        for i in range(stages * depth):
            stage, number = divmod(i, depth)
            inside, outside = widths[stage], widths[stage + 1]
            expected.append((outside if number > 1 else inside, outside if number or depth == 1 else inside))
        if unit and expected == list(ways):
            return resolution, unit, depth
    return None


def _recognise_generator(shapes: Shapes) -> Found | None:
    blocks = count(shapes, "blocks.{}.0.conv4.weight")
    ends = [(f"blocks.{i}.0.conv1.weight", f"blocks.{i}.0.conv4.weight") for i in range(blocks)]
    matrices = ("shared.weight", "linear.weight")
    kernels = ("output_layer.2.weight", *(name for pair in ends for name in pair))
    if not blocks or not have(shapes, d2=matrices, d4=kernels):
        return None
    found = resolution_of([(shapes[first][1], shapes[last][0]) for first, last in ends])
    if found is None:
        return None
    resolution, width, depth = found
    attended = [i // depth for i in range(blocks) if f"blocks.{i}.1.gamma" in shapes]
    classes, shared_dim = shapes["shared.weight"]
    options = {
        "resolution": resolution,
        "channels": shapes["output_layer.2.weight"][0],
        "num_classes": classes,
        "width": width,
        "depth_g": depth,
        "z_dim": shapes["linear.weight"][1] - shared_dim,
        "shared_dim": shared_dim,
        "attention_g": joined(8 << stage for stage in attended),
        "running_variance": "biased" if "blocks.0.0.bn1.bn.stored_mean" in shapes else "unbiased",
        "latent_first": False,
        "statistics": 0,
        "stored_vectors_g": False,
        "output_width": 0,
    }
    return Found("generator", options | spectral_options(shapes, "linear", "g"))


def _recognise_discriminator(shapes: Shapes) -> Found | None:
    stages, depth = count(shapes, "blocks.{}.0.conv4.weight"), count(shapes, "blocks.0.{}.conv4.weight")
    last = [f"blocks.{stage}.0.conv4.weight" for stage in range(stages)]
    if not stages or not have(shapes, d2=("linear.weight", "embed.weight"), d4=("input_conv.weight", *last)):
        return None
    widths = [shapes[name][0] for name in ("input_conv.weight", *last)]
    for resolution, layout in LAYOUTS.items():
        unit = widths[0] // layout.discriminator[0]
        if unit and widths == [unit * m for m in layout.discriminator]:
            attended = [stage for stage in range(stages) if f"blocks.{stage}.{depth}.gamma" in shapes]
            options = {
                "resolution": resolution,
                "channels": shapes["input_conv.weight"][1],
                "num_classes": shapes["embed.weight"][0],
                "width_d": unit,
                "depth_d": depth,
                "attention_d": joined(layout.labels[stage] for stage in attended),
            }
            return Found("discriminator", options | spectral_options(shapes, "linear", "d"))
    return None


def _recognise(shapes: Shapes) -> Found | None:
    return _recognise_generator(shapes) or _recognise_discriminator(shapes)


def _from_config(config: Mapping[str, Any]) -> Options:
    if config.get("model") != "BigGANdeep" and "G_depth" not in config:
        return {}
    layout = LAYOUTS.get(config.get("resolution", 0))
    sizes = {"g": [8 << i for i in range(len(layout.generator) - 1)], "d": layout.labels} if layout else {}
    options = config_options(config, sizes)
    # Always so: the code runs in no other way.
    options = {name: value for name, value in options.items() if name not in ("shared", "hierarchical")}
    for theirs, ours in (("G_depth", "depth_g"), ("D_depth", "depth_d"), ("dim_z", "z_dim")):
        if theirs in config:
            options[ours] = config[theirs]
    if "dim_z" in config:
        options["shared_dim"] = config.get("shared_dim") or config["dim_z"]
    return options


def _to_config(options: Options) -> dict[str, Any]:
    depths = {"G_depth": options["depth_g"], "D_depth": options["depth_d"]}
    return to_config(options) | depths | {"model": "BigGANdeep", "G_shared": True, "hier": True}


PYTORCH = Layout(
    name="biggan-deep-pytorch",
    family="biggan_deep",
    about="G.pth, G_ema.pth and D.pth of BigGAN-PyTorch (Brock) with its option BigGANdeep",
    recognise=_recognise,
    leaves=_leaves,
    assumed={"spectral_eps": 1e-6, "norm_eps": 1e-5, "out_norm_eps": 1e-5, "init": "orthogonal"},
    from_config=_from_config,
    to_config=_to_config,
    dropped=DROPPED,
    made=lambda role, options: counters(_leaves(role, options)),
    absent=lambda role, options: scale(role, options) if options.get("spectral_d", True) else {},
)
