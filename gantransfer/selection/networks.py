"""Which feature network suits a vision-aided discriminator: the one through whose features a plane best tells a
generator's samples from real images (Kumari, Zhang, Shechtman, Zhu, CVPR 2022, section 3.3).

A network of 50 % accuracy cannot tell them apart, so a discriminator on it learns nothing. One near 100 % with few
images tells them apart trivially: smooth its labels, or take more images.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gantransfer.data import ImageSet, choose
from gantransfer.errors import UserError
from gantransfer.metrics.measure import versions
from gantransfer.metrics.pictures import GeneratedPictures, RealPictures
from gantransfer.metrics.probe import linear_probe
from gantransfer.metrics.progress import Progress
from gantransfer.metrics.statistics import FEATURES, Reference, gather
from gantransfer.pretrained.source import Source
from gantransfer.selection.chart import draw_rows

MOST_IMAGES = 10_000
LEAST_IMAGES = 4
WANTED = frozenset({FEATURES})
TRIVIAL = 0.99


def compare_networks(
    source: Source,
    images: ImageSet,
    networks: Mapping[str, Any],
    *,
    num_images: int | None = None,
    repetitions: int = 3,
    seed: int = 0,
    reference: Reference | None = None,
    devices: Sequence[jax.Device] | None = None,
    quiet: bool = False,
) -> list[dict[str, Any]]:
    """Probes every network and ranks them by accuracy on held-out images.

    Args:
      source: the generator that is trained; its averaged weights make the samples.
      images: the real images, at its size; without mirror images.
      networks: the candidates by name. All of them see the same images and samples, in one pass.
      num_images: real images, and as many samples; None: all, up to 10,000.
      repetitions: how often reals are shuffled and both sets halved.
      seed: of samples and shuffles.
      reference: where features of real images are kept.
      devices, quiet: as `gantransfer.metrics.measure.Surroundings`.

    Returns:
      For each network, best first: `rank`, `network`, `validation_accuracy` with its 95 % interval `low` to `high`,
      `train_accuracy`, `verdict`, and everything that it was measured under.

    Raises:
      UserError: no network, or fewer than 4 images.
    """
    if not networks:
        raise UserError("--networks", "", "at least one feature network")
    count = min(len(images), num_images or MOST_IMAGES)
    if count < LEAST_IMAGES:
        raise UserError("images", count, f"at least {LEAST_IMAGES}")
    chosen = choose(images, images=count, seed=seed) if count < len(images) else images
    wants = dict.fromkeys(networks, WANTED)
    both = []
    for side, kept in ((RealPictures(chosen), reference), (GeneratedPictures(source, count, seed), None)):
        told = None if quiet else Progress(f"features of {side.name}")
        both.append(gather(side, networks, wants, reference=kept, devices=devices, progress=told))
    real, fake = both
    rows = []
    for name, network in networks.items():
        found = linear_probe(real[name].features, fake[name].features, repetitions=repetitions, seed=seed)
        rows.append(
            {
                "network": name,
                **found,
                "verdict": _verdict(found),
                "source": source.info.name,
                "generator_fingerprint": source.fingerprint(),
                "images_seen": source.info.images_seen,
                "n": count,
                "repetitions": repetitions,
                "seed": seed,
                "real_fingerprint": chosen.fingerprint,
                "network_sha256": network.sha256,
                "pipeline": network.info.get("preprocessing"),
                "versions": versions(),
            }
        )
    rows.sort(key=lambda row: -row["validation_accuracy"])
    return [{"rank": number, **row} for number, row in enumerate(rows, 1)]


def _verdict(found: Mapping[str, Any]) -> str:
    if found["low"] <= 0.5:
        return "cannot tell real from generated"
    if found["validation_accuracy"] >= TRIVIAL:
        return "tells them apart trivially: smooth labels, or take more images"
    return "tells them apart"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The whole table as text."""
    width = max(len(row["network"]) for row in rows)
    lines = [f"rank  {'network':<{width}}  held out  95 % interval   trained on"]
    for row in rows:
        held, low, high, own = (100 * row[name] for name in ("validation_accuracy", "low", "high", "train_accuracy"))
        lines.append(
            f"{row['rank']:>4}  {row['network']:<{width}}  {held:6.1f} %  {low:5.1f} to {high:5.1f}  {own:8.1f} %   "
            f"{row['verdict']}"
        )
    lines.append(f"{rows[0]['n']:,} real images and as many samples of {rows[0]['source']}, halved")
    return "\n".join(lines)


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Draws the held-out accuracy of each network with its interval, best on top; returns the file."""

    def paint(axes, places):
        middle = np.array([row["validation_accuracy"] for row in rows])
        ends = np.array([[row["low"] for row in rows], [row["high"] for row in rows]])
        axes.errorbar(middle, places, xerr=np.abs(ends - middle), fmt="o", color="#1f5fa8", capsize=3)
        axes.axvline(0.5, color="#999999", linewidth=1)
        axes.set_xlim(0.4, 1.02)
        axes.set_xlabel("held-out accuracy of a plane that tells real from generated (0.5: cannot)")

    return draw_rows([row["network"] for row in rows], 0.4, paint, path)
