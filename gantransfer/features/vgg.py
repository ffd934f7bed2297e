"""VGG16 (Simonyan & Zisserman 2015) and AlexNet (Krizhevsky 2014), whole or the trunk alone, as LPIPS takes them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from gantransfer.features.layers import HIGHEST, Graph, Taps, flatten, max_pool, spatial_mean
from gantransfer.features.network import IMAGENET, Architecture, Input, Shapes
from gantransfer.features.pixels import resize_weights
from gantransfer.features.published import torchvision


@dataclass(frozen=True)
class Conv:
    """A convolution with bias: channels, size, padding, stride."""

    features: int
    size: int = 3
    padding: int = 1
    stride: int = 1


@dataclass(frozen=True)
class Pool:
    """A maximum over windows of this size, two apart."""

    size: int


def _vgg16() -> tuple[Conv | Pool, ...]:
    widths = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
    return tuple(layer for width, count in widths for layer in (*(Conv(width),) * count, Pool(2)))


VGG16 = _vgg16()
ALEXNET = (
    Conv(64, 11, 2, 4), Pool(3), Conv(192, 5, 2), Pool(3), Conv(384), Conv(256), Conv(256), Pool(3),
)  # fmt: skip


class Plain(Graph):
    """Convolutions, ReLU and pooling numbered in one row (`features`), then three linear layers (`classifier`).

    Args:
      layers: of `features`; each convolution and each ReLU has a number, each pool too.
      pooled: height and width that the last map is averaged to before the linear layers.
      linear: numbers of the three linear layers; empty for a trunk alone.
    """

    layers: tuple[Conv | Pool, ...] = VGG16
    pooled: int = 7
    linear_at: tuple[int, ...] = (0, 3, 6)

    @nn.compact
    def __call__(self, x: Float[Array, "n h w 3"], want: tuple[str, ...] | None) -> dict[str, Array]:
        """Returns the wanted stages and outputs of normalised images of any size."""
        taps, number = Taps(want), 0
        for layer in self.layers:
            if isinstance(layer, Pool):
                x = max_pool(x, layer.size, 2)
            else:
                shape = {"stride": layer.stride, "padding": layer.padding, "bias": True}
                x = taps(f"features.{number}", self.conv(x, f"features.{number}", layer.features, layer.size, **shape))
                number, x = number + 1, nn.relu(x)
            x = taps(f"features.{number}", x)
            number += 1
        taps("pool", spatial_mean(x))
        if self.linear_at:
            self._classify(taps("avgpool", _averaged(x, self.pooled)), taps)
        return taps.found

    def _classify(self, x: Float[Array, "n h w c"], taps: Taps) -> None:
        x = flatten(x)
        for i, number in enumerate(self.linear_at):
            x = taps(f"classifier.{number}", self.linear(x, f"classifier.{number}", 1000 if i == 2 else 4096))
            if i < 2:
                # Dropout stands before or after the ReLU and does nothing here.
                x = taps(f"fc{6 + i}_relu", taps(f"classifier.{number + 1}", nn.relu(x)))
        taps("logits", x)


def _averaged(x: Float[Array, "n _h _w c"], size: int) -> Float[Array, "n _s _s c"]:
    """PyTorch's adaptive mean."""
    for axis, letters in ((1, "nhwc,Hh->nHwc"), (2, "nhwc,Ww->nhWc")):
        if x.shape[axis] != size:
            weights = jnp.asarray(resize_weights("area", x.shape[axis], size), x.dtype)
            x = jnp.einsum(letters, x, weights, precision=HIGHEST)
    return x


def _without_classifier(full: Callable[[], Architecture]) -> Callable[[Shapes], tuple[Architecture, str] | None]:
    """A state dict without any key of the linear layers is that of a trunk."""

    def choose(shapes: Shapes) -> tuple[Architecture, str] | None:
        if any(key.startswith("classifier.") for key in shapes):
            return None
        whole = full()
        trunk = replace(
            whole,
            module=partial(whole.module, linear_at=()),
            outputs={"pool": whole.module().layers[-2].features},
            feature="pool",
        )
        return trunk, "the weights have no linear layers: the trunk alone"

    return choose


_VGG16 = Architecture(
    name="vgg16",
    about="VGG16, trained on ImageNet: precision and recall, LPIPS",
    module=Plain,
    input=Input(224, "pillow_bilinear", *IMAGENET),
    outputs={"fc7_relu": 4096, "logits": 1000},
    feature="fc7_relu",
    weights=(torchvision("vgg16-397923af.pth", 553),),
    choose=_without_classifier(lambda: _VGG16),
)

_ALEXNET = Architecture(
    name="alexnet",
    about="AlexNet, trained on ImageNet: LPIPS",
    module=partial(Plain, layers=ALEXNET, pooled=6, linear_at=(1, 4, 6)),
    input=Input(224, "pillow_bilinear", *IMAGENET),
    outputs={"fc7_relu": 4096, "logits": 1000},
    feature="fc7_relu",
    weights=(torchvision("alexnet-owt-7be5be79.pth", 244), torchvision("alexnet-owt-4df8aa71.pth", 244)),
    choose=_without_classifier(lambda: _ALEXNET),
)

ARCHITECTURES = (_VGG16, _ALEXNET)
