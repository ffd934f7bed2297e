"""What notebooks import: each verb of the command line is one of these functions.

source = gantransfer.load("glyphs")
run = gantransfer.finetune(source, data="flowers.zip", mode="class_embedding_only", kimg=50, workdir="runs/flowers")
images = run.source.sample(16)
gantransfer.evaluate(run, data="flowers.zip", metrics=["fid", "kid"])
gantransfer.select(["glyphs", "runs/a"], data="flowers.zip")
gantransfer.report([run])
gantransfer.convert("G_ema.pth", "converted/")
gantransfer.export(run, "biggan-pytorch", "exported/")
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from gantransfer import config as fields
from gantransfer import methods
from gantransfer.errors import UserError, one_of
from gantransfer.measuring import evaluate, select
from gantransfer.methods.hooks import describe
from gantransfer.metrics.protocols import PROTOCOLS, summary
from gantransfer.metrics.registry import METRICS
from gantransfer.models import FAMILIES
from gantransfer.pretrained import catalogue
from gantransfer.pretrained import export as exporting
from gantransfer.pretrained.convert import convert
from gantransfer.pretrained.load import load
from gantransfer.pretrained.source import Source, latents, to_uint8
from gantransfer.run import Run, check_truncation, opened
from gantransfer.training import evaluator, loop
from gantransfer.training.partition import MODES, get_mode
from gantransfer.training.records import RunFolder, read_run_json
from gantransfer.training.request import make_task, read_config, resumed_task, use_compile_cache

__all__ = [
    "LISTINGS",
    "Run",
    "convert",
    "dry_run",
    "evaluate",
    "export",
    "finetune",
    "list_sources",
    "listing",
    "load",
    "report",
    "sample",
    "select",
]

MOST_SEEDS = 100_000
LISTINGS = ("sources", "modes", "methods", "families", "features", "metrics", "protocols", "config")
list_sources = catalogue.list_sources


# ------------------------------------------------------------------------------------------------------------- finetune


def _resolve(
    config: str | Path | ml_collections.ConfigDict | None,
    settings: Mapping[str, Any] | None,
    source: "str | Path | Run | Source | None",
    data: str | Path | None,
    workdir: str | Path | None = None,
    **named: Any,
) -> ml_collections.ConfigDict:
    """The config of a run from the arguments of `finetune`."""
    stated = dict(settings or {}) | {name: value for name, value in named.items() if value is not None}
    if workdir is not None:
        stated["workdir"] = str(workdir)
    if data is not None:
        stated["data.path"] = str(data)
    if source is not None:
        stated["source"] = _source_name(source)
    resolved = read_config(config, stated)
    if not resolved.data.path:
        raise UserError("data", resolved.data.path, "a folder, a zip, tfds:NAME[:split], digits or glyphs")
    get_mode(resolved.mode, tuple(resolved.transfer.train_g), tuple(resolved.transfer.train_d))
    use_compile_cache(resolved)
    return resolved


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
    resolved = _resolve(config, settings, source, data, workdir, mode=mode, kimg=kimg, batch=batch, seed=seed)
    if not resolved.workdir:
        raise UserError("workdir", resolved.workdir, "a folder for the run")
    place = Path(resolved.workdir).expanduser()
    decisions: list[str] = []
    if not _has_begun(place):
        # Everything that can be wrong with the request is found before the run's folder is touched.
        task = make_task(resolved, source if isinstance(source, Source) else None, decisions.append)
        measured = evaluator.make_evaluator(task)
    with RunFolder(resolved.workdir) as folder:
        # Asked again under the lock: another process may have begun the run meanwhile.
        if _has_begun(place):
            fixed = {name for name, field in fields.FIELDS.items() if field.fixed} | {"model"}
            defaults = {name: field.default for name, field in fields.FIELDS.items()}
            folder.compare_config(fields.to_json(resolved), fixed, defaults)
            task = resumed_task(resolved, folder)
            measured = evaluator.make_evaluator(task)
        else:
            loop.begin(task, folder)
            for line in decisions:
                folder.say(line)
        loop.train(task, folder, measured)
    return Run(place)


def _has_begun(workdir: Path) -> bool:
    """Whether the folder is a run's; a folder with a config.json of something else is refused, and left as it is."""
    if not (workdir / "config.json").is_file():
        return False
    config = read_run_json(workdir / "config.json")
    if not isinstance(config, dict) or not {"kimg", "data", "run"} <= set(config):
        raise UserError("workdir", str(workdir), "a new folder or a run's; the config.json there is of something else")
    return True


def _source_name(source: str | Path | Run | Source) -> str:
    if isinstance(source, Source):
        return f"{source.info.name} ({source.fingerprint()[:12]})"
    return str(source.path if isinstance(source, Run) else source)


def dry_run(
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
) -> str:
    """Returns what `finetune` would do with the same arguments, without touching the run's folder: config, data,
    partition, parameters, memory and flops of the step.

    Raises:
      UserError: as `finetune` would.
    """
    from gantransfer.training.plan import describe_task

    resolved = _resolve(config, settings, source, data, workdir, mode=mode, kimg=kimg, batch=batch, seed=seed)
    lines: list[str] = []
    task = make_task(resolved, source if isinstance(source, Source) else None, lines.append)
    evaluator.make_evaluator(task)
    return describe_task(task, lines)


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

    numbers, output = parse_seeds(seeds), Path(output)
    _check_output(output, interpolate)
    check_truncation(truncation)
    source = opened(source)
    rows = source.class_indices(classes).tolist()
    z_dim, latent = source.networks.z_dim, source.networks.latent
    z = np.concatenate([latents(1, z_dim, seed, cut=truncation < 1, latent=latent) for seed in numbers])
    if interpolate is not None:
        return [_write_walk(source, output, z, rows, truncation, interpolate)]
    pictures = to_uint8(source.generate(np.tile(z, (len(rows), 1)), np.repeat(rows, len(numbers)), truncation))
    names = [source.info.class_names[row] for row in rows]
    if output.suffix.lower() == ".png":
        wide = len(numbers) if columns is None else columns
        picture = grids.grid(pictures, columns=wide, row_titles=names if wide == len(numbers) else None)
        return [grids.write_whole(output, grids.png_bytes(picture))]
    output.mkdir(parents=True, exist_ok=True)
    written = []
    for k, picture in enumerate(pictures):
        row, seed = rows[k // len(numbers)], numbers[k % len(numbers)]
        written.append(output / f"class{row:04d}_seed{seed:06d}.png")
        grids.write_whole(
            written[-1], grids.png_bytes(Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture))
        )
    return written


def _check_output(output: Path, frames: int | None) -> None:
    """Raises `UserError` for an output that cannot be written, before images are made for it."""
    kinds = ("", ".png") if frames is None else (".png", ".gif", ".mp4")
    if output.suffix.lower() not in kinds:
        allowed = "a .png or a folder" if frames is None else ".png, .gif or .mp4 with --interpolate"
        raise UserError("--output", str(output), allowed)
    if output.is_dir() if output.suffix else output.is_file():
        raise UserError("--output", str(output), "another name; this one is taken by a file or folder of another kind")
    if frames is not None and frames < 2:
        raise UserError("--interpolate", frames, "at least 2 frames")


def _write_walk(source: Source, output: Path, z: np.ndarray, rows: list[int], truncation: float, frames: int) -> Path:
    """Linear in z and in class weights from point to point, end points included."""
    from gantransfer.reports import grids

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
    return grids.write_whole(output, grids.png_bytes(grids.strip(walk)))


def parse_seeds(seeds: str | Sequence[int]) -> list[int]:
    """Reads seeds such as `"0-3,7"`; raises `UserError` where that cannot be done."""
    if not isinstance(seeds, str):
        return [int(seed) for seed in seeds]
    parts = [part.strip().partition("-") for part in seeds.split(",")]
    try:
        ranges = [range(int(first), int(last if dash else first) + 1) for first, dash, last in parts]
    except ValueError as error:
        raise UserError("--seeds", seeds, "numbers and ranges, such as 0-15,40") from error
    if not all(ranges) or sum(map(len, ranges)) > MOST_SEEDS or max(r[-1] for r in ranges) >= 2**31:
        raise UserError("--seeds", seeds, f"from 1 to {MOST_SEEDS} seeds below 2**31, ranges from low to high")
    return [seed for numbers in ranges for seed in numbers]


# --------------------------------------------------------------------------------------------------- export and report


def export(source: str | Path | Run | Source, form: str, out: str | Path, *, truncation: float = 1.0) -> list[Path]:
    """Writes a source in a form that other people's code reads; returns the files.

    `form` is biggan-pytorch, huggingface-biggan-deep, stylegan2-ada-pytorch, dcgan-npz, safetensors or stablehlo; `out`
    a folder that is made. See `gantransfer.pretrained.export.export` for the rest.
    """
    one_of("format", form, exporting.FORMATS)
    return exporting.export(opened(source), form, out, truncation=truncation)


def report(
    runs: Sequence[str | Path | Run] | str | Path | Run, output: str | Path | None = None, *, title: str | None = None
) -> Path:
    """Writes one self-contained HTML page about a run, or about several side by side; returns its path."""
    from gantransfer.reports.page import write_report

    listed = [runs] if isinstance(runs, str | Path | Run) else list(runs)
    if not listed:
        raise UserError("runs", [], "at least one run folder")
    paths = [run.path if isinstance(run, Run) else Path(run) for run in listed]
    return write_report(paths, Path(output) if output else paths[0] / "report.html", title=title)


def listing(what: str, pattern: str = "*", **filters: Any) -> str:
    """Returns what can be named, one line each: sources, modes, methods, families, features, metrics, protocols or
    config.

    `filters` are those of `list_sources`, for sources only.
    """
    from fnmatch import fnmatchcase

    from gantransfer import features as networks

    one_of("list", what, LISTINGS)
    if filters and what != "sources":
        raise UserError(f"--{next(iter(filters))}", what, "sources; nothing else is filtered by it")
    if what == "sources":
        lines = {entry.name: str(entry) for entry in catalogue.list_sources(**filters)}
    elif what == "modes":
        lines = {name: f"{name}: {mode.help}" for name, mode in MODES.items()}
    elif what == "methods":
        lines = {name: describe(method) for name, method in methods.REGISTRY.items()}
    elif what == "families":
        lines = {name: f"{name}: {family.paper}" for name, family in FAMILIES.items()}
    elif what == "features":
        lines = {name: f"{name}: {about}" for name, about in networks.available().items()}
    elif what == "metrics":
        lines = {name: f"{name}: {metric.about}" for name, metric in METRICS.items()}
    elif what == "protocols":
        lines = {name: summary(protocol) for name, protocol in PROTOCOLS.items()}
    else:
        lines = {
            name: f"{name} = {field.default!r}: {field.help} ({field.allowed})" for name, field in fields.FIELDS.items()
        }
    return "\n".join(line for name, line in sorted(lines.items()) if fnmatchcase(name, pattern))
