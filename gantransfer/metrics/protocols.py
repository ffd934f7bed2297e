"""What a number was measured under, by name: a metric without its protocol is a number that nobody can compare.

| protocol | whose numbers it is made to compare with |
|---|---|
| `default` | this project's: clean resize, as many samples as the data's size suggests, several metrics |
| `studiogan` | PyTorch-StudioGAN's benchmark: friendly resize, as many samples as real images |
| `nvidia` | StyleGAN2-ADA's `fid50k_full`, `kid50k_full`, `pr50k3_full`, `is50k` |
| `clean` | clean-fid |
| `fewshot` | few-shot transfer: 5,000 samples, and what unmasks copying beside every distance |
| `fd_dinov2` | dgm-eval: distances in DINOv2 |
| `quick` | curves during training: 2,000 samples; for nothing else |

Whoever changes a part of a protocol gets the change into the record, under `overrides`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gantransfer.config import literal
from gantransfer.errors import UserError, one_of
from gantransfer.features import RANDOM
from gantransfer.metrics.metric import Metric
from gantransfer.metrics.pictures import LABEL_RULES
from gantransfer.metrics.registry import find

LEAST_DEFAULT, MOST_DEFAULT = 5_000, 50_000
# With fewer training images copying is the usual failure, and distances to the training images reward it.
FEW_SHOT = 1000


@dataclass(frozen=True)
class Protocol:
    """How a set of metrics is measured.

    Attributes:
      name: what records call it.
      about: whose numbers it compares with.
      metrics: which metrics are measured where nothing else is asked for.
      count: generated images: a number, `reference` (as many as there are real images), or `by_size` (as many, but at
        least 5,000 and at most 50,000).
      labels: of the samples: the classes in `turn`, `uniform`, or drawn from the `data`.
      network: of the metrics that have none of their own.
      networks: by metric, where the protocol takes another than the metric's own.
      pipeline: how pictures are brought to the networks' size, where they have a choice.
      settings: by metric, where they differ from the metric's own.
      mirror_real: whether mirror images of reals count as reals.
      most_real: by metric, how many real images count at most; the first ones.
      both_references: whether what is compared with real images is compared with the training images too, where those
        are others.
      suffix: added to the names of numbers that must not be taken for others'.
    """

    name: str
    about: str
    metrics: tuple[str, ...]
    count: int | str
    labels: str = "turn"
    network: str = "fid_inception"
    networks: Mapping[str, str] = field(default_factory=dict)
    pipeline: str = "clean"
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    mirror_real: bool = False
    most_real: Mapping[str, int] = field(default_factory=dict)
    both_references: bool = False
    suffix: str = ""

    def num_images(self, real: int) -> int:
        """Generated images beside so many real ones."""
        if self.count == "reference":
            return real
        if self.count == "by_size":
            return min(max(real, LEAST_DEFAULT), MOST_DEFAULT)
        return int(self.count)

    def settings_of(self, metric: Metric) -> dict[str, Any]:
        """What the metric is computed with."""
        return {**metric.settings, **self.settings.get(metric.name, {})}

    def network_of(self, metric: Metric) -> str:
        """The metric's feature network."""
        return self.networks.get(metric.name) or metric.network or self.network


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="default",
            about="clean resize, from 5,000 to 50,000 samples by the size of the data, uniform labels in turn",
            metrics=("fid", "kid", "prdc"),
            count="by_size",
        ),
        Protocol(
            name="studiogan",
            about="PyTorch-StudioGAN 0.4: friendly resize, as many samples as real images, random labels, k = 5",
            metrics=("fid", "inception_score", "prdc"),
            count="reference",
            labels="uniform",
            pipeline="friendly",
            settings={"inception_score": {"splits": 1}},
        ),
        Protocol(
            name="nvidia",
            about="StyleGAN2-ADA (PyTorch): 50,000 samples, all reals unmirrored, covariances over n, VGG16 in float16",
            metrics=("fid", "kid", "precision_recall", "inception_score"),
            count=50_000,
            labels="data",
            pipeline="legacy_tensorflow",
            settings={
                "fid": {"ddof": 0},
                "precision_recall": {"half": True},
                "inception_score": {"logits": "logits_unbiased"},
            },
            most_real={"precision_recall": 200_000, "kid": 1_000_000},
        ),
        Protocol(
            name="clean",
            about="clean-fid: float bicubic resize, 50,000 samples",
            metrics=("fid", "kid"),
            count=50_000,
            labels="data",
        ),
        Protocol(
            name="fewshot",
            about="few-shot transfer: 5,000 samples against few images; memorisation beside every distance",
            metrics=("fid", "fid_nvidia", "kid_full", "intra_lpips", "memorisation", "prdc"),
            count=5_000,
            both_references=True,
        ),
        Protocol(
            name="fd_dinov2",
            about="dgm-eval: distances in DINOv2 ViT-L/14, 50,000 samples; agrees with people better than Inception",
            metrics=("fd_dinov2", "kid", "prdc", "vendi"),
            count=50_000,
            network="dinov2_vitl14",
        ),
        Protocol(
            name="quick",
            about="for curves during training: 2,000 samples, FID of 768 features; compares with its own numbers only",
            metrics=("fid", "kid_full", "density_coverage"),
            count=2_000,
            settings={"fid": {"output": "768"}},
            suffix="_quick",
        ),
    )
}


def get_protocol(name: str) -> Protocol:
    """A protocol by name; `UserError` with the names there are."""
    return PROTOCOLS[one_of("protocol", name, PROTOCOLS)]


@dataclass(frozen=True)
class Plan:
    """A protocol with what was changed of it.

    Attributes:
      protocol: with the changes.
      metrics: what is measured, in order.
      overrides: what was changed, for the record.
    """

    protocol: Protocol
    metrics: tuple[Metric, ...]
    overrides: Mapping[str, Any]

    def network_of(self, metric: Metric) -> str:
        """The metric's feature network: `NAME`, or `NAME@PIPELINE` with other pixels than the protocol's.

        The network asked for wins, except over one that the metric's name stands for.
        """
        name, asked = self.protocol.network_of(metric), self.overrides.get("network")
        if asked is not None and (not metric.tied or _is(asked, name)):
            name = asked
        return name if metric.pipeline in (None, self.protocol.pipeline) else f"{name}@{metric.pipeline}"


def _is(asked: str, name: str) -> bool:
    """Whether a network asked for is that one, be it with random weights."""
    return asked.removeprefix(RANDOM) == name


def make_plan(
    protocol: str | Protocol = "default",
    metrics: Sequence[str] | None = None,
    features: str | None = None,
    num_images: int | None = None,
    truncation: float = 1.0,
    training_images: int | None = None,
    settings: Mapping[str, Any] | None = None,
    labels: str | None = None,
    batch_norm: str | None = None,
) -> Plan:
    """What is to be measured.

    Args:
      protocol: by name.
      metrics: by name; None: the protocol's, and the memorisation check where there are fewer than 1,000 training
        images.
      features: one network for all metrics, instead of those of the protocol; of these, what is made of another network
        is left out then: by its name, or since it compares maps.
      num_images: generated images, instead of the protocol's number.
      truncation: of the samples; published numbers take 1.
      training_images: how many the generator was trained on; None: not known.
      settings: of metrics, by dotted name, such as `{"prdc.k": 3}`; text is read as a number where it is one.
      labels: of the samples, instead of the protocol's rule: `turn`, `uniform` or `data`.
      batch_norm: what the generator normalises by, where that was asked for; for the record only.

    Raises:
      UserError: for an unknown protocol, metric or setting.
    """
    named = get_protocol(protocol) if isinstance(protocol, str) else protocol
    found = [find(name) for name in dict.fromkeys(metrics or named.metrics)]
    if not metrics:
        if training_images is not None and training_images < FEW_SHOT and find("memorisation") not in found:
            found.append(find("memorisation"))
        found = [metric for metric in found if _suits(metric, features, training_images)]
    asked = {"network": features, "num_images": num_images, "labels": labels, "batch_norm": batch_norm}
    overrides: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    if num_images is not None:
        if num_images < 2:
            raise UserError("--num_images", num_images, "at least 2")
        named = replace(named, count=num_images)
    if labels is not None:
        named = replace(named, labels=one_of("--labels", labels, LABEL_RULES))
    if truncation != 1:
        overrides["truncation"] = truncation
    if settings:
        named = _changed(named, found, settings)
        overrides["settings"] = {name: literal(value) for name, value in settings.items()}
    return Plan(named, tuple(found), overrides)


def _suits(metric: Metric, features: str | None, training_images: int | None) -> bool:
    """Whether a metric of a protocol is measured on the network asked for, of a generator of so many images."""
    if metric.most_train is not None and training_images is not None and training_images > metric.most_train:
        return False
    return features is None or not (metric.tied or metric.maps) or _is(features, str(metric.network))


def _changed(protocol: Protocol, metrics: Sequence[Metric], settings: Mapping[str, Any]) -> Protocol:
    """The protocol with other settings of its metrics."""
    by_name = {metric.name: metric for metric in metrics}
    changed = {name: dict(own) for name, own in protocol.settings.items()}
    for dotted, value in settings.items():
        name, _, setting = dotted.partition(".")
        metric = by_name[one_of("--set", name, by_name)]
        default = metric.settings[one_of(f"--set {name}", setting, metric.settings)]
        read = str(value) if isinstance(default, str) else literal(value)
        if (
            default is not None
            and type(read) is not type(default)
            and not (type(default) is float and type(read) is int)
        ):
            raise UserError(f"--set {dotted}", value, f"a value like {default!r}")
        changed.setdefault(name, {})[setting] = read
    return replace(protocol, settings=changed)


def summary(protocol: Protocol) -> str:
    """A line of help."""
    count = {"reference": "as many as real images", "by_size": "5,000 to 50,000"}.get(str(protocol.count))
    return (
        f"{protocol.name}: {protocol.about} ({', '.join(protocol.metrics)}; {count or f'{protocol.count:,}'} samples)"
    )
