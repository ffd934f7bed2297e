"""Three small releases of DCGANs in forms of their own: faces in PyTorch, anime faces in Keras, digits by class."""

import re

from gantransfer.models.family import Role
from gantransfer.pretrained.layouts.dcgan import (
    COUNTER,
    KERAS_UP_KERNEL,
    TURNED,
    UP_KERNEL,
    count_batches,
    flat_head,
    from_1x1,
    joined,
    norm_leaves,
    widths_of,
)
from gantransfer.pretrained.layouts.layout import KERNEL, Found, Layout, Leaf, Options, Shapes, reshaped, transposed

# Faces (fletchersarip93/face-generator): `generator_deconv.N.0` is a convolution, `.1` its batch norm.


def _indexed(shapes: Shapes, pattern: str) -> list[tuple[int, ...]]:
    """Shapes of the kernels whose names match, by the number in the name; empty where numbers are missing."""
    found = {int(m[1]): shape for name, shape in shapes.items() if (m := re.fullmatch(pattern, name))}
    whole = sorted(found) == list(range(len(found))) and all(len(shape) == 4 for shape in found.values())
    return [found[i] for i in range(len(found))] if whole else []


def _recognise_faces(shapes: Shapes) -> Found | None:
    kernels = _indexed(shapes, r"generator_deconv\.(\d+)\.0\.weight")
    if len(kernels) > 2:
        # Kernels of 3 keep the size and are (out, in, 3, 3); the others are transposed, (in, out, 4, 4).
        steps = ["keep3" if kernel[2] == 3 else "up4" for kernel in kernels[1:]]
        outputs = [kernel[0] if kernel[2] == 3 else kernel[1] for kernel in kernels]
        options = {
            "z_dim": kernels[0][0],
            "widths_g": joined(outputs[:-1]),
            "steps_g": joined(steps),
            "channels": outputs[-1],
            "resolution": 4 << steps.count("up4"),
        }
        return Found("generator", options)
    kernels = _indexed(shapes, r"discriminator\.(\d+)\.0\.weight")
    head = shapes.get(f"discriminator.{len(kernels) + 1}.weight", ())
    if not kernels or len(head) != 2:
        return None
    side = round((head[1] / kernels[-1][0]) ** 0.5)
    options = {
        "widths_d": joined(kernel[0] for kernel in kernels),
        "channels": kernels[0][1],
        "resolution": side << len(kernels),
    }
    return Found("discriminator", options)


def _face_leaves(role: Role, options: Options) -> tuple[Leaf, ...]:
    leaves: tuple[Leaf, ...] = ()
    if role == "generator":
        widths, steps = widths_of(options, "widths_g"), options["steps_g"].split("_")
        leaves += (
            Leaf(
                "generator_deconv.0.0.weight",
                "params/linear/kernel",
                from_1x1(options["z_dim"], widths[0], options["base"]),
            ),
            *norm_leaves("generator_deconv.0.1", "first_bn"),
        )
        for i, step in enumerate(steps):
            last = i == len(steps) - 1
            name, change = "out_conv" if last else f"block_{i}/conv", KERNEL if step == "keep3" else UP_KERNEL
            leaves += (Leaf(f"generator_deconv.{i + 1}.0.weight", f"params/{name}/kernel", change),)
            if not last:
                leaves += norm_leaves(f"generator_deconv.{i + 1}.1", f"block_{i}/bn")
        return (*leaves, Leaf(f"generator_deconv.{len(steps)}.0.bias", "params/out_conv/bias"))
    widths = widths_of(options, "widths_d")
    for i in range(len(widths)):
        leaves += (Leaf(f"discriminator.{i}.0.weight", f"params/block_{i}/conv/kernel", KERNEL),)
        if i:
            leaves += norm_leaves(f"discriminator.{i}.1", f"block_{i}/bn")
    head = f"discriminator.{len(widths) + 1}"
    return (
        *leaves,
        Leaf("discriminator.0.0.bias", "params/block_0/conv/bias"),
        Leaf(f"{head}.weight", "params/head/kernel", flat_head(widths[-1], options["resolution"] >> len(widths))),
        Leaf(f"{head}.bias", "params/head/bias"),
    )


FACES = Layout(
    name="dcgan-face-generator",
    family="dcgan",
    about="fletchersarip93/face-generator: a linear first layer, leaky rectifiers, uniform latents",
    recognise=_recognise_faces,
    leaves=_face_leaves,
    assumed={
        "first_activation": False,
        "activation": "leaky_relu",
        "bias_g": "output",
        "bias_d": True,
        "latent": "uniform",
    },
    dropped=COUNTER,
    made=lambda role, options: count_batches(_face_leaves(role, options)),
    notice="trained on CelebA, which is for non-commercial research",
)


# Anime faces (darthdaenerys/Anime-Face-Generation): Keras numbers its layers through a whole session, so the numbers
# are those of the one file that was published.

_DENSE, _FIRST_UP, _FIRST_NORM = 43, 55, 44


def _recognise_anime(shapes: Shapes) -> Found | None:
    dense = shapes.get(f"dense_{_DENSE}/kernel", ())
    numbers = range(_FIRST_UP, _FIRST_UP + len(shapes))
    kernels = [shapes[name] for n in numbers if (name := f"conv2d_transpose_{n}/kernel") in shapes]
    if len(dense) != 2 or len(kernels) < 2 or any(kernel[:2] != (4, 4) for kernel in kernels):
        return None
    base = round((dense[1] / kernels[0][3]) ** 0.5)
    options = {
        "z_dim": dense[0],
        "base": base,
        "widths_g": joined(kernel[3] for kernel in kernels),
        "steps_g": joined(["up4"] * (len(kernels) - 1) + ["keep4"]),
        "channels": kernels[-1][2],
        "resolution": base << (len(kernels) - 1),
    }
    return Found("generator", options)


def _anime_leaves(role: Role, options: Options) -> tuple[Leaf, ...]:
    if role == "discriminator":
        return ()
    last = len(widths_of(options, "widths_g")) - 1
    leaves = (
        Leaf(f"dense_{_DENSE}/kernel", "params/linear/kernel"),
        Leaf(f"dense_{_DENSE}/bias", "params/linear/bias"),
    )
    for i in range(last + 1):
        name, theirs = "out_conv" if i == last else f"block_{i}/conv", f"conv2d_transpose_{_FIRST_UP + i}"
        change = KERAS_UP_KERNEL.then(TURNED) if i == last else KERAS_UP_KERNEL
        leaves += (
            Leaf(f"{theirs}/kernel", f"params/{name}/kernel", change),
            Leaf(f"{theirs}/bias", f"params/{name}/bias"),
        )
        if i < last:
            norm = f"batch_normalization_{_FIRST_NORM + i}"
            leaves += (
                Leaf(f"{norm}/gamma", f"params/block_{i}/bn/gain"),
                Leaf(f"{norm}/beta", f"params/block_{i}/bn/bias"),
                Leaf(f"{norm}/moving_mean", f"batch_stats/block_{i}/bn/mean"),
                Leaf(f"{norm}/moving_variance", f"batch_stats/block_{i}/bn/var"),
            )
    return leaves


ANIME = Layout(
    name="dcgan-keras-anime",
    family="dcgan",
    about="darthdaenerys/Anime-Face-Generation, a generator alone: rectified before it is normalised, images in [0, 1]",
    recognise=_recognise_anime,
    leaves=_anime_leaves,
    assumed={
        "first_norm": "none",
        "first_activation": False,
        "norm_last": True,
        "norm_eps": 1e-3,
        "bias_g": "all",
        "output": "sigmoid",
    },
    notice="the licence of the pictures that these weights were trained on is unclear",
)


# Digits by class (HayatoHongo/MNIST-Conditional-WGAN-gp): upsampling and 3x3 convolutions.

# Places of the convolutions in `conv_blocks`; each but the last is followed by its norm.
_DIGIT_CONVOLUTIONS = (2, 6, 9)


def _recognise_digits(shapes: Shapes) -> Found | None:
    kernels = [shapes.get(f"conv_blocks.{n}.weight", ()) for n in _DIGIT_CONVOLUTIONS]
    table, first = shapes.get("label_emb.weight", ()), shapes.get("l1.0.weight", ())
    if any(kernel[2:] != (3, 3) for kernel in kernels) or len(table) != 2 or len(first) != 2:
        return None
    base = round((first[0] / kernels[0][1]) ** 0.5)
    options = {
        "num_classes": table[0],
        "class_dim": table[1],
        "z_dim": first[1] - table[1],
        "base": base,
        "widths_g": joined(kernel[1] for kernel in kernels),
        "steps_g": "nearest3_nearest3_keep3",
        "channels": kernels[-1][0],
        "resolution": 4 * base,
    }
    return Found("generator", options)


def _digit_leaves(role: Role, options: Options) -> tuple[Leaf, ...]:
    if role == "discriminator":
        return ()
    width, base = widths_of(options, "widths_g")[0], options["base"]
    inputs, outputs = options["z_dim"] + options["class_dim"], width * base**2
    split = reshaped((outputs, inputs), (width, base, base, inputs))
    kernel = split.then(transposed(3, 1, 2, 0)).then(reshaped((inputs, base, base, width), (inputs, outputs)))
    bias = reshaped((outputs,), (width, base, base)).then(transposed(1, 2, 0))
    leaves = (
        Leaf("label_emb.weight", "params/classes/embedding"),
        Leaf("l1.0.weight", "params/linear/kernel", kernel),
        Leaf("l1.0.bias", "params/linear/bias", bias.then(reshaped((base, base, width), (outputs,)))),
        *norm_leaves("conv_blocks.0", "first_bn"),
    )
    for i, number in enumerate(_DIGIT_CONVOLUTIONS):
        last = number == _DIGIT_CONVOLUTIONS[-1]
        name = "out_conv" if last else f"block_{i}/conv"
        leaves += (
            Leaf(f"conv_blocks.{number}.weight", f"params/{name}/kernel", KERNEL),
            Leaf(f"conv_blocks.{number}.bias", f"params/{name}/bias"),
        )
        if not last:
            leaves += norm_leaves(f"conv_blocks.{number + 1}", f"block_{i}/bn")
    return leaves


DIGITS = Layout(
    name="dcgan-mnist-conditional",
    family="dcgan",
    about="HayatoHongo/MNIST-Conditional-WGAN-gp, a generator alone: 28 px, class embedding beside the latent",
    recognise=_recognise_digits,
    leaves=_digit_leaves,
    assumed={
        "first_activation": False,
        # Meant as the momentum, but it is the epsilon's place in the call, and the weights were trained with it.
        "norm_eps": 0.8,
        "bias_g": "all",
        # A critic under a gradient penalty has no batch norm, and without one N(0, 0.02) hardly lets an image through.
        "norm_d": "none",
        "bias_d": True,
        "init": "fan_in",
    },
    dropped=COUNTER,
    made=lambda role, options: count_batches(_digit_leaves(role, options)),
)
