"""Reads npy and npz files: arrays as views where they are stored as they are, unpacked within limits where not."""

import math
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np

from gantransfer.pretrained.readers.contents import Contents
from gantransfer.pretrained.readers.mapped import MappedFile, short
from gantransfer.pretrained.readers.networks import Splitter
from gantransfer.pretrained.readers.pickles import Reader
from gantransfer.pretrained.readers.rebuild_numpy import array_view, plain_dtype
from gantransfer.pretrained.readers.stand_ins import KNOWN
from gantransfer.pretrained.readers.zips import Archive

MAGIC = b"\x93NUMPY"
MAX_HEADER_BYTES = 1 << 16
# How long the header is: two bytes in version 1, four later.
_LENGTHS = {b"\x01\x00": "<H", b"\x02\x00": "<I", b"\x03\x00": "<I"}
# A dictionary as Python prints it, in the order in which NumPy writes it.
_HEADER = re.compile(
    rb"\s*\{\s*['\"]descr['\"]\s*:\s*['\"]([<>|=]?[\w?]{1,8})['\"]\s*,\s*['\"]fortran_order['\"]\s*:\s*(True|False)"
    rb"\s*,\s*['\"]shape['\"]\s*:\s*\(([\d\sL,]{0,1000})\)\s*,?\s*\}\s*"
)


def read_npz(path: str | Path) -> Contents:
    """Reads an npz file into one network without a name.

    Args:
      path: the file.

    Raises:
      UserError: it is damaged, unfolds to far more than its size, or holds something else than arrays.
    """
    file = MappedFile(Path(path))
    archive = Archive(file)
    state = {}
    for name in archive.members:
        if not name.endswith(".npy"):
            raise file.refuse(f"the zip member {short(name)}", "an npz file, whose members are npy files")
        array = parse_npy(file, archive.read(name, inflate=True))
        if not isinstance(array, np.ndarray) or array.dtype.kind in "SU":
            raise file.refuse(f"the member {short(name)}, which is not an array of numbers")
        state[name.removesuffix(".npy")] = array
    splitter = Splitter(file)
    splitter.add_state("", state)
    return splitter.contents("npz", (file.path,))


def parse_npy(file: MappedFile, data: memoryview) -> Any:
    """The array of an npy file; the list of arrays where it holds objects.

    Args:
      file: for messages.
      data: the whole npy file.
    """
    version = bytes(file.take(0, 8, "an npy file", data)[6:])
    if version not in _LENGTHS:
        raise file.refuse("an npy file of an unknown version")
    length = struct.Struct(_LENGTHS[version])
    size = length.unpack(file.take(8, length.size, "an npy header", data))[0]
    if size > MAX_HEADER_BYTES:
        raise file.refuse(f"an npy header of {size} bytes")
    start = 8 + length.size
    match = _HEADER.fullmatch(bytes(file.take(start, size, "an npy header", data)))
    if match is None:
        raise file.refuse("a damaged npy header, or one with fields", "arrays of numbers")
    descr, order, numbers = (part.decode("ascii") for part in match.groups())
    # Python 2 wrote long integers.
    sizes = numbers.replace("L", "").replace(",", " ").split()
    if any(len(number) > 18 for number in sizes):
        raise file.refuse("an npy header with a size of more than 18 digits")
    shape = tuple(map(int, sizes))
    body = data[start + size :]
    if descr.lstrip("|<>=").startswith("O"):
        return Reader(file, KNOWN, data=body).load()
    dtype = plain_dtype(file, descr)
    size = math.prod(shape) * dtype.itemsize
    if len(body) < size:
        raise file.refuse(f"an array of {size} bytes with {len(body)} left")
    return array_view(file, body[:size], dtype, shape, order == "True")
