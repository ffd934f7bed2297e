"""Reads plain pickles, and lists of arrays as Theano's scripts saved them: joblib's files, folders of npy files.

joblib before 0.10 writes a pickle in which every array is an `NDArrayWrapper` that names an npy file beside it
(`params.jl_01.npy`); later versions put the arrays' bytes into the pickle, behind a `NumpyArrayWrapper`. Arrays have no
names: they are numbered in the order of the list, "00", "01", ...
"""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from gantransfer.pretrained.readers.contents import Contents
from gantransfer.pretrained.readers.mapped import MappedFile, short
from gantransfer.pretrained.readers.networks import Splitter
from gantransfer.pretrained.readers.npy_file import MAGIC, parse_npy
from gantransfer.pretrained.readers.pickled_networks import from_pickle
from gantransfer.pretrained.readers.pickles import Known, Pending, Reader
from gantransfer.pretrained.readers.rebuild_numpy import array_view, checked_shape
from gantransfer.pretrained.readers.stand_ins import KNOWN

# scikit-learn carried a copy of joblib until 0.23.
_PACKAGES = ("joblib", "sklearn.externals.joblib")
_PART = re.compile(r"(.*?)_?(\d+)\.npy")


def read_pickle(path: str | Path) -> Contents:
    """Reads a pickle: a list of arrays, with or without npy files beside it, or whole networks.

    Args:
      path: the file.

    Raises:
      UserError: it is damaged, names a file outside its folder or a global that is not listed.
    """
    file = MappedFile(Path(path))
    files = [file.path]
    reader = Reader(file, {**KNOWN, **_wrappers(file, files)})
    value = reader.load()
    if reader.position != len(file):
        raise file.refuse(f"{len(file) - reader.position} bytes behind the pickle")
    if isinstance(value, np.ndarray):
        value = [value]
    if isinstance(value, list | tuple) and value and all(isinstance(part, np.ndarray) for part in value):
        return _numbered(file, list(value), files)
    contents = from_pickle(file, value)
    return Contents(contents.format, contents.states, contents.config, tuple(files), contents.extras, contents.notes)


def read_npy(path: str | Path) -> Contents:
    """Reads an npy file: one array, or a list of arrays that NumPy saved as objects."""
    file = MappedFile(Path(path))
    value = parse_npy(file, file.data)
    arrays = value if isinstance(value, list) else [value]
    if not all(isinstance(part, np.ndarray) for part in arrays):
        raise file.refuse("objects that are not arrays", "an array or a list of arrays")
    return _numbered(file, arrays, [file.path])


def read_npy_folder(folder: Path) -> Contents | None:
    """Reads the numbered npy files of a folder, in the order of their numbers; None where there are none.

    Raises:
      UserError: there are several series, or a number is missing.
    """
    series: dict[str, dict[int, Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and (match := _PART.fullmatch(path.name)):
            series.setdefault(match[1], {})[int(match[2])] = path
    if not series:
        return None
    (name, parts), *others = series.items()
    file = MappedFile(parts[min(parts)])
    if others:
        raise file.refuse(
            f"several series of npy files: {', '.join([name, *(key for key, _ in others)])}", "one series"
        )
    numbers = sorted(parts)
    if numbers != list(range(numbers[0], numbers[0] + len(numbers))) or numbers[0] > 1:
        raise file.refuse(f"npy files numbered {short(str(numbers))}", "numbers from 0 or 1 on without a gap")
    paths = [parts[number] for number in numbers]
    return _numbered(file, [_array_of(MappedFile(path)) for path in paths], paths)


def _numbered(file: MappedFile, arrays: list[np.ndarray], files: list[Path]) -> Contents:
    digits = max(2, len(str(len(arrays) - 1)))
    splitter = Splitter(file)
    splitter.add_state("", {f"{number:0{digits}d}": array for number, array in enumerate(arrays)})
    return splitter.contents("theano", tuple(files))


def _array_of(file: MappedFile) -> np.ndarray:
    if not bytes(file.data[: len(MAGIC)]) == MAGIC:
        raise file.refuse("a file without NumPy's magic bytes", "an npy file")
    array = parse_npy(file, file.data)
    if not isinstance(array, np.ndarray):
        raise file.refuse("objects", "an npy file with an array of numbers")
    return array


def _wrappers(file: MappedFile, files: list[Path]) -> dict[tuple[str, str], Any]:
    def beside(reader: Reader, state: Any) -> np.ndarray:
        name = state["filename"]
        if not isinstance(name, str) or Path(name).name != name or name in ("", ".", "..") or "\\" in name:
            raise reader.refuse(f"an array in the file {short(name)}", "names of files in the same folder")
        part = file.path.with_name(name)
        if not part.is_file() or part.is_symlink():
            raise reader.refuse(f"an array in the file {short(name)}, which is not there", "all parts in one folder")
        files.append(part)
        return _array_of(MappedFile(part))

    def inside(reader: Reader, state: Any) -> np.ndarray:
        shape, dtype = checked_shape(reader.file, state["shape"]), state["dtype"]
        if not isinstance(dtype, np.dtype) or dtype.hasobject:
            raise reader.refuse("an array of objects", "arrays of numbers")
        if state.get("numpy_array_alignment_bytes") is not None:
            reader.take(reader.take(1)[0])
        data = reader.take(math.prod(shape) * dtype.itemsize)
        return array_view(reader.file, data, dtype, shape, state["order"] == "F")

    def packed(reader: Reader, state: Any) -> np.ndarray:
        raise reader.refuse("an array that joblib compressed", "files that were saved without compression")

    builders = {"NDArrayWrapper": beside, "NumpyArrayWrapper": inside, "ZNDArrayWrapper": packed}
    return {
        (f"{package}.{module}", name): Known(f"joblib {name}", _pending(build))
        for package in _PACKAGES
        for module in ("numpy_pickle", "numpy_pickle_compat")
        for name, build in builders.items()
    }


def _pending(build: Any) -> Any:
    return lambda reader, args: Pending("joblib array", build)
