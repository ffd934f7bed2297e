"""The steps that are timed, in plain data that both sides of a comparison read: sizes, batch, what trains, rates.

Nothing is imported here but the standard library: one reader has no JAX and the other no PyTorch.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

# One set of rates for all: they decide no time, and parity wants steps that neither explode nor vanish.
LR_G, LR_D, BETA2, EPS, EMA = 1e-4, 2e-4, 0.999, 1e-8, 0.9999
STYLE_RATE, STYLE_BETA2, R1_GAMMA, PATH_WEIGHT, PATH_DECAY = 2e-3, 0.99, 10.0, 2.0, 0.01
SPECTRAL_EPS, NORM_EPS = 1e-6, 1e-5


@dataclass(frozen=True)
class Workload:
    """One kind of training step.

    Attributes:
      name: what it is called on the command line and in results.
      resolution, width, attention, classes: of a BigGAN with hierarchical latents and a shared embedding of 128
        numbers.
      z_dim: length of the whole latent.
      batch: real images in one update of D, and fakes in one of G.
      trains: "full": one update of D, one of G and the running average. "embedding": G's class embedding only;
        everything else is frozen, G uses its stored statistics and D is not updated.
      about: one line for tables.
    """

    name: str
    resolution: int
    width: int
    attention: str
    classes: int
    z_dim: int
    batch: int
    trains: Literal["full", "embedding"]
    about: str
    family: ClassVar[str] = "biggan"

    @property
    def latent(self) -> int:
        """Length of the latent that the generator takes: every block and the first layer get equally long parts."""
        parts = {32: 4, 128: 6}[self.resolution]
        return self.z_dim // parts * parts


@dataclass(frozen=True)
class StyleWorkload:
    """One phase of StyleGAN2's training.

    Attributes:
      name, about: as in `Workload`.
      resolution, channel_base, channel_max, latent, mapping_layers: of a StyleGAN2 without classes; z and w have equal
        lengths.
      batch: of the phase.
      trains: "main": an update of D, one of G, and the running average. "r1": D's slope penalty and its update. "path
        length": G's and its update, on a half batch.
    """

    name: str
    resolution: int
    channel_base: int
    channel_max: int
    latent: int
    mapping_layers: int
    batch: int
    trains: Literal["main", "r1", "path length"]
    about: str
    family: ClassVar[str] = "stylegan2"
    classes: ClassVar[int] = 1


_SMALL = {"resolution": 32, "width": 16, "attention": "16", "classes": 10, "z_dim": 128, "batch": 16}
_LARGE = {"resolution": 128, "width": 16, "attention": "64", "classes": 1000, "z_dim": 120, "batch": 8}
_PUBLISHED = {"resolution": 128, "width": 96, "attention": "64", "classes": 1000, "z_dim": 120, "batch": 2}
_STYLE = {"resolution": 64, "channel_base": 1024, "channel_max": 128, "latent": 128, "mapping_layers": 2}
_TINY_STYLE = {"resolution": 16, "channel_base": 64, "channel_max": 8, "latent": 8, "mapping_layers": 2}
_TINY = {"resolution": 32, "width": 2, "attention": "16", "classes": 3, "z_dim": 16, "batch": 8}

WORKLOADS: dict[str, Workload | StyleWorkload] = {
    workload.name: workload
    for workload in (
        Workload("c1", **_SMALL, trains="full", about="BigGAN-32, width 16, batch 16, full"),
        Workload("c2", **_SMALL, trains="embedding", about="BigGAN-32, width 16, batch 16, class embedding only"),
        Workload("b128", **_LARGE, trains="full", about="BigGAN-128, width 16, batch 8, full"),
        Workload(
            "b128-embedding", **_LARGE, trains="embedding", about="BigGAN-128, width 16, batch 8, class embedding only"
        ),
        Workload("published128", **_PUBLISHED, trains="full", about="BigGAN-128 as published, for --skip steps starts"),
        StyleWorkload("c3", **_STYLE, batch=8, trains="main", about="StyleGAN2-64, base 1024, batch 8, main phases"),
        StyleWorkload("c4a", **_STYLE, batch=8, trains="r1", about="the same, batch 8, R1 phase"),
        StyleWorkload("c4b", **_STYLE, batch=4, trains="path length", about="the same, batch 4, path length phase"),
        StyleWorkload("tiny-style", **_TINY_STYLE, batch=4, trains="main", about="for trying the harness"),
        StyleWorkload("tiny-r1", **_TINY_STYLE, batch=4, trains="r1", about="for trying the harness"),
        StyleWorkload("tiny-path", **_TINY_STYLE, batch=4, trains="path length", about="for trying the harness"),
        Workload("tiny", **_TINY, trains="full", about="for trying the harness; its times mean nothing"),
        Workload("tiny-embedding", **_TINY, trains="embedding", about="for trying the harness; its times mean nothing"),
    )
}
MEASURED = ("c1", "c2", "b128", "b128-embedding")
MEASURED_STYLE = ("c3", "c4a", "c4b")
