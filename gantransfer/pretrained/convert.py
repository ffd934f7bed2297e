"""Conversion: from a published checkpoint to a source, with a report about every one of its entries.

`open_checkpoint` converts in memory, `convert` writes a converted folder (`converted.py`). Nothing that a file holds is
left out silently: what no layout knows, what is missing, and what is not finite is an error unless a flag names it.
"""

import dataclasses
import hashlib
import mmap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from gantransfer.errors import UserError
from gantransfer.models.family import Networks, Role
from gantransfer.pretrained import converted
from gantransfer.pretrained.conversion_report import Entry, Report
from gantransfer.pretrained.description import numbered_classes
from gantransfer.pretrained.fresh import build_networks, initial_leaves, variable_shapes
from gantransfer.pretrained.layouts.layout import Layout, Leaf
from gantransfer.pretrained.recognition import Part, Recognised, decide_options, recognise
from gantransfer.pretrained.source import Source, SourceInfo

SHOWN = 6
ASKED = "asked for by {} {}"


@dataclass(frozen=True)
class Request:
    """What a user says about a checkpoint beside its path; empty where nothing.

    Attributes:
      licence, origin, name: what the source will say of itself.
      class_names: one name per class.
      drop: patterns of entries that may be left out, `NAME` or `STATE/NAME`.
      missing: patterns of entries or of our leaves that may be missing, or not finite; they are initialised fresh.
      options: architecture options that the weights cannot tell.
      layout: the layout, where several would do.
      seed: of what is initialised fresh.
    """

    licence: str = ""
    origin: str = ""
    name: str = ""
    class_names: Sequence[str] | None = None
    drop: Sequence[str] = ()
    missing: Sequence[str] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    layout: str | None = None
    seed: int = 0


def open_checkpoint(path: str | Path, request: Request | None = None) -> tuple[Source, Report]:
    """Reads a published checkpoint, a file or a folder, and converts it in memory.

    Raises:
      UserError: it cannot be read, is of no known layout, its networks disagree, or entries are unknown, missing, of
        other shapes or not finite without being named in `request`.
    """
    from gantransfer.pretrained import readers

    request, path = request or Request(), Path(path).expanduser()
    contents = readers.read(path)
    recognised = recognise(contents.states, path, request.layout)
    options = decide_options(recognised, contents.config, request.options, str(path))
    values = {name: value for name, (value, _) in options.items()}
    class_names = _class_names(values.get("num_classes", 1), request.class_names)
    networks, values = build_networks(recognised.layout.family, values, class_names)
    mapping = _Mapping(recognised.layout, networks, values, request)
    trees = {part.slot: mapping.read(part, contents.states[part.state]) for part in recognised.parts}
    mapping.set_aside(recognised, contents.states)
    mapping.check(str(path))
    trees = _on_device(mapping.with_fresh(trees))
    ema = trees.get("ema", trees.get("generator"))
    info = SourceInfo(
        name=request.name or path.stem,
        family=recognised.layout.family,
        options=values,
        resolution=networks.resolution,
        channels=networks.channels,
        z_dim=networks.z_dim,
        class_names=class_names,
        licence=request.licence,
        origin=request.origin,
        has_generator="generator" in trees,
        has_ema="ema" in trees,
        has_discriminator="discriminator" in trees,
    )
    source = Source(info, networks, trees.get("generator", ema), ema, trees.get("discriminator"))
    notes = [*contents.notes, *([recognised.layout.notice] if recognised.layout.notice else [])]
    report = Report(
        info=info,
        format=contents.format,
        layout=recognised.layout.name,
        files={_relative(file, path): _sha256(Path(file)) for file in contents.files},
        options={name: (values[name], by) for name, (_, by) in options.items()},
        entries=tuple(mapping.entries),
        notes=tuple(notes),
    )
    return source, report


def convert(
    path: str | Path,
    out: str | Path,
    *,
    licence: str = "",
    origin: str = "",
    name: str = "",
    class_names: Sequence[str] | str | Path | None = None,
    drop: Sequence[str] = (),
    missing: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
    layout: str | None = None,
    seed: int = 0,
) -> Report:
    """Converts a published checkpoint and writes it as a converted folder, whole or not at all.

    Args:
      path: a file, or a folder whose files make up one checkpoint.
      out: the folder to make; nothing may be there.
      licence, origin, name: what the source will say of itself; the name is the folder's unless given.
      class_names: one name per class, or a text file with one per line.
      drop: shell patterns of entries that may be left out, `NAME` or `STATE/NAME`.
      missing: shell patterns of entries, or of our leaves, that may be missing or not finite; they are initialised
        fresh.
      options: architecture options that the weights cannot tell, by name; text is read as a number where it is one.
      layout: name of the layout, where several would do.
      seed: of what is initialised fresh.

    Returns:
      The report: every entry of the file and every leaf of ours, and who decided each option.

    Raises:
      UserError: `out` exists; the checkpoint cannot be read or is of no known layout; its networks and its
        configuration disagree; entries are unknown, missing, of other shapes or not finite without being named.
    """
    out = Path(out).expanduser()
    converted.check_free(out)
    request = Request(
        licence=licence,
        origin=origin,
        name=name or out.resolve().name,
        class_names=_listed(class_names),
        drop=tuple(drop),
        missing=tuple(missing),
        options=dict(options or {}),
        layout=layout,
        seed=seed,
    )
    source, report = open_checkpoint(path, request)
    report = dataclasses.replace(report, folder=out)
    converted.write_converted(out, source, report, names_known=request.class_names is not None)
    return report


def _listed(class_names: Sequence[str] | str | Path | None) -> tuple[str, ...] | None:
    if class_names is None or not isinstance(class_names, str | Path):
        return class_names if class_names is None else tuple(class_names)
    try:
        lines = Path(class_names).expanduser().read_text("utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UserError("class_names", str(class_names), "a text file with one name per line") from error
    return tuple(line.strip() for line in lines if line.strip())


class _Mapping:
    """Reads states by a layout's table, and remembers what became of every entry and what is wrong."""

    def __init__(self, layout: Layout, networks: Networks, options: Mapping[str, Any], request: Request):
        self.layout, self.networks, self.options, self.request = layout, networks, options, request
        shapes = dict(zip(("generator", "discriminator"), variable_shapes(networks), strict=True))
        self.expected = {role: flatten_dict(dict(tree), sep="/") for role, tree in shapes.items()}
        self.entries: list[Entry] = []
        self.fresh: list[tuple[str, Role, str]] = []
        self.wrong: dict[str, list[str]] = {}
        self.matched: set[str] = set()

    def read(self, part: Part, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Our leaves of one network, by collection and path; without those that are missing or wrong."""
        role, expected = part.found.role, self.expected[part.found.role]
        table, absent = self.layout.leaves(role, self.options), self.layout.absent(role, self.options)
        read = {leaf.ours: self._leaf(part, leaf, state, expected[leaf.ours]) for leaf in table}
        ours = {path: value for path, value in read.items() if value is not None}
        for path, value in absent.items():
            ours[path] = value
            why = f"no file of {self.layout.name} holds it; it starts as in a network that was never trained"
            self.entries.append(_of_ours(part, path, expected[path], why))
        for path in expected.keys() - read.keys() - absent.keys():
            self._lacking(part, "", path, expected[path])
        known = {name for leaf in table for name in leaf.names}
        for name in state.keys() - known:
            self._leave_out(part.state, name, state[name], self.layout.reason(name))
        return ours

    def set_aside(self, recognised: Recognised, states: Mapping[str, Mapping[str, np.ndarray]]) -> None:
        """Accounts for the states that the layout knows nothing of."""
        for state in recognised.strange:
            for name, array in states[state].items():
                self._leave_out(state, name, array, self.layout.reason(f"{state}/{name}") or self.layout.reason(name))

    def check(self, path: str) -> None:
        """Raises one `UserError` for everything that is wrong, and for patterns that name nothing."""
        if self.wrong:
            words = "; ".join(f"{len(names)} {kind}: {_some(names)}" for kind, names in self.wrong.items())
            raise UserError(
                path, words, f"every entry of {self.layout.name}; --drop PATTERN and --missing PATTERN allow exceptions"
            )
        for flag, patterns in (("--drop", self.request.drop), ("--missing", self.request.missing)):
            for pattern in patterns:
                if f"{flag} {pattern}" not in self.matched:
                    raise UserError(flag, pattern, "patterns of which each names at least one such entry")

    def with_fresh(self, trees: Mapping[str, dict[str, np.ndarray]]) -> dict[str, dict[str, Any]]:
        """The networks with random values in the leaves that `--missing` names."""
        complete = {slot: dict(tree) for slot, tree in trees.items()}
        if self.fresh:
            paths = sorted({f"{role}/{path}" for _, role, path in self.fresh})
            made = initial_leaves(self.networks, self.request.seed, paths)
            for slot, role, path in self.fresh:
                complete[slot][path] = made[f"{role}/{path}"]
        return complete

    def _leaf(self, part: Part, leaf: Leaf, state: Mapping[str, np.ndarray], shape: Any) -> np.ndarray | None:
        for name in leaf.names:
            if name not in state:
                self._lacking(part, name, leaf.ours, shape)
                return None
        there = state[leaf.names[0]]
        try:
            value = leaf.read(state)
        except ValueError:
            # A change of layout that the array has not the dimensions for.
            value = None
        if value is None or value.shape != shape.shape or not _same_kind(value.dtype, shape.dtype):
            words = (
                f"{part.state}/{leaf.names[0]} {there.dtype}{list(there.shape)} for {shape.dtype}{list(shape.shape)}"
            )
            self.wrong.setdefault("of other shape or type", []).append(words)
            return None
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            self._lacking(part, leaf.names[0], leaf.ours, shape, "with NaN or infinity")
            return None
        why = ""
        if value.dtype != shape.dtype:
            why = f"{there.dtype} in the file, {shape.dtype} here"
            value = value.astype(shape.dtype)
        self.entries += [
            Entry(part.state, name, _ours(part, leaf.ours), leaf.change.words, state[name].shape, str(there.dtype), why)
            for name in leaf.names
        ]
        return value

    def _lacking(self, part: Part, name: str, path: str, shape: Any, how: str = "missing") -> None:
        """Our leaf has no usable value: it is initialised if `--missing` names it, else that is wrong."""
        pattern = self._pattern("--missing", self.request.missing, (name, f"{part.state}/{name}", _ours(part, path)))
        if pattern is None:
            self.wrong.setdefault(how, []).append(f"{part.state}/{name}" if name else _ours(part, path))
            return
        self.fresh.append((part.slot, part.found.role, path))
        why = f"{ASKED.format('--missing', pattern)}; initialised fresh with seed {self.request.seed}"
        why = why if how == "missing" else f"{how} in the file; {why}"
        self.entries.append(dataclasses.replace(_of_ours(part, path, shape, why), name=name))

    def _leave_out(self, state: str, name: str, array: np.ndarray, why: str | None) -> None:
        if why is None:
            pattern = self._pattern("--drop", self.request.drop, (name, f"{state}/{name}"))
            if pattern is None:
                self.wrong.setdefault("unknown", []).append(f"{state}/{name}")
                return
            why = ASKED.format("--drop", pattern)
        self.entries.append(Entry(state, name, "", "dropped", array.shape, str(array.dtype), why))

    def _pattern(self, flag: str, patterns: Sequence[str], names: Iterable[str]) -> str | None:
        """The first pattern that names one of `names`."""
        names = [name for name in names if name]
        for pattern in patterns:
            if any(fnmatchcase(name, pattern) for name in names):
                self.matched.add(f"{flag} {pattern}")
                return pattern
        return None


def _ours(part: Part, path: str) -> str:
    return f"{part.slot}/{path}"


def _of_ours(part: Part, path: str, shape: Any, why: str) -> Entry:
    return Entry(part.state, "", _ours(part, path), "missing", tuple(shape.shape), str(shape.dtype), why)


def _same_kind(theirs: np.dtype, ours: np.dtype) -> bool:
    # Half precision of bfloat16 has a kind of its own in NumPy.
    is_float = lambda dtype: jax.dtypes.issubdtype(dtype, np.floating)
    return theirs == ours or (is_float(theirs) and is_float(ours))


def _on_device(trees: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """All networks as trees on the device, a leaf at a time; nothing keeps the file's memory alive."""
    placed = {slot: {path: _placed(leaf) for path, leaf in tree.items()} for slot, tree in trees.items()}
    return {slot: unflatten_dict(tree, sep="/") for slot, tree in placed.items()}


def _placed(leaf: np.ndarray | jax.Array) -> jax.Array:
    # On a CPU, JAX may keep the array that it is given, and with it the whole mapped file that the array views.
    if isinstance(leaf, np.ndarray) and not leaf.flags.owndata:
        view, leaf = leaf, np.array(leaf, order="C")
        _let_go(view)
    return jax.block_until_ready(jax.device_put(leaf))


def _let_go(view: np.ndarray) -> None:
    """Takes the pages of a mapped file out of memory again; what is still to be read comes back when it is."""
    base: Any = view
    while (inner := getattr(base, "base", None)) is not None:
        base = inner
    mapped = base.obj if isinstance(base, memoryview) else base
    if isinstance(mapped, mmap.mmap) and hasattr(mapped, "madvise"):
        mapped.madvise(mmap.MADV_DONTNEED)


def _class_names(count: int, given: Sequence[str] | None) -> tuple[str, ...]:
    """Names of the classes; where none are known, their numbers in words."""
    if given is None:
        return numbered_classes(count)
    if len(given) != count:
        raise UserError("class_names", f"{len(given)} names", f"{count} names, one per class of the networks")
    return tuple(given)


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _relative(file: str | Path, path: Path) -> str:
    return str(Path(file).relative_to(path)) if path.is_dir() else Path(file).name


def _some(names: Sequence[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
