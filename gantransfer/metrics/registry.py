"""Every metric by name: what it is, what it needs of both sides, how few pictures it takes, how it is computed.

A protocol picks metrics and their settings; `measure` sees to it that what they need is there and computed once.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gantransfer.errors import UserError, one_of
from gantransfer.metrics.pictures import Pictures
from gantransfer.metrics.statistics import Statistics

NOTHING: frozenset[str] = frozenset()
MOMENTS = frozenset({"moments"})
FEATURES = frozenset({"features"})
LOGITS = frozenset({"logits"})


@dataclass(frozen=True)
class Value:
    """One number of a metric.

    Attributes:
      metric: what the number is called.
      value: the number.
      spread: of subsets or splits, where the metric has one; not the error of the value.
      details: further JSON.
    """

    metric: str
    value: float
    spread: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """What a metric is computed of.

    Attributes:
      real, fake: statistics of both sides under the metric's network.
      real_pictures, fake_pictures: the sides themselves.
      network: the feature network.
      settings: of the metric, by the protocol.
      seed: of everything that the metric draws.
      train, train_pictures: what the generator was trained on; None where not known.
      folder: where pictures go; None: nowhere.
      name: of the metric as it was asked for.
    """

    real: Statistics
    fake: Statistics
    real_pictures: Pictures
    fake_pictures: Pictures
    network: Any
    settings: Mapping[str, Any]
    seed: int = 0
    train: Statistics | None = None
    train_pictures: Pictures | None = None
    folder: Path | None = None
    name: str = ""


@dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
      name: what it is asked for by.
      makes: names of its numbers.
      about: its definition in a line.
      paper: where it is from.
      better: whether `lower` or `higher` is better; empty where neither is.
      compute: from a `Case` to values.
      real, fake: what it needs of the sides' features.
      network: the network that published numbers take; None: the protocol's.
      settings: what can be set, with defaults.
      least: fewest pictures of each side: a number, or the name of a setting that it must exceed.
      labels: whether both sides need the same classes.
      train: whether it needs the images that were trained on.
      generator: whether it needs a generator, not pictures of one.
    """

    name: str
    makes: tuple[str, ...]
    about: str
    paper: str
    better: str
    compute: Callable[[Case], list[Value]]
    real: frozenset[str] = NOTHING
    fake: frozenset[str] = NOTHING
    network: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    least: int | str = 2
    labels: bool = False
    train: bool = False
    generator: bool = False

    def least_images(self, settings: Mapping[str, Any]) -> int:
        """Fewest pictures of each side under these settings."""
        return self.least if isinstance(self.least, int) else int(settings[self.least]) + 1


METRICS: dict[str, Metric] = {}


def _metric(**described: Any) -> Callable[[Callable[[Case], list[Value]]], Callable[[Case], list[Value]]]:
    def register(compute: Callable[[Case], list[Value]]) -> Callable[[Case], list[Value]]:
        described.setdefault("makes", (described["name"],))
        METRICS[described["name"]] = Metric(compute=compute, **described)
        return compute

    return register


def find(name: str) -> Metric:
    """A metric by name; `fd_NETWORK` is the Fréchet distance on any registered feature network.

    Raises:
      UserError: for another name, with the names there are.
    """
    if name.startswith("fd_") and len(name) > 3:
        plain = METRICS["fid"]
        return Metric(
            name=name,
            makes=(name,),
            about=f"Fréchet distance of features of {name[3:]}",
            paper=plain.paper,
            better="lower",
            compute=plain.compute,
            real=MOMENTS,
            fake=MOMENTS,
            network=name[3:],
            settings={"ddof": 1},
        )
    return METRICS[one_of("metric", name, {*METRICS, "fd_NETWORK"})]


# ----------------------------------------------------------------------------------------- of distributions of features


@_metric(
    name="fid",
    about="Fréchet distance of the features' Gaussians; `ddof` 1 divides covariances by n - 1, 0 by n",
    paper="Heusel et al. 2017",
    better="lower",
    real=MOMENTS,
    fake=MOMENTS,
    settings={"ddof": 1},
)
def _fid(case: Case) -> list[Value]:
    from gantransfer.metrics.frechet import frechet_distance

    width = len(case.fake.moments.mean)
    details = {"width": width}
    if min(case.real.count, case.fake.count) <= width:
        details["note"] = f"fewer images than the {width} features, so the value is biased upwards"
    return [
        Value(case.name, frechet_distance(case.real.moments, case.fake.moments, case.settings["ddof"]), None, details)
    ]


@_metric(
    name="kid",
    about="squared discrepancy under a cubic kernel, mean over subsets; may be negative; the spread is of the subsets",
    paper="Bińkowski et al. 2018",
    better="lower",
    real=FEATURES,
    fake=FEATURES,
    settings={"subsets": 100, "subset_size": 1000},
)
def _kid(case: Case) -> list[Value]:
    from gantransfer.metrics.kernel import kernel_distance

    subsets, size = case.settings["subsets"], case.settings["subset_size"]
    taken = min(size, case.real.count, case.fake.count)
    found = kernel_distance(case.real.features, case.fake.features, subsets, size, case.seed)
    details: dict[str, Any] = {"subset_size": taken}
    if taken < size:
        details["note"] = f"subsets of {taken} for {size}: smaller sets; kid_full draws nothing"
    return [Value("kid", found.mean, found.std, details)]


@_metric(
    name="kid_full",
    about="the same over all pairs of the whole sets: nothing is drawn; the one to take for small sets",
    paper="Bińkowski et al. 2018",
    better="lower",
    real=FEATURES,
    fake=FEATURES,
)
def _kid_full(case: Case) -> list[Value]:
    from gantransfer.metrics.kernel import kernel_distance_full

    return [Value("kid_full", kernel_distance_full(case.real.features, case.fake.features))]


@_metric(
    name="fid_infinity",
    about="the Fréchet distance extrapolated to infinitely many samples, by a line over 1 / n",
    paper="Chong and Forsyth 2020",
    better="lower",
    real=FEATURES,
    fake=FEATURES,
    settings={"points": 15},
    least=30,
)
def _fid_infinity(case: Case) -> list[Value]:
    from gantransfer.metrics.infinity import frechet_infinity

    found = frechet_infinity(case.real.features, case.fake.features, points=case.settings["points"], seed=case.seed)
    return [Value("fid_infinity", found.pop("value"), None, found)]


@_metric(
    name="intra_fid",
    about="mean over classes of the Fréchet distance inside the class; far above that of the pooled sets",
    paper="Miyato and Koyama 2018",
    better="lower",
    real=FEATURES,
    fake=FEATURES,
    settings={"ddof": 1},
    labels=True,
)
def _intra_fid(case: Case) -> list[Value]:
    from gantransfer.metrics.intra_class import intra_class_frechet_distance

    found = intra_class_frechet_distance(
        case.real.features,
        case.real_pictures.labels,
        case.fake.features,
        case.fake_pictures.labels,
        case.settings["ddof"],
    )
    per_class = {str(label): value for label, value in found["per_class"].items()}
    return [Value("intra_fid", found["value"], None, {"per_class": per_class, "excluded": found["excluded"]})]


@_metric(
    name="cmmd",
    about="1000 times the squared discrepancy of CLIP embeddings of unit length under a Gaussian kernel, sigma 10",
    paper="Jayasumana et al. 2024",
    better="lower",
    real=FEATURES,
    fake=FEATURES,
    network="clip_vit_b32",
    settings={"sigma": 10.0},
)
def _cmmd(case: Case) -> list[Value]:
    from gantransfer.metrics.discrepancy import cmmd, unit_rows

    value = cmmd(unit_rows(case.real.features), unit_rows(case.fake.features), case.settings["sigma"])
    return [Value("cmmd", value)]


# ------------------------------------------------------------------------------------------------ of neighbours of rows


@_metric(
    name="precision_recall",
    makes=("precision", "recall"),
    about="share of fakes inside a ball of a real, and of reals inside a ball of a fake; balls are closed",
    paper="Kynkäänniemi et al. 2019",
    better="higher",
    real=FEATURES,
    fake=FEATURES,
    network="vgg16",
    settings={"k": 3, "half": False},
    least="k",
)
def _precision_recall(case: Case) -> list[Value]:
    from gantransfer.metrics.precision_recall import improved_precision_recall

    k, half = case.settings["k"], case.settings["half"]
    found = improved_precision_recall(case.real.features, case.fake.features, k, half=half)
    return [Value(name, value) for name, value in found.items()]


@_metric(
    name="prdc",
    makes=("precision", "recall", "density", "coverage"),
    about="precision, recall, density and coverage with open balls",
    paper="Naeem et al. 2020",
    better="higher",
    real=FEATURES,
    fake=FEATURES,
    settings={"k": 5},
    least="k",
)
def _prdc(case: Case) -> list[Value]:
    from gantransfer.metrics.precision_recall import precision_recall_density_coverage

    found = precision_recall_density_coverage(case.real.features, case.fake.features, case.settings["k"])
    return [Value(name, value) for name, value in found.items()]


@_metric(
    name="density_coverage",
    makes=("density", "coverage"),
    about="how many balls of reals hold a fake, over k; share of those balls that hold one",
    paper="Naeem et al. 2020",
    better="higher",
    real=FEATURES,
    fake=FEATURES,
    settings={"k": 5},
    least="k",
)
def _density_coverage(case: Case) -> list[Value]:
    return [value for value in _prdc(case) if value.metric in ("density", "coverage")]


@_metric(
    name="memorisation",
    makes=("authenticity", "nearest_distance"),
    about="percent of samples that are no copies of a training image; median distance to the nearest one, over that "
    "of a training image to its nearest other; the nearest pairs as a picture",
    paper="Alaa et al. 2022",
    better="higher",
    fake=FEATURES,
    train=True,
    settings={"samples": 5000, "rows": 8, "neighbours": 7},
)
def _memorisation(case: Case) -> list[Value]:
    from gantransfer.metrics.memorisation import authenticity_percent, nearest_neighbours
    from gantransfer.metrics.sheet import write_nearest

    count = min(case.settings["samples"], case.fake.count)
    samples, train = case.fake.features[:count], case.train.features
    index, distance = nearest_neighbours(samples, train)
    own = _distance_to_next(train)
    details: dict[str, Any] = {"samples": count, "training_images": len(train)}
    if case.folder is not None:
        shown = write_nearest(
            case.folder / "nearest_training_images.png",
            case.fake_pictures,
            case.train_pictures,
            samples,
            train,
            rows=case.settings["rows"],
            neighbours=case.settings["neighbours"],
        )
        details["picture"] = str(shown)
    ratio = float(np.median(distance) / np.median(own)) if np.median(own) > 0 else float("inf")
    details["nearest"] = [
        {"sample": int(i), "training_image": int(index[i]), "distance": float(distance[i])}
        for i in np.argsort(distance, kind="stable")[: case.settings["rows"]]
    ]
    return [
        Value("authenticity", authenticity_percent(samples, train), None, details),
        Value("nearest_distance", ratio, None, {"of": "the same median between training images"}),
    ]


def _distance_to_next(rows: np.ndarray) -> np.ndarray:
    """Distance of each row to its nearest other."""
    from gantransfer.metrics.distances import flat_rows, squared_distance_blocks

    rows = flat_rows("training images", rows, least=2)
    nearest = np.empty(len(rows))
    for part, squares in squared_distance_blocks(rows, rows):
        squares[np.arange(len(squares)), np.arange(part.start, part.stop)] = np.inf
        nearest[part] = np.sqrt(squares.min(axis=1))
    return nearest


# ----------------------------------------------------------------------------------- of fakes alone, and of classifiers


@_metric(
    name="inception_score",
    about="exp of the mean divergence of a sample's class probabilities from their mean; does not look at reals",
    paper="Salimans et al. 2016",
    better="higher",
    fake=LOGITS,
    settings={"splits": 10, "logits": "logits"},
    least="splits",
)
def _inception_score(case: Case) -> list[Value]:
    from gantransfer.metrics.inception import inception_score_of_logits

    splits, kind = case.settings["splits"], case.settings["logits"]
    mean, std = inception_score_of_logits(case.fake.rows[kind], splits)
    return [Value("inception_score", mean, std if splits > 1 else None)]


@_metric(
    name="class_accuracy",
    about="share of samples that the network's own classes put where they were asked for",
    paper="",
    better="higher",
    fake=LOGITS,
    labels=True,
)
def _class_accuracy(case: Case) -> list[Value]:
    from gantransfer.metrics.accuracy import class_accuracy

    logits = case.fake.rows["logits"]
    classes = logits.shape[1]
    if case.fake_pictures.labels.max() >= classes:
        raise UserError(
            "class_accuracy", f"{case.network.name}: {classes} classes", "a classifier of the data's classes"
        )
    return [Value("class_accuracy", class_accuracy(logits, case.fake_pictures.labels))]


@_metric(
    name="vendi",
    about="effective number of different samples: exp of the entropy of their similarities' eigenvalues",
    paper="Friedman and Dieng 2023",
    better="higher",
    fake=FEATURES,
    settings={"samples": 5000},
)
def _vendi(case: Case) -> list[Value]:
    from gantransfer.metrics.diversity import vendi_score

    rows = case.fake.features[: case.settings["samples"]]
    return [Value("vendi", vendi_score(rows), None, {"samples": len(rows)})]
