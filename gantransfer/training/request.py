"""From what was asked for to a task: the config from its parts, the images, and the source fitted to their classes."""

import os
import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from gantransfer import config as fields
from gantransfer.data import ImageSet, choose, open_images
from gantransfer.errors import UserError, one_of
from gantransfer.models import get_family
from gantransfer.pretrained.class_map import parse_class_map
from gantransfer.pretrained.folder import read_source
from gantransfer.pretrained.fresh import fresh
from gantransfer.pretrained.load import load
from gantransfer.pretrained.source import Source, with_info
from gantransfer.pretrained.surgery import change_classes
from gantransfer.pretrained.surgery_shape import change_channels, change_resolution, without_fade
from gantransfer.training.partition import get_mode
from gantransfer.training.prepare import Log, Task, prepare
from gantransfer.training.records import RunFolder

# Images of the target that a discriminator's new layer is fitted to.
FITTED_TO = 256


def read_config(
    config: str | Path | ml_collections.ConfigDict | None, settings: Mapping[str, Any]
) -> ml_collections.ConfigDict:
    """Returns a checked config: defaults, then a file's `get_config()` (or a ConfigDict), then single settings by
    dotted name.

    Raises:
      UserError: a file that is missing or has no `get_config`, a misspelt field, a value out of range.
    """
    given = config if config is None or isinstance(config, ml_collections.ConfigDict) else _run_config_file(config)
    resolved = fields.defaults()
    # Field by field, so that a config may hold any part of the fields, and none that there is not.
    stated = {} if given is None else fields.flatten(given.copy_and_resolve_references())
    for name, value in {**stated, **settings}.items():
        fields.set_field(resolved, name, value)
    fields.validate(resolved)
    _check_model_options(resolved)
    return resolved


def _run_config_file(path: str | Path) -> ml_collections.ConfigDict:
    allowed = "a Python file with get_config(), which returns a ConfigDict"
    if not Path(path).is_file():
        raise UserError("--config", str(path), allowed)
    try:
        names = runpy.run_path(str(path))
    except SyntaxError as error:
        raise UserError("--config", f"{path}, line {error.lineno}: {error.msg}", allowed) from error
    made = names["get_config"]() if "get_config" in names else None
    if not isinstance(made, ml_collections.ConfigDict):
        raise UserError("--config", str(path), allowed)
    return made


def _check_model_options(config: ml_collections.ConfigDict) -> None:
    """Reads options given as text by the family's types; raises `UserError` for one that the family does not have."""
    family = get_family(config.model.get("family", "biggan"))
    for name, value in dict(config.model).items():
        if name != "family" and family.options[one_of("model", name, family.options)].allowed is not str:
            fields.set_field(config, f"model.{name}", fields.literal(value))


def use_compile_cache(config: ml_collections.ConfigDict) -> None:
    """Switches JAX's persistent cache of compiled programs on, where the config names a folder and nobody has set
    one.
    """
    if config.run.compile_cache and not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(config.run.compile_cache))


def make_task(config: ml_collections.ConfigDict, given: Source | None, log: Log) -> Task:
    """Everything of a new run: images, networks with the target's classes, partition, state."""
    source = given if given is not None else load(config.source) if config.source else None
    images = open_data(config, resized_info(config, source))
    source = (
        scratch(config, images) if source is None else adapt(config, reshape(config, source, images, log), images, log)
    )
    return prepare(config, source, images, log)


def resumed_task(config: ml_collections.ConfigDict, folder: RunFolder) -> Task:
    """The same from a run's folder: networks as they were at its first step, so the source need not exist any more."""
    source = read_source(folder.path / "start")
    images = open_data(config, source)
    folder.must_match("data.json", describe_data(images), "the data set")
    return prepare(config, source, images, folder.say)


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


def resized_info(config: ml_collections.ConfigDict, source: Source | None) -> Source | None:
    """The source, saying of itself the resolution and channels that surgery will give it.

    Raises:
      UserError: surgery without a source, or to other channels than grey or colour.
    """
    asked = {name: config.transfer[name] for name in ("resolution", "channels") if config.transfer[name] is not None}
    if asked and source is None:
        raise UserError(f"transfer.{next(iter(asked))}", next(iter(asked.values())), "nothing without a source")
    if asked.get("channels", 1) not in (1, 3):
        raise UserError("transfer.channels", asked["channels"], "1 (grey) or 3 (colour)")
    return with_info(source, **asked) if asked and source is not None else source


def reshape(config: ml_collections.ConfigDict, source: Source, images: ImageSet, log: Log) -> Source:
    """Gives a source the resolution and channels of `transfer.resolution` and `transfer.channels`, and prints what was
    replaced.
    """
    resolution, channels = config.transfer.resolution, config.transfer.channels
    source = without_fade(source)
    if channels not in (None, source.info.channels):
        source, changes = change_channels(source, channels, config.seed)
        log(str(changes))
    if resolution not in (None, source.info.resolution):
        some = np.stack([images.read(i)[0] for i in range(min(len(images), FITTED_TO))]).astype(np.float32) / 127.5 - 1
        source, changes = change_resolution(source, resolution, some, config.seed)
        log(str(changes))
    return source


def describe_data(images: ImageSet) -> dict[str, Any]:
    """What data.json says of a set."""
    counts = np.bincount(images.labels, minlength=len(images.class_names))
    return {
        "name": images.name,
        "images": len(images),
        "resolution": images.resolution,
        "channels": images.channels,
        "fingerprint": images.fingerprint,
        "classes": [{"index": i, "name": name, "count": int(counts[i])} for i, name in enumerate(images.class_names)],
    }


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


def adapt(config: ml_collections.ConfigDict, source: Source, images: ImageSet, log: Log) -> Source:
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
