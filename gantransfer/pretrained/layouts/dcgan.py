"""Published DCGANs: the PyTorch examples, the authors' Theano code, and three small releases in forms of their own."""

import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from gantransfer.models.dcgan import spelled_out
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
    reshaped,
    transposed,
)

# Kernels of transposed convolutions: (in, out, height, width) of PyTorch to (height, width, in, out).
UP_KERNEL = transposed(2, 3, 0, 1)
# The same of Keras, (height, width, out, in).
KERAS_UP_KERNEL = transposed(0, 1, 3, 2)
# Theano convolves where others correlate, and a transposed convolution with stride 1 is a convolution.
TURNED = Change("turned by 180 degrees", lambda a: a[::-1, ::-1], lambda a: a[::-1, ::-1])
COUNTER = (("*.num_batches_tracked", "a count of batches that nothing reads"),)


def norm_leaves(theirs: str, ours: str) -> tuple[Leaf, ...]:
    """The four arrays of a batch norm of PyTorch."""
    return (
        Leaf(f"{theirs}.weight", f"params/{ours}/gain"),
        Leaf(f"{theirs}.bias", f"params/{ours}/bias"),
        Leaf(f"{theirs}.running_mean", f"batch_stats/{ours}/mean"),
        Leaf(f"{theirs}.running_var", f"batch_stats/{ours}/var"),
    )


def widths_of(options: Options, name: str) -> list[int]:
    """The numbers of an option that joins them with "_"; where it is empty, those that it stands for."""
    return [int(width) for width in spelled_out(options)[name].split("_")]


def joined(values: Iterable[Any]) -> str:
    """The same in the other direction."""
    return "_".join(map(str, values))


def from_1x1(z_dim: int, width: int, base: int) -> Change:
    """A transposed convolution of a 1x1 map to our linear layer, whose outputs run over rows, columns, channels."""
    return transposed(0, 2, 3, 1).then(reshaped((z_dim, base, base, width), (z_dim, base**2 * width)))


def _to_1x1(height: int, width: int, channels: int) -> Change:
    """A convolution that leaves one position, `(1, channels, height, width)`, to our linear layer."""
    flat = (height * width * channels, 1)
    return transposed(2, 3, 1, 0).then(reshaped((height, width, channels, 1), flat))


def flat_head(channels: int, side: int) -> Change:
    """A linear layer `(1, channels * side * side)` after a channels-first flattening to ours."""
    return reshaped((1, channels * side**2), (1, channels, side, side)).then(_to_1x1(side, side, channels))


def count_batches(leaves: tuple[Leaf, ...]) -> State:
    """PyTorch's count of batches for every norm of a table."""
    means = [leaf.theirs for leaf in leaves if str(leaf.theirs).endswith(".running_mean")]
    return {str(name).replace("running_mean", "num_batches_tracked"): np.zeros((), np.int64) for name in means}


# The PyTorch examples: one `nn.Sequential` called main, and no biases.


def _recognise_torch(shapes: Shapes) -> Found | None:
    kernels = {int(m[1]): shape for name, shape in shapes.items() if (m := re.fullmatch(r"main\.(\d+)\.weight", name))}
    kernels = {number: shape for number, shape in kernels.items() if len(shape) == 4}
    numbers = sorted(kernels)
    if "main.1.weight" in shapes and numbers == list(range(0, 3 * len(numbers), 3)) and len(numbers) > 2:
        return _torch_generator([kernels[n] for n in numbers])
    if numbers == [0, *range(2, 3 * len(numbers) - 3, 3)] and len(numbers) > 2:
        return _torch_discriminator([kernels[n] for n in numbers])
    return None


def _torch_generator(kernels: list[tuple[int, ...]]) -> Found | None:
    last = kernels[-1][2]
    if any(kernel[2:] != (4, 4) for kernel in kernels[:-1]) or last not in (1, 4):
        return None
    channels, doublings = kernels[-1][1], len(kernels) - 1 - (last == 1)
    # The example for MNIST crops what its last layer makes, 32 px, to 28, which nothing shows but its discriminator.
    cropped = (last, channels, doublings) == (1, 1, 3)
    options = {
        "z_dim": kernels[0][0],
        "widths_g": joined(kernel[1] for kernel in kernels[:-1]),
        "steps_g": joined(["up4"] * (len(kernels) - 2) + ["keep1" if last == 1 else "up4"]),
        "channels": channels,
    }
    return Found("generator", options if cropped else options | {"resolution": 4 << doublings})


def _torch_discriminator(kernels: list[tuple[int, ...]]) -> Found | None:
    last, count, channels = kernels[-1], len(kernels) - 1, kernels[0][1]
    if any(kernel[2:] != (4, 4) for kernel in kernels[:-1]) or last[0] != 1 or last[2] not in (2, 4):
        return None
    mnist = (last[2], channels, count) == (4, 1, 3)
    options = {
        "widths_d": joined(kernel[0] for kernel in kernels[:-1]),
        "channels": channels,
        "resolution": 28 if mnist else last[2] << count,
        "head_padding": int(mnist),
    }
    return Found("discriminator", options)


def _torch_leaves(role: Role, options: Options) -> tuple[Leaf, ...]:
    leaves, options = (), spelled_out(options)
    if role == "generator":
        widths, steps = widths_of(options, "widths_g"), options["steps_g"].split("_")
        for i, name in enumerate(["linear", *(f"block_{i}/conv" for i in range(len(steps) - 1)), "out_conv"]):
            change = UP_KERNEL if i else from_1x1(options["z_dim"], widths[0], 4)
            leaves += (Leaf(f"main.{3 * i}.weight", f"params/{name}/kernel", change),)
            if i < len(steps):
                leaves += norm_leaves(f"main.{3 * i + 1}", f"block_{i - 1}/bn" if i else "first_bn")
        return leaves
    widths = widths_of(options, "widths_d")
    for i in range(len(widths)):
        leaves += (Leaf(f"main.{3 * i - 1 if i else 0}.weight", f"params/block_{i}/conv/kernel", KERNEL),)
        if i:
            leaves += norm_leaves(f"main.{3 * i}", f"block_{i}/bn")
    side = (options["resolution"] >> len(widths)) + options["head_padding"]
    return (
        *leaves,
        Leaf(f"main.{3 * len(widths) - 1}.weight", "params/head/kernel", _to_1x1(side, side, widths[-1])),
    )


PYTORCH = Layout(
    name="dcgan-pytorch",
    family="dcgan",
    about="netG.pth and netD.pth of the PyTorch example and its descendants (CIFAR10, MNIST at 28 px)",
    recognise=_recognise_torch,
    leaves=_torch_leaves,
    assumed={"resolution": 28},
    dropped=COUNTER,
    made=lambda role, options: count_batches(_torch_leaves(role, options)),
)


# The authors' own code, in Theano: arrays numbered in the order of the pickle.


def _recognise_theano(shapes: Shapes) -> Found | None:
    if "00_fc_w" in shapes:
        return _theano_generator(shapes)
    widths = [shapes[f"{n:02}_conv{i}_w"] for i, n in _conv_numbers(shapes)]
    head = f"{3 * len(widths) - 2:02}_fc_w"
    if not widths or len(widths[0]) != 4 or len(shapes.get(head, ())) != 2:
        return None
    side = round((shapes[head][0] / widths[-1][0]) ** 0.5)
    options = {
        "widths_d": joined(shape[0] for shape in widths),
        "channels": widths[0][1],
        "resolution": side << len(widths),
    }
    return Found("discriminator", options)


def _conv_numbers(shapes: Shapes) -> list[tuple[int, int]]:
    """Numbers of the discriminator's convolutions, in turn and in the file."""
    places = ((i, max(0, 3 * i - 2)) for i in range(len(shapes)))
    return [(i, n) for i, n in places if f"{n:02}_conv{i}_w" in shapes]


def _theano_generator(shapes: Shapes) -> Found | None:
    kernels = [shapes[f"{3 * i:02}_deconv{i}_w"] for i in range(1, len(shapes)) if f"{3 * i:02}_deconv{i}_w" in shapes]
    first = shapes["00_fc_w"]
    if not kernels or any(len(kernel) != 4 for kernel in kernels) or len(first) != 2:
        return None
    base = round((first[1] / kernels[0][0]) ** 0.5)
    options = {
        "z_dim": first[0],
        "base": base,
        "widths_g": joined(kernel[0] for kernel in kernels),
        "steps_g": joined(["up5"] * len(kernels)),
        "channels": kernels[-1][1],
        "resolution": base << len(kernels),
        # The code normalises by the batch always; statistics are there only where somebody has added them.
        "statistics_g": "running" if "standing0_mean" in shapes else "batch",
    }
    return Found("generator", options)


def _channels_last(lead: int, channels: int, side: int) -> Change:
    """`(lead, channels * side * side)` with channels first, to channels last."""
    last = (lead, side, side, channels)
    return reshaped((lead, channels * side**2), (lead, channels, side, side)).then(
        transposed(0, 2, 3, 1).then(reshaped(last, (lead, channels * side**2)))
    )


def _channels_last_row(channels: int, side: int) -> Change:
    """The same of one row without its first axis."""
    count = channels * side**2
    wrapped = reshaped((count,), (1, count)).then(_channels_last(1, channels, side))
    return wrapped.then(reshaped((1, count), (count,)))


def _theano_leaves(role: Role, options: Options) -> tuple[Leaf, ...]:
    if role == "discriminator":
        return _theano_discriminator(options)
    widths, base = widths_of(options, "widths_g"), options["base"]
    leaves = (Leaf("00_fc_w", "params/linear/kernel", _channels_last(options["z_dim"], widths[0], base)),)
    for i in range(len(widths)):
        name = f"block_{i - 1}/bn" if i else "first_bn"
        change = SAME if i else _channels_last_row(widths[0], base)
        leaves += (
            Leaf(f"{3 * i + 1:02}_bn{i}_gamma", f"params/{name}/gain", change),
            Leaf(f"{3 * i + 2:02}_bn{i}_beta", f"params/{name}/bias", change),
        )
        if options["statistics_g"] == "running":
            leaves += (
                Leaf(f"standing{i}_mean", f"batch_stats/{name}/mean", change),
                Leaf(f"standing{i}_var", f"batch_stats/{name}/var", change),
            )
        kernel = f"block_{i}/conv" if i < len(widths) - 1 else "out_conv"
        theirs = f"{3 * i + 3:02}_deconv{i + 1}_w"
        leaves += (Leaf(theirs, f"params/{kernel}/kernel", UP_KERNEL.then(TURNED)),)
    return leaves


def _theano_discriminator(options: Options) -> tuple[Leaf, ...]:
    widths, leaves = widths_of(options, "widths_d"), ()
    for i in range(len(widths)):
        number = max(0, 3 * i - 2)
        leaves += (Leaf(f"{number:02}_conv{i}_w", f"params/block_{i}/conv/kernel", KERNEL.then(TURNED)),)
        if i:
            leaves += (
                Leaf(f"{number + 1:02}_bn{i}_gamma", f"params/block_{i}/bn/gain"),
                Leaf(f"{number + 2:02}_bn{i}_beta", f"params/block_{i}/bn/bias"),
            )
    change = MATRIX.then(flat_head(widths[-1], options["resolution"] >> len(widths)))
    return (*leaves, Leaf(f"{3 * len(widths) - 2:02}_fc_w", "params/head/kernel", change))


def _theano_absent(role: Role, options: Options) -> State:
    """Running statistics that the file does not have, at their start; nothing reads them."""
    if role == "generator":
        if options["statistics_g"] == "running":
            return {}
        widths = widths_of(options, "widths_g")
        counts = {"first_bn": widths[0] * options["base"] ** 2}
        counts |= {f"block_{i}/bn": width for i, width in enumerate(widths[1:])}
    else:
        counts = {f"block_{i}/bn": width for i, width in enumerate(widths_of(options, "widths_d")) if i}
    means = {f"batch_stats/{name}/mean": np.zeros(count, np.float32) for name, count in counts.items()}
    return means | {f"batch_stats/{name}/var": np.ones(count, np.float32) for name, count in counts.items()}


THEANO = Layout(
    name="dcgan-theano",
    family="dcgan",
    about="the authors' release (Newmu/dcgan_code), 5x5 kernels, batch statistics in evaluation too",
    recognise=_recognise_theano,
    leaves=_theano_leaves,
    assumed={
        "first_norm": "feature",
        "norm_eps": 1e-8,
        "first_norm_eps": 1e-8,
        "norm_eps_d": 1e-8,
        "kernel_d": 5,
        "statistics_d": "batch",
    },
    absent=_theano_absent,
)
