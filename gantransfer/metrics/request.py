"""From what was asked for to the two sides of an evaluation: sources or pictures, the reference, the networks."""

import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gantransfer import features
from gantransfer.data import ImageSet, choose, open_images
from gantransfer.data.builtin import is_builtin
from gantransfer.errors import UserError
from gantransfer.metrics.batch_norm import choose_batch_norm
from gantransfer.metrics.jobs import References
from gantransfer.metrics.measure import Surroundings, measure
from gantransfer.metrics.pictures import GeneratedPictures, Pictures, RealPictures
from gantransfer.metrics.protocols import MOST_DEFAULT, Plan
from gantransfer.metrics.records import Record
from gantransfer.metrics.reference_file import ReferenceFile
from gantransfer.pretrained import catalogue
from gantransfer.pretrained.source import Source

IMAGE_FILES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


def names_pictures(name: str) -> bool:
    """Whether a `--source` names pictures (a folder or zip of images, a set) rather than something that generates."""
    if name in catalogue.CATALOGUE:
        return False
    if name.startswith("tfds:") or is_builtin(name):
        return True
    place = name if os.path.exists(name) else name.rpartition(":")[0]
    if os.path.isfile(place):
        return zipfile.is_zipfile(place) and any(_is_image(file) for file in zipfile.ZipFile(place).namelist())
    # A run and a source hold pictures too (grids), beside what makes them one.
    if not os.path.isdir(place) or any(
        os.path.exists(os.path.join(place, own)) for own in ("snapshots", "config.json")
    ):
        return False
    return any(_is_image(file) for _, _, files in os.walk(place) for file in files)


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_FILES)


def open_pictures(field: str, name: str, like: ImageSet | None = None) -> ImageSet:
    """Opens pictures that are judged, or judged against, as they are: nothing is resized or cut.

    Args:
      field: what the user calls them.
      name: as `open_images` takes it.
      like: a set of the other side, whose number of channels is taken.

    Raises:
      UserError: pictures of several sizes, or not square: resizing some of them would move every number.
    """
    channels = None if like is None else like.channels
    images = open_images(name, channels=channels)
    changed = [note for note in images.notes if "resized" in note or "not square" in note]
    if changed:
        raise UserError(field, f"{name}: {changed[0]}", "square images of one size; resize them by one rule first")
    return images


def judged(name: str | Path | ImageSet) -> ImageSet | None:
    """The pictures that a `--source` names; None where it names something that generates."""
    if isinstance(name, ImageSet):
        return name
    return open_pictures("--source", str(name)) if names_pictures(str(name)) else None


def reference_for(data: str | Path | ImageSet, source: Source | ImageSet) -> ImageSet:
    """Reference images; of a source at its size, and numbered as its classes where they have the same names.

    Raises:
      UserError: as `open_pictures`, where pictures are compared with pictures.
    """
    if isinstance(source, ImageSet):
        images = data if isinstance(data, ImageSet) else open_pictures("--data", str(data), source)
        known = set(images.class_names) == set(source.class_names)
        return images.with_classes(source.class_names) if known else images
    info = source.info
    opened = isinstance(data, ImageSet)
    images = data if opened else open_images(str(data), resolution=info.resolution, channels=info.channels)
    return images.with_classes(info.class_names) if same_classes(images, source) else images


def same_classes(images: ImageSet, source: Source) -> bool:
    """Whether a set has classes of the same names as a source."""
    return set(images.class_names) == set(source.info.class_names)


@dataclass(frozen=True)
class Draw:
    """How samples are drawn.

    Attributes:
      seed: of latents and labels, and of what metrics draw.
      truncation: as `Source.sample` takes it.
      batch_norm: what the generator normalises by: `stored`, `standing` or `batch`; None: what is usual for it.
      std_max, std_step: of `standing`: samples in the largest batch, number of batches; None: 64 and 64.
    """

    seed: int = 0
    truncation: float = 1.0
    batch_norm: str | None = None
    std_max: int | None = None
    std_step: int | None = None


def evaluate(
    side: Source | ImageSet,
    images: ImageSet | ReferenceFile,
    plan: Plan,
    train: ImageSet | None,
    draw: Draw,
    repeats: int,
    weights: Sequence[str],
    how: Surroundings,
) -> list[Record]:
    """Measures a source, or pictures, against images by a plan; see `gantransfer.api.evaluate`."""
    fake, real, plan = sides(side, images, plan, draw)
    if isinstance(side, Source):
        about = {"source": side.info.name, "images_seen": side.info.images_seen}
    else:
        about = {"source": side.name, "images_seen": None}
    load, known = network_loader(plan, weights), None if train is None else RealPictures(train)
    return measure(plan, fake, real, load, train=known, about=about, seed=draw.seed, repeats=repeats, how=how)


def sides(
    side: Source | ImageSet, images: ImageSet | ReferenceFile, plan: Plan, draw: Draw
) -> tuple[Pictures, References, Plan]:
    """Both sides of an evaluation, and the plan with what follows from them.

    Raises:
      UserError: more pictures asked for than there are, labels that cannot be drawn, statistics that a generator lacks.
    """
    real = images if isinstance(images, ReferenceFile) else RealPictures(images, plan.protocol.mirror_real)
    if isinstance(side, Source):
        batch_norm = choose_batch_norm(side, draw.batch_norm, draw.std_max, draw.std_step)
        rule, classes = plan.protocol.labels, side.info.num_classes
        if rule == "data" and classes > 1 and not _fit(images, side):
            known = f" ({len(images.class_names)} classes)" if isinstance(images, ImageSet) else ""
            allowed = f"one whose labels are not drawn from the data, or --labels turn; the source has {classes}"
            raise UserError("protocol", f"{plan.protocol.name}: labels of {images.name}{known}", allowed)
        # One class: there is nothing to draw.
        rule = "turn" if classes == 1 else rule
        labels = np.asarray(images.labels) if rule == "data" else None
        wanted = plan.protocol.num_images(_count(plan, real))
        return GeneratedPictures(side, wanted, draw.seed, draw.truncation, rule, labels, batch_norm), real, plan
    for flag, value in (("--batch_norm", draw.batch_norm), ("--labels", plan.overrides.get("labels"))):
        if value is not None:
            raise UserError(flag, value, f"nothing for pictures that are there already ({side.name})")
    asked = plan.overrides.get("num_images")
    if asked is not None and asked > len(side):
        raise UserError("--num_images", asked, f"at most {len(side)}, the images of {side.name}")
    if asked is not None and asked < len(side):
        return RealPictures(choose(side, images=asked, seed=draw.seed)), real, plan
    if len(side) != plan.protocol.num_images(_count(plan, real, len(side))):
        overrides = {**plan.overrides, "num_images": len(side)}
        plan = Plan(plan.protocol, plan.metrics, overrides)
    return RealPictures(side), real, plan


def _count(plan: Plan, real: References, unknown: int | None = None) -> int:
    """How many real images there are, for protocols that draw as many; `unknown` where a file does not say."""
    count = real.count if isinstance(real, ReferenceFile) else len(real)
    if count is not None:
        return count
    if plan.protocol.count == "reference" and unknown is None:
        raise UserError("--num_images", None, f"a number: {real.name} does not say of how many images it was made")
    return MOST_DEFAULT if unknown is None else unknown


def _fit(images: ImageSet | ReferenceFile, source: Source) -> bool:
    return isinstance(images, ImageSet) and len(images.class_names) == source.info.num_classes


def network_loader(plan: Plan, weights: Sequence[str] = ()) -> Callable[[str], Any]:
    """Loads feature networks with the protocol's pixel pipeline, where they have a choice.

    Args:
      plan: of the evaluation.
      weights: `NAME=PATH` of weights files, or one PATH for the network of `--features` (or of the protocol).

    Raises:
      UserError: weights of a network that the evaluation does not use.
    """
    files: dict[str, str] = {}
    named = [plan.network_of(metric) for metric in plan.metrics if metric.needs_network]
    used = list(dict.fromkeys(name.partition("@")[0] for name in named))
    main = str(plan.overrides.get("network", plan.protocol.network))
    for given in weights:
        name, equals, path = given.partition("=")
        name, path = (name, path) if equals else (main, given)
        if name not in used:
            raise UserError("--weights", given, "weights of " + ", ".join(used))
        files[name] = path

    def load(asked: str) -> Any:
        name, _, pipeline = asked.partition("@")
        return features.load(name, files.get(name), pipeline_of(name, pipeline or plan.protocol.pipeline))

    return load


def pipeline_of(name: str, pipeline: str) -> str | None:
    """The pipeline for a network that published tools resize for in several ways; None for all others."""
    known: Mapping[str, Any] = features.architectures()
    architecture = known.get(name.removeprefix(features.RANDOM))
    return pipeline if architecture is not None and architecture.input.backbone else None
