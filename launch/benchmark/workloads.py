"""The steps that are timed, in plain data that both sides of a comparison read: sizes, batch, what trains, rates.

Nothing is imported here but the standard library: one reader has no JAX and the other no PyTorch.
"""

from dataclasses import dataclass
from typing import Literal

# One set of rates for all: they decide no time, and parity wants steps that neither explode nor vanish.
LR_G, LR_D, BETA2, EPS, EMA = 1e-4, 2e-4, 0.999, 1e-8, 0.9999
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

    @property
    def latent(self) -> int:
        """Length of the latent that the generator takes: every block and the first layer get equally long parts."""
        parts = {32: 4, 128: 6}[self.resolution]
        return self.z_dim // parts * parts


_SMALL = {"resolution": 32, "width": 16, "attention": "16", "classes": 10, "z_dim": 128, "batch": 16}
_LARGE = {"resolution": 128, "width": 16, "attention": "64", "classes": 1000, "z_dim": 120, "batch": 8}
_PUBLISHED = {"resolution": 128, "width": 96, "attention": "64", "classes": 1000, "z_dim": 120, "batch": 2}
_TINY = {"resolution": 32, "width": 2, "attention": "16", "classes": 3, "z_dim": 16, "batch": 8}

WORKLOADS: dict[str, Workload] = {
    workload.name: workload
    for workload in (
        Workload("c1", **_SMALL, trains="full", about="BigGAN-32, width 16, batch 16, full"),
        Workload("c2", **_SMALL, trains="embedding", about="BigGAN-32, width 16, batch 16, class embedding only"),
        Workload("b128", **_LARGE, trains="full", about="BigGAN-128, width 16, batch 8, full"),
        Workload(
            "b128-embedding", **_LARGE, trains="embedding", about="BigGAN-128, width 16, batch 8, class embedding only"
        ),
        Workload("published128", **_PUBLISHED, trains="full", about="BigGAN-128 as published, for --skip steps starts"),
        Workload("tiny", **_TINY, trains="full", about="for trying the harness; its times mean nothing"),
        Workload("tiny-embedding", **_TINY, trains="embedding", about="for trying the harness; its times mean nothing"),
    )
}
MEASURED = ("c1", "c2", "b128", "b128-embedding")
