"""The description of a source: the fields that `config.json` and `source.json` say of it, written and checked.

Weights lie beside it, as safetensors (`folder`) or as an Orbax checkpoint (`converted`).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gantransfer.errors import UserError
from gantransfer.models.family import Networks
from gantransfer.pretrained.fresh import build_networks
from gantransfer.pretrained.source import Source, SourceInfo

FORMAT_VERSION = 1
LARGEST_OPTION = 10**6


def describe(source: Source) -> dict[str, Any]:
    """Returns what `config.json` says of a source."""
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


def read_json(file: Path, what: str) -> Any:
    """Reads a JSON file; raises `UserError` naming it, and `what` it should have been."""
    try:
        return json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(str(file), short(error), what) from error


def check_description(file: Path, config: Any) -> dict[str, Any]:
    """Returns a description if it has all of its fields, sensible ones, and no others; `file` is what errors name."""
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


def described_networks(config: Mapping[str, Any]) -> tuple[Networks, SourceInfo]:
    """Builds the networks of a checked description; raises `UserError` for options that their family does not take."""
    networks, options = build_networks(config["family"], frozen(config["options"]), config["class_names"])
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
    return networks, info


def numbered_classes(count: int) -> tuple[str, ...]:
    """Returns names for classes of which only the number is known; one class is "all", as in a set without labels."""
    return ("all",) if count == 1 else tuple(f"class {index}" for index in range(count))


def frozen(value: Any) -> Any:
    """JSON's lists as tuples, so that options can be attributes of modules."""
    if isinstance(value, dict):
        return {key: frozen(inner) for key, inner in value.items()}
    return tuple(map(frozen, value)) if isinstance(value, list) else value


def short(error: Exception) -> str:
    """Returns the first line of an error, cut to a length that a line of ours can hold."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
