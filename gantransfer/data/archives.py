"""Folders and zips of files, seen alike: names, bytes, checksums. Dangerous and ambiguous entries are refused."""

import os
import re
import threading
import zipfile
import zlib
from collections import Counter
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from gantransfer.data.decode import CorruptImage
from gantransfer.errors import UserError

# What file managers leave behind; hidden names (a leading dot) go with it.
_JUNK = frozenset({"__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin"})


@runtime_checkable
class Archive(Protocol):
    """Files under names with "/" between their parts.

    Attributes:
      path: where the archive is.
      files, folders: names, sorted by their parts; junk is left out, and so are the folders' parents.
      notes: what had to be said about names.
    """

    path: str
    files: tuple[str, ...]
    folders: tuple[str, ...]
    notes: tuple[str, ...]

    def read(self, name: str) -> bytes:
        """The bytes of a file; CorruptImage if the archive cannot give them, UserError if they are far too many."""
        ...

    def head(self, name: str, count: int) -> bytes:
        """The first bytes of a file."""
        ...

    def content(self, name: str) -> str:
        """CRC-32 and size of a file, as text: the same for a folder and for a zip of it."""
        ...


def is_junk(name: str) -> bool:
    """Whether a name, or a folder on its way, is hidden or a file manager's."""
    return any(part.startswith(".") or part.lower() in _JUNK for part in name.split("/"))


def open_archive(path: str, max_bytes: int) -> Archive:
    """Lists a folder or a zip. Raises UserError: it is not there, is neither, or holds entries that are refused."""
    place = Path(path)
    if place.is_dir():
        return FolderFiles(path, max_bytes)
    if not place.exists():
        raise UserError("data", path, "a folder, a zip, tfds:NAME[:split], or digits; there is nothing at this path")
    try:
        return ZipFiles(path, max_bytes)
    except zipfile.BadZipFile as error:
        raise UserError("data", path, f"a folder or a whole zip file; this does not open as one: {error}") from error


def _junk_note(count: int) -> tuple[str, ...]:
    return (f"hidden entries and those of file managers are passed over ({count})",) if count else ()


def _by_parts(names: Any) -> tuple[str, ...]:
    return tuple(sorted(names, key=lambda name: name.split("/")))


class FolderFiles:
    """The files below a folder; links are followed."""

    def __init__(self, path: str, max_bytes: int):
        self.path, self._max_bytes = path, max_bytes
        self._content: dict[str, str] = {}
        self._passed_over = 0
        files: list[str] = []
        folders: list[str] = []
        self._list(Path(path), "", (), files, folders)
        self.files, self.folders = _by_parts(files), _by_parts(folders)
        self.notes = _junk_note(self._passed_over)

    def _list(self, place: Path, prefix: str, parents: tuple[str, ...], files: list[str], folders: list[str]) -> None:
        real = os.path.realpath(place)
        if real in parents:
            raise UserError("data", f"{self.path}: {prefix}", "folders without a link to a folder that they lie in")
        try:
            entries = list(os.scandir(place))
        except OSError as error:
            where = f"{self.path}: {prefix}"
            raise UserError("data", where, f"folders that can be listed: {error.strerror}") from error
        for entry in entries:
            name = prefix + entry.name
            if is_junk(entry.name):
                self._passed_over += 1
                continue
            if entry.is_dir():
                folders.append(name)
                self._list(Path(entry.path), name + "/", (*parents, real), files, folders)
            elif entry.is_file() or entry.is_symlink():
                # A broken link counts as a damaged file; a pipe or a device counts for nothing.
                files.append(name)

    def read(self, name: str) -> bytes:
        """The bytes of a file, whose checksum is kept for the fingerprint."""
        place = Path(self.path, name)
        try:
            size = place.stat().st_size
            _limit(self.path, name, size, self._max_bytes)
            data = place.read_bytes()
        except OSError as error:
            raise CorruptImage(name, f"cannot be read: {error.strerror}") from error
        self._content[name] = f"{zlib.crc32(data):08x} {len(data)}"
        return data

    def head(self, name: str, count: int) -> bytes:
        """The first bytes of a file."""
        try:
            with open(Path(self.path, name), "rb") as file:
                return file.read(count)
        except OSError as error:
            raise UserError("data", f"{self.path}: {name}", f"files that can be read: {error.strerror}") from error

    def content(self, name: str) -> str:
        """CRC-32 and size; reads the file unless it has been read."""
        if name not in self._content:
            self.read(name)
        return self._content[name]


class ZipFiles:
    """The entries of a zip, read where they lie: nothing is unpacked."""

    def __init__(self, path: str, max_bytes: int):
        self.path, self._max_bytes = path, max_bytes
        self._lock, self._zip = threading.Lock(), None
        infos = self._handle().infolist()
        entries = [(name, info) for info in infos if (name := self._safe(info))]
        self._infos = {name: info for name, info in entries if not info.is_dir() and not is_junk(name)}
        times = Counter(name for name, info in entries if not info.is_dir())
        twice = [name for name in times if times[name] > 1]
        if twice:
            raise UserError("data", f"{path}: {twice[0]}", "zips with one entry for each name; this name has several")
        self.files = _by_parts(self._infos)
        explicit = {name for name, info in entries if info.is_dir()}
        parents = {name[:i] for name, _ in entries for i, letter in enumerate(name) if letter == "/"}
        self.folders = _by_parts(name for name in explicit | parents if not is_junk(name))
        backslashed = any("\\" in info.filename for info in infos)
        self.notes = _junk_note(sum(is_junk(name) for name, _ in entries))
        if backslashed:
            self.notes += ("names with \\ are read as if they had /",)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_zip": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def _handle(self) -> zipfile.ZipFile:
        with self._lock:
            if self._zip is None:
                self._zip = zipfile.ZipFile(self.path)
            return self._zip

    def _safe(self, info: zipfile.ZipInfo) -> str:
        """The entry's name with plain parts only; refuses names that would lie outside, links and encrypted entries."""
        name = info.filename.replace("\\", "/")
        where = f"{self.path}: {info.filename}"
        if name.startswith("/") or re.match("[A-Za-z]:", name) or ".." in name.split("/"):
            raise UserError("data", where, "zip entries whose names stay inside (no .., no absolute path, no drive)")
        if info.external_attr >> 28 == 0o12:
            raise UserError("data", where, "zips of files; this entry is a symbolic link")
        if info.flag_bits & 1:
            raise UserError("data", where, "zips without a password; this entry is encrypted")
        return "/".join(part for part in name.split("/") if part not in ("", "."))

    def read(self, name: str) -> bytes:
        """The bytes of an entry, checked against its CRC-32."""
        _limit(self.path, name, self._infos[name].file_size, self._max_bytes)
        return self._take(name, -1)

    def head(self, name: str, count: int) -> bytes:
        """The first bytes of an entry."""
        return self._take(name, count)

    def _take(self, name: str, count: int) -> bytes:
        try:
            with self._handle().open(self._infos[name]) as entry:
                return entry.read(count)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError) as error:
            raise CorruptImage(name, f"the zip entry is damaged: {error}") from error

    def content(self, name: str) -> str:
        """CRC-32 and size, from the zip's table."""
        info = self._infos[name]
        return f"{info.CRC:08x} {info.file_size}"


def _limit(path: str, name: str, size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise UserError("data", f"{path}: {name}", f"files of at most {max_bytes:,} bytes; this has {size:,}")
