"""NumPy arrays, scalars and data types out of pickles, as views of the file."""

import math
import re
from typing import Any

import numpy as np

from gantransfer.pretrained.readers.mapped import MappedFile, short
from gantransfer.pretrained.readers.pickles import Known, Pending, Reader

MAX_AXES = 32
# Kinds and sizes of numbers, "O" for arrays of arrays, and texts that stand beside weights.
_PLAIN = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248]|c8|c16|O8?|[SU]\d{1,4}|\?)")


def plain_dtype(file: MappedFile, name: Any) -> np.dtype:
    """The data type of a name such as "<f4"; refuses those that are not numbers, texts or objects."""
    if isinstance(name, str) and _PLAIN.fullmatch(name):
        return np.dtype(name)
    raise file.refuse(f"arrays of data type {short(name)}", "arrays of numbers")


def checked_shape(file: MappedFile, shape: Any) -> tuple[int, ...]:
    """A shape of whole numbers that are not negative."""
    if isinstance(shape, tuple | list) and len(shape) <= MAX_AXES and all(type(n) is int and n >= 0 for n in shape):
        return tuple(shape)
    raise file.refuse("an array with a shape that is none")


def array_view(file: MappedFile, data: Any, dtype: np.dtype, shape: Any, fortran: bool = False) -> np.ndarray:
    """An array over the very bytes `data`, of which there must be exactly as many as the shape takes."""
    shape = checked_shape(file, shape)
    if isinstance(data, str):  # a byte string of Python 2
        data = data.encode("latin-1")
    if not isinstance(data, bytes | memoryview):
        raise file.refuse("an array without bytes")
    if len(data) != math.prod(shape) * dtype.itemsize or not dtype.itemsize or dtype.hasobject:
        raise file.refuse(f"an array of {len(data)} bytes that claims {math.prod(shape)} elements of {dtype.name}")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def _dtype(reader: Reader, args: tuple) -> Pending:
    dtype = plain_dtype(reader.file, args[0])

    def build(reader: Reader, state: Any) -> np.dtype:
        order = state[1]
        if order not in ("<", ">", "|", "=") or any(part is not None for part in state[2:5]):
            raise reader.refuse("a data type with fields", "arrays of numbers")
        return dtype if order in "|=" else dtype.newbyteorder(order)

    return Pending("numpy.dtype", build)


def _array(reader: Reader, args: tuple) -> Pending:
    def build(reader: Reader, state: Any) -> np.ndarray | list[Any]:
        # Versions of the state: (version, shape, dtype, Fortran order, data), or without the version.
        shape, dtype, fortran, data = state[-4:]
        if not isinstance(dtype, np.dtype):
            raise reader.refuse("an array without a data type")
        if dtype.hasobject:
            return _objects(reader, shape, data)
        return array_view(reader.file, data, dtype, shape, fortran is True)

    return Pending("numpy.ndarray", build)


def _objects(reader: Reader, shape: Any, data: Any) -> list[Any]:
    if not isinstance(data, list) or checked_shape(reader.file, shape) != (len(data),):
        raise reader.refuse("an array of objects", "lists of arrays")
    return data


def _from_buffer(reader: Reader, args: tuple) -> np.ndarray:
    data, dtype, shape, order = args
    if not isinstance(dtype, np.dtype) or order not in ("C", "F"):
        raise reader.refuse("an array without a data type")
    return array_view(reader.file, data, dtype, shape, order == "F")


def _scalar(reader: Reader, args: tuple) -> Any:
    dtype, data = args
    if not isinstance(dtype, np.dtype):
        raise reader.refuse("a number without a data type")
    return array_view(reader.file, data, dtype, ())[()]


def _bytes(reader: Reader, args: tuple) -> bytes | memoryview:
    # How protocols below 3 write bytes: text of the same code points.
    text, encoding = args
    if encoding not in ("latin1", "latin-1"):
        raise reader.refuse(f"bytes in the encoding {short(encoding)}")
    return text.encode("latin-1") if isinstance(text, str) else text


def _no_bytes(reader: Reader, args: tuple) -> bytes:
    # How protocols below 3 write an empty byte string.
    if args:
        raise reader.refuse("a call of bytes with arguments")
    return b""


def _set(reader: Reader, args: tuple) -> set[Any]:
    return set(map(reader.key, args[0] if args else ()))


def _ordered(reader: Reader, args: tuple) -> dict[Any, Any]:
    # Python 2 gives the pairs at once, as lists of two.
    return {reader.key(key): value for key, value in (args[0] if args else ())}


_CORES = ("numpy.core", "numpy._core")
TABLE: dict[tuple[str, str], Any] = {
    **{(core + ".multiarray", "_reconstruct"): Known("numpy array", _array) for core in _CORES},
    **{(core + ".multiarray", "scalar"): Known("numpy scalar", _scalar) for core in _CORES},
    **{(core + ".numeric", "_frombuffer"): Known("numpy array", _from_buffer) for core in _CORES},
    ("numpy", "dtype"): Known("numpy.dtype", _dtype),
    ("numpy", "ndarray"): "numpy.ndarray",
    ("_codecs", "encode"): Known("_codecs.encode", _bytes),
    ("collections", "OrderedDict"): Known("collections.OrderedDict", _ordered),
    **{(module, "set"): Known("set", _set) for module in ("builtins", "__builtin__")},
    **{(module, "bytes"): Known("bytes", _no_bytes) for module in ("builtins", "__builtin__")},
}
