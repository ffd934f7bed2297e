"""Splits what a pickle held into networks, optimizer states and plain values.

Files nest these in several ways: a state dict alone, under `state_dict`, several under `g`, `d`, `g_ema`, or whole
modules whose `_parameters`, `_buffers` and `_modules` hold the arrays. All become `Contents`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gantransfer.pretrained.readers.contents import Contents, State, settled, settled_state
from gantransfer.pretrained.readers.mapped import MappedFile, short
from gantransfer.pretrained.readers.pickles import PROGRAM, Record

NAMES = {
    **dict.fromkeys(("G", "g", "generator", "netG", "gen"), "G"),
    **dict.fromkeys(("D", "d", "discriminator", "netD", "disc"), "D"),
    **dict.fromkeys(("G_ema", "g_ema", "generator_ema", "netG_ema", "ema", "gen_ema"), "G_ema"),
}
# Keys that only wrap a network without naming it.
WRAPPERS = ("state_dict", "model_state_dict", "model")
# Keys of tensors and modules that are not networks: progress counters, augmentation.
BESIDE = ("progress", "augment_pipe")
MAX_DEPTH = 64
MAX_PARTS = 100_000


class Splitter:
    """Collects what one or several objects of a file hold.

    Args:
      file: for messages.
    """

    def __init__(self, file: MappedFile):
        self.file = file
        self.states: dict[str, State] = {}
        self.config: dict[str, Any] = {}
        self.extras: dict[str, Any] = {}
        self.notes: list[str] = []
        self._holds: dict[int, bool] = {}
        self._plain: dict[int, Any] = {}
        self._visits = 0

    def contents(self, kind: str, files: tuple[Path, ...]) -> Contents:
        """What was collected.

        Raises:
          UserError: there are no weights in it.
        """
        if not any(self.states.values()):
            raise self.file.refuse("a file without weights", "a file with the arrays of at least one network")
        return Contents(kind, self.states, self.config, files, self.extras, tuple(self.notes))

    def add(self, value: Any, name: str = "", depth: int = 0) -> None:
        """Takes in an object: networks go to `states`, optimizers to `extras`, plain values to `config`."""
        self._count(depth)
        if isinstance(value, Record) and self.holds_arrays(value):
            self._add_module(value, name)
        elif isinstance(value, Mapping) and "param_groups" in value:
            self.extras[name] = self.plain(value)
        elif isinstance(value, Mapping) and self.holds_arrays(value):
            self._add_mapping(value, name, depth)
        elif self.holds_arrays(value):
            self.extras[name] = self.plain(value)
        else:
            self.config[name] = self.plain(value)

    def add_state(self, name: str, arrays: Mapping[Any, np.ndarray]) -> None:
        """Takes in the flat arrays of one network."""
        if name in self.states:
            raise self.file.refuse(f"two networks called {short(name) or 'nothing'}", "each network once")
        flat: dict[str, np.ndarray] = {}
        for key, array in arrays.items():
            key = str(key).removeprefix("module.")
            if key in flat:
                raise self.file.refuse(f"the array {short(key)} twice", "each array once")
            flat[key] = array
        if any(str(key).startswith("module.") for key in arrays):
            self.notes.append(f"names of {name or 'the network'} began with module., which was taken away")
        self.states[name], notes = settled_state(name, flat)
        self.notes += notes

    def _add_mapping(self, value: Mapping[Any, Any], name: str, depth: int) -> None:
        arrays = {key: part for key, part in value.items() if isinstance(part, np.ndarray)}
        nested = {key: part for key, part in value.items() if key not in arrays and self.holds_arrays(part)}
        if arrays and not nested and name not in BESIDE:
            self.add_state(name, arrays)
        else:
            # Arrays beside networks are counters and the like.
            self.extras |= {_joined(name, key): settled(array) for key, array in arrays.items()}
        for key, part in nested.items():
            self.add(part, name if key in WRAPPERS else self._named(name, key), depth + 1)
        for key, part in value.items():
            if key not in arrays and key not in nested:
                self.config[_joined(name, key)] = self.plain(part)

    def _named(self, name: str, key: Any) -> str:
        usual = NAMES.get(key, key) if not name else key
        if usual != key:
            self.notes.append(f"{key} of the file is called {usual}")
        return _joined(name, usual)

    def _add_module(self, record: Record, name: str) -> None:
        state: dict[str, np.ndarray] = {}
        attributes: dict[str, Any] = {}
        self._flatten(record, "", state, attributes, 0)
        if name in BESIDE:
            self.extras[name] = {key: settled(array) for key, array in state.items()}
        else:
            self.add_state(name, state)
        inner = record.state
        self.config[name] = self.plain(inner.get("_init_kwargs", inner.get("static_kwargs", {})))
        self.config.setdefault("classes", {})[name] = record.name
        self.config.setdefault("attributes", {})[name] = attributes

    def _flatten(self, record: Record, prefix: str, state: State, attributes: dict[str, Any], depth: int) -> None:
        inner = record.state
        self._count(depth)
        if not isinstance(inner, Mapping):
            raise self.file.refuse(f"a module {short(record.name)} without a state")
        if "variables" in inner:
            parts = dict(self._pairs(inner["variables"]))
            modules = inner.get("components") or {}
            separator = "/"
        elif record.name.partition(".")[0] == PROGRAM:
            # A program's modules hold parameters, buffers and parts alike as attributes.
            parts = {key: part for key, part in inner.items() if isinstance(part, np.ndarray)}
            modules = {key: part for key, part in inner.items() if isinstance(part, Record)}
            for key, part in inner.items():
                if key not in parts and key not in modules and self.holds_arrays(part):
                    self.notes.append(f"{short(f'{prefix}{key}')} holds arrays that have no names, and was left out")
            separator = "."
        else:
            skipped = inner.get("_non_persistent_buffers_set") or ()
            parts = {**inner.get("_parameters", {})}
            parts |= {key: part for key, part in inner.get("_buffers", {}).items() if key not in skipped}
            modules = inner.get("_modules", {})
            separator = "."
        for key, part in parts.items():
            if isinstance(part, np.ndarray):
                state[f"{prefix}{key}"] = part
            elif part is not None:
                raise self.file.refuse(f"the parameter {short(f'{prefix}{key}')} that is no array")
        for key, part in inner.items():
            if not str(key).startswith("_") and isinstance(part, bool | int | float | str | np.generic):
                attributes[f"{prefix}{key}"] = self.plain(part)
        for key, part in modules.items():
            if isinstance(part, Record):
                self._flatten(part, f"{prefix}{key}{separator}", state, attributes, depth + 1)
            elif part is not None:
                raise self.file.refuse(f"the module {short(f'{prefix}{key}')} that is none")

    def _count(self, depth: int) -> None:
        # What refers to itself, or to the same parts again and again, would go on for ever.
        self._visits += 1
        if depth > MAX_DEPTH or self._visits > MAX_PARTS:
            raise self.file.refuse("networks that are nested too deeply or without end")

    def _pairs(self, variables: Any) -> list[tuple[str, Any]]:
        if not isinstance(variables, list) or not all(isinstance(pair, tuple) and len(pair) == 2 for pair in variables):
            raise self.file.refuse("a network with variables that are no pairs")
        return [(str(key), np.asarray(part) if isinstance(part, np.generic) else part) for key, part in variables]

    def holds_arrays(self, value: Any, depth: int = 0) -> bool:
        """Whether there is an array anywhere inside."""
        if isinstance(value, np.ndarray):
            return True
        parts = _parts(value)
        if not parts:
            return False
        if id(value) not in self._holds:
            if depth > MAX_DEPTH:
                raise self.file.refuse("values that are nested too deeply")
            # Whatever refers to itself is found out when it is made plain.
            self._holds[id(value)] = False
            self._holds[id(value)] = any(self.holds_arrays(part, depth + 1) for part in parts)
        return self._holds[id(value)]

    def plain(self, value: Any, depth: int = 0) -> Any:
        """The value in plain types: modules as their class's name, NumPy's scalars as Python's, sets as lists."""
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, np.ndarray):
            return settled(value)
        if isinstance(value, Record):
            return value.name
        if value is None or isinstance(value, bool | int | float | str | bytes):
            return value
        if not isinstance(value, Mapping | list | tuple | set | frozenset):
            return short(value)
        if id(value) not in self._plain:
            if depth > MAX_DEPTH:
                raise self.file.refuse("values that are nested too deeply or refer to themselves")
            self._plain[id(value)] = self._plain_container(value, depth + 1)
        return self._plain[id(value)]

    def _plain_container(self, value: Any, depth: int) -> Any:
        if isinstance(value, Mapping):
            return {key: self.plain(part, depth) for key, part in value.items()}
        parts = [self.plain(part, depth) for part in value]
        return tuple(parts) if isinstance(value, tuple) else sorted(parts, key=str) if isinstance(value, set) else parts


def _joined(name: str, key: Any) -> str:
    return f"{name}/{key}" if name else str(key)


def _parts(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, Record) and isinstance(value.state, Mapping):
        return list(value.state.values())
    return []
