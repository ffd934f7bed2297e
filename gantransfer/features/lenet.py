"""LeNet-5 for MNIST, as published with the GANs of csinva's gan-vae-pretrained-pytorch."""

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from gantransfer.features.layers import Graph, Taps, flatten, max_pool
from gantransfer.features.network import Architecture, Input
from gantransfer.features.published import Weights
from gantransfer.pretrained.download import PublishedFile


class LeNet5(Graph):
    """Three 5x5 convolutions (6, 16, 120 channels), 84 features, 10 classes (after LeCun et al. 1998)."""

    @nn.compact
    def __call__(self, x: Float[Array, "n h w 1"], want: tuple[str, ...] | None) -> dict[str, Array]:
        """Returns the wanted stages and outputs of images in [0, 1], 32x32."""
        taps = Taps(want)
        for name, features in (("c1", 6), ("c3", 16), ("c5", 120)):
            x = nn.relu(taps(f"convnet.{name}", self.conv(x, f"convnet.{name}", features, 5, bias=True)))
            x = x if name == "c5" else max_pool(x, 2, 2)
        x = taps("fc.f6", self.linear(flatten(x), "fc.f6", 84))
        x = taps("f6_relu", nn.relu(x))
        x = taps("logits", taps("fc.f7", self.linear(x, "fc.f7", 10)))
        taps("logprob", jax.nn.log_softmax(x))
        return taps.found


_PAGE = "https://github.com/csinva/gan-vae-pretrained-pytorch"
_FILE = "lenet_epoch=12_test_acc=0.991.pth"

ARCHITECTURES = (
    Architecture(
        name="mnist_lenet5",
        about="LeNet-5, trained on MNIST",
        module=LeNet5,
        input=Input(32, "torch_bilinear", (0.0,), (1.0,), channels=1),
        outputs={"f6_relu": 84, "logits": 10, "logprob": 10},
        feature="f6_relu",
        weights=(
            Weights(
                PublishedFile(_FILE, f"{_PAGE}/raw/master/mnist_classifier/weights/{_FILE}", megabytes=0.25),
                "free to use and share openly, says its readme",
                _PAGE,
            ),
        ),
    ),
)
