"""Reads pickles without running them: a small machine of its own that only builds plain data and known stand-ins.

Python's `pickle` imports what a file names and calls it; even a subclass that overrides `find_class` lets a file set
attributes of whatever it was given, and reserve memory at will. The machine here does not use it. Its stack holds plain
values, `Record`s and what the handlers of the listed globals return (`known`); no opcode reaches Python's import
system, calls a method of a value or touches an attribute. Long byte strings are views of the file, not copies.

Format: the opcodes of protocols 0 to 5, as documented in Python's `pickletools`.
"""

import codecs
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, no_type_check

from gantransfer.errors import UserError
from gantransfer.pretrained.readers.mapped import MappedFile, short

# A checkpoint with a thousand modules has about half a million opcodes; each may cost some two hundred bytes.
MAX_OPCODES = 4_000_000
# Integers of checkpoints are counts, seeds and addresses; the longest is the ten bytes of torch's magic number.
MAX_INTEGER_BYTES = 64
# Byte strings from this length on are views of the file.
VIEW_BYTES = 1024
MAX_LINE_BYTES = 1 << 26
# Where TorchScript programs keep their classes.
PROGRAM = "__torch__"


@dataclass(frozen=True)
class Known:
    """What stands for a global that a pickle may name.

    Attributes:
      name: the global, for messages.
      make: `make(reader, args)` gives what a call of the global, or a new object of the class, becomes.
    """

    name: str
    make: Callable[["Reader", tuple], Any]


@dataclass(eq=False)
class Record:
    """A passive stand-in for an object of a listed class.

    Attributes:
      name: module and class, or only the class where the file says no more.
      args: what it was constructed with.
      state: what it was filled with; for a torch module its `__dict__`.
    """

    name: str
    args: tuple = ()
    state: Any = None


@dataclass(eq=False)
class Pending:
    """An object between its construction and its BUILD opcode, which replaces it on the stack and in the memo."""

    name: str
    build: Callable[["Reader", Any], Any]
    memo_keys: list[int] = field(default_factory=list)


# A file has up to millions of opcodes: checks of annotations would cost more than the reading.
@no_type_check
class Reader:
    """One run of the machine, over one pickle or several that follow each other.

    Args:
      file: where the bytes are from, for messages.
      known: what may be named: (module, name) to a `Known`, or to the value that stands for it.
      persistent: answers persistent ids; None where a format has none.
      data: the bytes; the whole file where left out.
      position: where to begin.
      depth: how many pickles this one is inside of.
    """

    def __init__(
        self,
        file: MappedFile,
        known: Mapping[tuple[str, str], Any],
        persistent: Callable[[Any], Any] | None = None,
        data: memoryview | None = None,
        position: int = 0,
        depth: int = 0,
    ):
        self.file, self.known, self.persistent = file, known, persistent
        self.data = file.data if data is None else data
        self.position, self.depth = position, depth
        self._opcodes = 0

    def load(self) -> Any:
        """Reads one pickle from `position` on and leaves `position` behind it.

        Raises:
          UserError: a global that is not listed, or bytes that are not a pickle of a checkpoint.
        """
        self.stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        try:
            while (opcode := self._byte()) != STOP:
                self._opcodes += 1
                if self._opcodes > MAX_OPCODES:
                    raise self.refuse(f"a pickle of more than {MAX_OPCODES} opcodes")
                run = _OPCODES.get(opcode)
                if run is None:
                    raise self.refuse(f"the unknown pickle opcode {opcode:#04x}")
                run(self)
            value = self.stack.pop()
        except UserError:
            raise
        except _SENSELESS as error:
            raise self.refuse(f"a pickle that makes no sense at byte {self.position}") from error
        if self.stack or self._marks:
            raise self.refuse("a pickle that ends before everything is built")
        return value

    def nested(self, data: memoryview, persistent: Callable[[Any], Any] | None = None) -> "Reader":
        """A reader of a pickle inside this one, under the same rules; it shares the limit on opcodes' number."""
        if self.depth:
            raise self.refuse("a pickle inside a pickle inside a pickle")
        inner = Reader(self.file, self.known, persistent, data, depth=self.depth + 1)
        inner._opcodes = self._opcodes
        return inner

    def done(self, inner: "Reader") -> None:
        """Counts what a nested reader has used."""
        self._opcodes = inner._opcodes

    def refuse(self, what: str, *allowed: str) -> UserError:
        """The error for something wrong in this pickle, to be raised."""
        return self.file.refuse(what, *allowed)

    def take(self, count: int) -> memoryview:
        """The next `count` bytes."""
        start = self.position
        if start + count > len(self.data):
            raise self.refuse(f"a pickle that ends early: {count} bytes at byte {start} of {len(self.data)}")
        self.position += count
        return self.data[start : self.position]

    def line(self) -> bytes:
        """The bytes up to the next line feed, which is skipped."""
        parts, length = [], 0
        while length < MAX_LINE_BYTES:
            part = bytes(self.data[self.position + length : self.position + length + 256])
            if not part:
                break
            end = part.find(b"\n")
            if end >= 0:
                self.position += length + end + 1
                return b"".join([*parts, part[:end]])
            parts.append(part)
            length += len(part)
        raise self.refuse("a line of a pickle without end")

    def number(self, code: str) -> Any:
        """The next number, by its `struct` code, little-endian."""
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def blob(self, code: str) -> bytes | memoryview:
        """A counted byte string; a view of the file where it is long."""
        part = self.take(self.number(code))
        return part if len(part) >= VIEW_BYTES else bytes(part)

    def text(self, code: str) -> str:
        """A counted string in UTF-8."""
        return str(self.take(self.number(code)), "utf-8", "surrogatepass")

    def legacy_text(self, raw: bytes | memoryview) -> str | memoryview:
        """A byte string of Python 2: text, or array data where it is long."""
        return raw if isinstance(raw, memoryview) else raw.decode("latin-1")

    def integer(self, count: int) -> int:
        """A little-endian integer of `count` bytes with sign."""
        if count > MAX_INTEGER_BYTES:
            raise self.refuse(f"an integer of {count} bytes")
        return int.from_bytes(self.take(count), "little", signed=True)

    def push(self, value: Any) -> None:
        """Puts a value on the stack."""
        self.stack.append(value)

    def mark(self) -> None:
        """Begins a group of values."""
        self._marks.append(self.stack)
        self.stack = []

    def group(self) -> list[Any]:
        """The values since the last mark, which is taken away."""
        values, self.stack = self.stack, self._marks.pop()
        return values

    def remember(self, key: int) -> None:
        """Puts the top of the stack into the memo."""
        value = self.stack[-1]
        self.memo[key] = value
        if isinstance(value, Pending):
            value.memo_keys.append(key)

    def find(self, module: Any, name: Any) -> Any:
        """What stands for a global; refuses those that are not listed."""
        if isinstance(module, str) and isinstance(name, str) and (module, name) in self.known:
            return self.known[module, name]
        named = f"{short(module)}.{short(name)}"
        raise self.refuse(f"the global {named}", "weights and plain values only; nothing in a file is ever run")

    def call(self, function: Any, args: Any) -> Any:
        """What a call of a listed global becomes."""
        if not isinstance(function, Known) or not isinstance(args, tuple):
            raise self.refuse(f"a call of something that is not a listed global at byte {self.position}")
        return function.make(self, args)

    def build(self) -> None:
        """Fills the object on top of the stack with its state."""
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Pending):
            self.stack[-1] = value = target.build(self, state)
            for key in target.memo_keys:
                self.memo[key] = value
        elif isinstance(target, Record) and target.state is None:
            target.state = state
        # Attributes of a dictionary, such as the module versions that torch hangs on a state dict, are not weights.
        elif not isinstance(target, dict):
            raise self.refuse(f"state for something that takes none at byte {self.position}")

    def set_items(self, pairs: Iterable[Any]) -> None:
        """Puts keys and values, in turn, into the dictionary on top of the stack."""
        target, pairs = self._top(dict), list(pairs)
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            target[self.key(key)] = value

    def extend(self, kind: type, values: list[Any]) -> None:
        """Adds values to the list or set on top of the stack."""
        target = self._top(kind)
        target.extend(values) if kind is list else target.update(map(self.key, values))

    def key(self, value: Any) -> Any:
        """A key of a dictionary or set; refuses nested tuples, whose hash can take forever."""
        if type(value) in _KEYS or (
            type(value) is tuple and len(value) <= 16 and all(type(part) in _KEYS for part in value)
        ):
            return value
        raise self.refuse(f"a key of type {short(type(value).__name__)}")

    def _top(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise self.refuse(f"entries for something that is not a {kind.__name__} at byte {self.position}")
        return self.stack[-1]

    def _byte(self) -> int:
        if self.position >= len(self.data):
            raise self.refuse(f"a pickle that ends early, at byte {self.position}")
        self.position += 1
        return self.data[self.position - 1]

    # One method per opcode that needs more than a line.

    def _instance(self) -> None:
        module, name = self.line().decode("ascii"), self.line().decode("ascii")
        self.push(self.call(self.find(module, name), tuple(self.group())))

    def _object(self) -> None:
        cls, *args = self.group()
        self.push(self.call(cls, tuple(args)))

    def _reduce(self) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        self.push(self.call(function, args))

    def _new_with_keywords(self) -> None:
        keywords, args, cls = self.stack.pop(), self.stack.pop(), self.stack.pop()
        if keywords != {}:
            raise self.refuse("a new object with keyword arguments")
        self.push(self.call(cls, args))

    def _global(self) -> None:
        self.push(self.find(self.line().decode("utf-8"), self.line().decode("utf-8")))

    def _stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.push(self.find(module, name))

    def _persistent_id(self) -> None:
        if self.persistent is None:
            raise self.refuse("a persistent id where this format has none")
        self.push(self.persistent(self.stack.pop()))

    def _text_integer(self) -> None:
        line = self.line().rstrip(b"L")
        if len(line) > MAX_INTEGER_BYTES:
            raise self.refuse(f"an integer of {len(line)} digits")
        # Protocols 0 and 1 write truth values as these two.
        self.push({b"00": False, b"01": True}.get(line, int(line)))

    def _text_string(self) -> None:
        line = self.line().rstrip(b"\r")
        if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
            raise self.refuse("a string without quotes")
        raw = codecs.escape_decode(line[1:-1])[0]
        self.push(self.legacy_text(memoryview(raw) if len(raw) >= VIEW_BYTES else raw))

    def _protocol(self) -> None:
        if self.take(1)[0] > 5:
            raise self.refuse("a pickle of a protocol above 5")

    def _tuple(self, count: int) -> None:
        if len(self.stack) < count:
            raise self.refuse("a tuple of more values than there are")
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def _dict(self) -> None:
        pairs = self.group()
        self.push({})
        self.set_items(pairs)

    def _frozenset(self) -> None:
        self.push(frozenset(map(self.key, self.group())))

    def _set_one(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key, value])

    def _append_one(self) -> None:
        value = self.stack.pop()
        self.extend(list, [value])

    def _pop(self) -> None:
        self.stack.pop() if self.stack else self.group()


# What Python's operations raise on values that do not fit them, which is the file's fault.
_SENSELESS = (ValueError, TypeError, LookupError, OverflowError, AttributeError, RecursionError, struct.error)
_KEYS = frozenset({str, int, float, bool, bytes, type(None)})
STOP = ord(".")
_NEVER = {
    0x82: "extension registry", 0x83: "extension registry", 0x84: "extension registry",
    0x97: "out-of-band buffers", 0x98: "out-of-band buffers", ord("P"): "persistent ids as text",
}  # fmt: skip


def _never(what: str) -> Callable[[Reader], None]:
    def run(reader: Reader) -> None:
        raise reader.refuse(f"a pickle that uses {what}")

    return run


def _frame(reader: Reader) -> None:
    # Only says how much to read ahead, but an honest file holds what it announces.
    reader.file.take(reader.position + 8, reader.number("Q"), "a frame of a pickle", reader.data)


_OPCODES: dict[int, Callable[[Reader], Any]] = {
    0x80: Reader._protocol,
    0x95: _frame,
    ord("("): Reader.mark,
    ord("0"): Reader._pop,
    ord("1"): Reader.group,
    ord("2"): lambda r: r.push(r.stack[-1]),
    # numbers and constants
    ord("N"): lambda r: r.push(None),
    0x88: lambda r: r.push(True),
    0x89: lambda r: r.push(False),
    ord("I"): Reader._text_integer,
    ord("L"): Reader._text_integer,
    ord("J"): lambda r: r.push(r.number("i")),
    ord("K"): lambda r: r.push(r._byte()),
    ord("M"): lambda r: r.push(r.number("H")),
    0x8A: lambda r: r.push(r.integer(r._byte())),
    0x8B: lambda r: r.push(r.integer(r.number("I"))),
    ord("F"): lambda r: r.push(float(r.line())),
    ord("G"): lambda r: r.push(struct.unpack(">d", r.take(8))[0]),
    # strings and bytes
    ord("S"): Reader._text_string,
    ord("T"): lambda r: r.push(r.legacy_text(r.blob("I"))),
    ord("U"): lambda r: r.push(r.legacy_text(r.blob("B"))),
    ord("V"): lambda r: r.push(str(r.line(), "raw-unicode-escape")),
    ord("X"): lambda r: r.push(r.text("I")),
    0x8C: lambda r: r.push(r.text("B")),
    0x8D: lambda r: r.push(r.text("Q")),
    ord("B"): lambda r: r.push(r.blob("I")),
    ord("C"): lambda r: r.push(r.blob("B")),
    0x8E: lambda r: r.push(r.blob("Q")),
    0x96: lambda r: r.push(r.blob("Q")),
    # containers
    ord(")"): lambda r: r.push(()),
    ord("t"): lambda r: r.push(tuple(r.group())),
    0x85: lambda r: r._tuple(1),
    0x86: lambda r: r._tuple(2),
    0x87: lambda r: r._tuple(3),
    ord("]"): lambda r: r.push([]),
    ord("l"): lambda r: r.push(r.group()),
    ord("a"): Reader._append_one,
    ord("e"): lambda r: r.extend(list, r.group()),
    ord("}"): lambda r: r.push({}),
    ord("d"): Reader._dict,
    ord("s"): Reader._set_one,
    ord("u"): lambda r: r.set_items(r.group()),
    0x8F: lambda r: r.push(set()),
    0x90: lambda r: r.extend(set, r.group()),
    0x91: Reader._frozenset,
    # memo
    ord("p"): lambda r: r.remember(int(r.line())),
    ord("q"): lambda r: r.remember(r._byte()),
    ord("r"): lambda r: r.remember(r.number("I")),
    0x94: lambda r: r.remember(len(r.memo)),
    ord("g"): lambda r: r.push(r.memo[int(r.line())]),
    ord("h"): lambda r: r.push(r.memo[r._byte()]),
    ord("j"): lambda r: r.push(r.memo[r.number("I")]),
    # objects
    ord("c"): Reader._global,
    0x93: Reader._stack_global,
    ord("R"): Reader._reduce,
    0x81: Reader._reduce,
    0x92: Reader._new_with_keywords,
    ord("i"): Reader._instance,
    ord("o"): Reader._object,
    ord("b"): Reader.build,
    ord("Q"): Reader._persistent_id,
    **{opcode: _never(what) for opcode, what in _NEVER.items()},
}
