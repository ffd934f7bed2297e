"""What notebooks import: each verb of the command line is one of these functions.

source = gantransfer.load("glyphs")
run = gantransfer.finetune(source, data="flowers.zip", mode="class_embedding_only", kimg=50, workdir="runs/flowers")
images = run.source.sample(16)
gantransfer.evaluate(run, data="flowers.zip", features="digits_cnn")
gantransfer.report([run])
"""

import json
import os
import runpy
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from gantransfer import config as fields
from gantransfer import methods
from gantransfer.data import ImageSet, choose, open_images
from gantransfer.errors import UserError, one_of
from gantransfer.methods.hooks import describe
from gantransfer.models import FAMILIES
from gantransfer.pretrained import catalogue
from gantransfer.pretrained.class_map import parse_class_map
from gantransfer.pretrained.folder import read_source
from gantransfer.pretrained.source import Source, fresh, latents, load, to_uint8
from gantransfer.pretrained.surgery import change_classes
from gantransfer.training import loop
from gantransfer.training.partition import MODES, get_mode
from gantransfer.training.prepare import Task, prepare
from gantransfer.training.records import RunFolder

__all__ = ["LISTINGS", "Run", "dry_run", "evaluate", "finetune", "list_sources", "listing", "load", "report", "sample"]

LISTINGS = ("sources", "modes", "methods", "families", "features", "config")
list_sources = catalogue.list_sources


@dataclass(frozen=True)
class Run:
    """A run folder, finished or not.

    Attributes:
      path: the folder.
    """

    path: Path

    @property
    def snapshot(self) -> Path | None:
        """The newest snapshot's folder."""
        found = sorted(
            (path for path in (self.path / "snapshots").glob("*") if path.name.isdigit()),
            key=lambda path: int(path.name),
        )
        return found[-1] if found else None

    @property
    def source(self) -> Source:
        """The networks of the newest snapshot."""
        return load(str(self.path))

    @property
    def images_seen(self) -> int:
        """Real images shown to the discriminator, as far as the newest snapshot tells."""
        return int(self.snapshot.name) if self.snapshot else 0

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One record per tick."""
        return _lines(self.path / "metrics.jsonl")

    @property
    def partition(self) -> list[dict[str, Any]]:
        """One record per leaf: role, path, group, whether it trains and why, parameters."""
        return json.loads((self.path / "partition.json").read_text("utf-8"))

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """One record per evaluation."""
        return _lines(self.path / "evaluations.jsonl")


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line] if path.is_file() else []


def _say(line: str) -> None:
    print(line, file=sys.stderr)


# --------------------------------------------------------------------------------------------------------------- config


def read_config(
    config: str | Path | ml_collections.ConfigDict | None, settings: Mapping[str, Any]
) -> ml_collections.ConfigDict:
    """Returns a checked config: defaults, then a file's `get_config()` (or a ConfigDict), then single settings by
    dotted name.

    Raises:
      UserError: a file that is missing or has no `get_config`, a misspelt field, a value out of range.
    """
    if isinstance(config, ml_collections.ConfigDict):
        resolved = config.copy_and_resolve_references()
    elif config is None:
        resolved = fields.defaults()
    else:
        if not Path(config).is_file():
            raise UserError("--config", str(config), "a Python file with get_config()")
        names = runpy.run_path(str(config))
        if "get_config" not in names:
            raise UserError("--config", str(config), "a Python file with get_config()")
        resolved = names["get_config"]()
    for name, value in settings.items():
        fields.set_field(resolved, name, value)
    fields.validate(resolved)
    return resolved


def _settings(settings: Mapping[str, Any] | None, **named: Any) -> dict[str, Any]:
    given = {name.replace("__", "."): value for name, value in named.items() if value is not None}
    return dict(settings or {}) | given


# ------------------------------------------------------------------------------------------------------------- finetune


def finetune(
    source: str | Path | Run | Source | None = None,
    data: str | Path | None = None,
    *,
    mode: str | None = None,
    kimg: float | None = None,
    batch: int | None = None,
    workdir: str | Path | None = None,
    seed: int | None = None,
    config: str | Path | ml_collections.ConfigDict | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Run:
    """Finetunes a source on images; called again with the same arguments, it goes on where the run stopped.

    Args:
      source: catalogue name, run, snapshot, source folder, or a loaded `Source`; None trains from scratch (or takes the
        config's).
      data: folder, zip, `tfds:NAME[:split]`, `digits` or `glyphs`.
      mode: what is transferred and trained; `gantransfer list modes`.
      kimg: length, in thousands of real images shown to the discriminator.
      batch: real images per update of the discriminator.
      workdir: the run's folder.
      seed: of everything random.
      config: a file with `get_config()`, or a ConfigDict.
      settings: further fields by dotted name, such as `{"optimizer.lr_d": 1e-3}`.

    Returns:
      The run.

    Raises:
      UserError: a setting, a file or a data set that does not fit; nothing has been lost.
      NotFinite: a metric is no longer finite.
      Stopped: a signal arrived; everything is saved.
    """
    named = _settings(settings, mode=mode, kimg=kimg, batch=batch, seed=seed)
    if workdir is not None:
        named["workdir"] = str(workdir)
    if data is not None:
        named["data.path"] = str(data)
    if source is not None:
        named["source"] = _source_name(source)
    resolved = read_config(config, named)
    if not resolved.workdir:
        raise UserError("workdir", resolved.workdir, "a folder for the run")
    if not resolved.data.path:
        raise UserError("data", resolved.data.path, "a folder, a zip, tfds:NAME[:split], digits or glyphs")
    use_compile_cache(resolved)
    get_mode(resolved.mode, tuple(resolved.transfer.train_g), tuple(resolved.transfer.train_d))
    # Everything that can be wrong with the request is found before the run's folder is touched.
    given = source if isinstance(source, Source) else None
    begun = Path(resolved.workdir, "config.json").is_file()
    decisions: list[str] = []
    if not begun:
        task = make_task(resolved, given, decisions.append)
    with RunFolder(resolved.workdir) as folder:
        if begun:
            fixed = {name for name, field in fields.FIELDS.items() if field.fixed} | {"model"}
            folder.compare_config(fields.to_json(resolved), fixed)
            task = resumed_task(resolved, folder)
        else:
            loop.begin(task, folder)
            for line in decisions:
                folder.say(line)
        loop.train(task, folder)
    return Run(Path(resolved.workdir))


def make_task(config: ml_collections.ConfigDict, given: Source | None, log: Any) -> Task:
    """Everything of a new run: images, networks with the target's classes, partition, state."""
    source = given if given is not None else load(config.source) if config.source else None
    images = open_data(config, source)
    source = scratch(config, images) if source is None else adapt(config, source, images, log)
    return prepare(config, source, images, log)


def resumed_task(config: ml_collections.ConfigDict, folder: RunFolder) -> Task:
    """The same from a run's folder: networks as they were at its first step, so the source need not exist any more."""
    source = read_source(folder.path / "start")
    images = open_data(config, source)
    folder.must_match("data.json", loop.describe_data(images), "the data set")
    return prepare(config, source, images, folder.say)


def _source_name(source: str | Path | Run | Source) -> str:
    if isinstance(source, Source):
        return f"{source.info.name} ({source.fingerprint()[:12]})"
    return str(source.path if isinstance(source, Run) else source)


def use_compile_cache(config: ml_collections.ConfigDict) -> None:
    """Switches JAX's persistent cache of compiled programs on, where the config names a folder and nobody has set
    one.
    """
    if config.run.compile_cache and not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(config.run.compile_cache))


def open_data(config: ml_collections.ConfigDict, source: Source | None) -> ImageSet:
    """Opens the target's images at the source's resolution and channels, and draws the few-shot subset that is asked
    for.

    Raises:
      UserError: a resolution or number of channels that contradicts the source's.
    """
    wanted = {"resolution": config.data.resolution, "channels": config.data.channels}
    if source is not None:
        for name, value in wanted.items():
            own = getattr(source.info, name)
            if value is not None and value != own:
                raise UserError(f"data.{name}", value, f"{own}, as source {source.info.name} makes; or leave it out")
            wanted[name] = own
    images = open_images(
        config.data.path,
        resolution=wanted["resolution"],
        channels=wanted["channels"],
        fit=config.data.fit,
        on_corrupt=config.data.on_corrupt,
        background=config.data.background,
    )
    if config.data.images is None and config.data.per_class is None and config.data.files is None:
        return images
    seed = config.seed if config.data.draw_seed is None else config.data.draw_seed
    return choose(
        images, images=config.data.images, per_class=config.data.per_class, files=config.data.files, seed=seed
    )


def scratch(config: ml_collections.ConfigDict, images: ImageSet) -> Source:
    """Fresh networks for the images, with the architecture options under `model`."""
    options = dict(config.model)
    family = options.pop("family", "biggan")
    return fresh(
        family,
        {"resolution": images.resolution, "channels": images.channels} | options,
        images.class_names,
        config.seed,
    )


def adapt(config: ml_collections.ConfigDict, source: Source, images: ImageSet, log: Any) -> Source:
    """Gives a source the target's classes, by the policy of `transfer.classes`, and prints what was replaced.

    Raises:
      UserError: other classes and no policy, or architecture options beside a source.
    """
    for name, value in dict(config.model).items():
        if name != "family" and dict(source.info.options).get(name) != value:
            raise UserError(
                f"model.{name}", value, f"nothing beside a source; {source.info.name} has its own architecture"
            )
    mode = get_mode(config.mode, tuple(config.transfer.train_g), tuple(config.transfer.train_d))
    transferred = [
        start or own for start, own in ((config.transfer.init_g, mode.init_g), (config.transfer.init_d, mode.init_d))
    ]
    if "source" not in transferred:
        log(f"nothing of {source.info.name} but its architecture is used")
        return fresh(source.info.family, source.info.options, images.class_names, config.seed)
    needs_images = config.transfer.classes in ("nearest", "from_images", "from_images_weighted")
    pixels, labels = images.arrays() if needs_images else (None, None)
    changed, changes = change_classes(
        source,
        images.class_names,
        policy=config.transfer.classes,
        class_map=parse_class_map(tuple(config.transfer.class_map)),
        noise=config.transfer.class_noise,
        images=None if pixels is None else pixels.astype(np.float32) / 127.5 - 1,
        labels=labels,
        d_embed_scale=config.transfer.projection_scale,
        seed=config.seed,
    )
    log(str(changes))
    return changed


def dry_run(
    *, config: str | Path | ml_collections.ConfigDict | None = None, settings: Mapping[str, Any] | None = None
) -> str:
    """Returns what a run would do, without touching its folder: config, data, partition, parameters, memory and flops
    of the step.
    """
    from gantransfer.training.plan import describe_task

    resolved = read_config(config, settings or {})
    if not resolved.data.path:
        raise UserError("data", resolved.data.path, "a folder, a zip, tfds:NAME[:split], digits or glyphs")
    use_compile_cache(resolved)
    lines: list[str] = []
    return describe_task(make_task(resolved, None, lines.append), lines)


# --------------------------------------------------------------------------------------------------------------- sample


def sample(
    source: str | Path | Run | Source,
    output: str | Path,
    *,
    seeds: str | Sequence[int] = "0-15",
    classes: Sequence[str | int] | None = None,
    truncation: float = 1.0,
    columns: int | None = None,
    interpolate: int | None = None,
) -> list[Path]:
    """Writes generated images.

    Args:
      source: what `load` takes, or a run or source.
      output: a `.png` for a grid (one row per class, one column per seed), a folder for single images named by class
        and seed; with `interpolate` a `.png` strip, `.gif` or `.mp4`.
      seeds: such as `"0-15,40"`; the image of a seed and class is the same in every call.
      classes: names or indices; None: all.
      truncation: above 0, up to 1.
      columns: images in a row of the grid; None: one per seed.
      interpolate: frames of a walk through the seeds, and through the classes where there are several, instead of
        single images.

    Returns:
      The files written.

    Raises:
      UserError: seeds that cannot be read, an unknown class, an output of a kind that is not known.
    """
    from gantransfer.reports import grids

    source = source.source if isinstance(source, Run) else source if isinstance(source, Source) else load(str(source))
    numbers = parse_seeds(seeds)
    rows = (
        [int(i) for i in source.class_indices(classes)] if classes is not None else list(range(source.info.num_classes))
    )
    output = Path(output)
    z = np.concatenate([latents(1, source.networks.z_dim, seed, cut=truncation < 1) for seed in numbers])
    if interpolate is not None:
        return [_write_walk(source, output, z, rows, truncation, interpolate)]
    pictures = to_uint8(source.generate(np.tile(z, (len(rows), 1)), np.repeat(rows, len(numbers)), truncation))
    names = [source.info.class_names[row] for row in rows]
    if output.suffix.lower() == ".png":
        wide = columns or len(numbers)
        picture = grids.grid(pictures, columns=wide, row_titles=names if wide == len(numbers) else None)
        return [grids.write_whole(output, grids.png_bytes(picture))]
    if output.suffix:
        raise UserError("--output", str(output), "a .png, a folder; .gif or .mp4 with --interpolate")
    output.mkdir(parents=True, exist_ok=True)
    written = []
    for k, picture in enumerate(pictures):
        row, seed = rows[k // len(numbers)], numbers[k % len(numbers)]
        written.append(output / f"class{row:04d}_seed{seed:06d}.png")
        grids.write_whole(
            written[-1], grids.png_bytes(Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture))
        )
    return written


def _write_walk(source: Source, output: Path, z: np.ndarray, rows: list[int], truncation: float, frames: int) -> Path:
    """Linear in z and in class weights from point to point, end points included."""
    from gantransfer.reports import grids

    if frames < 2:
        raise UserError("--interpolate", frames, "at least 2 frames")
    points = max(len(z), len(rows))
    if points < 2:
        raise UserError("--seeds", len(z), "at least two seeds or two classes to walk between")
    stops = np.stack([z[i % len(z)] for i in range(points)])
    weights = np.eye(source.info.num_classes, dtype=np.float32)[[rows[i % len(rows)] for i in range(points)]]
    at = np.linspace(0, points - 1, frames)
    left = np.minimum(at.astype(int), points - 2)
    share = (at - left)[:, None].astype(np.float32)
    mix = lambda a: (1 - share) * a[left] + share * a[left + 1]
    walk: UInt8[np.ndarray, "n h w c"] = to_uint8(source.generate(mix(stops), mix(weights), truncation))
    if output.suffix.lower() in (".gif", ".mp4"):
        return grids.save_video(output, walk, fps=24)
    if output.suffix.lower() == ".png":
        return grids.write_whole(output, grids.png_bytes(grids.strip(walk)))
    raise UserError("--output", str(output), ".png, .gif or .mp4 with --interpolate")


def parse_seeds(seeds: str | Sequence[int]) -> list[int]:
    """Reads seeds such as `"0-3,7"`; raises `UserError` where that cannot be done."""
    if not isinstance(seeds, str):
        return [int(seed) for seed in seeds]
    numbers: list[int] = []
    try:
        for part in seeds.split(","):
            first, dash, last = part.strip().partition("-")
            numbers += range(int(first), int(last) + 1) if dash else [int(first)]
    except ValueError as error:
        raise UserError("--seeds", seeds, "numbers and ranges, such as 0-15,40") from error
    if not numbers or len(numbers) > 100_000:
        raise UserError("--seeds", seeds, "from 1 to 100000 seeds")
    return numbers


# -------------------------------------------------------------------------------------------------- evaluate and report


def evaluate(
    source: str | Path | Run | Source,
    data: str | Path | ImageSet,
    *,
    features: str,
    num_images: int = 2000,
    seed: int = 0,
    truncation: float = 1.0,
    train_images: UInt8[np.ndarray, "n h w c"] | None = None,
) -> list[dict[str, Any]]:
    """Measures generated images against real ones.

    Args:
      source: what `load` takes, or a run or source.
      data: reference images.
      features: name of a feature network, `gantransfer list features`.
      num_images: generated images, classes in turn.
      seed, truncation: of the generated images.
      train_images: images that the source was trained on, for the memorisation check.

    Returns:
      One record: the metrics, and the protocol behind them.
    """
    from gantransfer import features as networks
    from gantransfer.metrics.evaluation import evaluate_images

    source = source.source if isinstance(source, Run) else source if isinstance(source, Source) else load(str(source))
    info = source.info
    images = (
        data
        if isinstance(data, ImageSet)
        else open_images(str(data), resolution=info.resolution, channels=info.channels)
    )
    if len(images.class_names) != info.num_classes:
        raise UserError("data", images.name, f"a set with the {info.num_classes} classes of {info.name}")
    labels = np.arange(num_images, dtype=np.int32) % info.num_classes
    fakes = source.sample(num_images, seed=seed, truncation=truncation)
    real, real_labels = images.arrays()
    record = evaluate_images(
        fakes,
        labels,
        real,
        real_labels,
        train_images,
        networks.load(features),
        seed=seed,
        truncation=truncation,
        reference=images.name,
    )
    return [record]


def report(
    runs: Sequence[str | Path | Run] | str | Path | Run, output: str | Path | None = None, *, title: str | None = None
) -> Path:
    """Writes one self-contained HTML page about a run, or about several side by side; returns its path."""
    from gantransfer.reports.page import write_report

    listed = [runs] if isinstance(runs, str | Path | Run) else list(runs)
    paths = [run.path if isinstance(run, Run) else Path(run) for run in listed]
    return write_report(paths, Path(output) if output else paths[0] / "report.html", title=title)


def listing(what: str, pattern: str = "*") -> str:
    """Returns what can be named, one line each: sources, modes, methods, families, features or config."""
    from fnmatch import fnmatchcase

    from gantransfer import features as networks

    one_of("list", what, LISTINGS)
    if what == "sources":
        lines = {entry.name: f"{entry.name}: {entry.about}; {entry.licence}" for entry in catalogue.list_sources()}
    elif what == "modes":
        lines = {name: f"{name}: {mode.help}" for name, mode in MODES.items()}
    elif what == "methods":
        lines = {name: describe(method) for name, method in methods.REGISTRY.items()}
    elif what == "families":
        lines = {name: f"{name}: {family.paper}" for name, family in FAMILIES.items()}
    elif what == "features":
        lines = {name: f"{name}: {about}" for name, about in networks.available().items()}
    else:
        lines = {
            name: f"{name} = {field.default!r}: {field.help} ({field.allowed})" for name, field in fields.FIELDS.items()
        }
    return "\n".join(line for name, line in sorted(lines.items()) if fnmatchcase(name, pattern))
