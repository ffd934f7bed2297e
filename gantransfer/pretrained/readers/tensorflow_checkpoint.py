"""Reads TensorFlow's checkpoints of version 2 (`model.ckpt.index`, `model.ckpt.data-00000-of-00001`).

The index is a table: under the empty key a header, under each variable's name its type, shape and place in the data
files, as protocol buffers. Names are kept, with the slots of optimizers apart, and running averages of variables as a
network of their own. Every variable's checksum is compared. Of a SavedModel the variables are read, and tables that its
graph holds as constants (`saved_model`).
"""

import math
import re
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from gantransfer.errors import UserError
from gantransfer.pretrained.readers.contents import Contents, State
from gantransfer.pretrained.readers.crc32c import crc32c, unmasked
from gantransfer.pretrained.readers.mapped import MappedFile, short
from gantransfer.pretrained.readers.networks import Splitter
from gantransfer.pretrained.readers.protocol_buffer import fields, shape_of
from gantransfer.pretrained.readers.saved_model import FILE as SAVED_MODEL
from gantransfer.pretrained.readers.saved_model import read_tables
from gantransfer.pretrained.readers.table_file import FOOTER_BYTES, MAGIC, entries

_DTYPES: dict[int, Any] = {
    1: np.float32, 2: np.float64, 3: np.int32, 4: np.uint8, 5: np.int16, 6: np.int8, 9: np.int64, 10: np.bool_,
    14: ml_dtypes.bfloat16, 17: np.uint16, 19: np.float16, 22: np.uint32, 23: np.uint64,
}  # fmt: skip
# Texts: the object graph of TensorFlow 2 and names of files, never weights.
_STRING = 7
_SLOT = re.compile(
    r"(.*/)?(Adam(_\d+)?|Momentum|RMSProp(_\d+)?|Adagrad|beta[12]_power(_\d+)?)"
    r"|.*/\.OPTIMIZER_SLOT/.*|optimizer.*/\.ATTRIBUTES/VARIABLE_VALUE"
)
# The running average of `conv0/w` is called `conv0/w/ema_b999900` or `conv0/w/ema_0.9999`.
_AVERAGED = re.compile(r"(.+)/ema_[^/]+")
# What a graph puts before the names of a TF-Hub module that was loaded into it.
_MODULE = "module/"
MAX_SHARDS = 10_000


def is_table(file: MappedFile) -> bool:
    """Whether a file ends as a table does."""
    return len(file) >= FOOTER_BYTES and bytes(file.data[-8:]) == MAGIC


def index_of(path: Path) -> Path | None:
    """The index of the checkpoint that a user means by a file, a prefix or a folder; None where there is none.

    A folder's `checkpoint` file, which names the newest, is followed if what it names lies in the folder; a
    SavedModel's folder has its variables in `variables/variables`.

    Raises:
      UserError: a folder holds several checkpoints and no file says which is the newest.
    """
    if path.is_dir():
        return _index_in(path)
    if path.name.endswith(".index") and path.is_file():
        return path
    prefix = re.sub(r"\.data-\d{5}-of-\d{5}$|\.meta$", "", path.name)
    index = path.with_name(f"{prefix}.index")
    return index if prefix and index.is_file() else None


def _index_in(folder: Path) -> Path | None:
    saved = folder / "variables" / "variables.index"
    if saved.is_file():
        return saved
    found = sorted(path for path in folder.glob("*.index") if path.is_file())
    listed = folder / "checkpoint"
    if len(found) > 1 and listed.is_file():
        text = str(MappedFile(listed).data[:65536], "utf-8", "replace")
        match = re.search(r'^model_checkpoint_path: "([^"]*)"', text, re.M)
        # Paths of the machine that trained are of no use here; the name is.
        newest = [path for path in found if match and path.name == f"{Path(match[1]).name}.index"]
        found = newest or found
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise UserError(str(folder), short(names, 200), "a folder with one checkpoint, or one .index file")
    return found[0] if found else None


def read_tensorflow(index: str | Path) -> Contents:
    """Reads a checkpoint by its index.

    Args:
      index: the `.index` file; the data files lie beside it.

    Raises:
      UserError: a file is missing or damaged, or a variable is of a kind that is not read.
    """
    file = MappedFile(Path(index))
    rows = entries(file)
    first = next(rows, None)
    if first is None or first[0]:
        raise file.refuse("an index without a header")
    shards = _shards(file, first[1])
    state, slots, notes, places = {}, {}, [], []
    for key, value in rows:
        name = key.decode("utf-8", "replace")
        entry = _entry(file, value)
        if entry["dtype"] == _STRING:
            notes.append(f"{short(name)} holds text and was left out")
            continue
        array, place = _variable(file, shards, name, entry)
        places.append(place)
        (slots if _SLOT.fullmatch(name) else state)[name] = array
    _check_overlaps(file, places)
    files = [file.path, *(shard.path for shard in shards)]
    graph = file.path.parent.parent / SAVED_MODEL
    if file.path.parent.name == "variables" and graph.is_file():
        state |= read_tables(graph, state)
        files.append(graph)
    splitter = Splitter(file)
    for name, network in _networks(file, state, notes).items():
        splitter.add_state(name, network)
    if slots:
        splitter.extras["optimizer"] = slots
    splitter.notes += notes
    return splitter.contents("tensorflow", tuple(files))


def _networks(file: MappedFile, state: State, notes: list[str]) -> dict[str, State]:
    """The network that was trained and its running average, where there is one; what has no average is in both."""
    if state and all(name.startswith((_MODULE, SAVED_MODEL)) for name in state):
        state = {name.removeprefix(_MODULE): array for name, array in state.items()}
        notes.append(f"names began with {_MODULE}, which was taken away")
    averaged: State = {}
    for name, array in state.items():
        if match := _AVERAGED.fullmatch(name):
            if match[1] in averaged:
                raise file.refuse(f"two running averages of {short(match[1])}", "one of each variable")
            averaged[match[1]] = array
    if not averaged:
        return {"": state}
    trained = {name: array for name, array in state.items() if not _AVERAGED.fullmatch(name)}
    notes.append(f"{len(averaged)} variables have a running average, which is called G_ema")
    return ({"G": trained} if averaged.keys() & trained.keys() else {}) | {"G_ema": trained | averaged}


def _shards(file: MappedFile, header: memoryview) -> list[MappedFile]:
    found = dict(fields(file, header))
    count, order = found.get(1, 0), found.get(2, 0)
    if isinstance(count, memoryview):
        raise file.refuse("a checkpoint of TensorFlow's version 1", "one of version 2, with an .index file")
    if not isinstance(count, int) or not 1 <= count <= MAX_SHARDS or order not in (0, 1):
        raise file.refuse("a header with an odd number of data files")
    if order == 1:
        raise file.refuse("a big-endian checkpoint", "a checkpoint of a little-endian machine")
    prefix = file.path.name.removesuffix(".index")
    paths = [file.path.with_name(f"{prefix}.data-{i:05d}-of-{count:05d}") for i in range(count)]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise file.refuse(f"a checkpoint without {missing[0]}", "all data files beside the index")
    return [MappedFile(path) for path in paths]


def _entry(file: MappedFile, message: memoryview) -> dict[str, Any]:
    found: dict[str, Any] = {"dtype": 0, "shape": (), "shard": 0, "offset": 0, "size": 0, "crc": 0, "slices": False}
    names = {1: "dtype", 3: "shard", 4: "offset", 5: "size"}
    for number, value in fields(file, message):
        if number in names and isinstance(value, int):
            found[names[number]] = value
        elif number == 2 and isinstance(value, memoryview):
            found["shape"] = shape_of(file, value)
        elif number == 6 and isinstance(value, memoryview) and len(value) == 4:
            found["crc"] = struct.unpack("<I", value)[0]
        elif number == 7:
            found["slices"] = True
    return found


def _variable(
    file: MappedFile, shards: list[MappedFile], name: str, entry: dict[str, Any]
) -> tuple[np.ndarray, tuple[int, int, int]]:
    called = f"the variable {short(name)}"
    if entry["slices"]:
        raise file.refuse(f"{called} in slices", "variables that are stored whole")
    if entry["dtype"] not in _DTYPES:
        raise file.refuse(f"{called} of type {entry['dtype']}", "variables of numbers")
    if entry["shard"] >= len(shards):
        raise file.refuse(f"{called} in data file {entry['shard']} of {len(shards)}")
    shard, dtype, shape = shards[entry["shard"]], np.dtype(_DTYPES[entry["dtype"]]), entry["shape"]
    size = math.prod(shape) * dtype.itemsize
    if entry["size"] != size:
        raise file.refuse(f"{called} of {entry['size']} bytes for {math.prod(shape)} elements")
    data = shard.take(entry["offset"], size, called)
    if crc32c(data) != unmasked(entry["crc"]):
        raise shard.refuse(f"{called} with a wrong checksum")
    return np.frombuffer(data, dtype).reshape(shape), (entry["shard"], entry["offset"], entry["offset"] + size)


def _check_overlaps(file: MappedFile, places: list[tuple[int, int, int]]) -> None:
    last = (0, 0, 0)
    for place in sorted(places):
        if place[0] == last[0] and place[1] < last[2]:
            raise file.refuse("variables that overlap")
        last = place
