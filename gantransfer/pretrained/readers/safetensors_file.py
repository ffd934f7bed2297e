"""Reads safetensors files as views of the mapped file.

Format: eight bytes with the header's length, the header in JSON (name to data type, shape and place), then the arrays
in C order, little-endian, without gaps or overlaps.
"""

import json
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from gantransfer.pretrained.readers.contents import Contents
from gantransfer.pretrained.readers.mapped import MappedFile, short
from gantransfer.pretrained.readers.networks import Splitter
from gantransfer.pretrained.readers.rebuild_numpy import checked_shape

# The limit of the format's own library.
MAX_HEADER_BYTES = 100_000_000
_DTYPES: dict[str, Any] = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "I64": np.int64,
    "I32": np.int32, "I16": np.int16, "I8": np.int8, "U64": np.uint64, "U32": np.uint32, "U16": np.uint16,
    "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip


def is_safetensors(head: bytes) -> bool:
    """Whether the first bytes of a file are a header's length and the beginning of a header."""
    return len(head) > 9 and head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= MAX_HEADER_BYTES


def read_safetensors(path: str | Path) -> Contents:
    """Reads a `.safetensors` file; its metadata become the config.

    Args:
      path: the file.

    Raises:
      UserError: the header is damaged, or arrays overlap, leave gaps or reach beyond the file.
    """
    file = MappedFile(Path(path))
    header, start = _header(file)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise file.refuse("metadata that are no object")
    state, places = {}, []
    for name, entry in header.items():
        state[name], place = _array(file, start, name, entry)
        places.append(place)
    end = 0
    for first, last in sorted(places):
        if first != end:
            raise file.refuse(f"arrays that overlap or leave a gap at byte {first}")
        end = last
    if start + end != len(file):
        raise file.refuse(f"{len(file) - start - end} bytes behind the last array")
    splitter = Splitter(file)
    splitter.add_state("", state)
    splitter.config = {key: _decoded(text) for key, text in metadata.items()}
    return splitter.contents("safetensors", (file.path,))


def _header(file: MappedFile) -> tuple[dict[str, Any], int]:
    size = int.from_bytes(file.take(0, 8, "a header's length"), "little")
    if size > MAX_HEADER_BYTES:
        raise file.refuse(f"a header of {size} bytes")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({name for name, _ in pairs}) != len(pairs):
            raise file.refuse("a name twice in the header", "each array once")
        return dict(pairs)

    try:
        header = json.loads(bytes(file.take(8, size, "a header")), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise file.refuse("a header that is not JSON") from error
    if not isinstance(header, dict):
        raise file.refuse("a header that is no object")
    return header, 8 + size


def _array(file: MappedFile, start: int, name: str, entry: Any) -> tuple[np.ndarray, tuple[int, int]]:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise file.refuse(f"the array {short(name)} without type, shape and place")
    kind, place = entry["dtype"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in _DTYPES:
        raise file.refuse(f"the array {short(name)} of type {short(kind)}", f"one of {', '.join(_DTYPES)}")
    dtype = np.dtype(_DTYPES[kind])
    shape = checked_shape(file, entry["shape"])
    if not isinstance(place, list) or len(place) != 2 or not all(type(n) is int and n >= 0 for n in place):
        raise file.refuse(f"the array {short(name)} without a place")
    first, last = place
    if last - first != math.prod(shape) * dtype.itemsize:
        raise file.refuse(f"the array {short(name)} of {last - first} bytes for {math.prod(shape)} elements")
    data = file.take(start + first, last - first, f"the array {short(name)}")
    return np.frombuffer(data, dtype).reshape(shape), (first, last)


def _decoded(text: Any) -> Any:
    # Metadata are strings; many writers put JSON into them.
    try:
        return json.loads(text) if isinstance(text, str) and text[:1] in "{[" else text
    except (ValueError, RecursionError):
        return text
