"""Vision transformers: the image tower of CLIP, DINO and DINOv2."""

import math
import re
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gantransfer.errors import UserError
from gantransfer.features.layers import HIGHEST, Stored, Taps
from gantransfer.features.network import IMAGENET, Architecture, Input
from gantransfer.features.published import APACHE, MIT, Weights
from gantransfer.features.state_dicts import State
from gantransfer.features.transformer import LayerNorm, Transformer
from gantransfer.pretrained.download import PublishedFile

CLIP_MEAN_STD = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
CLIP_EPS, DINO_EPS = 1e-5, 1e-6


def quick_gelu(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """x sigmoid(1.702 x): the activation of OpenAI's CLIP. LAION's weights of the same shapes want the exact GELU."""
    return x * jax.nn.sigmoid(1.702 * x)


class PackedProjection(Stored):
    """Queries, keys and values in one product, named as in `torch.nn.MultiheadAttention`."""

    precision: jax.lax.Precision

    @nn.compact
    def __call__(self, x: Float[Array, "*n c"]) -> Float[Array, "*n _"]:
        """Returns the three after each other."""
        weight = self.stored("in_proj_weight", x.shape[-1], 3 * x.shape[-1], dtype=x.dtype)
        bias = self.stored("in_proj_bias", 3 * x.shape[-1], dtype=x.dtype)
        return jnp.dot(x, weight, precision=self.precision) + bias


class ClipTower(Transformer):
    """CLIP's image tower (Radford et al. 2021), a ViT with a layer norm before its blocks; by default its B/32.

    Stages hold the class token first; those of blocks have no norm.
    """

    patch: int = 32
    width: int = 768
    depth: int = 12
    heads: int = 12
    grid: int = 7
    embedding: int = 512

    @nn.compact
    def __call__(self, x: Float[Array, "n h w 3"], want: tuple[str, ...] | None) -> dict[str, Array]:
        """Returns the wanted stages and outputs of normalised images."""
        side = self.patch * self.grid
        if x.shape[1:3] != (side, side):
            raise UserError("image size for CLIP", f"{x.shape[1]}x{x.shape[2]}", f"{side}x{side}: its table is fixed")
        taps = Taps(want)
        x = taps("conv1", self.patches(x, "conv1", self.width, self.patch, bias=False))
        x = x.reshape(len(x), -1, self.width)
        token = self.table("class_embedding", self.width, dtype=x.dtype)
        x = jnp.concatenate([jnp.broadcast_to(token, (len(x), 1, self.width)), x], axis=1)
        x = x + self.table("positional_embedding", self.grid**2 + 1, self.width, dtype=x.dtype)
        x = taps("ln_pre", self.layer_norm(x, "ln_pre", CLIP_EPS))
        for i in range(self.depth):
            x = taps(f"transformer.resblocks.{i}", self._block(x, f"transformer.resblocks.{i}"))
        x = taps("ln_post", self.layer_norm(x[:, 0], "ln_post", CLIP_EPS))
        projection = self.table("proj", self.width, self.embedding, dtype=x.dtype)
        taps("embed", jnp.dot(x, projection, precision=self.precision))
        return taps.found

    def _block(self, x: Float[Array, "n t c"], name: str) -> Float[Array, "n t c"]:
        y = self.layer_norm(x, f"{name}.ln_1", CLIP_EPS)
        y = self.attention(PackedProjection(self.precision, name=f"{name}.attn")(y), self.heads)
        x = x + self.linear(y, f"{name}.attn.out_proj", self.width)
        y = self.layer_norm(x, f"{name}.ln_2", CLIP_EPS)
        return x + self.mlp(y, (f"{name}.mlp.c_fc", f"{name}.mlp.c_proj"), quick_gelu)


class DinoTransformer(Transformer):
    """DINO's and DINOv2's vision transformers (Caron et al. 2021; Oquab et al. 2023).

    Outputs: `cls`, the class token after the final norm; `patch`, the others after it; `last4_cls`, the class tokens of
    the last four blocks, each after the final norm. Stages: `blocks.N` as the blocks leave it, and `blocks.N.normed`
    after the final norm, as DINO's intermediate layers are published; the class token comes first.

    Args:
      layer_scale: whether branches are scaled per channel (DINOv2).
      grid: side of the published table of positions; images of other sizes get a resized one.
    """

    patch: int = 16
    width: int = 384
    depth: int = 12
    heads: int = 6
    grid: int = 14
    layer_scale: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "n h w 3"], want: tuple[str, ...] | None) -> dict[str, Array]:
        """Returns the wanted stages and outputs of normalised images, whose sizes are multiples of the patch."""
        size = x.shape[1] // self.patch, x.shape[2] // self.patch
        if min(size) < 1 or (size[0] * self.patch, size[1] * self.patch) != x.shape[1:3]:
            allowed = f"height and width that are multiples of {self.patch}, the side of a patch"
            raise UserError("image size for a vision transformer", f"{x.shape[1]}x{x.shape[2]}", allowed)
        taps = Taps(want)
        x = self.patches(x, "patch_embed.proj", self.width, self.patch)
        x = taps("patch_embed", x.reshape(len(x), -1, self.width))
        token = self.table("cls_token", 1, 1, self.width, dtype=x.dtype)
        x = jnp.concatenate([jnp.broadcast_to(token, (len(x), 1, self.width)), x], axis=1)
        x = x + position_table(self.table("pos_embed", 1, self.grid**2 + 1, self.width, dtype=x.dtype)[0], size)
        norm = LayerNorm(DINO_EPS, name="norm")
        last = []
        for i in range(self.depth):
            x = taps(f"blocks.{i}", self._block(x, f"blocks.{i}"))
            last.append(taps(f"blocks.{i}.normed", norm(x)))
        x = taps("norm", last[-1])
        taps("cls", x[:, 0])
        taps("patch", x[:, 1:])
        taps("last4_cls", jnp.stack([tokens[:, 0] for tokens in last[-4:]], axis=1))
        return taps.found

    def _block(self, x: Float[Array, "n t c"], name: str) -> Float[Array, "n t c"]:
        y = self.linear(self.layer_norm(x, f"{name}.norm1", DINO_EPS), f"{name}.attn.qkv", 3 * self.width)
        y = self.linear(self.attention(y, self.heads), f"{name}.attn.proj", self.width)
        x = x + self._scaled(y, f"{name}.ls1")
        y = self.mlp(self.layer_norm(x, f"{name}.norm2", DINO_EPS), (f"{name}.mlp.fc1", f"{name}.mlp.fc2"))
        return x + self._scaled(y, f"{name}.ls2")

    def _scaled(self, y: Float[Array, "n t c"], name: str) -> Float[Array, "n t c"]:
        return y * self.table(f"{name}.gamma", self.width, dtype=y.dtype) if self.layer_scale else y


# ---------------------------------------------------------------------------------------------- the table of positions


def position_table(table: Float[Array, "_r c"], size: tuple[int, int]) -> Float[Array, "_t c"]:
    """A table of positions, class token first, for a grid of patches of another size, as DINO resizes it.

    Bicubic with a = -0.75 and no antialiasing. The published code adds 0.1 to the target size before it divides, so
    that a rounded ratio yields the size it wants; positions are sampled with that ratio, and features depend on it.
    """
    side = math.isqrt(len(table) - 1)
    if size == (side, side):
        return table
    rows, columns = (_bicubic(side, target).astype(table.dtype) for target in size)
    grid = table[1:].reshape(side, side, -1)
    resized = jnp.einsum("hm,wk,mkc->hwc", rows, columns, grid, precision=HIGHEST)
    return jnp.concatenate([table[:1], resized.reshape(size[0] * size[1], -1)])


def _bicubic(source: int, target: int) -> Float[np.ndarray, "_m _n"]:
    """The matrix that takes a line of `source` positions to one of `target`."""
    position = (np.arange(target) + 0.5) * source / (target + 0.1) - 0.5
    taps = np.floor(position).astype(int)[:, None] + np.arange(-1, 3)
    x, a = np.abs(position[:, None] - taps), -0.75
    near, far = ((a + 2) * x - (a + 3)) * x * x + 1, (((x - 5) * x + 8) * x - 4) * a
    matrix = np.zeros((target, source))
    np.add.at(matrix, (np.arange(target)[:, None], np.clip(taps, 0, source - 1)), np.where(x < 1, near, far))
    return matrix


# ------------------------------------------------------------------------------------------------- published spellings

_HUGGING_FACE = (
    (r"^vision_model\.embeddings\.class_embedding$", "class_embedding"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "conv1."),
    (r"^vision_model\.embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^vision_model\.pre_layrnorm\.", "ln_pre."),
    (r"^vision_model\.post_layernorm\.", "ln_post."),
    (r"^vision_model\.encoder\.layers\.(\d+)\.self_attn\.", r"transformer.resblocks.\1.attn."),
    (r"^vision_model\.encoder\.layers\.(\d+)\.layer_norm(\d)\.", r"transformer.resblocks.\1.ln_\2."),
    (r"^vision_model\.encoder\.layers\.(\d+)\.mlp\.fc1\.", r"transformer.resblocks.\1.mlp.c_fc."),
    (r"^vision_model\.encoder\.layers\.(\d+)\.mlp\.fc2\.", r"transformer.resblocks.\1.mlp.c_proj."),
)


def clip_keys(state: State) -> State:
    """OpenAI's spelling of CLIP's image tower, given that or Hugging Face's, which keeps q, k and v apart."""
    if not any(key.startswith("vision_model.") for key in state):
        return state
    renamed: State = {}
    for key, array in state.items():
        for pattern, replacement in _HUGGING_FACE:
            key = re.sub(pattern, replacement, key)
        renamed[key] = array
    if "visual_projection.weight" in renamed:
        renamed["proj"] = renamed.pop("visual_projection.weight").T
    for key in [key for key in renamed if re.search(r"^transformer\.resblocks\.\d+\.attn\.q_proj\.", key)]:
        layer, leaf = key.split("q_proj.")
        parts = [f"{layer}{letter}_proj.{leaf}" for letter in "qkv"]
        if all(part in renamed for part in parts):
            renamed[f"{layer}in_proj_{leaf}"] = np.concatenate([renamed.pop(part) for part in parts])
    return renamed


# ------------------------------------------------------------------------------------------------------- architectures

OPENAI = "https://openaipublic.azureedge.net/clip/models"


def _clip(
    name: str, about: str, module: Callable[..., ClipTower], size: int, width: int, *files: tuple[str, str, int]
) -> Architecture:
    """One of OpenAI's towers; files are (name on disk, page of Hugging Face or SHA-256 of OpenAI's file, megabytes)."""
    weights = []
    for file, origin, megabytes in files:
        if "/" in origin:
            page = f"https://huggingface.co/{origin}"
            published = PublishedFile(file, f"{page}/resolve/main/pytorch_model.bin", megabytes=megabytes)
        else:
            page = "https://github.com/openai/CLIP"
            published = PublishedFile(file, f"{OPENAI}/{origin}/{file}", megabytes=megabytes, sha256=origin)
        weights.append(Weights(published, MIT, page))
    return Architecture(
        name=name,
        about=f"CLIP's image tower, {about} with QuickGELU, trained on 400 million captioned images",
        module=module,
        input=Input(size, "pillow_bicubic", *CLIP_MEAN_STD, clip=True, in_bytes=True),
        outputs={"embed": width},
        feature="embed",
        weights=tuple(weights),
        prefixes=("visual.",),
        harmless=("text_model.*", "text_projection*", "logit_scale", "vision_model.embeddings.position_ids"),
        rename=clip_keys,
    )


def _dino(name: str, about: str, module: Callable[..., DinoTransformer], width: int, url: str, megabytes: int):
    two = "dinov2" in name
    page = "https://github.com/facebookresearch/" + ("dinov2" if two else "dino")
    file = PublishedFile(url.rpartition("/")[2], f"https://dl.fbaipublicfiles.com/{url}", megabytes=megabytes)
    return Architecture(
        name=name,
        about=about,
        module=module,
        input=Input(224, "pillow_bicubic", *IMAGENET, clip=True, backbone="" if two else "dino"),
        outputs={"cls": width} | ({"patch": 0} if two else {"last4_cls": 0}),
        feature="cls",
        weights=(Weights(file, APACHE, page),),
        prefixes=("backbone.",),
        harmless=("mask_token", "head.*"),
    )


_V2 = partial(DinoTransformer, patch=14, grid=37, layer_scale=True)
_ON_IMAGENET, _ON_MANY = "trained on ImageNet without labels (DINO)", "trained on 142 million images (DINOv2)"
ARCHITECTURES = (
    _clip(
        "clip_vit_b32",
        "ViT-B/32",
        ClipTower,
        224,
        512,
        ("clip-vit-base-patch32.bin", "openai/clip-vit-base-patch32", 605),
        ("ViT-B-32.pt", "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af", 354),
    ),
    _clip(
        "clip_vit_l14_336",
        "ViT-L/14 at 336 px",
        partial(ClipTower, patch=14, width=1024, depth=24, heads=16, grid=24, embedding=768),
        336,
        768,
        ("ViT-L-14-336px.pt", "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02", 934),
        ("clip-vit-large-patch14-336.bin", "openai/clip-vit-large-patch14-336", 1712),
    ),
    _dino(
        "dino_vits16",
        f"ViT-S/16 {_ON_IMAGENET}",
        DinoTransformer,
        384,
        "dino/dino_deitsmall16_pretrain/dino_deitsmall16_pretrain.pth",
        87,
    ),
    _dino(
        "dino_vitb16",
        f"ViT-B/16 {_ON_IMAGENET}",
        partial(DinoTransformer, width=768, heads=12),
        768,
        "dino/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth",
        343,
    ),
    _dino("dinov2_vits14", f"ViT-S/14 {_ON_MANY}", _V2, 384, "dinov2/dinov2_vits14/dinov2_vits14_pretrain.pth", 88),
    _dino(
        "dinov2_vitb14",
        f"ViT-B/14 {_ON_MANY}",
        partial(_V2, width=768, heads=12),
        768,
        "dinov2/dinov2_vitb14/dinov2_vitb14_pretrain.pth",
        346,
    ),
    _dino(
        "dinov2_vitl14",
        f"ViT-L/14 {_ON_MANY}",
        partial(_V2, width=1024, depth=24, heads=16),
        1024,
        "dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
        1217,
    ),
)
