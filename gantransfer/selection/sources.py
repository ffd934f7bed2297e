"""Which pretrained source suits a target set: a ranked table by recall, as "When, Why, and Which Pretrained GANs Are
Useful?" (Grigoryev, Voynov, Babenko, ICLR 2022) found it to foretell transfer.

A source is useful where its samples already cover the target: recall is the share of target images inside a ball of at
least one sample. Recall saturates, and between sources of different kinds and ages the plain distance and the age told
more (docs/selection.md); so those, and whether a discriminator pulls samples towards the target, stand beside it. All
candidates are measured with as many samples, the same target images, the same network and the same k: recall depends
strongly on each of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Array, Float, UInt8

from gantransfer.data import ImageSet, choose, open_images
from gantransfer.errors import UserError, one_of
from gantransfer.metrics.frechet import frechet_distance
from gantransfer.metrics.measure import versions
from gantransfer.metrics.pictures import GeneratedPictures, Pictures, RealPictures
from gantransfer.metrics.precision_recall import precision_recall_density_coverage
from gantransfer.metrics.progress import Progress
from gantransfer.metrics.statistics import Reference, Statistics, gather
from gantransfer.pretrained.source import Source, in_batches
from gantransfer.selection.chart import draw_rows
from gantransfer.selection.gradients import gradient_similarity

MOST_IMAGES = 10_000
VARIANTS = ("samples", "images")
# Recalls that differ by less rank by Fréchet distance.
TIE = 0.01
# Distances to targets are taken in pixels: this many samples, and so many numbers of targets at most (1 GB).
GRADIENT_SAMPLES, TARGET_NUMBERS = 256, 2**27
WANTED = {"moments", "features"}


@dataclass(frozen=True)
class Candidate:
    """A source that could be taken.

    Attributes:
      name: as the user wrote it.
      source: its networks; None where only its images are compared.
      images: what it was trained on; None where its samples are compared.
    """

    name: str
    source: Source | None = None
    images: ImageSet | None = None


def rank(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows by recall, highest first; those within 0.01 of the first of their kind by Fréchet distance, lowest first.

    Each gets its `rank`, from 1.
    """
    by_recall = sorted(rows, key=lambda row: (-row["recall"], row["fid"]))
    ranked: list[Mapping[str, Any]] = []
    while by_recall:
        top = by_recall[0]["recall"]
        tied = [row for row in by_recall if top - row["recall"] < TIE]
        ranked += sorted(tied, key=lambda row: row["fid"])
        by_recall = by_recall[len(tied) :]
    return [{"rank": number, **row} for number, row in enumerate(ranked, 1)]


def compare_sources(
    candidates: Sequence[Candidate],
    data: str | ImageSet,
    network: Any,
    *,
    by: str = "samples",
    num_images: int | None = None,
    k: int = 5,
    seed: int = 0,
    reference: Reference | None = None,
    devices: Sequence[jax.Device] | None = None,
    quiet: bool = False,
) -> list[dict[str, Any]]:
    """Measures every candidate against the target and ranks them.

    Args:
      candidates: what could be taken.
      data: the target's images; opened at each candidate's size.
      network: a feature network.
      by: `samples` of the candidates, or the `images` that they were trained on.
      num_images: samples of each, and target images, at most; None: as many as the target has, up to 10,000.
      k: which neighbour sets the radius: 5 as in the paper's code, 3 for numbers beside StyleGAN's.
      seed: of samples and draws.
      reference: where statistics of real images are kept.
      devices, quiet: as `gantransfer.metrics.measure.Surroundings`.

    Returns:
      For each candidate, best first: `rank`, `source`, `recall`, `precision`, `fid`, `gradient_similarity` (None
      without a discriminator), `images_seen`, and everything that it was measured under.

    Raises:
      UserError: fewer than two candidates, the same one twice, or too few images for k.
    """
    one_of("--by", by, VARIANTS)
    names = [candidate.name for candidate in candidates]
    if len(names) < 2 or len(set(names)) < len(names):
        raise UserError("--sources", ",".join(names), "at least two, each once")
    count = num_images
    rows = []
    for candidate in candidates:
        target = _target(data, candidate, count or MOST_IMAGES, seed)
        count = min(len(target), MOST_IMAGES) if count is None else count
        side = _side(candidate, by, count, seed)
        if k < 1 or min(len(side), len(target)) <= k:
            value = f"{len(side)} images of {candidate.name}, {len(target)} of {target.name}"
            raise UserError("--k", k, f"at least 1 and below both counts ({value})")
        rows.append(_row(candidate, side, target, network, by, k, seed, reference, devices, quiet))
    generated = {row["n_candidate"] for row in rows}
    if len(generated) > 1:
        raise UserError("--num_images", count, f"at most {min(generated)}, so that all candidates have as many images")
    return rank(rows)


def _target(data: str | ImageSet, candidate: Candidate, most: int, seed: int) -> ImageSet:
    """The target at the candidate's size, cut to `most` images by the seed: the same ones for every candidate."""
    if isinstance(data, ImageSet):
        images = data
    else:
        like = candidate.images if candidate.source is None else candidate.source.info
        images = open_images(data, resolution=like.resolution, channels=like.channels)
    return choose(images, images=most, seed=seed) if len(images) > most else images


def _side(candidate: Candidate, by: str, count: int, seed: int) -> Pictures:
    if by == "samples":
        if candidate.source is None:
            raise UserError("--sources", candidate.name, "sources that generate; or --by images")
        return GeneratedPictures(candidate.source, count, seed)
    images = candidate.images
    if images is None:
        raise UserError("--sources", candidate.name, "with --by images: runs, or sets of images")
    return RealPictures(choose(images, images=count, seed=seed) if len(images) > count else images)


def _row(
    candidate: Candidate,
    side: Pictures,
    target: ImageSet,
    network: Any,
    by: str,
    k: int,
    seed: int,
    reference: Reference | None,
    devices: Sequence[jax.Device] | None,
    quiet: bool,
) -> dict[str, Any]:
    def features(pictures: Pictures, kept: Reference | None) -> Statistics:
        told = None if quiet else Progress(f"features of {pictures.name}")
        wants = {network.name: frozenset(WANTED)}
        settings = {"reference": kept, "devices": devices, "progress": told}
        return gather(pictures, {network.name: network}, wants, **settings)[network.name]

    real = features(RealPictures(target), reference)
    fake = features(side, reference if by == "images" else None)
    balls = precision_recall_density_coverage(real.features, fake.features, k)
    source = candidate.source
    return {
        "source": candidate.name,
        "recall": balls["recall"],
        "precision": balls["precision"],
        "fid": frechet_distance(real.moments, fake.moments),
        "gradient_similarity": None if source is None else pull(source, target, seed),
        "images_seen": None if source is None else source.info.images_seen,
        "by": by,
        "k": k,
        "seed": seed,
        "n_candidate": fake.count,
        "n_target": real.count,
        "target": target.name,
        "target_fingerprint": target.fingerprint,
        "resolution": target.resolution,
        "network": network.name,
        "network_sha256": network.sha256,
        "pipeline": network.info.get("preprocessing"),
        "fingerprint": str(side.identity.get("generator") or side.identity.get("fingerprint")),
        "versions": versions(),
    }


def pull(source: Source, target: ImageSet, seed: int = 0) -> float | None:
    """How far the source's discriminator pulls its samples towards the nearest target image; None without one.

    The cosine of the descent of the non-saturating loss and the way to the target, in pixels, mean over 256 samples;
    see `gradient_similarity`.
    """
    if source.discriminator is None:
        return None
    samples = GeneratedPictures(source, GRADIENT_SAMPLES, seed)
    images = source.generate(samples.z, samples.labels)
    classes = np.eye(source.info.num_classes, dtype=np.float32)[samples.labels]
    gradients = in_batches(partial(_descent, source.networks.discriminator, source.discriminator), images, classes)
    most = max(TARGET_NUMBERS // int(np.prod(images.shape[1:])), 1)
    some = choose(target, images=most, seed=seed) if len(target) > most else target
    return gradient_similarity(images, gradients, _to_floats(some.arrays()[0]))


def _to_floats(images: UInt8[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n h w c"]:
    return images.astype(np.float32) / 127.5 - 1


@partial(jax.jit, static_argnums=0)
def _descent(
    discriminator: nn.Module, variables: Any, images: Float[Array, "n h w c"], classes: Float[Array, "n k"]
) -> Float[Array, "n h w c"]:
    """Gradient of the generator's loss with respect to each image."""

    def loss(x: Float[Array, "n h w c"]) -> Array:
        logits = discriminator.apply(variables, x, classes).logits
        heads = logits if isinstance(logits, tuple) else (logits,)
        return sum(jax.nn.softplus(-head).reshape(len(x), -1).mean(1).sum() for head in heads) / len(heads)

    return jax.grad(loss)(images)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The whole ranked table as text."""
    width = max(len(row["source"]) for row in rows)
    lines = [f"rank  {'source':<{width}}  recall  precision       FID  pull of D  images seen"]
    for row in rows:
        similarity, seen = row["gradient_similarity"], row["images_seen"]
        lines.append(
            f"{row['rank']:>4}  {row['source']:<{width}}  {row['recall']:6.3f}  {row['precision']:9.3f}  "
            f"{row['fid']:8.4g}  {'       no' if similarity is None else f'{similarity:+9.3f}'}  "
            f"{'unknown' if seen is None else f'{seen:,}':>11}"
        )
    first = rows[0]
    lines.append(
        f"recall and precision with k = {first['k']}, {first['n_candidate']:,} {first['by']} of each against "
        f"{first['n_target']:,} of {first['target']}, features of {first['network']}"
    )
    if len({row["resolution"] for row in rows}) > 1:
        lines.append("candidates differ in size: each is compared with the target at its own size")
    if sum(row["recall"] > 1 - TIE for row in rows) > 1:
        lines.append("recall is saturated: among sources near 1 the FID tells more, at equal age (docs/selection.md)")
    return "\n".join(lines)


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Draws recall and precision of each candidate, best on top, with the FID beside; returns the file."""

    def paint(axes, places):
        axes.barh(places + 0.2, [row["recall"] for row in rows], 0.4, label="recall", color="#1f5fa8")
        axes.barh(places - 0.2, [row["precision"] for row in rows], 0.4, label="precision", color="#c9c9c9")
        for place, row in zip(places, rows, strict=True):
            axes.text(1.02, place, f"FID {row['fid']:.4g}", va="center", transform=axes.get_yaxis_transform())
        axes.set_xlim(0, 1)
        axes.set_xlabel(f"share of images, k = {rows[0]['k']}, {rows[0]['network']}")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)

    return draw_rows([row["source"] for row in rows], 0.5, paint, path)
