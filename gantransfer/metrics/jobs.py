"""What an evaluation is made of: the metrics of a plan with their networks and settings, and against which images.

Whether the two sides are enough for each of them is found out here, before the first picture is generated.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gantransfer.errors import UserError
from gantransfer.metrics.metric import Metric
from gantransfer.metrics.pictures import GeneratedPictures, Pictures, RealPictures, check_sizes
from gantransfer.metrics.protocols import Plan
from gantransfer.metrics.reference_file import ReferenceFile
from gantransfer.metrics.statistics import FEATURES

# What fakes are compared with.
References = RealPictures | ReferenceFile
# Of numbers that compare with the training images, beside those that compare with the reference.
TRAIN_SUFFIX = "_train"


@dataclass(frozen=True)
class Job:
    """One metric of an evaluation.

    Attributes:
      metric: which.
      network: its network's name; None: it needs none.
      settings: its settings.
      by_train: whether the training images stand in the place of the reference.
    """

    metric: Metric
    network: str | None
    settings: Mapping[str, Any]
    by_train: bool = False

    @property
    def suffix(self) -> str:
        """What the names of its numbers end in."""
        return TRAIN_SUFFIX if self.by_train else ""


def jobs_of(plan: Plan, fake: Pictures, real: References, train: RealPictures | None) -> list[Job]:
    """The metrics of a plan, in its order; where the protocol wants both, that by the training images after the other.

    Raises:
      UserError: for a metric that the two sides are too few, or otherwise not made, for.
    """
    if isinstance(real, RealPictures):
        check_sizes(fake, real)
    jobs = []
    for metric in plan.metrics:
        settings = plan.protocol.settings_of(metric)
        job = Job(metric, plan.network_of(metric) if metric.needs_network else None, settings)
        _check_sides(job, fake, real)
        _check_train(metric, fake, train)
        jobs.append(job)
        if plan.protocol.both_references and metric.needs_real and train is not None and not _same(real, train):
            check_sizes(fake, train)
            jobs.append(replace(job, by_train=True))
            _check_sides(jobs[-1], fake, train)
    return jobs


def _same(real: References, train: RealPictures) -> bool:
    return isinstance(real, RealPictures) and real.identity == train.identity


def _check_sides(job: Job, fake: Pictures, real: References) -> None:
    """Refuses sides that the metric is not made for."""
    metric, name, least = job.metric, job.metric.name, job.metric.least_images(job.settings)
    pictured = isinstance(real, RealPictures)
    if not pictured and (metric.needs_real or metric.labels) and not metric.of_moments:
        raise UserError("--metrics", name, "with --reference what needs no more of real images: fid and fd_NETWORK")
    judged = [("generated", fake)]
    if metric.needs_real and pictured:
        judged.append(("training" if job.by_train else "real", real))
    for kind, side in judged:
        if len(side) < least:
            value = f"{len(side)} {kind} images ({side.name})"
            raise UserError(name, value, f"at least {least} for this metric")
    if metric.labels:
        _check_classes(name, fake, real)
    if metric.generator and not isinstance(fake, GeneratedPictures):
        raise UserError(name, fake.name, "a source that generates, not pictures of one")


def _check_train(metric: Metric, fake: Pictures, train: RealPictures | None) -> None:
    """Refuses training images that the metric is not made for, or none where it needs them."""
    if not metric.train:
        return
    if train is None or len(train) < 2:
        value = "unknown" if train is None else f"{len(train)} training images"
        allowed = "at least 2 images that the generator was trained on: a run, or --train DATA"
        raise UserError(metric.name, value, allowed)
    if metric.most_train is not None and len(train) > metric.most_train:
        raise UserError(
            metric.name, f"{len(train)} training images", f"at most {metric.most_train}: it is made for few"
        )
    check_sizes(fake, train)


def _check_classes(name: str, fake: Pictures, real: Pictures) -> None:
    ours, theirs = set(fake.labels.tolist()), set(real.labels.tolist())
    if len(ours | theirs) < 2:
        raise UserError(name, "one class", "labelled images: a folder for each class, or class names in the files")
    if ours != theirs:
        missing = sorted(ours ^ theirs)
        told = ", ".join(f"{c} ({'generated' if c in theirs else 'real'})" for c in missing[:5])
        raise UserError(name, f"{len(missing)} classes without images on one side: {told}", "the same classes on both")


def resolved(plan: Plan, jobs: Sequence[Job], networks: Mapping[str, Any]) -> list[Job]:
    """The jobs with the outputs that their networks have; `UserError` where they lack what is needed."""
    chosen = plan.overrides.get("settings", {})
    return [_with_outputs(job, networks.get(job.network), f"{job.metric.name}.output" in chosen) for job in jobs]


def _with_outputs(job: Job, network: Any, insisted: bool) -> Job:
    """The job with the outputs that the network has, in place of those that only the protocol's own has.

    Raises:
      UserError: where it has no logits and the metric needs them, or not the output that the user insists on.
    """
    settings = dict(job.settings)
    if network is None:
        return job
    if settings.get("output", FEATURES) not in (FEATURES, *network.outputs):
        if insisted:
            raise UserError(f"{job.metric.name}.output", settings["output"], ", ".join((FEATURES, *network.outputs)))
        settings["output"] = FEATURES
    if "logits" in job.metric.fake and settings.get("logits", "logits") not in network.outputs:
        if "logits" not in network.outputs:
            value = f"{network.name} gives {', '.join(network.outputs)}"
            raise UserError(job.metric.name, value, "a network with logits")
        settings["logits"] = "logits"
    return replace(job, settings=settings)
