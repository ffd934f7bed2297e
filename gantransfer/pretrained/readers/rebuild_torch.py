"""Tensors out of pickles of PyTorch, as views of the file.

A tensor is a storage (a run of numbers of one type), an offset, sizes and strides. In a zip file a storage is a member,
in the older format it follows the pickles, in a pickle of modules it is a byte string that holds a file of the older
format. Where a storage was kept (`cuda:0`) does not matter.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.lib.stride_tricks import as_strided

from gantransfer.pretrained.readers.mapped import MappedFile, short
from gantransfer.pretrained.readers.pickles import Known, Reader, Record
from gantransfer.pretrained.readers.rebuild_numpy import checked_shape

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
# A tensor that repeats its storage by strides of 0 or overlaps itself may hold this many numbers.
MAX_REPEATED = 1 << 20

_TYPES: dict[str, Any] = {
    "Double": np.float64,
    "Float": np.float32,
    "Half": np.float16,
    "BFloat16": ml_dtypes.bfloat16,
    "Long": np.int64,
    "Int": np.int32,
    "Short": np.int16,
    "Char": np.int8,
    "Byte": np.uint8,
    "Bool": np.bool_,
}
_DTYPES = {
    "float64": "Double", "float32": "Float", "float16": "Half", "bfloat16": "BFloat16", "int64": "Long",
    "int32": "Int", "int16": "Short", "int8": "Char", "uint8": "Byte", "bool": "Bool",
}  # fmt: skip


@dataclass(frozen=True)
class StorageType:
    """The class of a storage: what its elements are; None where only the tensors know."""

    dtype: np.dtype | None


@dataclass(frozen=True)
class Storage:
    """A run of numbers in the file.

    Attributes:
      dtype: of the elements.
      count: number of elements.
      data: their bytes; None while a first reading only finds out what there is.
      swapped: whether they are big-endian.
    """

    dtype: np.dtype
    count: int
    data: memoryview | None
    swapped: bool = False


def storage_id(file: MappedFile, pid: Any) -> tuple[np.dtype, str, int, Any]:
    """Takes a storage's persistent id apart: data type, key, number of elements, part of another storage or None."""
    if isinstance(pid, tuple) and len(pid) in (5, 6) and pid[0] == "storage" and isinstance(pid[1], StorageType):
        _, kind, key, _, count, *view = pid
        # Storages without a type count bytes.
        dtype = np.dtype(np.uint8) if kind.dtype is None else kind.dtype
        if isinstance(key, int | str) and type(count) is int and count >= 0:
            return dtype, str(key), count, view[0] if view else None
    raise file.refuse("a persistent id that names no storage")


def _tensor(reader: Reader, storage: Any, offset: Any, size: Any, stride: Any, dtype: Any = None) -> Any:
    if not isinstance(storage, Storage) or type(offset) is not int or offset < 0:
        raise reader.refuse("a tensor without a storage")
    size, stride = checked_shape(reader.file, size), checked_shape(reader.file, stride)
    if len(size) != len(stride):
        raise reader.refuse("a tensor with other strides than sizes")
    kind = storage.dtype if dtype is None else dtype
    elements, count = math.prod(size), storage.count * storage.dtype.itemsize // kind.itemsize
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if elements else offset
    if last >= count and (elements or last > count):
        raise reader.refuse(f"a tensor that reaches element {last} of a storage of {count}")
    if elements > max(count, MAX_REPEATED):
        raise reader.refuse(f"a tensor of {elements} elements over a storage of {count}")
    if storage.data is None:
        return None
    kind = kind.newbyteorder(">") if storage.swapped else kind
    values = np.frombuffer(storage.data, kind, count)[offset:]
    if not elements:
        return np.zeros(size, kind)
    return as_strided(values, size, [step * kind.itemsize for step in stride], writeable=False)


def _rebuild(reader: Reader, args: tuple) -> Any:
    return _tensor(reader, *args[:4])


def _rebuild_typed(reader: Reader, args: tuple) -> Any:
    # Version 3 names the data type, since its storages have none.
    return _tensor(reader, *args[:4], dtype=_TYPE_OF_NAME.get(args[6]) or _no_type(reader, args[6]))


def _no_type(reader: Reader, name: Any) -> np.dtype:
    raise reader.refuse(f"a tensor of type {short(name)}", f"one of {', '.join(sorted(_DTYPES))}")


def _parameter(reader: Reader, args: tuple) -> Any:
    return args[0]


def _with_attributes(reader: Reader, args: tuple) -> Any:
    # A tensor that carries Python attributes: (function, class, its arguments, attributes).
    function, _, inner, _ = args
    return reader.call(function, inner)


def legacy_tail(
    reader: Reader, storages: dict[str, tuple[np.dtype, int]], swapped: bool, keys: Any
) -> dict[str, memoryview]:
    """Finds the storages that follow the pickles: for each key its number of elements, then its bytes.

    Args:
      reader: stands behind the last pickle.
      storages: data type and number of elements that the pickle claimed, by key.
      swapped: whether the elements are big-endian.
      keys: the storages' order in the file.
    """
    if (
        not isinstance(keys, list)
        or not all(isinstance(key, int | str) for key in keys)
        or len(keys) != len(storages)
        or set(map(str, keys)) != set(storages)
    ):
        raise reader.refuse("a list of storages that does not fit the tensors")
    found = {}
    for key in map(str, keys):
        dtype, count = storages[key]
        held = int.from_bytes(reader.take(8), "big" if swapped else "little", signed=True)
        if held != count:
            raise reader.refuse(f"a storage of {held} elements where the tensors claim {count}")
        found[key] = reader.take(count * dtype.itemsize)
    return found


def load_legacy(make_reader: Callable[[Callable[[Any], Any]], Reader]) -> tuple[Any, Reader]:
    """Reads the format before 1.6: five pickles, then the storages.

    The pickle of the object comes before the storages that its tensors view, so it is read twice: once to learn which
    storages there are and where it ends, once to build.

    Args:
      make_reader: makes a reader at the first byte, given the answers to persistent ids.

    Returns:
      The object, and a reader that stands behind the last storage.
    """
    claimed: dict[str, tuple[np.dtype, int]] = {}
    found: dict[str, memoryview] = {}
    swapped = False

    def persistent(pid: Any) -> Any:
        # A pickled module comes with the source text of its class, which is ignored.
        if isinstance(pid, tuple) and len(pid) == 4 and pid[0] == "module":
            return pid[1]
        dtype, key, count, view = storage_id(reader.file, pid)
        if claimed.setdefault(key, (dtype, count)) != (dtype, count):
            raise reader.refuse("a storage with two types or sizes")
        whole = Storage(dtype, count, found.get(key), swapped)
        return whole if view is None else _part_of(reader, whole, view)

    reader = make_reader(persistent)
    if reader.load() != LEGACY_MAGIC or reader.load() != LEGACY_PROTOCOL:
        raise reader.refuse("a file without torch's magic number", "a file of torch.save")
    system = reader.load()
    if not isinstance(system, dict):
        raise reader.refuse("a file without a description of the system")
    swapped = system.get("little_endian") is False
    start = reader.position
    reader.load()
    keys = reader.load()
    found |= legacy_tail(reader, dict(claimed), swapped, keys)
    end, reader.position = reader.position, start
    content = reader.load()
    reader.position = end
    return content, reader


def _part_of(reader: Reader, whole: Storage, view: Any) -> Storage:
    # Storages that are parts of others, as the first versions wrote them: (key, offset, number of elements).
    if not isinstance(view, tuple) or len(view) != 3 or any(type(n) is not int or n < 0 for n in view[1:]):
        raise reader.refuse("a part of a storage that is none")
    _, offset, count = view
    if offset + count > whole.count:
        raise reader.refuse(f"a part of a storage up to element {offset + count} of {whole.count}")
    size = whole.dtype.itemsize
    data = None if whole.data is None else whole.data[offset * size : (offset + count) * size]
    return Storage(whole.dtype, count, data, whole.swapped)


def _from_bytes(reader: Reader, args: tuple) -> Any:
    """A storage that was pickled by itself: a whole file of the older format inside a byte string."""
    (data,) = args
    if not isinstance(data, bytes | memoryview):
        raise reader.refuse("a storage without bytes")
    storage, inner = load_legacy(lambda persistent: reader.nested(memoryview(data), persistent))
    reader.done(inner)
    if not isinstance(storage, Storage):
        raise reader.refuse("a byte string that holds no storage")
    return storage


def _persistent_class(reader: Reader, args: tuple) -> Record:
    # StyleGAN's persistence: a dictionary with the source text of the class, which is ignored, its name and its state.
    (meta,) = args
    if meta.get("type") != "class" or not isinstance(meta.get("class_name"), str):
        raise reader.refuse("a persistent object that is not of a class")
    return Record(meta["class_name"], (), meta.get("state"))


def _loaded_type(reader: Reader, args: tuple) -> Any:
    # dill names builtin types through a function.
    return reader.find("builtins", args[0])


_TYPE_OF_NAME = {f"torch.{name}": np.dtype(_TYPES[kind]) for name, kind in _DTYPES.items()}
TABLE: dict[tuple[str, str], Any] = {
    **{("torch", f"{kind}Storage"): StorageType(np.dtype(dtype)) for kind, dtype in _TYPES.items()},
    ("torch.storage", "UntypedStorage"): StorageType(None),
    **{("torch", name): f"torch.{name}" for name in _DTYPES},
    ("torch._utils", "_rebuild_tensor"): Known("torch tensor", _rebuild),
    ("torch._utils", "_rebuild_tensor_v2"): Known("torch tensor", _rebuild),
    ("torch._utils", "_rebuild_tensor_v3"): Known("torch tensor", _rebuild_typed),
    ("torch._utils", "_rebuild_parameter"): Known("torch parameter", _parameter),
    ("torch._utils", "_rebuild_parameter_with_state"): Known("torch parameter", _parameter),
    ("torch._tensor", "_rebuild_from_type_v2"): Known("torch tensor", _with_attributes),
    ("torch", "Tensor"): "torch.Tensor",
    ("torch.nn.parameter", "Parameter"): "torch.nn.parameter.Parameter",
    ("torch", "Size"): Known("torch.Size", lambda reader, args: tuple(args[0])),
    ("torch", "device"): Known("torch.device", lambda reader, args: "torch.device"),
    ("torch.storage", "_load_from_bytes"): Known("torch storage", _from_bytes),
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): Known("persistent object", _persistent_class),
    ("dill._dill", "_load_type"): Known("dill type", _loaded_type),
}
