"""Export: a source in the form in which other people's code reads it.

Whatever is exported to a published layout comes back bit for bit, and as the same networks: what a format has no place
for is refused, by name, before anything is written.
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from flax.traverse_util import flatten_dict

from gantransfer.errors import UserError, one_of
from gantransfer.models.family import Role
from gantransfer.pretrained.card import model_card
from gantransfer.pretrained.converted import check_free
from gantransfer.pretrained.folder import whole_folder, write_source
from gantransfer.pretrained.fresh import build_networks
from gantransfer.pretrained.layouts import get_layout
from gantransfer.pretrained.layouts.layout import Layout, to_theirs
from gantransfer.pretrained.recognition import Part, Recognised, Slot, decide_options
from gantransfer.pretrained.source import Source, Variables, latents
from gantransfer.pretrained.stablehlo import write_sampler
from gantransfer.pretrained.torch_writer import write_torch

States = Mapping[str, Mapping[str, np.ndarray]]
Holds = Literal["all", "images", "pair"]
STATE_NAMES: dict[Slot, str] = {"generator": "G", "ema": "G_ema", "discriminator": "D"}
# Options that say nothing about a trained network (how it would be initialised) leave its images as they are.
SAME_IMAGES = 1e-4
SHOWN = 4


@dataclass(frozen=True)
class Format:
    """A form to export to.

    Attributes:
      about: one line.
      layouts: names of the layouts that it is written in; a source takes the one of its family. None where the format
        is our own.
      write: writes the states and the configuration into a folder.
      holds: "all" networks; "images", the generator that makes images alone, as a state without a name; "pair", that
        generator and the discriminator, where the layout has one.
    """

    about: str
    layouts: tuple[str, ...] = ()
    write: Callable[[Path, States, Mapping[str, Any]], None] | None = None
    holds: Holds = "all"


def _write_biggan(folder: Path, states: States, config: Mapping[str, Any]) -> None:
    for name, state in states.items():
        write_torch(folder / f"{name}.pth", state)
    counters = {"itr": 0, "epoch": 0, "save_num": 0, "save_best_num": 0, "best_IS": 0.0, "best_FID": 999999.0}
    write_torch(folder / "state_dict.pth", counters | {"config": dict(config)})


def _write_hugging_face(folder: Path, states: States, config: Mapping[str, Any]) -> None:
    write_torch(folder / "pytorch_model.bin", states[""])
    _write_json(folder / "config.json", config)


def _write_safetensors(folder: Path, states: States, config: Mapping[str, Any]) -> None:
    from safetensors.numpy import save_file

    for name, state in states.items():
        metadata = {key: json.dumps(value) for key, value in config.items()}
        # safetensors 0.8 writes arrays that are not contiguous in memory order, silently (safetensors#825).
        whole = {key: np.ascontiguousarray(array).reshape(array.shape) for key, array in state.items()}
        save_file(whole, folder / f"{name}.safetensors", metadata)
    _write_json(folder / "config.json", config)


def _write_npz(folder: Path, states: States, config: Mapping[str, Any]) -> None:
    for name, file in (("G", "generator"), ("D", "discriminator")):
        if name in states:
            np.savez_compressed(folder / f"{file}.npz", **states[name])


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", "utf-8")


FORMATS: dict[str, Format] = {
    "biggan-pytorch": Format(
        "G.pth, G_ema.pth, D.pth and state_dict.pth, as BigGAN-PyTorch saves them",
        ("biggan-pytorch", "biggan-deep-pytorch"),
        _write_biggan,
    ),
    "huggingface-biggan-deep": Format(
        "pytorch_model.bin and config.json, as pytorch-pretrained-BigGAN reads them",
        ("biggan-deep-hub",),
        _write_hugging_face,
        "images",
    ),
    "stylegan2-ada-pytorch": Format(
        "state dicts of G, G_ema and D as safetensors, with the constructors' arguments",
        ("stylegan2-ada-pytorch",),
        _write_safetensors,
    ),
    "dcgan-npz": Format(
        "generator.npz and discriminator.npz, under the names of the DCGAN release whose networks they are",
        ("dcgan-pytorch", "dcgan-theano", "dcgan-face-generator", "dcgan-keras-anime", "dcgan-mnist-conditional"),
        _write_npz,
        "pair",
    ),
    "safetensors": Format("a source folder: our own names as safetensors, and config.json"),
    "stablehlo": Format("the sampler as StableHLO of jax.export, which runs without this package"),
}


def export(source: Source, form: str, out: str | Path, *, truncation: float = 1.0) -> list[Path]:
    """Writes a source in a form that others read; the folder appears whole or not at all.

    Args:
      source: what.
      form: a name of `FORMATS`.
      out: the folder to make; nothing may be there.
      truncation: of the sampler of "stablehlo"; the other formats hold weights, which have none.

    Returns:
      The files written.

    Raises:
      UserError: an unknown format, one that has no place for the source's family, for one of its leaves or options;
        `out` exists.
    """
    chosen, out = FORMATS[one_of("format", form, FORMATS)], Path(out).expanduser()
    check_free(out)
    if truncation != 1 and form != "stablehlo":
        raise UserError("--truncation", truncation, "1, or the format stablehlo: weights have no truncation")
    card = model_card(source, f"exported as {form}")
    if form == "safetensors":
        write_source(out, source, card=card)
    elif form == "stablehlo":
        with whole_folder(out) as partial:
            write_sampler(partial, source, truncation)
    else:
        states, config = _as_published(source, form, chosen)
        with whole_folder(out) as partial:
            chosen.write(partial, states, config)
            (partial / "README.md").write_text(card, "utf-8")
    return sorted(path for path in out.rglob("*") if path.is_file())


def published_states(source: Source, layout: Layout, holds: Holds = "all") -> dict[str, dict[str, np.ndarray]]:
    """Returns the arrays of a source under a layout's names: by state (`G`, `G_ema`, `D`) and name.

    Args:
      source: what.
      layout: of the source's family.
      holds: which networks, as in `Format`.

    Raises:
      UserError: a leaf has no place in the layout, or the layout wants one that is not there.
    """
    if holds == "images":
        return {"": _published(source, layout, "generator", source.ema)}
    if holds == "pair":
        states = {"G": _published(source, layout, "generator", source.ema)}
        if source.discriminator is not None and layout.leaves("discriminator", source.info.options):
            states["D"] = _published(source, layout, "discriminator", source.discriminator)
        return states
    slots: dict[Slot, tuple[Role, Variables | None]] = {
        "generator": ("generator", source.generator if source.info.has_generator else None),
        "ema": ("generator", source.ema if source.info.has_ema else None),
        "discriminator": ("discriminator", source.discriminator),
    }
    return {
        STATE_NAMES[slot]: _published(source, layout, role, variables)
        for slot, (role, variables) in slots.items()
        if variables is not None
    }


def _as_published(source: Source, form: str, chosen: Format) -> tuple[States, Mapping[str, Any]]:
    """States and configuration in the first layout of a format that holds the source as it is."""
    every = [get_layout(name) for name in chosen.layouts]
    layouts = [layout for layout in every if layout.family == source.info.family]
    if not layouts:
        families = " or ".join(layout.family for layout in every)
        raise UserError("format", form, f"one for the family {source.info.family}; {form} is for {families}")
    refused: dict[str, UserError] = {}
    for layout in layouts:
        try:
            states, config = published_states(source, layout, chosen.holds), layout.to_config(source.info.options)
            _check_comes_back(source, layout, states, config, chosen.holds == "all" or "D" in states)
        except UserError as refusal:
            refused[layout.name] = refusal
            continue
        if chosen.holds == "pair" and source.discriminator is not None and "D" not in states:
            print(f"{layout.name} has no discriminator: that of {source.info.name} is left out", file=sys.stderr)
        return states, config
    if len(refused) == 1:
        raise next(iter(refused.values()))
    words = "; ".join(f"{name}: {refusal.value}" for name, refusal in refused.items())
    raise UserError(source.info.name, words, f"networks of one of these layouts of {form}; export as safetensors")


def _published(source: Source, layout: Layout, role: Role, variables: Variables) -> dict[str, np.ndarray]:
    ours = {path: np.asarray(leaf) for path, leaf in flatten_dict(dict(variables), sep="/").items()}
    options = source.info.options
    table, absent = layout.leaves(role, options), layout.absent(role, options)
    named = {leaf.ours for leaf in table}
    lost = [path for path in ours if path not in named and not _holds(absent, path, ours[path])]
    lost += [path for path in named if path not in ours]
    if lost:
        words = ", ".join(sorted(lost)[:SHOWN]) + (f" and {len(lost) - SHOWN} more" if len(lost) > SHOWN else "")
        raise UserError(
            f"{role} of {source.info.name}", words, f"leaves that {layout.name} has a place for; export as safetensors"
        )
    try:
        theirs = to_theirs(table, ours)
    except ValueError as error:
        # A change of layout that a leaf has not the dimensions for.
        words = f"leaves of the shapes that {layout.name} has; export as safetensors"
        raise UserError(f"{role} of {source.info.name}", str(error), words) from error
    return theirs | dict(layout.made(role, options))


def _holds(absent: Mapping[str, np.ndarray], path: str, value: np.ndarray) -> bool:
    """Whether a leaf that no file holds may be left out: constants at their value, and statistics that nothing reads,
    which training has moved all the same.
    """
    return path in absent and (path.startswith("batch_stats/") or np.array_equal(absent[path], value))


def _check_comes_back(source: Source, layout: Layout, states: States, config: Mapping[str, Any], whole: bool) -> None:
    """Refuses an export that would be read as another network: one whose options no name, shape or config tells."""
    slot_of = {name: slot for slot, name in STATE_NAMES.items()} | {"": "ema"}
    parts = []
    for name, state in states.items():
        found = layout.recognise({key: tuple(array.shape) for key, array in state.items()})
        if found is None:
            raise UserError(source.info.name, f"{name or 'G'} with its shapes", f"networks that {layout.name} can have")
        parts.append(Part(slot_of[name], name, found))
    decided = decide_options(Recognised(layout, tuple(parts), ()), config, {}, source.info.name)
    values = {name: value for name, (value, _) in decided.items()}
    networks, values = build_networks(layout.family, values, source.info.class_names)
    pairs = ((networks.generator, source.networks.generator), (networks.discriminator, source.networks.discriminator))
    if all(again == before for again, before in pairs[: 2 if whole else 1]):
        return
    differing = [name for name, value in source.info.options.items() if values[name] != value]
    back = dataclasses.replace(source, networks=networks)
    z, labels = latents(2, source.networks.z_dim, 0, latent=source.networks.latent), [0, source.info.num_classes - 1]
    images = source.generate(z, labels)
    same = np.abs(back.generate(z, labels) - images).max() <= SAME_IMAGES
    if same and source.discriminator is not None and whole:
        logits, again = source.judge(images, labels), back.judge(images, labels)
        same = np.abs(again - logits).max() <= SAME_IMAGES * max(1.0, np.abs(logits).max())
    words = ", ".join(f"{name}={source.info.options[name]}" for name in differing)
    if not same:
        raise UserError(source.info.name, words, f"options that {layout.name} can tell; export as safetensors")
    print(f"not told by {layout.name}, and without effect on images: {words}", file=sys.stderr)
