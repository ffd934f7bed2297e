"""Folders in which several files make up one checkpoint: BigGAN-PyTorch, StudioGAN, DCGAN scripts, Hugging Face, or one
file for each network, named after it.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gantransfer.errors import UserError
from gantransfer.pretrained.readers.contents import Contents
from gantransfer.pretrained.readers.mapped import MappedFile
from gantransfer.pretrained.readers.networks import Splitter
from gantransfer.pretrained.readers.torch_file import format_of, load

# `G_ema_best0.pth`: which part, and of which of the snapshots that lie side by side.
_BIGGAN = re.compile(r"(G|D|G_ema|G_optim|D_optim|state_dict)(?:_((?:copy|best)\d+|\d+))?\.pth")
_STUDIOGAN = re.compile(r"model=(G|D|G_ema)-(best|current)-weights-step=(\d+)\.pth")
_DCGAN = re.compile(r"net(G|D)(?:_epoch_(\d+))?\.pth")
_PAIR = re.compile(r"(generator|discriminator|G_ema|G|D)\.(?:npz|safetensors|pth?|pkl)")
_PARTS = {"generator": "G", "discriminator": "D"}
_HUGGING_FACE = re.compile(r"(.*-)?(?:pytorch_model\.bin|model\.safetensors)")
# What a folder of BigGAN-PyTorch says before anything was evaluated.
_UNMEASURED = 999_999
MAX_JSON_BYTES = 16 << 20

Sets = dict[Any, dict[str, Path]]


def read_folder(folder: Path, read_file: Callable[[Path], Contents]) -> Contents | None:
    """Reads a folder of files that belong together; None where no naming fits.

    Args:
      folder: the folder.
      read_file: reads a single file; used for weights beside a `config.json`.

    Raises:
      UserError: several snapshots lie side by side and nothing says which is meant, or a file is damaged.
    """
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    for pattern, choose, kind in (
        (_BIGGAN, _newest_biggan, "biggan"),
        (_STUDIOGAN, _best_studiogan, "studiogan"),
        (_DCGAN, _last_dcgan, "dcgan"),
    ):
        sets: Sets = {}
        for path in paths:
            if match := pattern.fullmatch(path.name):
                part, *rest = match.groups()
                sets.setdefault(tuple(rest), {})[part] = path
        sets = {key: parts for key, parts in sets.items() if parts.keys() & {"G", "D", "G_ema"}}
        if sets:
            chosen = choose(folder, sets)
            return _torch_set(folder, sets[chosen], kind, len(sets) > 1)
    weights = [path for path in paths if _HUGGING_FACE.fullmatch(path.name) and config_beside(path)]
    if len(weights) > 1:
        raise UserError(str(folder), ", ".join(path.name for path in weights), "a folder with one of them, or the file")
    if weights:
        return read_hugging_face(weights[0], read_file)
    matches = {path: match for path in paths if (match := _PAIR.fullmatch(path.name))}
    return _read_pair(folder, {path: _PARTS.get(m[1], m[1]) for path, m in matches.items()}, read_file)


def config_beside(weights: Path) -> Path | None:
    """The `config.json` (or `<name>-config.json`) beside weights in Hugging Face's naming; None where there is none."""
    match = _HUGGING_FACE.fullmatch(weights.name)
    if match is None:
        return None
    config = weights.with_name(f"{match[1] or ''}config.json")
    return config if config.is_file() else None


def read_hugging_face(weights: Path, read_file: Callable[[Path], Contents]) -> Contents:
    """Reads weights with the configuration that lies beside them."""
    contents, path = read_file(weights), config_beside(weights)
    assert path is not None, "only called where there is one"
    file = MappedFile(path)
    if len(file) > MAX_JSON_BYTES:
        raise file.refuse(f"{len(file)} bytes", "a configuration in JSON")
    try:
        config = json.loads(bytes(file.data))
    except (ValueError, RecursionError) as error:
        raise file.refuse("text that is not JSON", "a configuration in JSON") from error
    if not isinstance(config, dict):
        raise file.refuse("JSON that is not an object", "a configuration in JSON")
    return Contents("huggingface", contents.states, config, (*contents.files, path), contents.extras, contents.notes)


def training_state_beside(weights: Path) -> Path | None:
    """The `state_dict.pth` of the same snapshot beside a network file of BigGAN-PyTorch; None where there is none."""
    match = _BIGGAN.fullmatch(weights.name)
    if match is None or match[1] == "state_dict":
        return None
    path = weights.with_name(f"state_dict_{match[2]}.pth" if match[2] else "state_dict.pth")
    return path if path.is_file() else None


def add_training_state(contents: Contents, path: Path) -> Contents:
    """The contents with the options and counters of a BigGAN-PyTorch `state_dict.pth`."""
    config, training = _training_state(path)
    return Contents(
        contents.format,
        contents.states,
        {**contents.config, **config},
        (*contents.files, path),
        {**contents.extras, "training": training},
        contents.notes,
    )


def _training_state(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    file = MappedFile(path)
    found = Splitter(file).plain(load(file))
    if not isinstance(found, dict):
        raise file.refuse("a training state that is none", "the state_dict.pth of BigGAN-PyTorch")
    config = found.pop("config", {})
    return dict(config) if isinstance(config, Mapping) else {}, found


def _read_pair(folder: Path, parts: Mapping[Path, str], read_file: Callable[[Path], Contents]) -> Contents | None:
    """Files named after their network, of any format and one network each; None where there are none."""
    if not parts:
        return None
    if len(set(parts.values())) < len(parts):
        raise UserError(str(folder), ", ".join(path.name for path in parts), "one file for each network")
    found = {part: read_file(path) for path, part in parts.items()}
    for path, part in parts.items():
        if len(found[part].states) > 1:
            raise UserError(str(path), f"{len(found[part].states)} networks", "one network in each file of a folder")
    states = {part: next(iter(contents.states.values())) for part, contents in found.items()}
    notes = tuple(note for contents in found.values() for note in contents.notes)
    files = tuple(file for contents in found.values() for file in contents.files)
    config: dict[str, Any] = {}
    for contents in found.values():
        config |= contents.config
    return Contents(next(iter(found.values())).format, states, config, files, {}, notes)


def _torch_set(folder: Path, parts: dict[str, Path], kind: str, one_of_several: bool) -> Contents:
    files = {name: MappedFile(path) for name, path in parts.items()}
    networks = {name: file for name, file in files.items() if name in ("G", "G_ema", "D")}
    splitter = Splitter(next(iter(networks.values())))
    config: dict[str, Any] = {}
    for name, file in networks.items():
        inner = Splitter(file)
        inner.add(load(file))
        states = list(inner.contents("", ()).states.values())
        if len(states) > 1:
            raise file.refuse(f"{len(states)} networks", "one network in each file of a folder")
        splitter.add_state(name, states[0])
        splitter.notes += inner.notes
        config |= inner.config
        splitter.extras |= {f"{name}_optim": value for key, value in inner.extras.items() if key == "optimizer"}
    for name in ("G_optim", "D_optim"):
        if name in files:
            splitter.extras[name] = Splitter(files[name]).plain(load(files[name]))
    if "state_dict" in parts:
        config, splitter.extras["training"] = _training_state(parts["state_dict"])
    if one_of_several:
        names = ", ".join(path.name for path in parts.values())
        splitter.notes.append(f"of several {kind} snapshots in {folder.name} this one was read: {names}")
    splitter.config = config
    return splitter.contents(format_of(next(iter(networks.values()))), tuple(parts.values()))


def _newest_biggan(folder: Path, sets: Sets) -> Any:
    # The files without a suffix are what the reference goes on from; best0, best1, ... are ranked by their own FID.
    if (None,) in sets or len(sets) == 1:
        return (None,) if (None,) in sets else next(iter(sets))
    scores = {}
    for key, parts in sets.items():
        score = _training_state(parts["state_dict"])[1].get("best_FID") if "state_dict" in parts else None
        if isinstance(score, int | float) and 0 <= score < _UNMEASURED:
            scores[key] = score
    best = [key for key, score in scores.items() if score == min(scores.values())]
    if len(best) != 1:
        names = ", ".join(sorted(str(key[0]) for key in sets))
        raise UserError(str(folder), names, "a folder with one snapshot, or one of its files")
    return best[0]


def _best_studiogan(folder: Path, sets: Sets) -> Any:
    # "best" before "current", then the later step.
    return min(sets, key=lambda key: (key[0] != "best", -int(key[1])))


def _last_dcgan(folder: Path, sets: Sets) -> Any:
    return max(sets, key=lambda key: int(key[0] or -1))
