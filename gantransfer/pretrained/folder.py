"""The source folder: how a source, and a run's snapshot, lies on disk.

    config.json                  what the source is (`SourceInfo`), with the SHA-256 of its weights
    generator.safetensors        the generator that makes images: every collection, as `params/block_0/conv1/kernel`
    generator_raw.safetensors    the generator without averaging, where it is known beside the averaged one
    discriminator.safetensors    where there is a discriminator
    README.md                    the model card

Nothing in such a folder is code, and everything in it is checked against the architecture that its options give
before it is used.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from gantransfer.errors import UserError
from gantransfer.pretrained.description import check_description, describe, described_networks, read_json, short
from gantransfer.pretrained.fresh import variable_shapes
from gantransfer.pretrained.source import Source, Variables

EMA, RAW, DISCRIMINATOR = "generator.safetensors", "generator_raw.safetensors", "discriminator.safetensors"
# Names of safetensors for the types that variables have.
TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int32": "I32", "uint32": "U32", "bool": "BOOL"}
LISTED = 6


def write_source(folder: str | Path, source: Source, *, card: str) -> None:
    """Writes a source folder; it appears whole or not at all, and takes the place of a source folder of the same name.

    Args:
      folder: where; its parent is made if need be.
      source: what.
      card: text of the model card, Markdown.

    Raises:
      UserError: the place is taken by something that is not a source folder.
    """
    folder = Path(folder)
    if folder.exists() and not (is_source(folder) or (folder.is_dir() and not any(folder.iterdir()))):
        raise UserError("folder", str(folder), "a new or empty folder, or a source folder to replace")
    with whole_folder(folder) as partial:
        config = json.dumps(describe(source), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        (partial / "config.json").write_text(config, "utf-8")
        (partial / "README.md").write_text(card, "utf-8")
        _write_variables(partial / EMA, source.ema)
        if source.generator is not source.ema:
            _write_variables(partial / RAW, source.generator)
        if source.discriminator is not None:
            _write_variables(partial / DISCRIMINATOR, source.discriminator)


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Gives a folder to write into; it takes the place of `folder` at the end, or is deleted where that fails."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial, old = (folder.parent / f".{folder.name}.{state}" for state in ("partial", "old"))
    for left_over in (partial, old):
        shutil.rmtree(left_over, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        for file in (*partial.rglob("*"), partial):
            _flush(file)
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
        _flush(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def read_source(folder: str | Path) -> Source:
    """Reads a source folder.

    Raises:
      UserError: naming the file that is missing, broken, or does not fit the architecture, and the differences.
    """
    folder = Path(folder)
    config = _read_config(folder / "config.json")
    networks, info = described_networks(config)
    for file, known in (
        (folder / RAW, config["has"]["generator"]),
        (folder / DISCRIMINATOR, config["has"]["discriminator"]),
    ):
        if file.exists() and not known:
            raise UserError(str(file), "a file", "no such file, as config.json says under has")
    generator_shapes, discriminator_shapes = variable_shapes(networks)
    ema = _read_variables(folder / EMA, generator_shapes, config["family"])
    raw = _read_variables(folder / RAW, generator_shapes, config["family"]) if (folder / RAW).exists() else ema
    discriminator = None
    if config["has"]["discriminator"]:
        discriminator = _read_variables(folder / DISCRIMINATOR, discriminator_shapes, config["family"])
    source = Source(info, networks, raw, ema, discriminator)
    written = config["fingerprint"]
    if written is not None and written != source.fingerprint():
        raise UserError(str(folder), written, f"the fingerprint {source.fingerprint()} of the weights there, or null")
    return source


def find_snapshot(run: Path, which: str | None = None) -> Path:
    """Returns a snapshot folder of a run.

    Args:
      run: the run's folder.
      which: the name of a folder in its `snapshots`, or a number of images seen; None: the newest, by images seen.

    Raises:
      UserError: there is no such snapshot; lists those that there are.
    """
    place = run / "snapshots"
    found = sorted(folder for folder in place.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    if not found:
        raise UserError("source", str(run), "a run with at least one snapshot; this one has none yet")
    if which in {folder.name for folder in found}:
        return place / str(which)
    ages = {folder: _read_config(folder / "config.json")["images_seen"] or 0 for folder in found}
    if which is None:
        return max(found, key=lambda folder: (ages[folder], folder.name))
    for folder in found:
        if which == str(ages[folder]):
            return folder
    there = ", ".join(f"{folder.name} ({ages[folder]} images)" for folder in found)
    raise UserError("source", f"{run}@{which}", f"one of the snapshots there: {there}")


def is_source(folder: str | Path) -> bool:
    """Whether a folder is a source folder, whole or broken: others have a `config.json` too."""
    try:
        config = Path(folder, "config.json").read_bytes()
    except (OSError, ValueError):
        return False
    return b'"format_version"' in config or Path(folder, EMA).exists()


def _read_config(file: Path) -> dict[str, Any]:
    return check_description(file, read_json(file, "the config.json of a source folder"))


def _write_variables(file: Path, variables: Variables) -> None:
    from safetensors.numpy import save_file

    # safetensors 0.8 writes arrays that are not contiguous in memory order, silently (safetensors#825).
    flat = flatten_dict(dict(variables), sep="/")
    save_file({path: np.ascontiguousarray(leaf).reshape(np.shape(leaf)) for path, leaf in flat.items()}, file)


def _read_variables(file: Path, shapes: Variables, family: str) -> Variables:
    """Reads a safetensors file whose leaves must be exactly those of `shapes`, which is checked before any is read."""
    from safetensors import SafetensorError, safe_open

    expected = {
        path: (tuple(leaf.shape), TYPES[leaf.dtype.name]) for path, leaf in flatten_dict(dict(shapes), sep="/").items()
    }
    try:
        with safe_open(file, framework="numpy") as opened:
            slices = {path: opened.get_slice(path) for path in opened.keys()}
            stored = {path: (tuple(part.get_shape()), str(part.get_dtype())) for path, part in slices.items()}
            check_leaves(file, expected, stored, family)
            flat = {path: opened.get_tensor(path) for path in expected}
    except (OSError, SafetensorError) as error:
        raise UserError(str(file), short(error), "a whole safetensors file") from error
    return jax.device_put(unflatten_dict(flat, sep="/"))


def check_leaves(file: Path, expected: Mapping[str, Any], stored: Mapping[str, Any], family: str) -> None:
    """Raises `UserError` with all differences between leaves, `(shape, type)` by path, that should be and that are."""
    words = lambda leaf: f"{leaf[1]}{list(leaf[0])}"
    missing = [f"{path} {words(expected[path])}" for path in expected if path not in stored]
    unexpected = [f"{path} {words(stored[path])}" for path in stored if path not in expected]
    other = [
        f"{path} {words(stored[path])} instead of {words(expected[path])}"
        for path in expected
        if path in stored and stored[path] != expected[path]
    ]
    differences = [
        f"{len(paths)} {kind}: " + ", ".join(sorted(paths)[:LISTED]) + (", ..." if len(paths) > LISTED else "")
        for kind, paths in (("missing", missing), ("unexpected", unexpected), ("of other shape or type", other))
        if paths
    ]
    if differences:
        raise UserError(str(file), "; ".join(differences), f"the leaves of {family} with the options in config.json")


def _flush(path: Path) -> None:
    """Waits until a file or folder is on the disk, so that a rename never shows a folder that a power cut empties."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
