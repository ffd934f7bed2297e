"""The source folder: how a source, and a run's snapshot, lies on disk.

    config.json                  what the source is (`SourceInfo`), with the SHA-256 of its weights
    generator.safetensors        the generator that makes images: every collection, as `params/block_0/conv1/kernel`
    generator_raw.safetensors    the generator without averaging, where it is known beside the averaged one
    discriminator.safetensors    where there is a discriminator
    README.md                    the model card

Nothing in such a folder is code, and everything in it is checked against the architecture that its options give
before it is used.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from gantransfer.errors import UserError
from gantransfer.pretrained.source import Source, SourceInfo, Variables, build_networks, variable_shapes

FORMAT_VERSION = 1
EMA, RAW, DISCRIMINATOR = "generator.safetensors", "generator_raw.safetensors", "discriminator.safetensors"
# Names of safetensors for the types that variables have.
TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int32": "I32", "uint32": "U32", "bool": "BOOL"}
LISTED = 6
LARGEST_OPTION = 10**6


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
    if folder.exists() and not (_is_source(folder) or (folder.is_dir() and not any(folder.iterdir()))):
        raise UserError("folder", str(folder), "a new or empty folder, or a source folder to replace")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial, old = (folder.parent / f".{folder.name}.{state}" for state in ("partial", "old"))
    for left_over in (partial, old):
        shutil.rmtree(left_over, ignore_errors=True)
    partial.mkdir()
    try:
        config = json.dumps(_config(source), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        (partial / "config.json").write_text(config, "utf-8")
        (partial / "README.md").write_text(card, "utf-8")
        _write_variables(partial / EMA, source.ema)
        if source.generator is not source.ema:
            _write_variables(partial / RAW, source.generator)
        if source.discriminator is not None:
            _write_variables(partial / DISCRIMINATOR, source.discriminator)
        for file in (*partial.iterdir(), partial):
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
    networks, options = build_networks(config["family"], _frozen(config["options"]), config["class_names"])
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
    info = SourceInfo(
        name=config["name"],
        family=config["family"],
        options=options,
        resolution=networks.resolution,
        channels=networks.channels,
        z_dim=networks.z_dim,
        class_names=tuple(config["class_names"]),
        licence=config["licence"],
        origin=config["origin"],
        trained_on=config["trained_on"],
        images_seen=config["images_seen"],
        has_generator=config["has"]["generator"],
        has_ema=config["has"]["ema"],
        has_discriminator=config["has"]["discriminator"],
        sample_defaults=config["sample_defaults"],
    )
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


def _is_source(folder: Path) -> bool:
    return (folder / EMA).is_file() and (folder / "config.json").is_file()


def _config(source: Source) -> dict[str, Any]:
    info = source.info
    return {
        "format_version": FORMAT_VERSION,
        "name": info.name,
        "family": info.family,
        "options": dict(info.options),
        "class_names": list(info.class_names),
        "licence": info.licence,
        "origin": info.origin,
        "trained_on": info.trained_on,
        "images_seen": info.images_seen,
        "has": {
            "generator": info.has_generator,
            "ema": info.has_ema,
            "discriminator": source.discriminator is not None,
        },
        "sample_defaults": dict(info.sample_defaults),
        "fingerprint": source.fingerprint(),
    }


def _read_config(file: Path) -> dict[str, Any]:
    """Reads and checks config.json: all of its fields, and no others."""
    try:
        config = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(str(file), _short(error), "the config.json of a source folder") from error
    if not isinstance(config, dict) or config.get("format_version") != FORMAT_VERSION:
        version = config.get("format_version") if isinstance(config, dict) else None
        raise UserError(f"{file}: format_version", version, f"{FORMAT_VERSION}; other files are not source folders")
    is_text = lambda value: isinstance(value, str)
    is_count = lambda value: value is None or (type(value) is int and value >= 0)
    is_names = lambda value: isinstance(value, list) and all(map(is_text, value))
    is_settings = lambda value: isinstance(value, dict)
    is_options = lambda value: (
        is_settings(value)
        and not any(isinstance(inner, int | float) and not abs(inner) <= LARGEST_OPTION for inner in value.values())
    )
    is_has = lambda value: (
        is_settings(value)
        and set(value) == {"generator", "ema", "discriminator"}
        and all(isinstance(known, bool) for known in value.values())
    )
    rules = {
        "format_version": (lambda value: True, ""),
        "has": (is_has, "generator, ema and discriminator, each true or false"),
        "class_names": (is_names, "a list of names"),
        "images_seen": (is_count, "a number of images, or null"),
        "fingerprint": (lambda value: value is None or is_text(value), "a SHA-256 in hexadecimal, or null"),
    }
    rules |= {"sample_defaults": (is_settings, "settings by name")}
    rules |= {"options": (is_options, f"options by name, numbers up to {LARGEST_OPTION}")}
    rules |= {key: (is_text, "text") for key in ("name", "family", "licence", "origin", "trained_on")}
    if set(config) != set(rules):
        wrong = sorted(set(config) ^ set(rules))
        raise UserError(f"{file}: fields", wrong, "these fields and no others: " + ", ".join(sorted(rules)))
    for key, (accepts, words) in rules.items():
        if not accepts(config[key]):
            raise UserError(f"{file}: {key}", config[key], words)
    count, names = config["options"].get("num_classes", len(config["class_names"])), len(config["class_names"])
    if count != names:
        raise UserError(f"{file}: class_names", f"{names} names", f"{count} names, as options.num_classes says")
    return config


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
            _check_leaves(file, expected, stored, family)
            flat = {path: opened.get_tensor(path) for path in expected}
    except (OSError, SafetensorError) as error:
        raise UserError(str(file), _short(error), "a whole safetensors file") from error
    return jax.device_put(unflatten_dict(flat, sep="/"))


def _check_leaves(file: Path, expected: Mapping[str, Any], stored: Mapping[str, Any], family: str) -> None:
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


def _frozen(value: Any) -> Any:
    """JSON's lists as tuples, so that options can be attributes of modules."""
    if isinstance(value, dict):
        return {key: _frozen(inner) for key, inner in value.items()}
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def _flush(path: Path) -> None:
    """Waits until a file or folder is on the disk, so that a rename never shows a folder that a power cut empties."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
