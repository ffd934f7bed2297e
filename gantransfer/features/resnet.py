"""Residual networks: ResNet-50 (also with SwAV's weights) and the small ones for 32-pixel images."""

from dataclasses import replace
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from gantransfer.features.layers import Graph, Taps, max_pool, spatial_mean
from gantransfer.features.network import IMAGENET, Architecture, Input, Shapes
from gantransfer.features.published import BSD2, BSD3, CC_BY_NC, Weights, torchvision
from gantransfer.pretrained.download import PublishedFile

EPS = 1e-5


class ResNet50(Graph):
    """ResNet-50 with the stride in the 3x3 convolution ("v1.5"; He et al. 2016).

    Args:
      classes: outputs of the linear layer; 0 for a network without one.
    """

    classes: int = 1000

    @nn.compact
    def __call__(self, x: Float[Array, "n h w 3"], want: tuple[str, ...] | None) -> dict[str, Array]:
        """Returns the wanted stages and outputs of normalised images."""
        taps = Taps(want)
        x = taps("conv1", self.conv(x, "conv1", 64, 7, stride=2, padding=3))
        x = nn.relu(self.norm(x, "bn1", EPS))
        x = taps("maxpool", max_pool(x, 3, 2, 1))
        for stage, (blocks, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), start=1):
            for i in range(blocks):
                stride = 2 if stage > 1 and i == 0 else 1
                x = taps(f"layer{stage}.{i}", self._block(x, f"layer{stage}.{i}", width, stride, shortcut=i == 0))
            taps(f"layer{stage}", x)
        x = taps("pool", spatial_mean(x))
        taps("avgpool", x[:, None, None])
        if self.classes:
            taps("logits", self.linear(x, "fc", self.classes))
        return taps.found

    def _block(self, x: Array, name: str, width: int, stride: int, *, shortcut: bool) -> Array:
        y = nn.relu(self._conv(x, name, 1, width, 1))
        y = nn.relu(self._conv(y, name, 2, width, 3, stride=stride, padding=1))
        y = self._conv(y, name, 3, 4 * width, 1)
        if shortcut:
            # Every second pixel first: then it is a product of matrices.
            shortcut_names = f"{name}.downsample.0", f"{name}.downsample.1"
            x = self.conv_norm(x[:, ::stride, ::stride], *shortcut_names, 4 * width, 1, EPS)
        return nn.relu(x + y)

    def _conv(self, x: Array, block: str, i: int, features: int, size: int, **shape: int) -> Array:
        return self.conv_norm(x, f"{block}.conv{i}", f"{block}.bn{i}", features, size, EPS, **shape)


class CifarResNet(Graph):
    """ResNet of 6n + 2 layers for 32-pixel images (He et al. 2016, section 4.2).

    Args:
      blocks: n, residual blocks per stage.
      classes: outputs of the linear layer.
      option_a: shortcuts without parameters (every second pixel, new channels are zeros), as in the paper; else 1x1
        convolutions.
    """

    blocks: int = 3
    classes: int = 10
    option_a: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "n h w 3"], want: tuple[str, ...] | None) -> dict[str, Array]:
        """Returns the wanted stages and outputs of normalised images."""
        taps = Taps(want)
        x = taps("conv1", self.conv(x, "conv1", 16, 3, padding=1))
        x = nn.relu(self.norm(x, "bn1", EPS))
        for stage, width in enumerate((16, 32, 64), start=1):
            for i in range(self.blocks):
                x = taps(f"layer{stage}.{i}", self._block(x, f"layer{stage}.{i}", width))
            taps(f"layer{stage}", x)
        x = taps("pool", spatial_mean(x))
        taps("logits", self.linear(x, "linear" if self.option_a else "fc", self.classes))
        return taps.found

    def _block(self, x: Array, name: str, width: int) -> Array:
        stride = width // x.shape[-1]
        y = nn.relu(self.conv_norm(x, f"{name}.conv1", f"{name}.bn1", width, 3, EPS, stride=stride, padding=1))
        y = self.conv_norm(y, f"{name}.conv2", f"{name}.bn2", width, 3, EPS, padding=1)
        if stride > 1:
            x = x[:, ::stride, ::stride]
            if self.option_a:
                x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (width // 4, width // 4)))
            else:
                x = self.conv_norm(x, f"{name}.downsample.0", f"{name}.downsample.1", width, 1, EPS)
        return nn.relu(x + y)


_RESNET50 = Architecture(
    name="resnet50",
    about="ResNet-50 v1.5, trained on ImageNet (V1 weights; V2 ones are another network)",
    module=ResNet50,
    input=Input(224, "pillow_bilinear", *IMAGENET, backbone="resnet50"),
    outputs={"pool": 2048, "logits": 1000},
    feature="pool",
    weights=(torchvision("resnet50-0676ba61.pth", 103), torchvision("resnet50-11ad3fa6.pth", 103)),
)

_SWAV_FILE = PublishedFile(
    "swav_800ep_pretrain.pth.tar", "https://dl.fbaipublicfiles.com/deepcluster/swav_800ep_pretrain.pth.tar"
)


def _swav_with_classes(shapes: Shapes) -> tuple[Architecture, str] | None:
    if "fc.weight" not in shapes:
        return None
    return replace(
        _SWAV, module=ResNet50, outputs=_RESNET50.outputs
    ), "the weights have a linear layer for 1000 classes"


_SWAV = replace(
    _RESNET50,
    name="swav_resnet50",
    about="ResNet-50 v1.5, trained on ImageNet without labels (SwAV, 800 epochs)",
    module=partial(ResNet50, classes=0),
    input=Input(224, "pillow_bilinear", *IMAGENET, backbone="swav"),
    outputs={"pool": 2048},
    weights=(Weights(_SWAV_FILE, CC_BY_NC, "https://github.com/facebookresearch/swav"),),
    harmless=("projection_head.*", "prototypes.*"),
    choose=_swav_with_classes,
)

CIFAR_MEAN_STD = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
# For each depth, file and millions of bytes: with 1x1 shortcuts (chenyaofo), with option A (akamaster).
_CIFAR_FILES = {
    20: (("cifar10_resnet20-4118986f.pt", 1.1), ("resnet20-12fca82f.th", 1.1)),
    32: (("cifar10_resnet32-ef93fc4d.pt", 1.9), ("resnet32-d509ac18.th", 1.9)),
    56: (("cifar10_resnet56-187c023a.pt", 3.5), ("resnet56-4bfd9763.th", 3.5)),
}
_CONVOLUTIONS = "https://github.com/chenyaofo/pytorch-cifar-models"
_OPTION_A = "https://github.com/akamaster/pytorch_resnet_cifar10"


def _cifar(layers: int, *, option_a: bool) -> Architecture:
    file, megabytes = _CIFAR_FILES[layers][option_a]
    page, folder = (
        (_OPTION_A, "raw/master/pretrained_models") if option_a else (_CONVOLUTIONS, "releases/download/resnet")
    )
    shortcuts = "shortcuts without parameters" if option_a else "1x1 shortcuts"

    def choose(shapes: Shapes) -> tuple[Architecture, str] | None:
        if not option_a and "linear.weight" in shapes and not any(".downsample." in key for key in shapes):
            other = _cifar(layers, option_a=True)
            chosen = other.choose(shapes) if other.choose else None
            said = "the weights have shortcuts without parameters (option A of the paper)"
            return (chosen[0], f"{said}; {chosen[1]}") if chosen else (other, said)
        classes, width = shapes.get("linear.weight" if option_a else "fc.weight", (10, 64))[:2]
        if classes == 10 or width != 64:
            return None
        module = partial(CifarResNet, blocks=(layers - 2) // 6, classes=classes, option_a=option_a)
        own = _cifar(layers, option_a=option_a)
        return replace(
            own, module=module, outputs={"pool": 64, "logits": classes}
        ), f"the weights have {classes} classes"

    return Architecture(
        name=f"cifar_resnet{layers}" + "_optionA" * option_a,
        about=f"ResNet-{layers} for 32-pixel images, {shortcuts}, trained on CIFAR-10",
        module=partial(CifarResNet, blocks=(layers - 2) // 6, option_a=option_a),
        input=Input(32, "pillow_bilinear", *(IMAGENET if option_a else CIFAR_MEAN_STD)),
        outputs={"pool": 64, "logits": 10},
        feature="pool",
        weights=(
            Weights(
                PublishedFile(file, f"{page}/{folder}/{file}", megabytes=megabytes), BSD2 if option_a else BSD3, page
            ),
        ),
        choose=choose,
    )


ARCHITECTURES = (_RESNET50, _SWAV, *(_cifar(layers, option_a=a) for layers in _CIFAR_FILES for a in (False, True)))
