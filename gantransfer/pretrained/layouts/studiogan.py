"""StudioGAN's big_resnet: BigGAN with other names, stored spectral vectors, and a shortcut that is rectified in place.

Files are `model=G-best-weights-step=N.pth` and the like; the reader of folders takes `best` before `current`. Read from
PyTorch-StudioGAN (Kang, Shim, Park 2021, arXiv:2111.01118). Only networks with class-conditional batch norm and a
projection discriminator are of this layout. Attention is an entry of its own among the blocks.
"""

from gantransfer.models.biggan import STUDIOGAN_LAYOUTS, Discriminator, Generator, build
from gantransfer.models.family import Role
from gantransfer.pretrained.layouts.biggan import SPATIAL_FIRST, have, joined, scale
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
    input_vector,
)

_NUMBER = Change("reshaped", lambda a: a.reshape(()), lambda a: a.reshape(1))
_ATTENTION = {"theta": "theta", "phi": "phi", "g": "g", "o": "attn"}


def _module(
    theirs: str, ours: str, leaf: str, change: Change, spectral: tuple[int, int] | None, place: Change = SAME
) -> tuple[Leaf, ...]:
    """A weight; with `spectral`, channels and side of what it reads, also both vectors of its singular value."""
    if spectral is None:
        return (Leaf(f"{theirs}.weight", f"params/{ours}/{leaf}", change),)
    return (
        Leaf(f"{theirs}.weight_orig", f"params/{ours}/{leaf}", change),
        Leaf(f"{theirs}.weight_u", f"spectral/{ours}/u", place),
        Leaf(f"{theirs}.weight_v", f"spectral/{ours}/v", input_vector(*spectral)),
    )


class _Names:
    """Makes the leaves of one network, spectrally normalised or not."""

    def __init__(self, spectral: bool):
        self.spectral = spectral

    def conv(self, theirs: str, ours: str, channels: int, side: int, bias: bool = True) -> tuple[Leaf, ...]:
        leaves = _module(theirs, ours, "kernel", KERNEL, (channels, side) if self.spectral else None)
        return leaves + ((Leaf(f"{theirs}.bias", f"params/{ours}/bias"),) if bias else ())

    def linear(self, theirs: str, ours: str, inputs: int, bias: bool, place: Change = SAME) -> tuple[Leaf, ...]:
        spectral = (inputs, 1) if self.spectral else None
        leaves = _module(theirs, ours, "kernel", place.then(MATRIX), spectral, place)
        return leaves + ((Leaf(f"{theirs}.bias", f"params/{ours}/bias", place),) if bias else ())

    def attention(self, theirs: str, ours: str, channels: int) -> tuple[Leaf, ...]:
        leaves: tuple[Leaf, ...] = (Leaf(f"{theirs}.sigma", f"params/{ours}/gamma", _NUMBER),)
        for part, name in _ATTENTION.items():
            read = channels // 2 if part == "o" else channels
            leaves += self.conv(f"{theirs}.conv1x1_{name}", f"{ours}/{part}", read, 1, bias=False)
        return leaves


def _running(theirs: str, ours: str) -> tuple[Leaf, ...]:
    return tuple(Leaf(f"{theirs}.running_{part}", f"batch_stats/{ours}/{part}") for part in ("mean", "var"))


def _entries(number: int, attention: tuple[int, ...]) -> tuple[list[int], dict[int, int]]:
    """Indices in their list of blocks: of each block, and of the attention that follows a block."""
    blocks, after, place = [], {}, 0
    for i in range(number):
        blocks.append(place)
        place += 1
        if i in attention:
            after[i] = place
            place += 1
    return blocks, after


def _generator_leaves(generator: Generator) -> tuple[Leaf, ...]:
    make, widths = _Names(generator.recipe.spectral is not None), generator.widths
    blocks, attention = _entries(len(widths) - 1, generator.attention)
    condition = generator.shared_dim + generator.chunks
    leaves = make.linear("linear0", "linear", generator.chunks, bias=True, place=SPATIAL_FIRST)
    leaves += (Leaf("shared.weight", "params/shared/embedding"),)
    for i, (given, made) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
        theirs, ours = f"blocks.{blocks[i]}.0", f"block_{i}"
        for norm in ("bn1", "bn2"):
            leaves += _running(f"{theirs}.{norm}.bn", f"{ours}/{norm}")
            for part in ("gain", "bias"):
                leaves += make.linear(f"{theirs}.{norm}.{part}", f"{ours}/{norm}/{part}", condition, bias=False)
        for number, name, read, side in ((0, "conv_sc", given, 1), (1, "conv1", given, 3), (2, "conv2", made, 3)):
            leaves += make.conv(f"{theirs}.conv2d{number}", f"{ours}/{name}", read, side)
        if i in attention:
            leaves += make.attention(f"blocks.{attention[i]}.0", f"attn_{i}", made)
    leaves += (Leaf("bn4.weight", "params/out_bn/gain"), Leaf("bn4.bias", "params/out_bn/bias"))
    return leaves + _running("bn4", "out_bn") + make.conv("conv2d5", "out_conv", widths[-1], 3)


def _discriminator_leaves(discriminator: Discriminator, channels: int) -> tuple[Leaf, ...]:
    make, given, leaves = _Names(True), channels, ()
    blocks, attention = _entries(len(discriminator.widths), discriminator.attention)
    for i, made in enumerate(discriminator.widths):
        theirs, ours = f"blocks.{blocks[i]}.0", f"block_{i}"
        if i < discriminator.pooled or made != given:
            leaves += make.conv(f"{theirs}.conv2d0", f"{ours}/conv_sc", given, 1)
        leaves += make.conv(f"{theirs}.conv2d1", f"{ours}/conv1", given, 3)
        leaves += make.conv(f"{theirs}.conv2d2", f"{ours}/conv2", made, 3)
        if i in attention:
            leaves += make.attention(f"blocks.{attention[i]}.0", f"attn_{i}", made)
        given = made
    leaves += make.linear("linear1", "head", given, bias=True)
    return leaves + _module("embedding", "embed", "embedding", SAME, (given, 1))


def _leaves(role: Role, options: Options) -> tuple[Leaf, ...]:
    networks = build(**options)
    if role == "generator":
        return _generator_leaves(networks.generator)
    return _discriminator_leaves(networks.discriminator, networks.channels)


# What the weights say.


def _blocks(shapes: Shapes) -> tuple[list[int], set[int]] | None:
    """Indices of the blocks in their list, and which blocks attention follows."""
    blocks: list[int] = []
    followed = set()
    number = 0
    while True:
        if f"blocks.{number}.0.sigma" in shapes:
            if not blocks:
                return None
            followed.add(len(blocks) - 1)
        elif {f"blocks.{number}.0.conv2d1.{weight}" for weight in ("weight", "weight_orig")} & set(shapes):
            blocks.append(number)
        else:
            return (blocks, followed) if blocks else None
        number += 1


def _recognise_generator(shapes: Shapes) -> Found | None:
    weight = "weight_orig" if "linear0.weight_orig" in shapes else "weight"
    found = _blocks(shapes)
    gain = f"blocks.0.0.bn1.gain.{weight}"
    if found is None or not have(shapes, d2=(f"linear0.{weight}", "shared.weight", gain), d4=(f"conv2d5.{weight}",)):
        return None
    blocks, followed = found
    convs = [f"blocks.{i}.0.conv2d1.{weight}" for i in blocks]
    resolution = 4 << len(blocks)
    if resolution not in STUDIOGAN_LAYOUTS or not have(shapes, d4=convs):
        return None
    widths = [shapes[convs[0]][1], *(shapes[conv][0] for conv in convs)]
    unit = widths[-1] // STUDIOGAN_LAYOUTS[resolution].generator[-1]
    rows, chunk = shapes[f"linear0.{weight}"]
    classes, shared_dim = shapes["shared.weight"]
    if widths != [unit * m for m in STUDIOGAN_LAYOUTS[resolution].generator] or rows != 16 * widths[0]:
        return None
    if shapes[gain][1] != shared_dim + chunk:
        return None
    options = {
        "resolution": resolution,
        "channels": shapes[f"conv2d5.{weight}"][0],
        "num_classes": classes,
        "width": unit,
        "z_dim": chunk * (len(blocks) + 1),
        "shared_dim": shared_dim,
        "attention_g": joined(8 << i for i in followed),
        "spectral_g": weight == "weight_orig",
    }
    return Found("generator", options)


def _recognise_discriminator(shapes: Shapes) -> Found | None:
    names = ("linear1.weight_orig", "embedding.weight_orig")
    found = _blocks(shapes)
    if found is None or not have(shapes, d2=names):
        return None
    blocks, followed = found
    convs = [f"blocks.{i}.0.conv2d1.weight_orig" for i in blocks]
    # With batch norm in the discriminator there is another shortcut, and another network.
    if not have(shapes, d4=convs) or "blocks.0.0.bn1.weight" in shapes:
        return None
    widths = [shapes[conv][0] for conv in convs]
    for resolution, layout in STUDIOGAN_LAYOUTS.items():
        unit = widths[0] // layout.discriminator[0]
        if resolution == 16 or widths != [unit * m for m in layout.discriminator]:
            continue
        sizes = {layout.labels[i] for i in followed}
        # Attention is named by size with us, so after blocks of one size it is after all of them or none.
        if {i for i, size in enumerate(layout.labels) if size in sizes} != followed:
            return None
        options = {
            "resolution": resolution,
            "channels": shapes[convs[0]][1],
            "num_classes": shapes["embedding.weight_orig"][0],
            "width_d": unit,
            "attention_d": joined(sizes),
            "spectral_d": True,
        }
        return Found("discriminator", options)
    return None


LAYOUT = Layout(
    name="studiogan-big-resnet",
    family="biggan",
    about="model=G-*.pth, model=G_ema-*.pth and model=D-*.pth of PyTorch-StudioGAN's big_resnet (BigGAN)",
    recognise=lambda shapes: _recognise_generator(shapes) or _recognise_discriminator(shapes),
    leaves=_leaves,
    assumed={
        "plan": "studiogan",
        "stored_vectors": True,
        "rectified_shortcut": True,
        "spectral_eps": 1e-6,
        "norm_eps": 1e-4,
        "out_norm_eps": 1e-4,
        "init": "orthogonal",
    },
    dropped=(("*num_batches_tracked", "a count of batches that nothing reads"),),
    absent=scale,
)
