"""Published BigGANs: BigGAN-PyTorch (SAGAN and SN-GAN as settings), and TF-Hub generators converted to its names.

Tables are in the order of the file, so that their parameters are in the order in which its optimizers count them.
BigGAN-deep of the same code is in `biggan_deep`, made of the same pieces.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from gantransfer.errors import UserError
from gantransfer.models.biggan import LAYOUTS, Discriminator, Generator, build
from gantransfer.models.family import Role
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
)

COUNTER = "*.accumulation_counter"
# Gain and bias tables of the first linear layer run over (channels, 4, 4) there and over (4, 4, channels) here.
SPATIAL_FIRST = Change(
    "reshaped and transposed",
    lambda a: np.moveaxis(a.reshape(-1, 4, 4, *a.shape[1:]), 0, 2).reshape(a.shape),
    lambda a: np.moveaxis(a.reshape(4, 4, -1, *a.shape[1:]), 2, 0).reshape(a.shape),
)
_ROW = Change("reshaped", lambda a: a.reshape(-1), lambda a: a.reshape(1, -1))
_NUMBER = Change("reshaped", lambda a: a.reshape(()), lambda a: a.reshape(1))


# Pieces of tables.


def module_leaves(
    theirs: str, ours: str, kind: str, num_svs: int, bias: bool = True, spatial: bool = False, values: bool = True
) -> tuple[Leaf, ...]:
    """One convolution ("conv"), linear layer ("linear") or class table ("table") with its spectral vectors.

    Args:
      theirs, ours: name of the layer in the file and with us.
      kind: which of the three.
      num_svs: singular values followed; 0 without spectral normalisation.
      bias: whether the layer has biases.
      spatial: whether its outputs run over channels and positions.
      values: whether the file keeps singular values.
    """
    place = SPATIAL_FIRST if spatial else SAME
    change = {"conv": KERNEL, "linear": MATRIX, "table": SAME}[kind]
    leaves = [
        Leaf(f"{theirs}.weight", f"params/{ours}/{'embedding' if kind == 'table' else 'kernel'}", place.then(change))
    ]
    if bias:
        leaves.append(Leaf(f"{theirs}.bias", f"params/{ours}/bias", place))
    if num_svs:
        vectors = tuple(f"{theirs}.u{i}" for i in range(num_svs))
        leaves.append(Leaf(vectors, f"spectral/{ours}/u", _ROW.then(place)))
    if num_svs and values:
        leaves.append(Leaf(tuple(f"{theirs}.sv{i}" for i in range(num_svs)), f"spectral/{ours}/sigma", _NUMBER))
    return tuple(leaves)


def norm_leaves(theirs: str, ours: str, own: bool) -> tuple[Leaf, ...]:
    """Running statistics of a batch norm; `own` says that it is of the code's own kind, which nests them."""
    nested = ".bn" if own else ""
    return tuple(Leaf(f"{theirs}{nested}.stored_{part}", f"batch_stats/{ours}/{part}") for part in ("mean", "var"))


def conditional_leaves(theirs: str, ours: str, kind: str, num_svs: int, own: bool, values: bool) -> tuple[Leaf, ...]:
    """A batch norm whose gain and bias are linear maps or tables of the condition."""
    leaves = norm_leaves(theirs, ours, own)
    for part in ("gain", "bias"):
        svs = num_svs if kind == "linear" else 0
        leaves += module_leaves(f"{theirs}.{part}", f"{ours}/{part}", kind, svs, bias=False, values=values)
    return leaves


def output_leaves(index: int, num_svs: int, own: bool, values: bool) -> tuple[Leaf, ...]:
    """The last norm and convolution of a generator; `index` is the convolution's in `output_layer`."""
    gains = tuple(Leaf(f"output_layer.0.{part}", f"params/out_bn/{part}") for part in ("gain", "bias"))
    norm = norm_leaves("output_layer.0", "out_bn", own)
    return gains + norm + module_leaves(f"output_layer.{index}", "out_conv", "conv", num_svs, values=values)


def attention_leaves(theirs: str, ours: str, num_svs: int, values: bool) -> tuple[Leaf, ...]:
    """A self-attention; its share comes first."""
    leaves = (Leaf(f"{theirs}.gamma", f"params/{ours}/gamma"),)
    for part in ("theta", "phi", "g", "o"):
        leaves += module_leaves(f"{theirs}.{part}", f"{ours}/{part}", "conv", num_svs, bias=False, values=values)
    return leaves


def head_leaves(num_svs: int) -> tuple[Leaf, ...]:
    """Head and class rows of a discriminator."""
    linear = module_leaves("linear", "head", "linear", num_svs)
    return linear + module_leaves("embed", "embed", "table", num_svs, bias=False)


def _svs(recipe: Any) -> int:
    return recipe.spectral.num_svs if recipe.spectral else 0


def _generator_leaves(generator: Generator, values: bool) -> tuple[Leaf, ...]:
    svs, own = _svs(generator.recipe), generator.norm.running_variance == "biased"
    leaves: tuple[Leaf, ...] = ()
    if generator.shared_dim:
        leaves += module_leaves("shared", "shared", "table", 0, bias=False)
    leaves += module_leaves("linear", "linear", "linear", svs, spatial=True, values=values)
    kind = "linear" if generator.shared_dim else "table"
    for i in range(len(generator.widths) - 1):
        for conv in ("conv1", "conv2", "conv_sc"):
            leaves += module_leaves(f"blocks.{i}.0.{conv}", f"block_{i}/{conv}", "conv", svs, values=values)
        for norm in ("bn1", "bn2"):
            leaves += conditional_leaves(f"blocks.{i}.0.{norm}", f"block_{i}/{norm}", kind, svs, own, values)
        if i in generator.attention:
            leaves += attention_leaves(f"blocks.{i}.1", f"attn_{i}", svs, values)
    return leaves + output_leaves(2, svs, own, values)


def _discriminator_leaves(discriminator: Discriminator) -> tuple[Leaf, ...]:
    svs, leaves = _svs(discriminator.recipe), ()
    before = None
    for i, width in enumerate(discriminator.widths):
        shortcut = i < discriminator.pooled or width != before
        for conv in ("conv1", "conv2", *(("conv_sc",) if shortcut else ())):
            leaves += module_leaves(f"blocks.{i}.0.{conv}", f"block_{i}/{conv}", "conv", svs)
        if i in discriminator.attention:
            leaves += attention_leaves(f"blocks.{i}.1", f"attn_{i}", svs, True)
        before = width
    return leaves + head_leaves(svs)


def _leaves(role: Role, options: Options) -> tuple[Leaf, ...]:
    networks = build(**options)
    if role == "generator":
        return _generator_leaves(networks.generator, values=True)
    return _discriminator_leaves(networks.discriminator)


# What the weights say.


def count(shapes: Shapes, pattern: str) -> int:
    """How many of the names `pattern.format(0)`, `pattern.format(1)`, ... there are, from the first without a gap."""
    number = 0
    while pattern.format(number) in shapes:
        number += 1
    return number


def have(shapes: Shapes, **dimensions: Iterable[str]) -> bool:
    """Whether names are there with a number of dimensions: `have(shapes, d4=("conv.weight",))`."""
    return all(len(shapes.get(name, (0,) * 9)) == int(key[1:]) for key, names in dimensions.items() for name in names)


def joined(sizes: Iterable[int]) -> str:
    """Sizes at which there is attention, as an option."""
    return "_".join(map(str, sorted(set(sizes)))) or "0"


def spectral_options(shapes: Shapes, layer: str, side: str) -> dict[str, Any]:
    """Whether and how a network is spectrally normalised, seen on one layer."""
    svs = count(shapes, layer + ".u{}")
    return {f"spectral_{side}": bool(svs)} | ({f"num_svs_{side}": svs} if svs else {})


def _recognise_generator(shapes: Shapes) -> Found | None:
    blocks = count(shapes, "blocks.{}.0.conv1.weight")
    convs = [f"blocks.{i}.0.conv1.weight" for i in range(blocks)]
    gain = "blocks.0.0.bn1.gain.weight"
    if not blocks or not have(shapes, d2=("linear.weight", gain), d4=("output_layer.2.weight", *convs)):
        return None
    if "blocks.0.0.conv3.weight" in shapes or 4 << blocks not in LAYOUTS:
        return None
    widths = [shapes[convs[0]][1], *(shapes[conv][0] for conv in convs)]
    unit = widths[-1] // LAYOUTS[4 << blocks].generator[-1]
    if widths != [unit * m for m in LAYOUTS[4 << blocks].generator]:
        return None
    rows, z_dim = shapes["linear.weight"]
    if rows != 16 * widths[0]:
        return None
    options: dict[str, Any] = {
        "resolution": 4 << blocks,
        "channels": shapes["output_layer.2.weight"][0],
        "width": unit,
        "z_dim": z_dim,
        "shared": False,
        "hierarchical": False,
        "num_classes": shapes[gain][0],
        "attention_g": joined(8 << i for i in range(blocks) if f"blocks.{i}.1.gamma" in shapes),
        "running_variance": "biased" if "blocks.0.0.bn1.bn.stored_mean" in shapes else "unbiased",
    } | spectral_options(shapes, "linear", "g")
    if have(shapes, d2=("shared.weight",)):
        classes, shared_dim = shapes["shared.weight"]
        options |= {"shared": True, "num_classes": classes, "shared_dim": shared_dim}
        if shapes[gain][1] > shared_dim:
            options |= {"hierarchical": True, "z_dim": (blocks + 1) * z_dim}
    return Found("generator", options)


def _recognise_discriminator(shapes: Shapes) -> Found | None:
    blocks = count(shapes, "blocks.{}.0.conv2.weight")
    convs = [f"blocks.{i}.0.conv{k}.weight" for i in range(blocks) for k in (1, 2)]
    if not blocks or not have(shapes, d2=("linear.weight", "embed.weight"), d4=convs) or "shared.weight" in shapes:
        return None
    if {"input_conv.weight", "blocks.0.0.conv3.weight"} & set(shapes):
        return None
    hidden, widths = ([shapes[conv][0] for conv in convs[k::2]] for k in (0, 1))
    for resolution, layout in LAYOUTS.items():
        unit = widths[0] // layout.discriminator[0]
        if widths != [unit * m for m in layout.discriminator]:
            continue
        options = {
            "resolution": resolution,
            "channels": shapes[convs[0]][1],
            "num_classes": shapes["embed.weight"][0],
            "width_d": unit,
            "thin_d": hidden != widths,
            "attention_d": joined(layout.labels[i] for i in range(blocks) if f"blocks.{i}.1.gamma" in shapes),
        }
        return Found("discriminator", options | spectral_options(shapes, "linear", "d"))
    return None


def _recognise(shapes: Shapes) -> Found | None:
    found = _recognise_generator(shapes) or _recognise_discriminator(shapes)
    return None if found is None or _lacks_values(shapes) else found


def _lacks_values(shapes: Shapes) -> bool:
    return "linear.u0" in shapes and "linear.sv0" not in shapes


def _recognise_hub(shapes: Shapes) -> Found | None:
    return _recognise_generator(shapes) if _lacks_values(shapes) else None


# What a configuration says.

_INITS = {"ortho": "orthogonal", "N02": "N02", "xavier": "xavier", "glorot": "xavier"}
_NAMES = {
    "resolution": "resolution",
    "n_classes": "num_classes",
    "G_ch": "width",
    "D_ch": "width_d",
    "G_shared": "shared",
    "hier": "hierarchical",
    "num_G_SVs": "num_svs_g",
    "num_D_SVs": "num_svs_d",
    "num_G_SV_itrs": "power_iterations_g",
    "num_D_SV_itrs": "power_iterations_d",
    "SN_eps": "spectral_eps",
    "BN_eps": "norm_eps",
}


def config_options(config: Mapping[str, Any], sizes: Mapping[str, Iterable[int]]) -> dict[str, Any]:
    """Our options for those of the training code that `config` states.

    Args:
      config: the reference's options by name.
      sizes: per side, "g" and "d", the sizes at which attention can be; the reference takes no notice of others.

    Raises:
      UserError: an activation, a normalisation or an init that there is not with us.
    """
    for name, allowed in (
        ("G_nl", ("relu", "inplace_relu")),
        ("D_nl", ("relu", "inplace_relu")),
        ("norm_style", ("bn",)),
    ):
        if config.get(name, allowed[0]) not in allowed:
            raise UserError(name, config[name], " or ".join(allowed))
    options = {ours: config[theirs] for theirs, ours in _NAMES.items() if theirs in config}
    if "G_param" in config:
        options["spectral_g"] = config["G_param"] == "SN"
    if "mybn" in config:
        options["running_variance"] = "biased" if config["mybn"] else "unbiased"
    if "G_init" in config:
        if config["G_init"] not in _INITS:
            raise UserError("G_init", config["G_init"], ", ".join(_INITS))
        options["init"] = _INITS[config["G_init"]]
    for side, able in sizes.items():
        name = f"{side.upper()}_attn"
        if name in config:
            options[f"attention_{side}"] = joined({int(s) for s in config[name].split("_")} & set(able))
    return options


def _from_config(config: Mapping[str, Any]) -> Options:
    if "G_ch" not in config and "D_ch" not in config:
        return {}
    layout = LAYOUTS.get(config.get("resolution", 0))
    sizes = {"g": [8 << i for i in range(len(layout.generator) - 1)], "d": layout.labels} if layout else {}
    options = config_options(config, sizes)
    if "D_wide" in config:
        options["thin_d"] = not config["D_wide"]
    if "dim_z" in config:
        z_dim = config["dim_z"]
        if config.get("G_shared"):
            options["shared_dim"] = config.get("shared_dim") or z_dim
        if config.get("hier") and layout:
            z_dim -= z_dim % len(layout.generator)
        options["z_dim"] = z_dim
    return options


def to_config(options: Options) -> dict[str, Any]:
    """Options of the training code for ours; the opposite of `config_options`.

    Raises:
      UserError: an init that the training code does not have.
    """
    inits = {ours: theirs for theirs, ours in reversed(_INITS.items())}
    if options["init"] not in inits:
        raise UserError("model.init", options["init"], ", ".join(inits))
    config = {theirs: options[ours] for theirs, ours in _NAMES.items() if ours in options}
    return config | {
        "D_ch": options["width_d"] or options["width"],
        "dim_z": options["z_dim"],
        "shared_dim": options["shared_dim"],
        "G_attn": options["attention_g"],
        "D_attn": options["attention_d"],
        "G_param": "SN" if options["spectral_g"] else "none",
        "mybn": options["running_variance"] == "biased",
        "G_init": inits[options["init"]],
        "D_init": inits[options["init"]],
    }


def _to_config(options: Options) -> dict[str, Any]:
    return to_config(options) | {"D_wide": not options["thin_d"], "model": "BigGAN"}


# The layouts.


def scale(role: Role, options: Options) -> State:
    """The factor of a discriminator's projection, which no file holds."""
    return {"constants/projection_scale": np.ones((), np.float32)} if role == "discriminator" else {}


def counters(leaves: Iterable[Leaf]) -> State:
    """Counts of standing batches beside each statistic of the code's own batch norm, as after training."""
    means = (leaf.theirs for leaf in leaves if str(leaf.theirs).endswith(".bn.stored_mean"))
    return {str(mean).replace("stored_mean", COUNTER[2:]): np.zeros(1, np.float32) for mean in means}


def unit_values(leaves: Iterable[Leaf]) -> State:
    """Singular values beside a table's vectors, where no file stores them, since evaluation finds them anew."""
    vectors = (leaf.ours for leaf in leaves if leaf.ours.endswith("/u"))
    return {f"{path.removesuffix('u')}sigma": np.ones(1, np.float32) for path in vectors}


DROPPED = ((COUNTER, "counts batches while standing statistics are taken"),)
PYTORCH = Layout(
    name="biggan-pytorch",
    family="biggan",
    about="G.pth, G_ema.pth and D.pth of BigGAN-PyTorch (Brock), SAGAN and SN-GAN among its settings",
    recognise=_recognise,
    leaves=_leaves,
    assumed={"spectral_eps": 1e-6, "norm_eps": 1e-5, "out_norm_eps": 1e-5, "init": "orthogonal"},
    from_config=_from_config,
    to_config=_to_config,
    dropped=DROPPED,
    made=lambda role, options: counters(_leaves(role, options)),
    absent=lambda role, options: scale(role, options) if options.get("spectral_d", True) else {},
)
HUB = Layout(
    name="biggan-tfhub-pytorch",
    family="biggan",
    about="generators of TF-Hub (biggan-128, 256, 512; not deep) converted to the names of BigGAN-PyTorch",
    recognise=_recognise_hub,
    leaves=lambda role, options: _generator_leaves(build(**options).generator, values=False),
    assumed={"spectral_eps": 1e-4, "norm_eps": 1e-4, "out_norm_eps": 1e-4, "init": "orthogonal"},
    from_config=_from_config,
    to_config=_to_config,
    dropped=DROPPED,
    absent=lambda role, options: unit_values(_leaves(role, options)),
    averaged=True,
)
