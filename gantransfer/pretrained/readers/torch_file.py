"""Reads what `torch.save` wrote, the zip files of 1.6 and later and the sequence of pickles before, without PyTorch.

A TorchScript program (`torch.jit.save`) is such a zip file too, with source code beside the arrays. Of it only the tree
of modules is read, `data.pkl`, and the arrays of `constants.pkl`; the code is never opened.

Storages are views of the mapped file, so that a file of any size costs no more memory than its largest array that has
to be converted.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from gantransfer.pretrained.readers.contents import Contents
from gantransfer.pretrained.readers.mapped import MappedFile, short
from gantransfer.pretrained.readers.networks import Splitter
from gantransfer.pretrained.readers.pickles import Reader
from gantransfer.pretrained.readers.rebuild_torch import Storage, load_legacy, storage_id
from gantransfer.pretrained.readers.stand_ins import KNOWN, KNOWN_IN_PROGRAMS
from gantransfer.pretrained.readers.zips import MAGIC as ZIP_MAGIC
from gantransfer.pretrained.readers.zips import Archive

# The magic number as a pickle writes it, behind the protocol and, from protocol 4 on, a frame.
_MAGIC_PICKLED = bytes.fromhex("8a0a6cfc9c46f9206aa85019")


def is_legacy(head: bytes) -> bool:
    """Whether the first bytes of a file are those of the format before 1.6."""
    return head[:1] == b"\x80" and head[2:].startswith((_MAGIC_PICKLED, b"\x95")) and _MAGIC_PICKLED in head[:32]


def read_torch(path: str | Path) -> Contents:
    """Reads a `.pth` or `.pt` file of either format, or a TorchScript program.

    Args:
      path: the file.

    Raises:
      UserError: it is damaged, or names a class that is not a listed one.
    """
    file = MappedFile(Path(path))
    splitter, kind = Splitter(file), format_of(file)
    if kind == "torch-zip" and _is_program(archive := Archive(file)):
        kind, root = "torchscript", _root(file, archive)
        splitter.add(_unpickled(file, archive, root, "data", KNOWN_IN_PROGRAMS))
        constants = _unpickled(file, archive, root, "constants", KNOWN_IN_PROGRAMS)
        if splitter.holds_arrays(constants):
            splitter.extras["constants"] = splitter.plain(constants)
        splitter.notes.append("the code of the program was not read")
    else:
        splitter.add(load(file))
    return splitter.contents(kind, (file.path,))


def format_of(file: MappedFile) -> str:
    """Name of the torch format that a file is in."""
    return "torch-zip" if bytes(file.data[:4]) == ZIP_MAGIC else "torch-legacy"


def load(file: MappedFile) -> Any:
    """The object that was saved: tensors as arrays, modules as `Record`s."""
    if format_of(file) == "torch-zip":
        return load_zip(file, Archive(file))
    if not is_legacy(bytes(file.data[:32])):
        raise file.refuse("a file without torch's magic number", "a file of torch.save")
    content, _ = load_legacy(lambda persistent: Reader(file, KNOWN, persistent))
    return content


def load_zip(file: MappedFile, archive: Archive) -> Any:
    """The object in a zip file of `torch.save`."""
    root = _root(file, archive)
    if _is_program(archive):
        raise file.refuse("a TorchScript program", "a state dict of torch.save; a program holds code as well")
    return _unpickled(file, archive, root, "data", KNOWN)


def _is_program(archive: Archive) -> bool:
    return any(name.endswith("/constants.pkl") for name in archive.members)


def _root(file: MappedFile, archive: Archive) -> str:
    """The folder that all members are in, with its slash."""
    (root, *others) = [name.removesuffix("data.pkl") for name in archive.members if name.endswith("/data.pkl")] or [""]
    if not root or others:
        raise file.refuse("a zip file without one data.pkl", "a file of torch.save, or an npz file")
    return root


def _unpickled(file: MappedFile, archive: Archive, root: str, name: str, known: Any) -> Any:
    """The object of `NAME.pkl`, whose storages are the members of the folder `NAME`."""
    storages = _storages(file, archive, root, name)
    return Reader(file, known, storages, archive.read(f"{root}{name}.pkl")).load()


def _storages(file: MappedFile, archive: Archive, root: str, folder: str) -> Callable[[Any], Storage]:
    """Answers persistent ids with the members of a folder."""
    byteorder = f"{root}byteorder"
    order = bytes(archive.read(byteorder)) if byteorder in archive.members else b"little"
    if order not in (b"little", b"big"):
        raise file.refuse(f"the byte order {short(repr(order))}", "little or big")
    storages: dict[str, Storage] = {}

    def persistent(pid: Any) -> Storage:
        dtype, key, count, view = storage_id(file, pid)
        if view is not None:
            raise file.refuse("a part of a storage in a zip file")
        if key not in storages:
            data = archive.read(f"{root}{folder}/{key}")
            if count * dtype.itemsize > len(data):
                raise file.refuse(f"a storage of {count} elements in {len(data)} bytes")
            storages[key] = Storage(dtype, count, data, order == b"big")
        found = storages[key]
        if (found.dtype, found.count) != (dtype, count):
            raise file.refuse("a storage with two types or sizes")
        return found

    return persistent
