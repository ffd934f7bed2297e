"""What is measured of sources and of pictures, for notebooks and for the verbs evaluate and select."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from gantransfer import config
from gantransfer import features as feature_networks
from gantransfer.data import ImageSet, open_images
from gantransfer.errors import UserError
from gantransfer.metrics import request
from gantransfer.metrics.measure import Surroundings
from gantransfer.metrics.protocols import Protocol, get_protocol, make_plan
from gantransfer.metrics.records import append, evaluations
from gantransfer.metrics.reference_file import read_reference
from gantransfer.metrics.registry import find
from gantransfer.metrics.statistics import Reference
from gantransfer.pretrained.source import Source
from gantransfer.run import Run, check_truncation, opened, run_at
from gantransfer.training import evaluator
from gantransfer.training.request import use_compile_cache

# Classifiers that ship: with one of them alone an evaluation is the quickstart's.
QUICKSTART_NETWORKS = ("digits_cnn", "letters_cnn")


def evaluate(
    source: str | Path | Run | Source | ImageSet,
    data: str | Path | ImageSet | None = None,
    *,
    metrics: Sequence[str] | None = None,
    features: str | None = None,
    protocol: str | None = None,
    num_images: int | None = None,
    seed: int = 0,
    repeats: int = 1,
    truncation: float = 1.0,
    labels: str | None = None,
    batch_norm: str | None = None,
    std_max: int | None = None,
    std_step: int | None = None,
    reference: str | Path | None = None,
    write_reference: str | Path | None = None,
    weights: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    train: str | Path | ImageSet | None = None,
    train_images: UInt8[np.ndarray, "n h w c"] | None = None,
    output: str | Path | None = None,
    batch: int | None = None,
) -> list[dict[str, Any]]:
    """Measures generated images against real ones (docs/metrics.md).

    Args:
      source: what `load` takes, a run or source; or images to be judged: a folder, a zip, a set.
      data: reference images.
      metrics: by name; None: those of the protocol.
      features: one feature network for all metrics, `gantransfer list features`; None: those of the protocol.
      protocol: by name; None: `default`. With `features` alone, a classifier of the source's classes that ships: the
        quickstart's record.
      num_images: generated images; None: the protocol's number (the quickstart's: 2,000).
      seed, truncation: of the generated images.
      repeats: how often they are generated anew, of `seed` and the seeds after it: values are means, spreads ranges.
      labels: of the generated images, instead of the protocol's rule: `turn`, `uniform`, or drawn from the `data`.
      batch_norm: what the generator normalises by: `stored`, `standing` or `batch` statistics; None: stored.
      std_max, std_step: of `standing`: images in the largest batch and number of batches; None: 64 and 64.
      reference: instead of `data`, a file of statistics (npz with `mu` and `sigma`), for Fréchet distances.
      write_reference: such a file to be written of the reference images.
      weights: files of the networks' published weights: `NAME=PATH`, or one PATH for `features`.
      settings: of metrics, by dotted name, such as `{"prdc.k": 3}`.
      train: the images that the source was trained on, for the memorisation check; None: those of the run, where the
        source is a run.
      train_images: the same as an array, for the quickstart's record.
      output: a folder for pictures; None: the run's, where the source is a run, else none are written.
      batch: images per program call.

    Returns:
      A record for each number, with everything that it was measured under; a run also gets them as lines of its
      evaluations. Of the quickstart's measure one record, `{"metrics": ..., "protocol": ...}`.

    Raises:
      UserError: an unknown metric, network or protocol, images that do not fit, or too few of them.
    """
    check_truncation(truncation)
    use_compile_cache(config.defaults())
    if num_images is not None and num_images < 2:
        raise UserError("--num_images", num_images, "at least 2")
    judged, run = _judged(source)
    if (data is None) == (reference is None):
        raise UserError("--data", data, "reference images, or a file of their statistics by --reference, not both")
    images = read_reference(reference) if data is None else request.reference_for(data, judged)
    draw = request.Draw(seed, truncation, batch_norm, std_max, std_step)
    classified = metrics is None and protocol is None and features in QUICKSTART_NETWORKS
    if classified and not isinstance(judged, ImageSet):
        _check_quickstart(repeats=repeats, labels=labels, reference=reference, write_reference=write_reference)
        _check_quickstart(batch_norm=batch_norm, std_max=std_max, std_step=std_step)
        if train_images is None and run is not None:
            train_images = evaluator.trained_on(run.path, judged).arrays()[0]
        drawn = {"num_images": num_images or 2000, "seed": seed, "truncation": truncation}
        return [evaluator.quickstart_record(judged, images, features, **drawn, train_images=train_images)]
    trained = None if train is None else request.reference_for(train, judged)
    if train is None and run is not None:
        trained = _trained_on(run, judged, get_protocol(protocol or "default"), metrics)
    count = len(trained) if trained else None
    plan = make_plan(
        protocol or "default", metrics, features, num_images, truncation, count, settings, labels, batch_norm
    )
    if output is None and run is not None:
        output = run.path / "evaluations" / f"{judged.info.images_seen or 0:09d}"
    how = Surroundings(
        Reference(),
        resume=True,
        batch=batch,
        folder=Path(output) if output else None,
        write_reference=None if write_reference is None else Path(write_reference).expanduser(),
    )
    records = request.evaluate(judged, images, plan, trained, draw, repeats, weights, how)
    if run is not None:
        _keep(run, judged.info.images_seen or 0, records)
    return records


def _keep(run: Run, seen: int, records: Sequence[dict[str, Any]]) -> None:
    """Writes records into a run, apart from those of its training."""
    found = [{"images_seen": seen, "kimg": seen / 1000, "asked": True, **line} for line in evaluations(records)]
    append(run.path / "evaluations.jsonl", found)


def _judged(source: str | Path | Run | Source | ImageSet) -> tuple[Source | ImageSet, Run | None]:
    """What is measured, and the run that it is from."""
    images = request.judged(source) if isinstance(source, str | Path | ImageSet) else None
    run = source if isinstance(source, Run) else run_at(source) if isinstance(source, str | Path) else None
    return opened(source) if images is None else images, run


def _check_quickstart(**given: Any) -> None:
    """Refuses what the quickstart's record does not have."""
    for name, value in given.items():
        if value not in (None, 1):
            raise UserError(f"--{name}", value, "nothing with a classifier alone; name --metrics or a --protocol")


def _trained_on(run: Run, source: Source, protocol: Protocol, metrics: Sequence[str] | None) -> ImageSet | None:
    """The images that a run was trained on, where they are needed or would add numbers; else None."""
    needed = any(find(name).train for name in metrics or protocol.metrics)
    if metrics and not needed and not protocol.both_references:
        return None
    try:
        return evaluator.trained_on(run.path, source)
    except UserError as error:
        if needed:
            raise
        print(f"samples are not compared with the training images: {error}", file=sys.stderr)
        return None


def select(
    sources: Sequence[str | Path | Run | Source],
    data: str | Path | ImageSet,
    *,
    features: str = "fid_inception",
    networks: Sequence[str] | None = None,
    by: str = "samples",
    num_images: int | None = None,
    k: int = 5,
    seed: int = 0,
    weights: Sequence[str] = (),
    output: str | Path | None = None,
) -> list[dict[str, Any]]:
    """Ranks sources by how well they suit a target set; or, of one source, feature networks for its discriminator
    (docs/selection.md).

    Args:
      sources: what `load` takes, runs or sources; with `by="images"` also sets of images.
      data: the target's images.
      features: the feature network in which sources are compared.
      networks: instead of comparing sources: feature networks to compare, by how well each tells samples of the one
        source from the target's images.
      by: `samples` of the sources, or the `images` that they were trained on.
      num_images: of each side; None: as many as the target has, up to 10,000.
      k: neighbour that sets the radius of recall and precision.
      seed: of samples and draws.
      weights: files of the networks' published weights: `NAME=PATH`, or one PATH for `features`.
      output: a folder for `selection.json` and `selection.png`; None: nothing is written.

    Returns:
      One record for each source or network, best first.

    Raises:
      UserError: unknown names, too few images, fewer than two sources, or several of them with `networks`.
    """
    from gantransfer.selection import networks as of_networks
    from gantransfer.selection import sources as of_sources

    if num_images is not None and num_images < 2:
        raise UserError("--num_images", num_images, "at least 2")
    use_compile_cache(config.defaults())
    reference = Reference()
    if networks is not None:
        if len(sources) != 1:
            raise UserError("--sources", len(sources), "one source with --networks")
        source = opened(sources[0])
        chosen = {name: load_network(name, weights, networks) for name in dict.fromkeys(networks)}
        images = request.reference_for(data, source)
        settings = {"num_images": num_images, "seed": seed, "reference": reference}
        rows, module = of_networks.compare_networks(source, images, chosen, **settings), of_networks
    else:
        candidates = [_candidate(source, by) for source in sources]
        network = load_network(features, weights, [features])
        target = data if isinstance(data, ImageSet) else str(data)
        rows = of_sources.compare_sources(
            candidates, target, network, by=by, num_images=num_images, k=k, seed=seed, reference=reference
        )
        module = of_sources
    if output is not None:
        folder = Path(output)
        module.plot(rows, folder / "selection.png")
        (folder / "selection.json").write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
    return rows


def selection_table(rows: Sequence[dict[str, Any]]) -> str:
    """The records of `select` as a table for people."""
    from gantransfer.selection import networks, sources

    return (networks if "validation_accuracy" in rows[0] else sources).table(rows)


def load_network(name: str, weights: Sequence[str], names: Sequence[str]) -> Any:
    """A feature network by name, with its file among `NAME=PATH` (or a single PATH where there is one network)."""
    files: dict[str, str] = {}
    for given in weights:
        whose, equals, path = given.partition("=")
        if not equals and len(names) > 1 or (equals and whose not in names):
            raise UserError("--weights", given, "NAME=PATH for one of " + ", ".join(names))
        files[whose if equals else names[0]] = path if equals else given
    return feature_networks.load(name, files.get(name))


def _candidate(source: str | Path | Run | Source, by: str) -> Any:
    from gantransfer.selection.sources import Candidate

    if isinstance(source, Source):
        return Candidate(f"{source.info.name} ({source.fingerprint()[:12]})", source)
    name = str(source.path if isinstance(source, Run) else source)
    run = source if isinstance(source, Run) else run_at(source)
    if by == "images" and run is None:
        return Candidate(name, images=open_images(name))
    found = opened(source)
    return Candidate(name, found, evaluator.trained_on(run.path, found) if by == "images" else None)
