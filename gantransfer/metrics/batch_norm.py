"""What a generator's batch norm layers normalise by while samples are measured: `stored`, `standing` or `batch`.

- `stored`: the running averages of training, as they lie in the source.
- `standing`: means over many batches of fakes that are drawn for it (Brock et al. 2019, appendix; the option
  `-std_stat` of PyTorch-StudioGAN). Batches have random sizes up to `largest`.
- `batch`: the moments of the samples' own batch. So that a sample depends neither on the program's batch nor on the
  number of devices, batches are numbered groups of `GROUP`: sample i is always in group i // GROUP.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Int32

from gantransfer.errors import UserError, one_of
from gantransfer.models.layers import standing_statistics
from gantransfer.pretrained.source import LARGEST_BATCH, Source, latents

STATISTICS = ("stored", "standing", "batch")
GROUP = LARGEST_BATCH
LARGEST, STEPS = 64, 64
# Each size is a program of its own, so batches have at most so many different ones, evenly spaced up to the largest.
MOST_SIZES = 8
# Keeps the latents of the statistics apart from those of the samples.
APART = 2**29


@dataclass(frozen=True)
class BatchNorm:
    """Which statistics a generator normalises by.

    Attributes:
      kind: one of `STATISTICS`; `none` for a generator without batch norm.
      largest: of `standing`: samples in the largest batch.
      steps: of `standing`: how many batches.
    """

    kind: str = "stored"
    largest: int = LARGEST
    steps: int = STEPS

    @property
    def group(self) -> int:
        """Samples that depend on each other."""
        return GROUP if self.kind == "batch" else 1

    @property
    def described(self) -> str:
        """For records."""
        return {
            "none": "no batch norm",
            "stored": "stored averages",
            "standing": f"standing statistics of {self.steps} batches of up to {self.largest}",
            "batch": f"statistics of batches of {GROUP}",
        }[self.kind]


def choose_batch_norm(
    source: Source, kind: str | None = None, largest: int | None = None, steps: int | None = None
) -> BatchNorm:
    """The rule for a source.

    Args:
      source: whose generator is measured.
      kind: one of `STATISTICS`; None: stored, or batch where the source's own options say so.
      largest, steps: of `standing`; None: 64 and 64.

    Raises:
      UserError: an unknown kind, one that the generator cannot have, sizes below 1 or without `standing`.
    """
    own = source.info.options.get("statistics_g") == "batch"
    if "batch_stats" not in source.ema:
        usual, allowed = "none", ("stored",)
    elif own:
        usual, allowed = "batch", ("batch",)
    else:
        usual, allowed = "stored", STATISTICS
    if kind is not None:
        one_of("--batch_norm", kind, STATISTICS)
        if kind not in allowed:
            why = "its option statistics_g says batch" if own else "its generator has no batch norm"
            raise UserError("--batch_norm", kind, f"{allowed[0]} for {source.info.name}: {why}")
    for name, value in (("--std_max", largest), ("--std_step", steps)):
        if value is not None and kind != "standing":
            raise UserError(name, value, "nothing without --batch_norm standing")
        if value is not None and value < 1:
            raise UserError(name, value, "at least 1")
    return BatchNorm(usual if kind in (None, "stored") else kind, largest or LARGEST, steps or STEPS)


def standing_batches(rule: BatchNorm, num_classes: int, seed: int) -> list[tuple[int, Int32[np.ndarray, "_s _n"]]]:
    """Sizes of batches, from small to large, and the labels of the batches of each, drawn evenly over the classes."""
    rng = np.random.Generator(np.random.PCG64([seed, rule.largest, rule.steps]))
    parts = min(rule.largest, MOST_SIZES)
    sizes = -(-rule.largest * np.arange(1, parts + 1) // parts)
    drawn, counts = np.unique(rng.choice(sizes, rule.steps), return_counts=True)
    return [
        (int(size), rng.integers(0, num_classes, (int(count), int(size)), np.int32))
        for size, count in zip(drawn, counts, strict=True)
    ]


def with_standing_statistics(source: Source, rule: BatchNorm, seed: int, truncation: float = 1.0) -> dict[str, Any]:
    """The averaged generator with standing statistics; the source stays as it is.

    Every batch counts alike, whatever its size. Latents are truncated as those of samples are: statistics belong to the
    distribution that they are used for.

    Args:
      source: a generator with batch norm.
      rule: how many batches of which sizes.
      seed: of latents, labels and sizes.
      truncation: as `Source.sample` takes it.
    """
    networks, variables = source.networks, dict(source.ema)
    batches = standing_batches(rule, networks.num_classes, seed)
    z, sums = _standing_latents(source, sum(labels.size for _, labels in batches), seed, truncation), None
    run = jax.jit(partial(_moved, networks.generator))
    for size, labels in batches:
        own, z = np.split(z, [labels.size])
        # Spectral vectors move on from batch to batch, as in training.
        variables |= run(variables, own.reshape(len(labels), size, -1), labels)
        share = len(labels) / rule.steps
        part = jax.tree.map(lambda values, share=share: share * values, variables["batch_stats"])
        sums = part if sums is None else jax.tree.map(lambda a, b: a + b, sums, part)
    return {**variables, "batch_stats": sums}


def _moved(generator: nn.Module, variables: Any, z: Float[Array, "s n z"], c: Int[Array, "s n"]) -> dict[str, Any]:
    """What the passes change; the weights stay where they are."""
    after = standing_statistics(generator, variables, z, c)
    return {name: after[name] for name in ("batch_stats", "spectral") if name in after}


def _standing_latents(source: Source, count: int, seed: int, truncation: float) -> Float32[np.ndarray, "n z"]:
    networks = source.networks
    scaled = networks.truncation != "call"
    drawn = latents(count, networks.z_dim, seed + APART, scaled and truncation < 1, networks.latent)
    return drawn * np.float32(truncation) if scaled else drawn


def whole_groups(rows: Int[np.ndarray, " n"]) -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " n"]]:
    """The numbers of all samples in the groups that some samples are in, and where those stand among them."""
    groups, where = np.unique(np.asarray(rows) // GROUP, return_inverse=True)
    members = (groups[:, None] * GROUP + np.arange(GROUP)).reshape(-1)
    return members, where * GROUP + np.asarray(rows) % GROUP
