"""Reads tables that a SavedModel keeps in its graph (`saved_model.pb`) and not among its variables.

TF-Hub's BigGAN-deep has its batch norm statistics, one row per truncation, as constants called `stack_1`, `stack_3`,
... Nothing of a graph is run: a constant is a field of it, and the few operations that only hand constants on are
followed by hand.
"""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from gantransfer.pretrained.readers.contents import State
from gantransfer.pretrained.readers.mapped import MappedFile
from gantransfer.pretrained.readers.protocol_buffer import fields, shape_of

FILE = "saved_model.pb"
_TABLE = re.compile(r"stack(_\d+)?")
_FLOAT = 1
# Several times what the largest published generator has; a graph is a list of references, and could claim anything.
MAX_VALUES = 1 << 24
MAX_DEPTH = 16


def read_tables(path: Path, variables: State) -> State:
    """Tables of a graph, `(rows, columns)` float32, by `saved_model.pb/` and the name of their node.

    Args:
      path: of the `saved_model.pb`.
      variables: of the checkpoint beside it, which a table may be stacked of.

    Returns:
      The tables of the first graph that has any; none where none has.

    Raises:
      UserError: the file is damaged.
    """
    file = MappedFile(path)
    for number, graph in fields(file, file.data):
        if number == 2 and isinstance(graph, memoryview):
            found = _Graph(file, graph, variables).tables()
            if found:
                return {f"{FILE}/{name}": table for name, table in found.items()}
    return {}


class _Graph:
    """The nodes of one graph by name, and what some of them always give."""

    def __init__(self, file: MappedFile, graph: memoryview, variables: State):
        self.file, self.variables = file, variables
        self.nodes: dict[str, memoryview] = {}
        self.known: dict[str, np.ndarray | None] = {}
        self.values = 0
        definitions = [d for number, d in fields(file, graph) if number == 2 and isinstance(d, memoryview)]
        for number, node in (field for definition in definitions for field in fields(file, definition)):
            if number == 1 and isinstance(node, memoryview):
                first, name = next(fields(file, node), (0, 0))
                if first == 1 and isinstance(name, memoryview):
                    self.nodes[str(name, "utf-8", "replace")] = node

    def tables(self) -> State:
        """Arrays of two dimensions among the nodes that are called as tables are."""
        found = {name: self._stacked(name) for name in self.nodes if _TABLE.fullmatch(name)}
        return {name: table for name, table in found.items() if table is not None and table.ndim == 2}

    def _stacked(self, name: str) -> np.ndarray | None:
        operation, inputs, attributes = _parts(self.file, self.nodes[name])
        axis = dict(fields(self.file, attributes["axis"])).get(3, 0) if "axis" in attributes else 0
        if operation != "Pack" or axis != 0:
            return self._value(name)
        rows = [self._value(given) for given in inputs]
        if not rows or any(row is None or row.shape != rows[0].shape for row in rows):
            return None
        self._claim(sum(row.size for row in rows))
        return np.stack(rows)

    def _value(self, name: str, depth: int = 0) -> np.ndarray | None:
        """What a node always gives; None where that depends on inputs, or is no array of float32."""
        name = name.partition(":")[0]
        if name not in self.known:
            self.known[name] = self._found(name, depth) if name in self.nodes and depth < MAX_DEPTH else None
        return self.known[name]

    def _found(self, name: str, depth: int) -> np.ndarray | None:
        operation, inputs, attributes = _parts(self.file, self.nodes[name])
        if operation == "Const" and "value" in attributes:
            return self._tensor(attributes["value"])
        if operation in ("Variable", "VariableV2", "VarHandleOp"):
            held = self.variables.get(name)
            return held if held is not None and held.dtype == np.float32 else None
        if operation in ("Identity", "ReadVariableOp") and inputs:
            return self._value(inputs[0], depth + 1)
        return None

    def _tensor(self, attribute: memoryview) -> np.ndarray | None:
        """A constant of float32: bytes, or numbers of which the last may stand for all that follow; none are zeros."""
        message = dict(fields(self.file, attribute)).get(8)
        if not isinstance(message, memoryview):
            return None
        found: dict[int, Any] = dict(fields(self.file, message))
        if found.get(1) != _FLOAT:
            return None
        shape = shape_of(self.file, found[2]) if isinstance(found.get(2), memoryview) else ()
        count = math.prod(shape)
        self._claim(count)
        raw = found.get(4, b"")
        raw = bytes(raw) if isinstance(raw, memoryview | bytes) else b""
        raw = raw or b"".join(bytes(v) for n, v in fields(self.file, message) if n == 5 and isinstance(v, memoryview))
        if len(raw) % 4 or len(raw) > 4 * count:
            raise self.file.refuse(f"a constant of {len(raw)} bytes for {count} numbers")
        values = np.frombuffer(raw or bytes(4 * bool(count)), "<f4").astype(np.float32)
        return np.concatenate([values, np.repeat(values[-1:], count - len(values))]).reshape(shape)

    def _claim(self, count: int) -> None:
        self.values += count
        if self.values > MAX_VALUES:
            raise self.file.refuse("a graph with more constants than it can need", f"up to {MAX_VALUES} numbers")


def _parts(file: MappedFile, node: memoryview) -> tuple[str, list[str], dict[str, memoryview]]:
    """The operation of a node, the names of what it is given, and its settings."""
    operation, inputs, attributes = "", [], {}
    for number, value in fields(file, node):
        if not isinstance(value, memoryview):
            continue
        if number == 2:
            operation = str(value, "utf-8", "replace")
        elif number == 3:
            inputs.append(str(value, "utf-8", "replace"))
        elif number == 5:
            entry = dict(fields(file, value))
            if isinstance(entry.get(1), memoryview) and isinstance(entry.get(2), memoryview):
                attributes[str(entry[1], "utf-8", "replace")] = entry[2]
    return operation, inputs, attributes
