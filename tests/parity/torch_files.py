"""Reads the stored torch files into NumPy arrays without PyTorch and without running anything that they contain.

Formats: the zip container (torch 1.6 and later) and the older sequence of pickles. Classes that a file names are never
imported: tensors, ordered dictionaries and NumPy scalars are rebuilt by the functions below, anything else becomes an
`Unknown` that only remembers its name.
"""

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import ml_dtypes
import numpy as np
from numpy.lib.stride_tricks import as_strided

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C

_STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


class Unknown:
    """Stands for an object of a class that is not read; accepts any construction and state."""

    name = ""

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass

    def __setitem__(self, key, value):
        pass

    def append(self, value):
        pass


def _rebuild_tensor(storage, offset, size, stride, *_):
    buffer = storage[offset:]
    return as_strided(buffer, size, [step * buffer.itemsize for step in stride])


def _rebuild_parameter(data, *_):
    return data


def _rebuild_scalar(dtype, data):
    return np.frombuffer(data, dtype)[0]


def _rebuild_bytes(text, encoding):
    return text.encode(encoding) if isinstance(text, str) else bytes(text)


_KNOWN = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "scalar"): _rebuild_scalar,
    ("numpy._core.multiarray", "scalar"): _rebuild_scalar,
    ("_codecs", "encode"): _rebuild_bytes,
}


class _Reader(pickle.Unpickler):
    def __init__(self, file, storage):
        super().__init__(file, encoding="latin1")
        self._storage = storage

    def find_class(self, module, name):
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        if module == "torch" and name in _STORAGES:
            return np.dtype(_STORAGES[name])
        return type("Unknown", (Unknown,), {"name": f"{module}.{name}"})

    def persistent_load(self, pid):
        if pid[0] == "module":
            return pid[1]
        if pid[0] != "storage" or not isinstance(pid[1], np.dtype):
            raise pickle.UnpicklingError(f"a file of tensors has no business with {pid[:2]}")
        return self._storage(pid[2], pid[1], pid[4])


def load(path):
    """What `torch.save` put into the file, with tensors as NumPy arrays."""
    path = Path(path)
    return _load_zip(path) if zipfile.is_zipfile(path) else _load_legacy(path)


def _load_zip(path):
    with zipfile.ZipFile(path) as archive:
        root = next(name for name in archive.namelist() if name.endswith("/data.pkl")).removesuffix("data.pkl")
        storages = {}

        def storage(key, dtype, count):
            if key not in storages:
                storages[key] = np.frombuffer(archive.read(f"{root}data/{key}"), dtype, count)
            return storages[key]

        with archive.open(f"{root}data.pkl") as file:
            return _Reader(file, storage).load()


def _load_legacy(path):
    storages = {}

    def storage(key, dtype, count):
        return storages.setdefault(key, np.zeros(count, dtype))

    with path.open("rb") as file:
        magic, _, _, content, keys = (_Reader(file, storage).load() for _ in range(5))
        if magic != LEGACY_MAGIC:
            raise pickle.UnpicklingError(f"{path} is not a file of torch tensors")
        for key in keys:
            count = int(np.frombuffer(file.read(8), "<i8")[0])
            storages[key][:] = np.frombuffer(file.read(count * storages[key].itemsize), storages[key].dtype)
    return content
