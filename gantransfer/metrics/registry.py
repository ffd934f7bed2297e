"""Every metric by name: what it is, what it needs of both sides, how few pictures it takes, how it is computed.

A protocol picks metrics and their settings; `measure` sees to it that what they need is there and computed once.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from gantransfer.errors import UserError, one_of
from gantransfer.features import RANDOM
from gantransfer.metrics.metric import FEATURES, LOGITS, MOMENTS, Case, Metric, Value

METRICS: dict[str, Metric] = {}
# Names that papers use for networks of `fd_NETWORK`.
ALIASES = {"dinov2": "dinov2_vitl14", "dinov2_s": "dinov2_vits14"}


def _of_output(name: str, settings: Mapping[str, Any], network: str | None) -> str:
    """Names a number by the output of the network that it is taken of, if that is not its features."""
    output = settings.get("output", "features")
    return name if output == "features" else f"{name}_{output}"


def _of_embedding(name: str, settings: Mapping[str, Any], network: str | None) -> str:
    # Published numbers are of ViT-L/14 at 336 px; those of the small network must not be taken for them.
    return f"{name}_b32" if (network or "").removeprefix(RANDOM) == "clip_vit_b32" else name


def _of_path(name: str, settings: Mapping[str, Any], network: str | None) -> str:
    return f"{name}_{settings['space']}{settings['sampling']}"


def _metric(**described: Any) -> Callable[[Callable[[Case], list[Value]]], Callable[[Case], list[Value]]]:
    def register(compute: Callable[[Case], list[Value]]) -> Callable[[Case], list[Value]]:
        described.setdefault("makes", (described["name"],))
        METRICS[described["name"]] = Metric(compute=compute, **described)
        return compute

    return register


# Of the features of both sides, whatever they are distributed like.
_of_rows = partial(_metric, real=FEATURES, fake=FEATURES)


def _variant(of: str, name: str, about: str, network: str, **changes: Any) -> Metric:
    """A metric on the network that its own name stands for."""
    return replace(
        METRICS[of], name=name, makes=(name,), about=about, network=network, tied=True, named=None, **changes
    )


def find(name: str) -> Metric:
    """A metric by name; `fd_NETWORK` is the Fréchet distance on any registered feature network.

    Raises:
      UserError: for another name, with the names there are.
    """
    if name.startswith("fd_") and len(name) > 3:
        network = ALIASES.get(name[3:], name[3:])
        return _variant("fid", name, f"Fréchet distance of features of {network}", network, settings={"ddof": 1})
    return METRICS[one_of("metric", name, {*METRICS, "fd_NETWORK"})]


# ----------------------------------------------------------------------------------------- of distributions of features


@_metric(
    name="fid",
    about="Fréchet distance of the features' Gaussians; `ddof` 1 divides covariances by n - 1, 0 by n; "
    "of another `output` of the network it is called `fid_OUTPUT`",
    paper="Heusel et al. 2017",
    better="lower",
    named=_of_output,
    real=MOMENTS,
    fake=MOMENTS,
    settings={"ddof": 1, "output": "features"},
)
def _fid(case: Case) -> list[Value]:
    from gantransfer.metrics.frechet import Moments, frechet_distance

    output = case.settings.get("output", "features")
    real, fake = case.real.moments, case.fake.moments
    if output != "features":
        # Of a file of statistics there are moments only: those of the output that it was made of.
        real = Moments.of(case.real.rows[output]) if output in case.real.rows else real
        fake = Moments.of(case.fake.rows[output])
    width = len(fake.mean)
    details = {"width": width}
    if min(case.real.count, case.fake.count) <= width:
        details["note"] = f"fewer images than the {width} features, so the value is biased upwards"
    return [Value(case.names[0], frechet_distance(real, fake, case.settings["ddof"]), None, details)]


METRICS["fid_nvidia"] = _variant(
    "fid",
    "fid_nvidia",
    "the same by the pixels and the divisor of StyleGAN2-ADA's code, beside that of another protocol",
    "fid_inception",
    pipeline="legacy_tensorflow",
    settings={"ddof": 0},
)


@_of_rows(
    name="kid",
    about="squared discrepancy under a cubic kernel, mean over subsets; may be negative; the spread is of the subsets",
    paper="Bińkowski et al. 2018",
    better="lower",
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


@_of_rows(
    name="kid_full",
    about="the same over all pairs of the whole sets: nothing is drawn; the one to take for small sets",
    paper="Bińkowski et al. 2018",
    better="lower",
)
def _kid_full(case: Case) -> list[Value]:
    from gantransfer.metrics.kernel import kernel_distance_full

    return [Value("kid_full", kernel_distance_full(case.real.features, case.fake.features))]


@_of_rows(
    name="fid_infinity",
    about="the Fréchet distance extrapolated to infinitely many samples, by a line over 1 / n",
    paper="Chong and Forsyth 2020",
    better="lower",
    settings={"points": 15},
    least=30,
)
def _fid_infinity(case: Case) -> list[Value]:
    from gantransfer.metrics.infinity import frechet_infinity

    found = frechet_infinity(case.real.features, case.fake.features, points=case.settings["points"], seed=case.seed)
    return [Value("fid_infinity", found.pop("value"), None, found)]


@_of_rows(
    name="intra_fid",
    about="mean over classes of the Fréchet distance inside the class; far above that of the pooled sets",
    paper="Miyato and Koyama 2018",
    better="lower",
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


@_of_rows(
    name="cmmd",
    named=_of_embedding,
    about="1000 times the squared discrepancy of CLIP embeddings of unit length under a Gaussian kernel, sigma 10",
    paper="Jayasumana et al. 2024",
    better="lower",
    network="clip_vit_l14_336",
    settings={"sigma": 10.0},
)
def _cmmd(case: Case) -> list[Value]:
    from gantransfer.metrics.discrepancy import cmmd, unit_rows

    value = cmmd(unit_rows(case.real.features), unit_rows(case.fake.features), case.settings["sigma"])
    return [Value(case.names[0], value)]


METRICS["cmmd_b32"] = _variant(
    "cmmd",
    "cmmd_b32",
    "the same of the embeddings of CLIP ViT-B/32, a network of a third of the size at 224 px",
    "clip_vit_b32",
)


# ------------------------------------------------------------------------------------------------ of neighbours of rows


@_of_rows(
    name="precision_recall",
    makes=("precision", "recall"),
    about="share of fakes inside a ball of a real, and of reals inside a ball of a fake; balls are closed",
    paper="Kynkäänniemi et al. 2019",
    better="higher",
    network="vgg16",
    settings={"k": 3, "half": False},
    least="k",
)
def _precision_recall(case: Case) -> list[Value]:
    from gantransfer.metrics.precision_recall import improved_precision_recall

    k, half = case.settings["k"], case.settings["half"]
    found = improved_precision_recall(case.real.features, case.fake.features, k, half=half)
    return [Value(name, value) for name, value in found.items()]


@_of_rows(
    name="prdc",
    makes=("precision", "recall", "density", "coverage"),
    about="precision, recall, density and coverage with open balls",
    paper="Naeem et al. 2020",
    better="higher",
    settings={"k": 5},
    least="k",
)
def _prdc(case: Case) -> list[Value]:
    from gantransfer.metrics.precision_recall import precision_recall_density_coverage

    found = precision_recall_density_coverage(case.real.features, case.fake.features, case.settings["k"])
    return [Value(name, value) for name, value in found.items()]


METRICS["density_coverage"] = replace(
    METRICS["prdc"],
    name="density_coverage",
    makes=("density", "coverage"),
    about="how many balls of reals hold a fake, over k; share of those balls that hold one",
    compute=lambda case: [value for value in _prdc(case) if value.metric in ("density", "coverage")],
)


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


# ------------------------------------------------------------------------------------------- of the pictures themselves


@_metric(
    name="lpips_diversity",
    about="mean LPIPS distance of random pairs of samples, at 256 px; higher is more varied",
    paper="Zhang et al. 2018",
    better="higher",
    network="vgg16",
    maps=True,
    settings={"pairs": 1000, "size": 256, "heads": None},
)
def _lpips_diversity(case: Case) -> list[Value]:
    from gantransfer.metrics.of_pictures import diversity, heads_named

    return [
        Value("lpips_diversity", diversity(case), None, {"heads": heads_named(case.network, case.settings["heads"])})
    ]


@_metric(
    name="intra_lpips",
    about="mean LPIPS distance among samples that are nearest to the same training image; 0 for copies",
    paper="Ojha et al. 2021",
    better="higher",
    network="vgg16",
    train=True,
    # Each sample is compared with every training image.
    most_train=100,
    maps=True,
    settings={"samples": 5000, "limit": 50, "size": 256, "heads": None},
)
def _intra_lpips(case: Case) -> list[Value]:
    from gantransfer.metrics.of_pictures import heads_named, intra_cluster

    found = intra_cluster(case) | {"heads": heads_named(case.network, case.settings["heads"])}
    return [Value("intra_lpips", float(found.pop("value")), None, found)]


@_metric(
    name="ppl",
    named=_of_path,
    about="perceptual path length: LPIPS distance of both ends of a step of 1e-4 in latent space, over its square",
    paper="Karras et al. 2019",
    better="lower",
    network="vgg16",
    maps=True,
    generator=True,
    settings={"pairs": 50_000, "space": "w", "sampling": "end", "crop": False, "epsilon": 1e-4, "heads": None},
)
def _ppl(case: Case) -> list[Value]:
    from gantransfer.metrics.of_pictures import heads_named, perceptual_path_length

    details = {"heads": heads_named(case.network, case.settings["heads"])}
    return [Value(case.names[0], perceptual_path_length(case), None, details)]


@_metric(
    name="cas",
    makes=("cas", "cas_real_on_real", "cas_ratio"),
    about="accuracy on real images of a classifier trained on samples alone, beside that of one trained on real images",
    paper="Ravuri and Vinyals 2019",
    better="higher",
    labels=True,
    pictures=True,
    least=20,
    settings={"epochs": 30, "batch": 64, "width": 32, "repetitions": 3},
)
def _cas(case: Case) -> list[Value]:
    from gantransfer.metrics.classifier import accuracy_scores

    found = accuracy_scores(case.fake_pictures, case.real_pictures, case.settings, case.seed)
    spreads, details = found.pop("spreads"), found.pop("details")
    return [Value(name, value, spreads.get(name), details if name == "cas" else {}) for name, value in found.items()]
