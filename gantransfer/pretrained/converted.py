"""The converted folder: how a converted checkpoint lies on disk.

    source.json    what it is, where it is from, and its fingerprint: see `write_converted`
    weights/       an Orbax checkpoint: `ema`, `generator` (raw) and `discriminator`, as far as they are known
    report.json    the whole conversion report; report.md is the same as tables
    README.md      the model card

`source.json` says of the networks what `config.json` of a source folder says (`description`), so that both kinds of
folder are read by the same rules and `load` takes either.
"""

import errno
import json
import os
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jax.sharding import SingleDeviceSharding

from gantransfer.errors import UserError
from gantransfer.pretrained.card import model_card
from gantransfer.pretrained.conversion_report import Report
from gantransfer.pretrained.description import (
    check_description,
    describe,
    described_networks,
    numbered_classes,
    read_json,
    short,
)
from gantransfer.pretrained.folder import check_leaves, whole_folder
from gantransfer.pretrained.fresh import variable_shapes
from gantransfer.pretrained.sample_statistics import sample_statistics
from gantransfer.pretrained.source import Source, Variables

DESCRIPTION, WEIGHTS = "source.json", "weights"
# Means of 16 samples agree to this between machines and precisions; a wrong layout or constant moves them further.
TOLERANCE = 2e-3
WRITTEN_AT_ONCE_BYTES = 64 << 20
# What a user gets told as a full disk; EFBIG is a limit on the size of one file.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SHARED = (
    "format_version",
    "name",
    "options",
    "licence",
    "origin",
    "trained_on",
    "images_seen",
    "has",
    "sample_defaults",
)
_OWN = ("architecture", "resolution", "channels", "num_classes", "class_names", "format", "layout", "sha256", "notices")


def check_free(out: Path) -> None:
    """Raises `UserError` where something is at `out` already."""
    if out.exists() or out.is_symlink():
        raise UserError("OUT", str(out), "a new folder; nothing is overwritten")


def is_converted(folder: str | Path) -> bool:
    """Whether a folder is a converted one."""
    # os.path answers no, where Path raises, for names that cannot be paths at all.
    return os.path.isfile(os.path.join(folder, DESCRIPTION)) and os.path.isdir(os.path.join(folder, WEIGHTS))


def write_converted(out: Path, source: Source, report: Report, names_known: bool) -> None:
    """Writes a converted folder; it appears whole or not at all.

    `source.json` holds: architecture (the family) and its options; resolution, channels, num_classes and class_names
    (null where nobody knows them); licence, origin and notices; SHA-256 of each original file; which networks there
    are; and the fingerprint: SHA-256 of all weights, and statistics of 16 samples of seed 0
    (`sample_statistics`).

    Args:
      out: where; nothing may be there.
      source: what.
      report: how it was made.
      names_known: whether the class names are more than numbers.

    Raises:
      UserError: `out` exists.
      OSError: the disk is full; nothing is left of what was written.
    """
    check_free(out)
    trees = _trees(source)
    info, described = source.info, describe(source)
    content = {name: described[name] for name in _SHARED} | {
        "architecture": info.family,
        "resolution": info.resolution,
        "channels": info.channels,
        "num_classes": info.num_classes,
        "class_names": list(info.class_names) if names_known else None,
        "format": report.format,
        "layout": report.layout,
        "sha256": dict(report.files),
        "notices": list(report.notes),
        "fingerprint": {"sha256": described["fingerprint"]} | sample_statistics(source),
    }
    texts = {
        DESCRIPTION: _json(content),
        "report.json": _json(report.to_json()),
        "report.md": report.table(),
        "README.md": model_card(source, f"converted from {', '.join(report.files)} ({report.layout})", _terms(report)),
    }
    with whole_folder(out) as partial:
        _save(partial / WEIGHTS, trees)
        for name, text in texts.items():
            (partial / name).write_text(text, "utf-8")


def read_converted(folder: str | Path, check: bool = False) -> Source:
    """Reads a converted folder; the SHA-256 of its weights is always checked.

    Args:
      folder: where it is.
      check: whether to draw the 16 samples again and to compare them with the fingerprint.

    Raises:
      UserError: naming the file that is missing, broken or does not fit the architecture, or what has changed.
    """
    folder = Path(folder)
    content, config = _read_description(folder / DESCRIPTION)
    networks, info = described_networks(config)
    generator_shapes, discriminator_shapes = variable_shapes(networks)
    slots = [slot for slot in ("generator", "ema", "discriminator") if config["has"][slot]]
    like = {slot: discriminator_shapes if slot == "discriminator" else generator_shapes for slot in slots}
    trees = _load(folder / WEIGHTS, like, info.family)
    ema = trees["ema"] if "ema" in trees else trees["generator"]
    source = Source(info, networks, trees.get("generator", ema), ema, trees.get("discriminator"))
    if source.fingerprint() != config["fingerprint"]:
        raise UserError(str(folder / WEIGHTS), source.fingerprint(), f"weights of SHA-256 {config['fingerprint']}")
    if check:
        check_samples(folder / DESCRIPTION, content["fingerprint"], source)
    return source


def check_samples(file: Path, fingerprint: Mapping[str, Any], source: Source) -> None:
    """Raises `UserError` where the source's samples of seed 0 are not those that the fingerprint describes."""
    now = sample_statistics(source)
    for name in ("mean", "std", "image_means"):
        before, difference = np.asarray(fingerprint[name]), np.asarray(now[name])
        if before.shape != difference.shape or not np.abs(before - difference).max() <= TOLERANCE:
            raise UserError(f"{file}: fingerprint.{name}", fingerprint[name], f"{now[name]}, as the samples give")


def _trees(source: Source) -> dict[str, Variables]:
    """What is stored: a generator of which only one kind is known is stored once, under the name of that kind."""
    trees = {"ema": source.ema} if source.info.has_ema else {"generator": source.generator}
    if source.info.has_generator:
        trees["generator"] = source.generator
    return trees if source.discriminator is None else trees | {"discriminator": source.discriminator}


def _terms(report: Report) -> str:
    return "\n".join(["## Notices", "", *(f"- {note}" for note in report.notes)]) if report.notes else ""


def _json(content: Any) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _read_description(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What source.json says, and the same in the terms of `description`."""
    content = read_json(file, "the source.json of a converted folder")
    fields = {*_SHARED, *_OWN, "fingerprint"}
    if not isinstance(content, dict) or set(content) != fields:
        wrong = sorted(set(content) ^ fields) if isinstance(content, dict) else type(content).__name__
        raise UserError(f"{file}: fields", wrong, "these fields and no others: " + ", ".join(sorted(fields)))
    fingerprint, names, count = content["fingerprint"], content["class_names"], content["num_classes"]
    numbers = ("mean", "std", "image_means")
    if not isinstance(fingerprint, dict) or not {"sha256", *numbers} <= set(fingerprint):
        raise UserError(f"{file}: fingerprint", fingerprint, "sha256, mean, std and image_means")
    if any(np.asarray(fingerprint[name]).dtype.kind not in "fi" for name in numbers):
        raise UserError(f"{file}: fingerprint", fingerprint, "numbers for mean, std and image_means")
    if type(count) is not int or not 1 <= count <= 10**6:
        raise UserError(f"{file}: num_classes", count, "a number of classes")
    config = {name: content[name] for name in _SHARED} | {
        "family": content["architecture"],
        "class_names": list(numbered_classes(count)) if names is None else names,
        "fingerprint": fingerprint["sha256"],
    }
    checked = check_description(file, config)
    if len(checked["class_names"]) != count or not (checked["has"]["generator"] or checked["has"]["ema"]):
        raise UserError(f"{file}: num_classes or has", count, "one class name per class, and a generator")
    return content, checked


def _save(path: Path, trees: Mapping[str, Variables]) -> None:
    from orbax.checkpoint import v1 as ocp

    sizes = [leaf.nbytes for leaf in jax.tree.leaves(trees)]
    num_bytes = sum(sizes)
    if shutil.disk_usage(path.parent).free < num_bytes:
        raise OSError(errno.ENOSPC, f"less than the {num_bytes / 1e6:.0f} MB that it takes are free", str(path.parent))
    context = ocp.Context()
    # Weights hardly compress, and the copies and buffers of a checkpoint that is written at leisure are not needed.
    context.array.saving.use_compression = False
    context.memory.deepcopy_host_arrays = False
    # Orbax refuses an array that by itself takes all that may be written at once.
    context.memory.write_concurrent_bytes = max(WRITTEN_AT_ONCE_BYTES, *(size + 1 for size in sizes))
    try:
        with context:
            ocp.save(path.absolute(), dict(trees))
    except Exception as error:
        code = _full(error)
        _remove(path)
        if code is None:
            raise
        raise OSError(code, "the disk is full", str(path.parent.parent)) from error


def _full(error: BaseException | None) -> int | None:
    """The system's code of a full disk, in an error or what it was raised from; None where it is something else."""
    while error is not None:
        # TensorStore tells the code in its text only.
        told = re.search(r"os_error_code='(\d+)'", str(error))
        code = getattr(error, "errno", None) or (int(told[1]) if told else None)
        if code in FULL:
            return code
        error = error.__cause__ or error.__context__
    return None


def _remove(path: Path) -> None:
    """Deletes what a failed save has left; its threads may still be writing for a moment."""
    for _ in range(20):
        for left_over in path.parent.glob(f"{path.name}*"):
            shutil.rmtree(left_over, ignore_errors=True)
        time.sleep(0.05)


def _load(path: Path, like: Mapping[str, Any], family: str) -> dict[str, Variables]:
    """Reads the checkpoint, whose leaves must be exactly those of `like`, which is checked before any is read."""
    from orbax.checkpoint import v1 as ocp

    place = SingleDeviceSharding(jax.local_devices()[0])
    target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), dict(like))
    words = lambda tree: {
        path: (tuple(leaf.shape), str(np.dtype(leaf.dtype))) for path, leaf in flatten_dict(tree, sep="/").items()
    }
    try:
        stored = words(dict(ocp.metadata(path.absolute()).metadata))
        check_leaves(path, words(target), stored, family)
        return dict(ocp.load(path.absolute(), target))
    except UserError:
        raise
    except Exception as error:
        raise UserError(str(path), short(error), "a whole Orbax checkpoint") from error
