"""The static side of a step: every option resolved, before anything is traced."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gantransfer.methods.hooks import Method
from gantransfer.models.family import Networks, Role
from gantransfer.objectives.losses import AdversarialLoss
from gantransfer.training.partition import BatchNorm

Tree = Any
# Among the names of what is due: the generator waits for the discriminator.
WARM_UP = "warm-up of the discriminator"


@dataclass(frozen=True)
class Recipe:
    """What a step is made of; everything here is static.

    Attributes:
      networks: the pair.
      loss: adversarial loss.
      methods: in the order of the config.
      batch, d_steps, accumulate: images per discriminator update, updates of D per update of G, micro-batches per
        update.
      joint_pass: fakes and reals through D as one batch, fakes first.
      batch_norm: `stored` (running statistics, held), `batch` (batch statistics, running ones follow) or
        `batch_frozen`.
      rate_groups: per role, the rate group of each trained path.
      beta1, beta2, eps: of Adam.
      ema_decay, ema_start, ema_rampup: see `gantransfer.training.ema`; the start in images.
      warmup: iterations, from the first, in which the discriminator alone trains.
      warmup_gap: difference of the mean logits of reals and fakes that ends them earlier; None: nothing does.
      mirror: flip shown images by a coin of the draw.
      fake_labels: "uniform" over classes, or "data": labels of randomly drawn images.
      shard: constraint put on every batch (identity on one device).
    """

    networks: Networks
    loss: AdversarialLoss
    methods: tuple[Method, ...]
    batch: int
    d_steps: int
    accumulate: int
    joint_pass: bool
    batch_norm: BatchNorm
    rate_groups: Mapping[Role, Mapping[str, str]]
    beta1: float
    beta2: float
    eps: float
    ema_decay: float
    ema_start: float
    ema_rampup: float | None
    mirror: bool
    fake_labels: str
    shard: Callable[[Tree], Tree] = lambda tree: tree
    warmup: int = 0
    warmup_gap: float | None = None

    @property
    def images_per_step(self) -> int:
        """Real images that one iteration shows to the discriminator."""
        return self.batch * self.d_steps

    def with_hook(self, hook: str) -> tuple[Method, ...]:
        """The methods that define `hook`, in order."""
        return tuple(method for method in self.methods if hook in method.hooks())

    def due(self, iteration: int) -> frozenset[str]:
        """Names of the methods whose `loss` is computed in this iteration, and `WARM_UP` where a warm-up may still go
        on: a static flag, so each combination is one program.
        """
        names = frozenset(method.name for method in self.with_hook("loss") if iteration % method.every == 0)
        return names | {WARM_UP} if iteration < self.warmup else names
