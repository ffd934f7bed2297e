"""The generators that TF-Hub published, under their own names: BigGAN and BigGAN-deep at 128, 256 and 512 px.

A folder is a SavedModel (`saved_model.pb`, `variables/`). Variables come with a running average (`.../ema_b999900`,
`.../ema_0.9999`), which the reader takes apart, so that both networks have the names below. What is the same with us:
kernels are (height, width, in, out), and the first linear layer runs over (4, 4, channels). What is not: BigGAN's
condition is [part of the latent, class embedding], and which block attention follows is told by its channels alone.

Names are those that public converters read these modules by: the first author's in BigGAN-PyTorch (`TFHub`, MIT), and
the one in pytorch-pretrained-BigGAN (MIT), which also says where BigGAN-deep has its statistics: as constants of the
graph, five of them called `stack` for each batch norm, of which the second and fourth are means and variances, with
one row per truncation. Variables called `accumulated_mean` hold the row that was used last.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from gantransfer.errors import UserError
from gantransfer.models import biggan, biggan_deep
from gantransfer.models.biggan import LAYOUTS
from gantransfer.models.family import Networks, Role
from gantransfer.pretrained.layouts.biggan import have, joined, unit_values
from gantransfer.pretrained.layouts.biggan_deep import resolution_of
from gantransfer.pretrained.layouts.layout import SAME, Change, Found, Layout, Leaf, Options, Shapes

SAVED_MODEL = "saved_model.pb"
_TABLES = f"{SAVED_MODEL}/stack"
_CHANNELS = 3
_FIRST = "Generator/GBlock"
# Vectors have leading ones in the file in some places, and none with us.
_VECTOR = Change("reshaped", lambda a: a.reshape(-1), lambda a: a.reshape(-1))
_ROW = Change("reshaped", lambda a: a.reshape(-1), lambda a: a.reshape(1, -1))
_NUMBER = Change("reshaped", lambda a: a.reshape(()), lambda a: a.reshape(1))
_ATTENTION = (("theta", "theta"), ("phi", "phi"), ("g", "g"), ("o_conv", "o"))


def _numbered(name: str, number: int) -> str:
    """TensorFlow's name of what was made with a name that others had before."""
    return f"{name}_{number}" if number else name


def _module(theirs: str, ours: str, change: Change = SAME, bias: bool = True) -> tuple[Leaf, ...]:
    leaves = (Leaf(f"{theirs}/w", f"params/{ours}/kernel", change),)
    leaves += (Leaf(f"{theirs}/b", f"params/{ours}/bias", _VECTOR),) if bias else ()
    return (*leaves, Leaf((f"{theirs}/u0",), f"spectral/{ours}/u", _ROW))


def _attention(ours: str) -> tuple[Leaf, ...]:
    leaves = (Leaf("Generator/attention/gamma", f"params/{ours}/gamma", _NUMBER),)
    for theirs, part in _ATTENTION:
        leaves += _module(f"Generator/attention/{theirs}", f"{ours}/{part}", bias=False)
    return leaves


def _accumulated(theirs: str, ours: str) -> tuple[Leaf, ...]:
    return tuple(Leaf(f"{theirs}/accumulated_{p}", f"batch_stats/{ours}/{p}", _VECTOR) for p in ("mean", "var"))


def _condition(chunk: int, shared_dim: int) -> Change:
    """Inputs in our order, [class embedding, part of the latent], from [part of the latent, class embedding]."""
    turned = lambda array, first: np.concatenate([array[first:], array[:first]])
    return Change("reshaped", lambda a: turned(a, chunk), lambda a: turned(a, shared_dim))


def _leaves(role: Role, options: Options) -> tuple[Leaf, ...]:
    generator = _generator("biggan-tfhub", biggan.build, role, options)
    leaves = (Leaf("linear/w", "params/shared/embedding"), *_module("Generator/G_Z/G_linear", "linear"))
    turned = _condition(generator.chunks, generator.shared_dim)
    for i in range(len(generator.widths) - 1):
        theirs, ours = _numbered(_FIRST, i), f"block_{i}"
        for name, conv in (("conv0", "conv1"), ("conv1", "conv2"), ("conv_sc", "conv_sc")):
            leaves += _module(f"{theirs}/{name}", f"{ours}/{conv}")
        for number in range(2):
            norm = f"{ours}/bn{number + 1}"
            leaves += _accumulated(f"{theirs}/{_numbered('CrossReplicaBN', number)}", norm)
            for name, part in (("gamma", "gain"), ("beta", "bias")):
                given = f"{theirs}/{_numbered('HyperBN', number)}/{name}"
                leaves += _module(given, f"{norm}/{part}", turned, bias=False)
        if i in generator.attention:
            leaves += _attention(f"attn_{i}")
    last = "Generator/ScaledCrossReplicaBN"
    leaves += tuple(
        Leaf(f"{last}/{t}", f"params/out_bn/{o}", _VECTOR) for t, o in (("gamma", "gain"), ("beta", "bias"))
    )
    return leaves + _accumulated(f"{last}bn", "out_bn") + _module("Generator/conv_2d", "out_conv")


def _deep_leaves(role: Role, options: Options) -> tuple[Leaf, ...]:
    generator = _generator("biggan-deep-tfhub", biggan_deep.build, role, options)
    leaves = (Leaf("linear/w", "params/shared/embedding"), *_module("Generator/GenZ/G_linear", "linear"))
    blocks = (len(generator.widths) - 1) * generator.depth
    for i in range(blocks):
        theirs, ours = _numbered(_FIRST, i), f"block_{i}"
        for number in range(4):
            given, norm = f"{theirs}/{_numbered('BatchNorm', number)}", f"{ours}/bn{number + 1}"
            leaves += _statistics(given, norm, 4 * i + number, options)
            for name, part in (("scale", "gain"), ("offset", "bias")):
                leaves += _module(f"{given}/{name}", f"{norm}/{part}", bias=False)
            leaves += _module(f"{theirs}/conv{number}", f"{ours}/conv{number + 1}")
        if i in generator.attention:
            leaves += _attention(f"attn_{i}")
    last = "Generator/BatchNorm"
    leaves += tuple(
        Leaf(f"{last}/{t}", f"params/out_bn/{o}", _VECTOR) for t, o in (("scale", "gain"), ("offset", "bias"))
    )
    return leaves + _statistics(last, "out_bn", 4 * blocks, options) + _module("Generator/conv_to_rgb", "out_conv")


def _statistics(theirs: str, ours: str, number: int, options: Options) -> tuple[Leaf, ...]:
    """Rows from the graph where there are rows; `number` counts batch norms in the order of the forward pass."""
    if not options["statistics"]:
        return _accumulated(theirs, ours)
    places = (("mean", 5 * number + 1), ("var", 5 * number + 3))
    return tuple(Leaf(f"{_TABLES}_{place}", f"batch_stats/{ours}/{part}") for part, place in places)


def _generator(layout: str, build: Callable[..., Networks], role: Role, options: Options) -> Any:
    if role == "discriminator":
        raise UserError("--layout", layout, "a layout with a discriminator; the hub has published none")
    return build(**options).generator


# What the weights say.


def _blocks(shapes: Shapes, conv: str) -> list[str]:
    """Names of the blocks, from the first without a gap."""
    number = 0
    while f"{_numbered(_FIRST, number)}/{conv}/w" in shapes:
        number += 1
    return [_numbered(_FIRST, i) for i in range(number)]


def _attended(shapes: Shapes, widths: Sequence[int]) -> str | None:
    """The size that attention follows, by its channels; `widths` are those out of each size from 8 px on."""
    if "Generator/attention/theta/w" not in shapes:
        return "0"
    if not have(shapes, d4=("Generator/attention/theta/w",)):
        return None
    sizes = [8 << i for i, width in enumerate(widths) if width == shapes["Generator/attention/theta/w"][2]]
    return joined(sizes) if len(sizes) == 1 else None


def _recognise(shapes: Shapes) -> Found | None:
    blocks = _blocks(shapes, "conv_sc")
    convs = [f"{block}/conv0/w" for block in blocks]
    gain, first, last = f"{_FIRST}/HyperBN/gamma/w", "Generator/G_Z/G_linear/w", "Generator/conv_2d/w"
    if not blocks or not have(shapes, d2=("linear/w", first, gain), d4=(last, *convs)):
        return None
    resolution = 4 << len(blocks)
    if resolution not in LAYOUTS:
        return None
    widths = [shapes[convs[0]][2], *(shapes[conv][3] for conv in convs)]
    unit, attention = widths[-1] // LAYOUTS[resolution].generator[-1], _attended(shapes, widths[1:])
    (chunk, columns), (classes, shared_dim) = shapes[first], shapes["linear/w"]
    if widths != [unit * m for m in LAYOUTS[resolution].generator] or columns != 16 * widths[0] or attention is None:
        return None
    if shapes[gain][0] != shared_dim + chunk:
        return None
    options = {
        "resolution": resolution,
        "channels": shapes[last][3],
        "num_classes": classes,
        "width": unit,
        "z_dim": (len(blocks) + 1) * chunk,
        "shared": True,
        "hierarchical": True,
        "shared_dim": shared_dim,
        "attention_g": attention,
        "spectral_g": True,
        "num_svs_g": 1,
    }
    return Found("generator", options)


def _recognise_deep(shapes: Shapes, rows: bool) -> Found | None:
    blocks = _blocks(shapes, "conv3")
    ends = [(f"{block}/conv0/w", f"{block}/conv3/w") for block in blocks]
    first, last, table = "Generator/GenZ/G_linear/w", "Generator/conv_to_rgb/w", f"{_TABLES}_1"
    if not blocks or not have(shapes, d2=("linear/w", first), d4=(last, *(name for pair in ends for name in pair))):
        return None
    if rows != have(shapes, d2=(table,)):
        return None
    found = resolution_of([(shapes[start][2], shapes[end][3]) for start, end in ends])
    if found is None:
        return None
    resolution, width, depth = found
    attention = _attended(shapes, [width * m for m in LAYOUTS[resolution].generator[1:]])
    classes, shared_dim = shapes["linear/w"]
    if attention is None or shapes[first][0] <= shared_dim:
        return None
    options = {
        "resolution": resolution,
        "channels": _CHANNELS,
        "num_classes": classes,
        "width": width,
        "depth_g": depth,
        "z_dim": shapes[first][0] - shared_dim,
        "shared_dim": shared_dim,
        "attention_g": attention,
        "latent_first": True,
        "statistics": shapes[table][0] if rows else 0,
        "spectral_g": True,
        "num_svs_g": 1,
        "stored_vectors_g": False,
        "output_width": shapes[last][3],
    }
    return Found("generator", options)


# The layouts.

_DROPPED = (
    ("*/u1", "a second vector of the power iteration, which evaluation finds anew from the first"),
    ("*/accumulation_counter", "counts batches while standing statistics are taken"),
    (f"{SAVED_MODEL}/*", "a table of the graph that is no statistic of a batch norm"),
)
_ASSUMED = {"spectral_eps": 1e-4, "norm_eps": 1e-4, "out_norm_eps": 1e-4}
BIGGAN = Layout(
    name="biggan-tfhub",
    family="biggan",
    about="generators of TF-Hub (biggan-128, 256, 512; not deep) under their own names: a SavedModel or its variables",
    recognise=_recognise,
    leaves=_leaves,
    assumed=_ASSUMED | {"init": "orthogonal"},
    dropped=_DROPPED,
    absent=lambda role, options: unit_values(_leaves(role, options)),
    averaged=True,
)
DEEP = Layout(
    name="biggan-deep-tfhub",
    family="biggan_deep",
    about="generators of TF-Hub (biggan-deep-128, 256, 512) under their own names: a SavedModel with its graph",
    recognise=partial(_recognise_deep, rows=True),
    leaves=_deep_leaves,
    assumed=_ASSUMED | {"interpolation": "hub_port"},
    dropped=(*_DROPPED, ("*/accumulated_*", "the row of statistics that was used last; all rows are in the graph")),
    absent=lambda role, options: unit_values(_deep_leaves(role, options)),
    averaged=True,
)
DEEP_VARIABLES = replace(
    DEEP,
    name="biggan-deep-tfhub-variables",
    about="variables of TF-Hub's biggan-deep-128, 256, 512 without the graph, so with one row of statistics",
    recognise=partial(_recognise_deep, rows=False),
    dropped=_DROPPED,
    notice="without saved_model.pb, or with one that holds no tables, batch norm has the statistics that were used "
    "last, for whichever truncation that was",
)
