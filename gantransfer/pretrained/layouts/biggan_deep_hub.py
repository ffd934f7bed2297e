"""The BigGAN-deep generators of TF-Hub (128, 256, 512 px) as their PyTorch port stores them; there are no others.

Its first linear layer runs over (4, 4, channels) as ours does, its class table is a linear layer without bias, and its
list of layers counts the attention as one.
"""

from collections.abc import Mapping
from typing import Any

from gantransfer.errors import UserError
from gantransfer.models.biggan import LAYOUTS
from gantransfer.models.biggan_deep import Generator, build
from gantransfer.models.family import Role
from gantransfer.pretrained.layouts.biggan import count, have, joined
from gantransfer.pretrained.layouts.biggan_deep import resolution_of
from gantransfer.pretrained.layouts.layout import KERNEL, MATRIX, SAME, Change, Found, Layout, Leaf, Options, Shapes

CHANNELS = 3
# A right singular vector of a 3x3 kernel runs over (in, 3, 3) there and over (3, 3, in) here.
_POSITIONS_FIRST = Change(
    "reshaped and transposed",
    lambda a: a.reshape(-1, 3, 3).transpose(1, 2, 0).reshape(-1),
    lambda a: a.reshape(3, 3, -1).transpose(2, 0, 1).reshape(-1),
)
_NUMBER = Change("reshaped", lambda a: a.reshape(()), lambda a: a.reshape(1))


def _module_leaves(theirs: str, ours: str, change: Change, bias: bool = True, size: int = 1) -> tuple[Leaf, ...]:
    leaves = (Leaf(f"{theirs}.bias", f"params/{ours}/bias"),) if bias else ()
    return leaves + (
        Leaf(f"{theirs}.weight_orig", f"params/{ours}/kernel", change),
        Leaf(f"{theirs}.weight_u", f"spectral/{ours}/u"),
        Leaf(f"{theirs}.weight_v", f"spectral/{ours}/v", _POSITIONS_FIRST if size == 3 else SAME),
    )


def _statistics(theirs: str, ours: str) -> tuple[Leaf, ...]:
    names = (("running_means", "mean"), ("running_vars", "var"))
    return tuple(Leaf(f"{theirs}.{name}", f"batch_stats/{ours}/{part}") for name, part in names)


def _block_leaves(theirs: str, ours: str) -> tuple[Leaf, ...]:
    leaves: tuple[Leaf, ...] = ()
    for i, size in enumerate((1, 3, 3, 1)):
        norm = f"{ours}/bn{i + 1}"
        leaves += _statistics(f"{theirs}.bn_{i}", norm)
        for part, name in (("scale", "gain"), ("offset", "bias")):
            leaves += _module_leaves(f"{theirs}.bn_{i}.{part}", f"{norm}/{name}", MATRIX, bias=False)
        leaves += _module_leaves(f"{theirs}.conv_{i}", f"{ours}/conv{i + 1}", KERNEL, size=size)
    return leaves


def _attention_leaves(theirs: str, ours: str) -> tuple[Leaf, ...]:
    leaves = (Leaf(f"{theirs}.gamma", f"params/{ours}/gamma", _NUMBER),)
    for name, part in (("theta", "theta"), ("phi", "phi"), ("g", "g"), ("o_conv", "o")):
        leaves += _module_leaves(f"{theirs}.snconv1x1_{name}", f"{ours}/{part}", KERNEL, bias=False)
    return leaves


def _leaves(role: Role, options: Options) -> tuple[Leaf, ...]:
    if role == "discriminator":
        raise UserError("--layout", "biggan-deep-hub", "a layout with a discriminator; the hub has published none")
    generator: Generator = build(**options).generator
    leaves = (Leaf("embeddings.weight", "params/shared/embedding", MATRIX),)
    leaves += _module_leaves("generator.gen_z", "linear", MATRIX)
    place = 0
    for i in range((len(generator.widths) - 1) * generator.depth):
        leaves += _block_leaves(f"generator.layers.{place}", f"block_{i}")
        place += 1
        if i in generator.attention:
            leaves += _attention_leaves(f"generator.layers.{place}", f"attn_{i}")
            place += 1
    leaves += (Leaf("generator.bn.weight", "params/out_bn/gain"), Leaf("generator.bn.bias", "params/out_bn/bias"))
    leaves += _statistics("generator.bn", "out_bn")
    return leaves + _module_leaves("generator.conv_to_rgb", "out_conv", KERNEL, size=3)


def _recognise(shapes: Shapes) -> Found | None:
    layers = count(_layer_names(shapes), "{}")
    attended = [i for i in range(layers) if f"generator.layers.{i}.gamma" in shapes]
    blocks = [f"generator.layers.{i}" for i in range(layers) if i not in attended]
    kernels = [f"{block}.conv_{end}.weight_orig" for block in blocks for end in (0, 3)]
    matrices = ("embeddings.weight", "generator.gen_z.weight_orig", "generator.bn.running_means")
    if not blocks or not have(shapes, d2=matrices, d4=("generator.conv_to_rgb.weight_orig", *kernels)):
        return None
    ways = [(shapes[first][1], shapes[last][0]) for first, last in zip(kernels[::2], kernels[1::2], strict=True)]
    found = resolution_of(ways)
    # Attention between the two blocks of one size is nothing that the port's configurations have.
    after = [place - number - 1 for number, place in enumerate(attended)]
    if found is None or any(block % found[2] != found[2] - 1 for block in after):
        return None
    resolution, width, depth = found
    shared_dim, classes = shapes["embeddings.weight"]
    options = {
        "resolution": resolution,
        "channels": CHANNELS,
        "num_classes": classes,
        "width": width,
        "depth_g": depth,
        "z_dim": shapes["generator.gen_z.weight_orig"][1] - shared_dim,
        "shared_dim": shared_dim,
        "attention_g": joined(8 << block // depth for block in after),
        "latent_first": True,
        "statistics": shapes["generator.bn.running_means"][0],
        "spectral_g": True,
        "num_svs_g": 1,
        "stored_vectors_g": True,
        "output_width": shapes["generator.conv_to_rgb.weight_orig"][0],
    }
    return Found("generator", options)


def _layer_names(shapes: Shapes) -> Shapes:
    """Numbers of the layers that there are, as names."""
    parts = (name.split(".") for name in shapes if name.startswith("generator.layers."))
    return {part[2]: () for part in parts if len(part) > 2}


def _from_config(config: Mapping[str, Any]) -> Options:
    if "channel_width" not in config:
        return {}
    names = (("output_dim", "resolution"), ("channel_width", "width"), ("channel_width", "output_width"))
    names += (("num_classes", "num_classes"), ("z_dim", "z_dim"), ("z_dim", "shared_dim"), ("n_stats", "statistics"))
    names += (("eps", "spectral_eps"), ("eps", "norm_eps"), ("eps", "out_norm_eps"))
    return {ours: config[theirs] for theirs, ours in names if theirs in config}


def _to_config(options: Options) -> dict[str, Any]:
    """The port's configuration; it has one epsilon for everything, and one attention."""
    if not options["norm_eps"] == options["out_norm_eps"] == options["spectral_eps"]:
        raise UserError("model.norm_eps", options["norm_eps"], "the same as model.out_norm_eps and model.spectral_eps")
    generator: Generator = build(**options).generator
    if len(generator.attention) != 1:
        raise UserError("model.attention_g", options["attention_g"], "one size")
    layers, multiples = [], LAYOUTS[options["resolution"]].generator
    for inside, outside in zip(multiples, multiples[1:], strict=False):
        for number in range(generator.depth):
            last = number == generator.depth - 1
            layers.append([last, outside if number > 1 else inside, outside if number or last else inside])
    return {
        "output_dim": options["resolution"],
        "z_dim": options["z_dim"],
        "class_embed_dim": options["shared_dim"],
        "channel_width": options["width"],
        "num_classes": options["num_classes"],
        "layers": layers,
        "attention_layer_position": generator.attention[0] + 1,
        "eps": options["norm_eps"],
        "n_stats": options["statistics"],
    }


HUB = Layout(
    name="biggan-deep-hub",
    family="biggan_deep",
    about="generators of TF-Hub (biggan-deep-128, 256, 512) in the names of their PyTorch port",
    recognise=_recognise,
    leaves=_leaves,
    assumed={"spectral_eps": 1e-4, "norm_eps": 1e-4, "out_norm_eps": 1e-4, "interpolation": "hub_port"},
    from_config=_from_config,
    to_config=_to_config,
    averaged=True,
)
