"""The evaluations of a run: when they are due, what they measure, which is the best, and whether to go on.

Two kinds. With `evaluate.protocol` or `evaluate.metrics`, a protocol of `gantransfer.metrics.protocols`. With
`evaluate.features` alone, the quickstart's: one record of everything that a classifier of the data's classes tells.

What was best, and for how long nothing was better, is read from the run's own records, so a run that was killed and
started again stops where an uninterrupted one stops.
"""

import functools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from jaxtyping import UInt8

from gantransfer.data.image_set import ImageSet
from gantransfer.data.sources import open_images
from gantransfer.errors import UserError, one_of
from gantransfer.features import FeatureNetwork
from gantransfer.metrics.jobs import jobs_of, resolved
from gantransfer.metrics.measure import Surroundings, measure
from gantransfer.metrics.pictures import RealPictures
from gantransfer.metrics.protocols import get_protocol, make_plan
from gantransfer.metrics.records import Record, evaluations
from gantransfer.metrics.request import Draw, network_loader, reference_for, sides
from gantransfer.metrics.statistics import Reference
from gantransfer.pretrained.source import Source
from gantransfer.training import devices
from gantransfer.training.prepare import Task
from gantransfer.training.request import open_data, read_config

# Numbers of the quickstart's record by which the best state can be chosen, and whether lower is better.
QUICKSTART = {
    "frechet_distance": True,
    "class_accuracy": False,
    "precision": False,
    "recall": False,
    "density": False,
    "coverage": False,
}
QUICKSTART_SAMPLES = 2000
# Keys of lines that do not count as evaluations during training.
APART = ("asked", "at_end")


def check_network(field: str, network: FeatureNetwork, images: UInt8[np.ndarray, "n h w c"], num_classes: int) -> None:
    """Raises `UserError` for `field` unless the network takes the images and tells so many classes apart."""
    logits = network(images[:1]).get("logits")
    if logits is None or logits.shape[1] != num_classes:
        kind = "no classes" if logits is None else f"{logits.shape[1]} classes"
        raise UserError(field, f"{network.name}: {kind}", f"a network that tells {num_classes} classes apart")


def make_evaluator(task: Task) -> "Evaluator | None":
    """Returns what measures the run, or None where its config asks for no evaluation.

    Raises:
      UserError: for settings that say how to evaluate, but not by what.
    """
    asked = task.config.evaluate
    # Before networks and images are opened: cheap mistakes first.
    _points(tuple(asked.kimg))
    if asked.protocol or asked.metrics:
        return Evaluator(task, ByProtocol(task))
    if asked.features:
        return Evaluator(task, Quickstart(task))
    for name in ("best", "stop_after", "at_end"):
        if asked[name] is not None:
            raise UserError(f"evaluate.{name}", asked[name], "nothing without evaluate.protocol or evaluate.features")
    return None


class Quickstart:
    """The quickstart's measure: always the same latents, the same reference, the same classifier."""

    def __init__(self, task: Task):
        from gantransfer import features

        config, info = task.config.evaluate, task.source.info
        self.directions: Mapping[str, bool] = QUICKSTART
        self.network = features.load(config.features)
        self.count = config.samples or QUICKSTART_SAMPLES
        reference = task.images
        if config.data:
            reference = open_images(config.data, resolution=info.resolution, channels=info.channels)
            reference = reference.with_classes(task.images.class_names)
        self.real, self.real_labels = reference.arrays()
        self.trained_on, _ = task.images.arrays()
        self.reference = reference.name
        check_network("evaluate.features", self.network, self.real, info.num_classes)

    def __call__(self, source: Source) -> list[Record]:
        """`{"metrics": ..., "protocol": ...}` of a source."""
        from gantransfer.metrics.evaluation import evaluate_images

        labels = np.arange(self.count, dtype=np.int32) % source.info.num_classes
        fakes = source.sample(self.count, seed=0)
        record = evaluate_images(fakes, labels, self.real, self.real_labels, self.trained_on, self.network, seed=0)
        protocol = record.pop("protocol") | {"reference_set": self.reference}
        return [{"metrics": record, "protocol": protocol}]


class ByProtocol:
    """A protocol's measure against the run's images, or those of `evaluate.data`.

    Args:
      task: the run.
      protocol: another one than that of the config, for the end.
    """

    def __init__(self, task: Task, protocol: str | None = None):
        config = task.config.evaluate
        self.train = RealPictures(task.images)
        images = task.images if not config.data else reference_for(config.data, task.source)
        metrics = tuple(config.metrics) if protocol is None else ()
        self.plan = make_plan(
            protocol or config.protocol or "default",
            metrics or None,
            config.features,
            config.samples if protocol is None else None,
            training_images=len(self.train),
        )
        self.images, suffix = images, self.plan.protocol.suffix
        self.load = functools.cache(network_loader(self.plan, tuple(config.weights)))
        self.devices = devices.chosen(task.config.devices.count)
        fake, real, _ = sides(task.source, images, self.plan, Draw())
        # Before a step is taken: too few images, networks whose weights are missing.
        jobs = jobs_of(self.plan, fake, real, self.train)
        networks = {job.network: self.load(job.network) for job in jobs if job.network is not None}
        self.directions: Mapping[str, bool] = {
            name + suffix + job.suffix: job.metric.better == "lower"
            for job in resolved(self.plan, jobs, networks)
            for name in job.metric.names(job.settings, job.network)
        }

    def __call__(self, source: Source) -> list[Record]:
        """One record for each protocol among the metrics (networks differ), as lines of evaluations.jsonl."""
        fake, real, plan = sides(source, self.images, self.plan, Draw())
        how = Surroundings(reference=Reference(), devices=self.devices, quiet=True)
        return evaluations(measure(plan, fake, real, self.load, train=self.train, how=how))


class Evaluator:
    """What `Trainer` asks: is an evaluation due, what does it say, is it the best so far, is it enough?

    Raises:
      UserError: for points, a metric or a protocol that there is not, networks or images that do not fit the run.
    """

    def __init__(self, task: Task, measured: Quickstart | ByProtocol):
        config = task.config.evaluate
        self.measured, self.at = measured, _points(tuple(config.kimg))
        self.every = round(1000 * config.every_kimg) if config.every_kimg else None
        names = measured.directions
        self.best = next(iter(names)) if config.best is None else one_of("evaluate.best", config.best, names)
        self.lower = names[self.best]
        self.patience: int | None = config.stop_after
        self.final = ByProtocol(task, get_protocol(config.at_end).name) if config.at_end else None
        self.values: list[float] = []

    @property
    def at_start(self) -> bool:
        """Whether the first step is evaluated."""
        return 0 in self.at or not (self.at or self.every)

    def due(self, seen: int, snapshot: bool, per_step: int) -> bool:
        """Whether to evaluate now: at the configured points and intervals, or with every snapshot."""
        if not (self.at or self.every):
            return snapshot
        points = any(seen - per_step < point <= seen for point in self.at)
        return points or (self.every is not None and seen // self.every > (seen - per_step) // self.every)

    def measure(self, source: Source) -> list[Record]:
        """Lines of an evaluation, which also counts for what is best."""
        lines = self.measured(source)
        self._count(lines)
        return lines

    def at_end(self, source: Source) -> list[Record]:
        """Lines of the evaluation at the end of the run, by `evaluate.at_end`."""
        return [] if self.final is None else [{"at_end": True, **line} for line in self.final(source)]

    def resume(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Takes up what the run's records say of earlier evaluations."""
        self.values = []
        by_images: dict[int, list[Mapping[str, Any]]] = {}
        for line in lines:
            if not any(key in line for key in APART):
                by_images.setdefault(line["images_seen"], []).append(line)
        for _, found in sorted(by_images.items()):
            self._count(found)

    def _count(self, lines: Sequence[Mapping[str, Any]]) -> None:
        value = numbers_of(lines).get(self.best)
        worst = math.inf
        self.values.append(worst if value is None else value if self.lower else -value)

    @property
    def improved(self) -> bool:
        """Whether the newest evaluation is the best so far."""
        return bool(self.values) and self.values[-1] < min(self.values[:-1], default=math.inf)

    @property
    def enough(self) -> bool:
        """Whether so many evaluations in a row were no better that training stops."""
        if self.patience is None or not self.values:
            return False
        return len(self.values) - 1 - int(np.argmin(self.values)) >= self.patience


def numbers_of(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """All numbers of an evaluation's lines, by metric; those that could not be computed are left out."""
    return {name: value for line in lines for name, value in line["metrics"].items() if value is not None}


def _points(kimg: tuple[str, ...]) -> tuple[int, ...]:
    try:
        points = tuple(sorted(round(1000 * float(point)) for point in kimg))
    except (ValueError, OverflowError) as error:
        raise UserError("evaluate.kimg", kimg, "numbers of kimg, of at least 0") from error
    if points and points[0] < 0:
        raise UserError("evaluate.kimg", kimg, "numbers of kimg, of at least 0")
    return points


def trained_on(run: Path, source: Source) -> ImageSet:
    """The images that a run trains on, opened by its config; `UserError` where they have changed since."""
    config = read_config(ml_collections.ConfigDict(json.loads((run / "config.json").read_text("utf-8"))), {})
    images, before = open_data(config, source), json.loads((run / "data.json").read_text("utf-8"))
    if images.fingerprint != before["fingerprint"]:
        raise UserError("data.path", config.data.path, f"the images that {run} was trained on; these are others")
    return images


def quickstart_record(
    source: Source,
    images: ImageSet,
    features: str,
    *,
    num_images: int,
    seed: int,
    truncation: float,
    train_images: UInt8[np.ndarray, "n h w c"] | None,
) -> Record:
    """The quickstart's record of any source; without known training images memorisation is None and this is said.

    Raises:
      UserError: for a network that does not tell the source's classes apart, or reference images of other classes.
    """
    from gantransfer.features import load
    from gantransfer.metrics.evaluation import evaluate_images

    network, info = load(features), source.info
    if len(images.class_names) != info.num_classes:
        value = f"{images.name}: {len(images.class_names)} classes"
        raise UserError("data", value, f"a set with the {info.num_classes} classes of {info.name}")
    real, real_labels = images.arrays()
    check_network("features", network, real, info.num_classes)
    labels = np.arange(num_images, dtype=np.int32) % info.num_classes
    fakes = source.sample(num_images, seed=seed, truncation=truncation)
    # Without training images no real image counts as held out, so that nothing is compared that is not known.
    known = real if train_images is None else train_images
    record = evaluate_images(fakes, labels, real, real_labels, known, network, seed=seed)
    protocol = record.pop("protocol") | {"reference_set": images.name, "truncation": truncation}
    if train_images is None:
        protocol |= {"n_train": None, "reference": "all real images; which of them were trained on is not known"}
    return {"metrics": record, "protocol": protocol}
