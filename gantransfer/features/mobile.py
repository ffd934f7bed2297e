"""MobileNetV2 (Sandler et al. 2018) and EfficientNet-lite0 (Tan & Le 2019, TensorFlow's weights)."""

import re

import flax.linen as nn
from jaxtyping import Array, Float

from gantransfer.features.layers import Graph, Taps, spatial_mean
from gantransfer.features.network import IMAGENET, Architecture, Input
from gantransfer.features.published import APACHE, Weights, torchvision
from gantransfer.features.state_dicts import State
from gantransfer.pretrained.download import PublishedFile

# Kernel, expansion, channels, repeats, stride of the first.
Stage = tuple[int, int, int, int, int]
MOBILENET: tuple[Stage, ...] = (
    (3, 1, 16, 1, 1), (3, 6, 24, 2, 2), (3, 6, 32, 3, 2), (3, 6, 64, 4, 2), (3, 6, 96, 3, 1), (3, 6, 160, 3, 2),
    (3, 6, 320, 1, 1),
)  # fmt: skip
LITE: tuple[Stage, ...] = (
    (3, 1, 16, 1, 1), (3, 6, 24, 2, 2), (5, 6, 40, 2, 2), (3, 6, 80, 3, 2), (5, 6, 112, 3, 1), (5, 6, 192, 4, 2),
    (3, 6, 320, 1, 1),
)  # fmt: skip
# Which blocks' outputs Projected GAN takes.
PROJECTED = {"blocks.1": "layer0", "blocks.2": "layer1", "blocks.4": "layer2", "blocks.6": "layer3"}


class MobileNetV2(Graph):
    """MobileNetV2 of width 1, padded by the same number on all sides."""

    @nn.compact
    def __call__(self, x: Float[Array, "n h w 3"], want: tuple[str, ...] | None) -> dict[str, Array]:
        """Returns the wanted stages and outputs of normalised images."""
        taps, number = Taps(want), 1
        x = self._unit(x, "features.0.0", "features.0.1", 32, 3, stride=2, padding=1)
        x = taps("features.0", nn.relu6(x))
        for size, expansion, features, repeats, first in MOBILENET:
            for i in range(repeats):
                x = self._block(x, f"features.{number}.conv", size, expansion, features, first if i == 0 else 1)
                taps(f"features.{number}", x)
                number += 1
        x = self._unit(x, f"features.{number}.0", f"features.{number}.1", 1280, 1)
        x = taps(f"features.{number}", nn.relu6(x))
        taps("logits", self.linear(taps("pool", spatial_mean(x)), "classifier.1", 1000))
        return taps.found

    def _block(self, x: Array, name: str, size: int, expansion: int, features: int, stride: int) -> Array:
        wide, y, at = x.shape[-1] * expansion, x, 0
        if expansion > 1:
            y = nn.relu6(self._unit(x, f"{name}.0.0", f"{name}.0.1", wide, 1))
            at = 1
        shape = {"stride": stride, "padding": size // 2, "depthwise": True}
        y = nn.relu6(self._unit(y, f"{name}.{at}.0", f"{name}.{at}.1", wide, size, **shape))
        y = self._unit(y, f"{name}.{at + 1}", f"{name}.{at + 2}", features, 1)
        return x + y if y.shape == x.shape else y

    def _unit(self, x: Array, conv: str, norm: str, features: int, size: int, **shape) -> Array:
        return self.conv_norm(x, conv, norm, features, size, 1e-5, **shape)


class EfficientNetLite0(Graph):
    """EfficientNet-lite0 with TensorFlow's padding: the smaller half before, and none where stride and size allow."""

    @nn.compact
    def __call__(self, x: Float[Array, "n h w 3"], want: tuple[str, ...] | None) -> dict[str, Array]:
        """Returns the wanted stages and outputs of images in [-1, 1]."""
        taps = Taps(want)
        x = taps("conv_stem", self.conv(x, "conv_stem", 32, 3, stride=2, padding=_same(x, 3, 2)))
        x = taps("bn1", nn.relu6(self.norm(x, "bn1", 1e-3)))
        for stage, (size, expansion, features, repeats, first) in enumerate(LITE):
            for i in range(repeats):
                x = self._block(x, f"blocks.{stage}.{i}", size, expansion, features, first if i == 0 else 1)
                taps(f"blocks.{stage}.{i}", x)
            taps(f"blocks.{stage}", x)
            if f"blocks.{stage}" in PROJECTED:
                taps(PROJECTED[f"blocks.{stage}"], x)
        x = taps("bn2", nn.relu6(self._unit(x, "", "conv_head", "bn2", 1280, 1)))
        taps("logits", self.linear(taps("pool", spatial_mean(x)), "classifier", 1000))
        return taps.found

    def _block(self, x: Array, name: str, size: int, expansion: int, features: int, stride: int) -> Array:
        wide, y = x.shape[-1] * expansion, x
        depthwise = {"stride": stride, "padding": _same(x, size, stride), "depthwise": True}
        if expansion == 1:
            y = nn.relu6(self._unit(y, f"{name}.", "conv_dw", "bn1", wide, size, **depthwise))
            y = self._unit(y, f"{name}.", "conv_pw", "bn2", features, 1)
        else:
            y = nn.relu6(self._unit(y, f"{name}.", "conv_pw", "bn1", wide, 1))
            y = nn.relu6(self._unit(y, f"{name}.", "conv_dw", "bn2", wide, size, **depthwise))
            y = self._unit(y, f"{name}.", "conv_pwl", "bn3", features, 1)
        return x + y if y.shape == x.shape else y

    def _unit(self, x: Array, block: str, conv: str, norm: str, features: int, size: int, **shape) -> Array:
        return self.conv_norm(x, block + conv, block + norm, features, size, 1e-3, **shape)


def _same(x: Array, size: int, stride: int) -> tuple[tuple[int, int], tuple[int, int]]:
    totals = [max((-(-length // stride) - 1) * stride + size - length, 0) for length in x.shape[1:3]]
    return tuple((total // 2, total - total // 2) for total in totals)


def _from_flat_names(state: State) -> State:
    """Torchvision's names for a state dict of the d-li14 release, whose blocks are numbered through."""
    if "classifier.weight" not in state:
        return state
    renamed = {}
    for key, value in state.items():
        block = re.fullmatch(r"(features\.\d+\.conv)\.(\d)\.(\w+)", key)
        if block:
            at = int(block[2])
            # Convolution, norm, ReLU6, ...: every third number is a ReLU6; the last pair has no ReLU6 and no group.
            last = at >= (3 if f"{block[1]}.6.weight" not in state else 6)
            inner = f"{at // 3 + at % 3}" if last else f"{at // 3}.{at % 3}"
            key = f"{block[1]}.{inner}.{block[3]}"
        elif key.startswith("conv."):
            key = "features.18." + key.removeprefix("conv.")
        elif key.startswith("classifier."):
            key = "classifier.1." + key.removeprefix("classifier.")
        renamed[key] = value
    return renamed


_LITE0_URL = "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-weights/"
_LITE0 = PublishedFile(
    "tf_efficientnet_lite0-0aa007d2.pth", f"{_LITE0_URL}tf_efficientnet_lite0-0aa007d2.pth", megabytes=18.8
)

ARCHITECTURES = (
    Architecture(
        name="mobilenet_v2",
        about="MobileNetV2, trained on ImageNet",
        module=MobileNetV2,
        input=Input(224, "pillow_bilinear", *IMAGENET),
        outputs={"pool": 1280, "logits": 1000},
        feature="pool",
        weights=(torchvision("mobilenet_v2-b0353104.pth", 14.2), torchvision("mobilenet_v2-7ebf99e0.pth", 14.2)),
        rename=_from_flat_names,
    ),
    Architecture(
        name="tf_efficientnet_lite0",
        about="EfficientNet-lite0, trained on ImageNet: Projected GAN",
        module=EfficientNetLite0,
        input=Input(224, "pillow_bicubic", (0.5,) * 3, (0.5,) * 3),
        outputs={"layer0": 0, "layer1": 0, "layer2": 0, "layer3": 0, "pool": 1280, "logits": 1000},
        feature="pool",
        weights=(Weights(_LITE0, APACHE, "https://github.com/huggingface/pytorch-image-models"),),
    ),
)
