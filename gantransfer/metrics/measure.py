"""One evaluation: what the metrics of a plan need is computed in one pass of each side, then every metric, as records.

Everything that can be wrong with the request is found before the first picture is generated.
"""

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gantransfer import __version__
from gantransfer.errors import UserError
from gantransfer.metrics.frechet import Moments
from gantransfer.metrics.jobs import Job, References, jobs_of, resolved
from gantransfer.metrics.metric import NOTHING, Case, Value
from gantransfer.metrics.pictures import QUANTISATION, GeneratedPictures, Pictures, RealPictures
from gantransfer.metrics.progress import Progress
from gantransfer.metrics.protocols import Plan
from gantransfer.metrics.records import Record, over_seeds
from gantransfer.metrics.reference_file import COUNT_UNKNOWN, ReferenceFile, write_reference
from gantransfer.metrics.statistics import FEATURES, MOMENTS, Parts, Reference, Statistics, gather

# Words of notes of a set that tell how its pictures were changed when they were opened.
CHANGES = ("resized", "enlarged", "cut to", "padded", "repeated to three", "turned to grey")
PACKAGES = ("jax", "jaxlib", "numpy", "scipy", "pillow")


@dataclass(frozen=True)
class Surroundings:
    """How an evaluation is computed; nothing of it changes a number by more than rounding.

    Attributes:
      reference: where statistics of real pictures are kept; None: nowhere.
      resume: whether an interrupted pass over samples goes on where it stopped.
      batch, devices: as `collect`.
      folder: where pictures go; None: none are written.
      quiet: whether no progress is told.
      write_reference: a file to write the real pictures' statistics to, for other evaluations; None: none.
    """

    reference: Reference | None = None
    resume: bool = False
    batch: int | None = None
    devices: Sequence[jax.Device] | None = None
    folder: Path | None = None
    quiet: bool = False
    write_reference: Path | None = None


def measure(
    plan: Plan,
    fake: Pictures,
    real: References,
    load: Callable[[str], Any],
    *,
    train: RealPictures | None = None,
    about: Mapping[str, Any] | None = None,
    seed: int = 0,
    repeats: int = 1,
    how: Surroundings | None = None,
) -> list[Record]:
    """Measures one side against the other.

    Args:
      plan: which metrics, by which protocol.
      fake: what is judged.
      real: the reference.
      load: a feature network by name.
      train: what the generator was trained on.
      about: further keys of the record: `source`, `images_seen`.
      seed: of what metrics draw.
      repeats: how often samples are generated anew, of this seed and those after it; see `records.over_seeds`.
      how: how it is computed.

    Returns:
      A record for each number: `metric`, `value`, `spread`, `details`, and everything that it was measured under.

    Raises:
      UserError: as `jobs_of` and `collect`; repetitions of what is not generated, or a reference file of another width.
    """
    how = how or Surroundings()
    began = time.monotonic()
    jobs = jobs_of(plan, fake, real, train)
    fakes = _repetitions(fake, repeats)
    if how.write_reference is not None:
        _check_writing(jobs, real)
    networks = {name: load(name) for name in dict.fromkeys(job.network for job in jobs) if name is not None}
    jobs = resolved(plan, jobs, networks)
    if isinstance(real, ReferenceFile):
        _check_reference(jobs, networks, real, fake.shape)
    kept: list[Parts] = []
    known = {
        "real": {} if isinstance(real, ReferenceFile) else _pass("real", real, jobs, networks, how, kept),
        "train": {} if train is None else _pass("train", train, jobs, networks, how, kept),
    }
    if how.write_reference is not None:
        _write(how.write_reference, jobs[0], networks, real, known["real"])
    runs = []
    for number, side in enumerate(fakes):
        sides = known | {"fake": _pass("fake", side, jobs, networks, how, kept)}
        shared = _protocol(plan, side, real, seed + number) | dict(about or {})
        records: list[Record] = []
        for job in jobs:
            # Pictures are of the first seed.
            case = _case(plan, job, networks, sides, (side, real, train), seed + number, None if number else how.folder)
            values = job.metric.compute(case)
            own = _own(job, networks.get(job.network), case.real, train if job.by_train else real)
            records += [_record(value, plan.protocol.suffix + job.suffix) | shared | own for value in values]
        runs.append(records)
    for parts in kept:
        parts.clear()
    merged = over_seeds(runs)
    for record in merged:
        record["wall_seconds"] = round(time.monotonic() - began, 2)
    return merged


def _repetitions(fake: Pictures, repeats: int) -> list[Pictures]:
    """The side with one seed after the other."""
    if repeats < 1:
        raise UserError("--repeats", repeats, "at least 1")
    if repeats == 1:
        return [fake]
    if not isinstance(fake, GeneratedPictures):
        raise UserError("--repeats", repeats, f"1: nothing is generated, the images of {fake.name} are what they are")
    return [fake.again(fake.seed + number) for number in range(repeats)]


def _check_writing(jobs: Sequence[Job], real: References) -> None:
    """Refuses to write statistics where it is not clear which."""
    of_moments = [job for job in jobs if job.metric.of_moments]
    kinds = {(job.network, job.settings.get("output", FEATURES), job.settings["ddof"]) for job in of_moments}
    if isinstance(real, ReferenceFile) or len(kinds) != 1 or jobs[0] not in of_moments:
        told = real.name if isinstance(real, ReferenceFile) else "metrics " + ", ".join(job.metric.name for job in jobs)
        raise UserError("--write_reference", told, "--data, and fid or one fd_NETWORK as the first of --metrics")


def _check_reference(
    jobs: Sequence[Job], networks: Mapping[str, Any], real: ReferenceFile, shape: tuple[int, int, int]
) -> None:
    """Refuses a file of another network, before anything is generated."""
    for job in jobs:
        if job.metric.of_moments:
            network, output = networks[job.network], str(job.settings.get("output", FEATURES))
            picture = jax.ShapeDtypeStruct((1, *shape), np.uint8)
            call = lambda params, images, network=network, output=output: network.forward(params, images, (output,))
            found = jax.eval_shape(call, network.params, picture)
            real.check(network, output, found[output].shape[-1])


def _write(path: Path, job: Job, networks: Mapping[str, Any], real: RealPictures, known: Mapping[str, Any]) -> None:
    """Writes the statistics of the real side that the first metric has used."""
    output, found = str(job.settings.get("output", FEATURES)), known[job.network]
    moments = found.moments if output == FEATURES else Moments.of(found.rows[output])
    about = {"reference_set": real.name, "real_fingerprint": real.images.fingerprint, "mirror": real.mirror}
    write_reference(path, moments, networks[job.network], output, job.settings["ddof"], **about)


def _case(
    plan: Plan,
    job: Job,
    networks: Mapping[str, Any],
    sides: Mapping[str, Mapping[str, Statistics]],
    pictures: tuple[Pictures, References, RealPictures | None],
    seed: int,
    folder: Path | None,
) -> Case:
    """What a metric is computed of."""
    fake, real, train = pictures
    network, side = networks.get(job.network), sides["train" if job.by_train else "real"]
    real = train if job.by_train else real
    if isinstance(real, ReferenceFile):
        found = Statistics(real.count or COUNT_UNKNOWN, real.moments(job.settings.get("ddof", 1)))
    else:
        found = _one_side(side, job.network, plan.protocol.most_real.get(job.metric.name), len(real))
    return Case(
        real=found,
        fake=_one_side(sides["fake"], job.network, None, len(fake)),
        real_pictures=None if isinstance(real, ReferenceFile) else real,
        fake_pictures=fake,
        network=network,
        settings=job.settings,
        seed=seed,
        train=sides["train"].get(job.network),
        train_pictures=train,
        folder=folder,
        names=job.metric.names(job.settings, network and network.name),
    )


def _own(job: Job, network: Any, found: Statistics, real: References) -> Record:
    """What the numbers of one metric were measured under; of those by the training images also which these are."""
    count = real.count if isinstance(real, ReferenceFile) else found.count
    return {
        "n_real": count if job.metric.needs_real else None,
        "network": network and network.name,
        "network_sha256": network and network.sha256,
        "pipeline": network and network.info.get("preprocessing"),
        "divisor": {1: "n - 1", 0: "n"}.get(job.settings.get("ddof", -1)),
        "settings": dict(job.settings),
        **(_about_real(real) if job.by_train else {}),
    }


def _pass(
    side: str,
    pictures: Pictures,
    jobs: Sequence[Job],
    networks: Mapping[str, Any],
    how: Surroundings,
    kept: list[Parts],
) -> dict[str, Statistics]:
    """Statistics of a side (`fake`, `real` or `train`) by network; `kept` gets the states of passes to be removed."""

    def parts(*arguments: Any) -> Parts:
        kept.append(Parts.of(*arguments))
        return kept[-1]

    wants: dict[str, frozenset[str]] = {}
    for job in jobs:
        train = (job.metric.real if job.by_train else set()) | ({FEATURES} if job.metric.train else set())
        real = NOTHING if job.by_train else job.metric.real
        own = {"real": real, "fake": job.metric.fake, "train": train}[side]
        kinds = {_kind(kind, job.settings) for kind in own}
        if kinds and job.network is not None:
            wants[job.network] = wants.get(job.network, frozenset()) | kinds
    if not wants:
        return {}
    return gather(
        pictures,
        {name: networks[name] for name in wants},
        wants,
        reference=None if side == "fake" else how.reference,
        parts=parts if how.resume else None,
        batch=how.batch,
        devices=how.devices,
        progress=None if how.quiet else Progress(f"features of {pictures.name}"),
    )


def _kind(kind: str, settings: Mapping[str, Any]) -> str:
    """What is wanted of the network for a need of a metric: which logits, which output."""
    if kind == "logits":
        return str(settings.get("logits", kind))
    other = settings.get("output", FEATURES)
    return kind if other == FEATURES or kind != MOMENTS else str(other)


def _one_side(sides: Mapping[str, Statistics], network: str | None, most: int | None, count: int) -> Statistics:
    found = sides.get(network, Statistics(count))
    if most is None or found.count <= most:
        return found
    # Only rows can be cut; a protocol limits only metrics of rows.
    return Statistics(most, None, {kind: rows[:most] for kind, rows in found.rows.items()})


def _record(value: Value, suffix: str) -> Record:
    number = float(value.value)
    return {
        "metric": value.metric + suffix,
        "value": number if np.isfinite(number) else None,
        "spread": value.spread,
        "details": dict(value.details),
    }


def _protocol(plan: Plan, fake: Pictures, real: References, seed: int) -> Record:
    """What all numbers of an evaluation share."""
    generated = isinstance(fake, GeneratedPictures)
    height, _, channels = fake.shape
    return {
        "protocol": plan.protocol.name,
        "overrides": dict(plan.overrides),
        "n_generated": len(fake),
        "seed": seed,
        "repeats": 1,
        "quantise": QUANTISATION if generated else "image files",
        **_about_real(real),
        "resolution": height,
        "channels": channels,
        "labels_rule": fake.rule if generated else "of the images",
        "truncation": fake.truncation if generated else None,
        "generator_weights": "ema" if generated else None,
        "generator_fingerprint": key_of_side(fake),
        "batch_norm_rule": fake.batch_norm.described if generated else None,
        "precision": "float32, products at the highest precision",
        "device_kind": jax.devices()[0].device_kind,
        "device_count": jax.device_count(),
        "versions": versions(),
    }


def _about_real(real: References) -> Record:
    """What the reference is; of a file of statistics, the file and its hash."""
    if isinstance(real, ReferenceFile):
        return {
            "reference_set": real.about.get("reference_set", real.name),
            "reference_file": {"name": real.name, "sha256": real.sha256},
            "real_fingerprint": real.about.get("real_fingerprint"),
            "real_split": real.about.get("split"),
            "mirror_real": real.about.get("mirror"),
            "pre_resize": None,
        }
    place, colon, split = real.name.rpartition(":")
    return {
        "reference_set": real.name,
        "reference_file": None,
        "real_fingerprint": real.images.fingerprint,
        "real_split": split if place and colon else "all",
        "mirror_real": real.mirror,
        "pre_resize": [note for note in real.images.notes if any(word in note for word in CHANGES)],
    }


def key_of_side(fake: Pictures) -> str:
    """The hash of the generator's weights, or of the images judged."""
    return str(fake.identity.get("generator") or fake.identity.get("fingerprint"))


def versions() -> dict[str, str]:
    """Versions of what numbers depend on."""
    found = {"gantransfer": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
