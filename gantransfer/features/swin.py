"""Swin-T: a transformer that attends within windows, moved by half a window in every second block (Liu et al. 2021)."""

import re
from dataclasses import replace
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from gantransfer.errors import UserError
from gantransfer.features.layers import Taps, spatial_mean
from gantransfer.features.network import IMAGENET, Architecture, Input
from gantransfer.features.published import BSD3, MIT, Weights
from gantransfer.features.state_dicts import Shapes, State
from gantransfer.features.transformer import Transformer
from gantransfer.pretrained.download import PublishedFile

EPS = 1e-5
PATCH, WINDOW, WIDTH, DEPTHS, HEADS = 4, 7, 96, (2, 2, 6, 2), (3, 6, 12, 24)
# Added to scores between tokens that only the cyclic shift brought into one window.
APART = -100.0


class SwinTransformer(Transformer):
    """Swin-T. Stages hold tokens in rows; `map` is the last stage after its norm as `(n, h, w, 768)`.

    Maps that windows do not divide are filled up with zeros below and to the right, as torchvision and the published
    detectors do it; at the usual 224 pixels there are none.

    Args:
      classes: outputs of the linear layer; 0 for a network without one.
      final_norm: name of the last norm; the backbones of detectors have one for each stage and use `norm3`.
    """

    classes: int = 1000
    final_norm: str = "norm"

    @nn.compact
    def __call__(self, x: Float[Array, "n h w 3"], want: tuple[str, ...] | None) -> dict[str, Array]:
        """Returns the wanted stages and outputs of normalised images, whose sizes are multiples of 32."""
        least = PATCH * 2 ** (len(DEPTHS) - 1)
        if x.shape[1] % least or x.shape[2] % least or not min(x.shape[1:3]):
            found = f"{x.shape[1]}x{x.shape[2]}"
            raise UserError("image size for Swin", found, f"height and width that are multiples of {least}")
        taps = Taps(want)
        x = self.patches(x, "patch_embed.proj", WIDTH, PATCH)
        x = self.layer_norm(x, "patch_embed.norm", EPS)
        taps("patch_embed", _tokens(x))
        for stage, (depth, heads) in enumerate(zip(DEPTHS, HEADS, strict=True)):
            for i in range(depth):
                x = self._block(x, f"layers.{stage}.blocks.{i}", heads, shift=i % 2 * (WINDOW // 2))
            if stage < len(DEPTHS) - 1:
                x = self._merged(x, f"layers.{stage}.downsample")
            taps(f"layers.{stage}", _tokens(x))
        x = taps("map", self.layer_norm(x, self.final_norm, EPS))
        taps(self.final_norm, _tokens(x))
        x = taps("pool", spatial_mean(x))
        if self.classes:
            taps("logits", self.linear(x, "head", self.classes))
        return taps.found

    def _merged(self, x: Float[Array, "n h w c"], name: str) -> Float[Array, "n _h _w _c"]:
        """Four neighbours become one token of twice the width; rows come first among the neighbours."""
        x = jnp.concatenate([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], axis=-1)
        x = self.layer_norm(x, f"{name}.norm", EPS)
        return self.linear(x, f"{name}.reduction", x.shape[-1] // 2, bias=False)

    def _block(self, x: Float[Array, "n h w c"], name: str, heads: int, shift: int) -> Float[Array, "n h w c"]:
        y = self._attended(self.layer_norm(x, f"{name}.norm1", EPS), f"{name}.attn", heads, shift)
        x = x + y
        y = self.layer_norm(x, f"{name}.norm2", EPS)
        return x + self.mlp(y, (f"{name}.mlp.fc1", f"{name}.mlp.fc2"))

    def _attended(self, x: Float[Array, "n h w c"], name: str, heads: int, shift: int) -> Float[Array, "n h w c"]:
        n, high, wide, width = x.shape
        below, right = -high % WINDOW, -wide % WINDOW
        x = jnp.pad(x, ((0, 0), (0, below), (0, right), (0, 0)))
        full = high + below, wide + right
        # An axis that one window covers is not shifted.
        shifts = tuple(shift if side > WINDOW else 0 for side in full)
        table = self.table(f"{name}.relative_position_bias_table", (2 * WINDOW - 1) ** 2, heads, dtype=x.dtype)
        bias = jnp.moveaxis(table[_relative_positions()], -1, 0)
        if any(shifts):
            x = jnp.roll(x, (-shifts[0], -shifts[1]), axis=(1, 2))
            bias = bias + jnp.asarray(_regions_apart(full, shifts), x.dtype)[:, None]
        packed = self.linear(_windows(x), f"{name}.qkv", 3 * width)
        x = self.linear(self.attention(packed, heads, bias), f"{name}.proj", width)
        x = x.reshape(n, full[0] // WINDOW, full[1] // WINDOW, WINDOW, WINDOW, width)
        x = jnp.moveaxis(x, 3, 2).reshape(n, *full, width)
        return jnp.roll(x, shifts, axis=(1, 2))[:, :high, :wide]


def _tokens(x: Float[Array, "n h w c"]) -> Float[Array, "n _t c"]:
    return x.reshape(x.shape[0], -1, x.shape[-1])


def _windows(x: Shaped[Array | np.ndarray, "n h w c"]) -> Shaped[Array | np.ndarray, "n _windows _tokens c"]:
    n, high, wide, width = x.shape
    x = x.reshape(n, high // WINDOW, WINDOW, wide // WINDOW, WINDOW, width)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(n, -1, WINDOW * WINDOW, width)


def _relative_positions() -> Int[np.ndarray, "_t _t"]:
    """For each pair of tokens of a window, the row of the bias table for how they lie to each other."""
    row, column = np.divmod(np.arange(WINDOW * WINDOW), WINDOW)
    down, across = row[:, None] - row, column[:, None] - column
    return (down + WINDOW - 1) * (2 * WINDOW - 1) + across + WINDOW - 1


def _regions_apart(full: tuple[int, int], shifts: tuple[int, ...]) -> Float[np.ndarray, "_windows _t _t"]:
    """What is added to scores within each window of a shifted map: nothing among true neighbours, -100 else."""
    regions = []
    for side, shift in zip(full, shifts, strict=True):
        place = np.arange(side)
        regions.append((place >= side - WINDOW).astype(int) + (place >= side - shift))
    names = _windows((3 * regions[0][:, None] + regions[1])[None, :, :, None])[0, :, :, 0]
    return np.where(names[:, :, None] == names[:, None], 0.0, APART)


# ------------------------------------------------------------------------------------------------- published spellings

_TORCHVISION = (
    (r"^features\.0\.0\.", "patch_embed.proj."),
    (r"^features\.0\.2\.", "patch_embed.norm."),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.3\.", ".mlp.fc2."),
)


def original_keys(state: State) -> State:
    """The original repository's spelling, given that, torchvision's or that of today's timm.

    torchvision numbers all parts of the network in one sequence. timm has the merging of patches at the start of a
    stage, where the original has it at the end of the one before.
    """
    if any(key.startswith("features.0.0.") for key in state):
        return {_from_torchvision(key): array for key, array in state.items()}
    last = len(DEPTHS) - 1
    if any(key.startswith(f"layers.{last}.downsample.") for key in state):
        return {_from_timm(key): array for key, array in state.items()}
    return state


def _from_torchvision(key: str) -> str:
    for pattern, replacement in _TORCHVISION:
        key = re.sub(pattern, replacement, key)
    found = re.match(r"features\.(\d+)\.", key)
    if not found:
        return key
    stage, merging = divmod(int(found[1]) - 1, 2)
    rest = key[found.end() :]
    return f"layers.{stage}.downsample.{rest}" if merging else f"layers.{stage}.blocks.{rest}"


def _from_timm(key: str) -> str:
    found = re.match(r"layers\.(\d+)\.downsample\.", key)
    if found:
        return f"layers.{int(found[1]) - 1}.downsample.{key[found.end() :]}"
    return re.sub(r"^head\.fc\.", "head.", key)


# ------------------------------------------------------------------------------------------------------- architectures

_STORAGE = "https://github.com/SwinTransformer/storage/releases/download"
_BUFFERS = ("*.relative_position_index", "*.attn_mask")


def _without_classes(shapes: Shapes) -> tuple[Architecture, str] | None:
    if "norm3.weight" in shapes and "norm.weight" not in shapes:
        return _COCO, "the weights are the backbone of a detector: no linear layer, and the norm is norm3"
    classes = shapes.get("head.weight", (0,))[0]
    if classes == 1000:
        return None
    outputs = {"pool": 768} | ({"logits": classes} if classes else {})
    changed = replace(_SWIN, module=partial(SwinTransformer, classes=classes), outputs=outputs)
    return changed, f"the weights have {classes} classes" if classes else "the weights have no linear layer"


_SWIN = Architecture(
    name="swin_t",
    about="Swin-T, trained on ImageNet",
    module=SwinTransformer,
    input=Input(224, "pillow_bicubic", *IMAGENET, clip=True, backbone="swin"),
    outputs={"pool": 768, "logits": 1000},
    feature="pool",
    weights=(
        Weights(
            PublishedFile(
                "swin_tiny_patch4_window7_224.pth",
                f"{_STORAGE}/v1.0.0/swin_tiny_patch4_window7_224.pth",
                megabytes=114,
            ),
            MIT,
            "https://github.com/microsoft/Swin-Transformer",
        ),
        Weights(
            PublishedFile(
                "swin_t-704ceda3.pth", "https://download.pytorch.org/models/swin_t-704ceda3.pth", megabytes=113
            ),
            BSD3,
            "https://pytorch.org/vision/stable/models.html (Swin_T_Weights.IMAGENET1K_V1)",
        ),
    ),
    prefixes=("encoder.", "backbone."),
    harmless=_BUFFERS,
    rename=original_keys,
    choose=_without_classes,
)

_MOBY = replace(
    _SWIN,
    name="swin_t_moby",
    about="Swin-T, trained on ImageNet without labels (MoBY)",
    module=partial(SwinTransformer, classes=0),
    outputs={"pool": 768},
    weights=(),
    harmless=(*_BUFFERS, "head.*"),
    choose=None,
)

_COCO = replace(
    _MOBY,
    name="swin_t_coco",
    about="Swin-T, the backbone of a detector trained on COCO",
    module=partial(SwinTransformer, classes=0, final_norm="norm3"),
    input=replace(_SWIN.input, size=256),
    weights=(
        Weights(
            PublishedFile(
                "cascade_mask_rcnn_swin_tiny_patch4_window7.pth",
                f"{_STORAGE}/v1.0.2/cascade_mask_rcnn_swin_tiny_patch4_window7.pth",
            ),
            MIT,
            "https://github.com/SwinTransformer/Swin-Transformer-Object-Detection",
        ),
    ),
    harmless=(*_BUFFERS, "norm0.*", "norm1.*", "norm2.*"),
)

_ADE = replace(
    _COCO,
    name="swin_t_ade20k",
    about="Swin-T, the backbone of a segmentation network trained on ADE20K",
    weights=(
        Weights(
            PublishedFile(
                "upernet_swin_tiny_patch4_window7_512x512.pth",
                f"{_STORAGE}/v1.0.1/upernet_swin_tiny_patch4_window7_512x512.pth",
            ),
            MIT,
            "https://github.com/SwinTransformer/Swin-Transformer-Semantic-Segmentation",
        ),
    ),
)

ARCHITECTURES = (_SWIN, _MOBY, _COCO, _ADE)
