"""Inception-v3 twice: the graph of 2015 that FID and Inception score are defined on, and torchvision's, another one.

They share names and most shapes, and what they compute differs (Szegedy et al. 2016; Heusel et al. 2017): statistics of
the two must never be compared.

| | 2015 | torchvision |
|---|---|---|
| mean pooling at the border | divides by the pixels that are there | counts zeros |
| pooling in the last block | maximum | mean |
| classes | 1008, of which 1 to 1000 are ImageNet's | 1000 |
"""

from dataclasses import dataclass
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from gantransfer.features.layers import Graph, Stored, Taps, flatten, max_pool, mean_pool_3x3, spatial_mean
from gantransfer.features.network import IMAGENET, Architecture, Input
from gantransfer.features.published import APACHE, Weights, torchvision
from gantransfer.pretrained.download import PublishedFile

EPS = 1e-3
# The first channels of Mixed_6e make "sfid", an experiment: nobody has checked that these are the published ones.
SFID_CHANNELS = 7
TALL, WIDE = ((1, 1), (0, 0)), ((0, 0), (1, 1))
TALL_7, WIDE_7 = ((3, 3), (0, 0)), ((0, 0), (3, 3))


class Classifier(Stored):
    """A linear layer that also returns its result without the bias."""

    features: int
    precision: object

    @nn.compact
    def __call__(self, x: Float[Array, "n _i"]) -> tuple[Float[Array, "n _o"], Float[Array, "n _o"]]:
        """Returns logits without and with the bias."""
        weight = self.stored("weight", x.shape[-1], self.features, dtype=x.dtype)
        unbiased = jnp.dot(x, weight, precision=self.precision)
        return unbiased, unbiased + self.stored("bias", self.features, dtype=x.dtype)


class Inception(Graph):
    """Inception-v3.

    Args:
      torchvision: whether it is torchvision's graph, by the table above; stages have the names of either code.
    """

    torchvision: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "n h w 3"], want: tuple[str, ...] | None) -> dict[str, Array]:
        """Returns the wanted stages and outputs of normalised images."""
        taps = Taps(want)
        x = self._stem(x, taps)
        for letter, pooled in (("b", 32), ("c", 64), ("d", 64)):
            x = taps(f"Mixed_5{letter}", self._block_a(x, f"Mixed_5{letter}", pooled))
        x = taps("Mixed_6a", self._block_b(x, "Mixed_6a"))
        for letter, width in (("b", 128), ("c", 160), ("d", 160), ("e", 192)):
            x = taps(f"Mixed_6{letter}", self._block_c(x, f"Mixed_6{letter}", width))
        if not self.torchvision:
            taps("768", spatial_mean(x))
            taps("sfid", flatten(x[..., :SFID_CHANNELS]))
        x = taps("Mixed_7a", self._block_d(x, "Mixed_7a"))
        x = taps("Mixed_7b", self._block_e(x, "Mixed_7b", "mean"))
        x = taps("Mixed_7c", self._block_e(x, "Mixed_7c", "mean" if self.torchvision else "max"))
        if self.torchvision:
            taps("logits", self.linear(taps("pool", spatial_mean(x)), "fc", 1000))
            return taps.found
        unbiased, logits = Classifier(1008, self.precision, name="fc")(taps("2048", spatial_mean(x)))
        taps("logits_unbiased", unbiased)
        taps("logits", logits)
        return taps.found

    def _stem(self, x: Array, taps: Taps) -> Array:
        x = taps("Conv2d_1a_3x3", self._unit(x, "Conv2d_1a_3x3", 32, 3, stride=2))
        x = taps("Conv2d_2a_3x3", self._unit(x, "Conv2d_2a_3x3", 32, 3))
        x = taps("Conv2d_2b_3x3", self._unit(x, "Conv2d_2b_3x3", 64, 3, padding=1))
        x = self._pool_stem(x, taps, 1, "64")
        x = taps("Conv2d_3b_1x1", self._unit(x, "Conv2d_3b_1x1", 80, 1))
        x = taps("Conv2d_4a_3x3", self._unit(x, "Conv2d_4a_3x3", 192, 3))
        return self._pool_stem(x, taps, 2, "192")

    def _pool_stem(self, x: Array, taps: Taps, number: int, feature: str) -> Array:
        x = taps(f"maxpool{number}" if self.torchvision else f"MaxPool_{number}", max_pool(x, 3, 2))
        if not self.torchvision:
            taps(feature, spatial_mean(x))
        return x

    def _unit(self, x: Array, name: str, features: int, size, **shape) -> Array:
        return nn.relu(self.conv_norm(x, f"{name}.conv", f"{name}.bn", features, size, EPS, **shape))

    def _chain(self, x: Array, block: str, *units) -> Array:
        """Units one after the other: name, features, size, and padding or stride."""
        for name, features, size, shape in units:
            x = self._unit(x, f"{block}.{name}", features, size, **shape)
        return x

    def _pool_branch(self, x: Array, block: str, features: int, pool: str = "mean") -> Array:
        name = f"{block}.branch_pool"
        if pool == "max":
            return self._unit(max_pool(x, 3, 1, 1), name, features, 1)
        # A 1x1 convolution and mean pooling may change places, and then fewer channels are pooled.
        y = mean_pool_3x3(self.conv(x, f"{name}.conv", features, 1), count_padding=self.torchvision)
        return nn.relu(self.norm(y, f"{name}.bn", EPS, kernel=f"{name}.conv"))

    def _block_a(self, x: Array, name: str, pooled: int) -> Array:
        dbl = [(f"branch3x3dbl_{i}", 96, 3, {"padding": 1}) for i in (2, 3)]
        return _joined(
            self._unit(x, f"{name}.branch1x1", 64, 1),
            self._chain(x, name, ("branch5x5_1", 48, 1, {}), ("branch5x5_2", 64, 5, {"padding": 2})),
            self._chain(x, name, ("branch3x3dbl_1", 64, 1, {}), *dbl),
            self._pool_branch(x, name, pooled),
        )

    def _block_b(self, x: Array, name: str) -> Array:
        dbl = ("branch3x3dbl_2", 96, 3, {"padding": 1}), ("branch3x3dbl_3", 96, 3, {"stride": 2})
        return _joined(
            self._unit(x, f"{name}.branch3x3", 384, 3, stride=2),
            self._chain(x, name, ("branch3x3dbl_1", 64, 1, {}), *dbl),
            max_pool(x, 3, 2),
        )

    def _block_c(self, x: Array, name: str, width: int) -> Array:
        wide, tall = {"size": (1, 7), "padding": WIDE_7}, {"size": (7, 1), "padding": TALL_7}
        y = self._unit(x, f"{name}.branch7x7_1", width, 1)
        y = self._unit(y, f"{name}.branch7x7_2", width, **wide)
        y = self._unit(y, f"{name}.branch7x7_3", 192, **tall)
        z = self._unit(x, f"{name}.branch7x7dbl_1", width, 1)
        for i, (features, shape) in enumerate(((width, tall), (width, wide), (width, tall), (192, wide)), start=2):
            z = self._unit(z, f"{name}.branch7x7dbl_{i}", features, **shape)
        return _joined(self._unit(x, f"{name}.branch1x1", 192, 1), y, z, self._pool_branch(x, name, 192))

    def _block_d(self, x: Array, name: str) -> Array:
        y = self._chain(x, name, ("branch3x3_1", 192, 1, {}), ("branch3x3_2", 320, 3, {"stride": 2}))
        z = self._unit(x, f"{name}.branch7x7x3_1", 192, 1)
        z = self._unit(z, f"{name}.branch7x7x3_2", 192, (1, 7), padding=WIDE_7)
        z = self._unit(z, f"{name}.branch7x7x3_3", 192, (7, 1), padding=TALL_7)
        z = self._unit(z, f"{name}.branch7x7x3_4", 192, 3, stride=2)
        return _joined(y, z, max_pool(x, 3, 2))

    def _block_e(self, x: Array, name: str, pool: str) -> Array:
        y = self._unit(x, f"{name}.branch3x3_1", 384, 1)
        z = self._chain(x, name, ("branch3x3dbl_1", 448, 1, {}), ("branch3x3dbl_2", 384, 3, {"padding": 1}))
        return _joined(
            self._unit(x, f"{name}.branch1x1", 320, 1),
            self._unit(y, f"{name}.branch3x3_2a", 384, (1, 3), padding=WIDE),
            self._unit(y, f"{name}.branch3x3_2b", 384, (3, 1), padding=TALL),
            self._unit(z, f"{name}.branch3x3dbl_3a", 384, (1, 3), padding=WIDE),
            self._unit(z, f"{name}.branch3x3dbl_3b", 384, (3, 1), padding=TALL),
            self._pool_branch(x, name, 192, pool),
        )


def _joined(*branches: Array) -> Array:
    return jnp.concatenate(branches, axis=-1)


@dataclass(frozen=True)
class _Port:
    """A release of one and the same converted file."""

    name: str
    url: str
    page: str


_PORTS = (
    _Port(
        "pt_inception-2015-12-05-6726825d.pth",
        "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
        "https://github.com/mseitzer/pytorch-fid",
    ),
    _Port(
        "weights-inception-2015-12-05-6726825d.pth",
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
        "https://github.com/toshas/torch-fidelity",
    ),
)
HALF = (128 / 255,) * 3

ARCHITECTURES = (
    Architecture(
        name="fid_inception",
        about="Inception-v3, graph of 2015: FID, KID, Inception score",
        module=Inception,
        input=Input(299, "tf1_bilinear", HALF, HALF, backbone="inception_tf", pipeline="legacy_tensorflow"),
        outputs={"64": 64, "192": 192, "768": 768, "2048": 2048, "logits_unbiased": 1008, "logits": 1008},
        feature="2048",
        weights=tuple(
            Weights(PublishedFile(port.name, port.url, megabytes=95.6), APACHE, port.page) for port in _PORTS
        ),
        harmless=("AuxLogits.*",),
    ),
    Architecture(
        name="inception_v3_torchvision",
        about="Inception-v3, torchvision's graph: not comparable with FID's",
        module=partial(Inception, torchvision=True),
        input=Input(299, "pillow_lanczos", *IMAGENET, backbone="inception_torchvision"),
        outputs={"pool": 2048, "logits": 1000},
        feature="pool",
        weights=(torchvision("inception_v3_google-0cc3c7bd.pth", 109),),
        harmless=("AuxLogits.*",),
    ),
)
