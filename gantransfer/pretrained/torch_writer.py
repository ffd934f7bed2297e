"""Writes files that `torch.load` reads, without PyTorch: named arrays and plain values.

The format is the zip container of `torch.save` since 1.6: `archive/data.pkl` is a pickle in which a tensor is a call
of `torch._utils._rebuild_tensor_v2` on a storage, and `archive/data/0`, `archive/data/1`, ... are the storages'
little-endian bytes. The pickle is put together from opcodes here, holds nothing but ordered dictionaries, tensors and
plain values, and so passes `weights_only=True`. The same content gives the same file, byte for byte.
"""

import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

STORAGES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}
# torch.save aligns storages, so that a file can be mapped into memory; a field of this name pads a member's header.
ALIGNMENT, PADDING = 64, b"FB"
LOCAL_HEADER_BYTES = 30
EPOCH = (1980, 1, 1, 0, 0, 0)


def write_torch(file: str | Path, content: Mapping[str, Any]) -> None:
    """Writes a mapping as `torch.save` would write an ordered dictionary.

    Args:
      file: where; overwritten.
      content: by name, arrays (which become tensors on the CPU) or plain values: text, numbers, truth values, None,
        and lists, tuples and mappings of these.

    Raises:
      TypeError: a value is of another type.
    """
    arrays: list[np.ndarray] = []
    pickled = b"\x80\x02" + _ordered(content, arrays) + b"."
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, "archive/data.pkl", pickled)
        _add(archive, "archive/byteorder", b"little")
        for number, array in enumerate(arrays):
            little = array.astype(array.dtype.newbyteorder("<"), copy=False)
            # A zero-dimensional array has no bytes view of its own.
            _add(archive, f"archive/data/{number}", np.ascontiguousarray(little).reshape(-1).view(np.uint8).data)
        _add(archive, "archive/version", b"3\n")


def _add(archive: zipfile.ZipFile, name: str, content: bytes | memoryview) -> None:
    info = zipfile.ZipInfo(name, EPOCH)
    info.file_size = len(content)
    assert archive.fp is not None, "the archive is open"
    start = archive.fp.tell() + LOCAL_HEADER_BYTES + len(name) + 4
    padding = -start % ALIGNMENT
    info.extra = PADDING + struct.pack("<H", padding) + b"Z" * padding
    with archive.open(info, "w") as member:
        member.write(content)


# Pickle opcodes of protocol 2.


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


_EMPTY_ORDERED = _global("collections", "OrderedDict") + b")R"


def _ordered(content: Mapping[str, Any], arrays: list[np.ndarray]) -> bytes:
    return _EMPTY_ORDERED + _items(content, arrays)


def _items(content: Mapping[str, Any], arrays: list[np.ndarray]) -> bytes:
    return b"(" + b"".join(_value(key, arrays) + _value(value, arrays) for key, value in content.items()) + b"u"


def _value(value: Any, arrays: list[np.ndarray]) -> bytes:
    if isinstance(value, np.ndarray | np.generic):
        return _tensor(np.asarray(value), arrays)
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        return _int(value)
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        text = value.encode()
        return b"X" + struct.pack("<I", len(text)) + text
    if isinstance(value, Mapping):
        return b"}" + _items(value, arrays)
    if isinstance(value, list | tuple):
        parts = b"(" + b"".join(_value(part, arrays) for part in value)
        return b"]" + parts + b"e" if isinstance(value, list) else parts + b"t"
    raise TypeError(f"{type(value).__name__} has no place in a file of tensors and plain values")


def _int(value: int) -> bytes:
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def _tensor(array: np.ndarray, arrays: list[np.ndarray]) -> bytes:
    if array.dtype.name not in STORAGES:
        raise TypeError(f"an array of {array.dtype} has no place in a file of tensors")
    key = _value(str(len(arrays)), arrays)
    arrays.append(array)
    strides = [int(np.prod(array.shape[axis + 1 :], dtype=np.int64)) for axis in range(array.ndim)]
    storage = _value("storage", arrays) + _global("torch", STORAGES[array.dtype.name]) + key
    storage = b"(" + storage + _value("cpu", arrays) + _int(array.size) + b"tQ"
    place = _int(0) + _value(tuple(array.shape), arrays) + _value(tuple(strides), arrays)
    return _global("torch._utils", "_rebuild_tensor_v2") + b"(" + storage + place + b"\x89" + _EMPTY_ORDERED + b"tR"
