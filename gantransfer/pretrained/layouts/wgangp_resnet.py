"""The networks of WGAN-GP's 64 px ResNet and of Transferring GANs, by the names of that code.

The same names come in two forms: alone, and as the code's TensorFlow checkpoints have them, where a variable of a
convolution or linear layer stands in the scope of its layer (`Generator.Input/Generator.Input.W`). Norms have none.
"""

from collections.abc import Callable

import numpy as np

from gantransfer.models.family import Role
from gantransfer.models.wgangp_resnet import DISCRIMINATOR, GENERATOR, NORMS
from gantransfer.pretrained.layouts.layout import (
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

BLOCKS = len(GENERATOR) - 1
Name = Callable[[str, str], str]


def _alone(layer: str, part: str) -> str:
    return f"{layer}.{part}"


def _scoped(layer: str, part: str) -> str:
    inside = f"{layer}/" if part in ("Filters", "Biases", "W", "b") else ""
    return f"{inside}{layer}.{part}"


def _conv(name: Name, theirs: str, ours: str, bias: bool = True) -> tuple[Leaf, ...]:
    kernel = (Leaf(name(theirs, "Filters"), f"params/{ours}/kernel"),)
    return kernel + ((Leaf(name(theirs, "Biases"), f"params/{ours}/bias"),) if bias else ())


def _linear(name: Name, theirs: str, ours: str, kernel: Change, bias: Change = SAME) -> tuple[Leaf, ...]:
    weight = Leaf(name(theirs, "W"), f"params/{ours}/kernel", kernel)
    return weight, Leaf(name(theirs, "b"), f"params/{ours}/bias", bias)


def _norm(name: Name, theirs: str, ours: str) -> tuple[Leaf, ...]:
    parts = (("scale", "gain"), ("offset", "bias"))
    return tuple(Leaf(name(theirs, part), f"params/{ours}/{leaf}") for part, leaf in parts)


def _block(name: Name, theirs: str, ours: str) -> tuple[Leaf, ...]:
    leaves = _conv(name, f"{theirs}.Shortcut", f"{ours}/conv_sc")
    for i, norm in enumerate(NORMS):
        leaves += _norm(name, f"{theirs}.BN{i + 1}", f"{ours}/{norm}")
        leaves += _conv(name, f"{theirs}.Conv{i + 1}", f"{ours}/conv{i + 1}", bias=i == 1)
    return leaves


def _columns(rows: int, channels: int, side: int) -> Change:
    """`(rows, channels * side * side)` with channels first, to channels last."""
    first, flat = (rows, channels, side, side), (rows, channels * side**2)
    last = transposed(0, 2, 3, 1).then(reshaped((rows, side, side, channels), flat))
    return reshaped(flat, first).then(last)


def _leaves(name: Name, role: Role, options: Options) -> tuple[Leaf, ...]:
    side, turn = options["resolution"] // 16, transposed(1, 0)
    if role == "generator":
        channels = GENERATOR[0] * options["width"]
        count = channels * side**2
        row = reshaped((count,), (1, count)).then(_columns(1, channels, side)).then(reshaped((1, count), (count,)))
        leaves = _linear(name, "Generator.Input", "linear", _columns(options["z_dim"], channels, side), row)
        for i in range(BLOCKS):
            leaves += _block(name, f"Generator.Res{i + 1}", f"block_{i}")
        return (
            *leaves,
            *_norm(name, "Generator.OutputN", "out_bn"),
            *_conv(name, "Generator.Output", "out_conv"),
        )
    channels = DISCRIMINATOR[-1] * (options.get("width_d") or options["width"])
    leaves = _conv(name, "Discriminator.Input", "input_conv")
    for i in range(BLOCKS):
        leaves += _block(name, f"Discriminator.Res{i + 1}", f"block_{i}")
    heads = [("Output", "head", 1)]
    if options["class_head"]:
        heads.append(("ACGANOutput", "class_head", options["num_classes"]))
    for theirs, ours, rows in heads:
        kernel = turn.then(_columns(rows, channels, side)).then(turn)
        leaves += _linear(name, f"Discriminator.{theirs}", ours, kernel)
    return leaves


def _recognise(name: Name, shapes: Shapes) -> Found | None:
    generators = [label for label in shapes if label.startswith("Generator.")]
    discriminators = [label for label in shapes if label.startswith("Discriminator.")]
    if generators and discriminators:
        return None
    return _generator(name, shapes) if generators else _discriminator(name, shapes)


def _generator(name: Name, shapes: Shapes) -> Found | None:
    first, last = shapes.get(name("Generator.Input", "W"), ()), shapes.get(name("Generator.Output", "Filters"), ())
    scale = shapes.get(name("Generator.OutputN", "scale"), ())
    if len(first) != 2 or len(last) != 4 or len(scale) not in (1, 2) or not last[2]:
        return None
    side = round((first[1] / (GENERATOR[0] * last[2])) ** 0.5)
    if side**2 * GENERATOR[0] * last[2] != first[1]:
        return None
    options = {
        "resolution": 16 * side,
        "channels": last[3],
        "width": last[2],
        "z_dim": first[0],
        "conditional": len(scale) == 2,
    }
    return Found("generator", options | ({"num_classes": scale[0]} if len(scale) == 2 else {}))


def _discriminator(name: Name, shapes: Shapes) -> Found | None:
    first = shapes.get(name("Discriminator.Input", "Filters"), ())
    head = shapes.get(name("Discriminator.Output", "W"), ())
    classes = shapes.get(name("Discriminator.ACGANOutput", "W"), ())
    if len(first) != 4 or len(head) != 2 or len(classes) not in (0, 2) or not first[3]:
        return None
    side = round((head[0] / (DISCRIMINATOR[-1] * first[3])) ** 0.5)
    if side**2 * DISCRIMINATOR[-1] * first[3] != head[0]:
        return None
    options = {"resolution": 16 * side, "channels": first[2], "width_d": first[3], "class_head": bool(classes)}
    return Found("discriminator", options | ({"num_classes": classes[1]} if classes else {}))


def _widths(options: Options) -> dict[str, int]:
    """Channels of each of the generator's norms."""
    widths = [m * options["width"] for m in GENERATOR]
    norms = {f"block_{i}/{norm}": widths[i + k] for i in range(BLOCKS) for k, norm in enumerate(NORMS)}
    return norms | {"out_bn": widths[-1]}


def _absent(role: Role, options: Options) -> State:
    """Running statistics at their start: the code keeps some, but neither moves nor reads them."""
    if role == "discriminator":
        return {}
    means = {f"batch_stats/{norm}/mean": np.zeros(width, np.float32) for norm, width in _widths(options).items()}
    return means | {f"batch_stats/{norm}/var": np.ones(width, np.float32) for norm, width in _widths(options).items()}


def _made(role: Role, options: Options) -> State:
    if role == "discriminator" or options["conditional"]:
        return {}
    arrays: dict[str, np.ndarray] = {}
    for norm, width in _widths(options).items():
        block, _, number = norm.removeprefix("block_").rpartition("/bn")
        theirs = "Generator.OutputN" if norm == "out_bn" else f"Generator.Res{int(block) + 1}.BN{number}"
        arrays |= {f"{theirs}.moving_mean": np.zeros(width, np.float32)}
        arrays |= {f"{theirs}.moving_variance": np.ones(width, np.float32)}
    return arrays


def _layout(label: str, about: str, name: Name) -> Layout:
    return Layout(
        name=label,
        family="wgangp_resnet",
        about=about,
        recognise=lambda shapes: _recognise(name, shapes),
        leaves=lambda role, options: _leaves(name, role, options),
        assumed={
            "statistics_g": "batch",
            "norm_eps": 1e-5,
            "conditional": False,
            "class_head": False,
            "num_classes": 1,
        },
        dropped=(("*.moving_*", "running statistics that the code neither moves nor reads"),),
        made=_made,
        absent=_absent,
        notice="this code normalises by the batch in evaluation too: an image depends on those beside it",
    )


PLAIN = _layout("wgangp-resnet", "WGAN-GP's ResNet and Transferring GANs, by the names of their parameters", _alone)
TENSORFLOW = _layout("wgangp-resnet-tf", "the same in the names of TensorFlow checkpoints, with scopes", _scoped)
