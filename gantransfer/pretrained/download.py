"""Downloads of published files: resumed, checked, whole or not at all, and kept.

A file arrives under `.NAME.part` and takes its name only once its size and checksum are what its publisher states.
Where no checksum is stated, the one found is printed and recorded in `.NAME.record.json`, and every later
download of that name must give the same. A download that was cut goes on where it stopped, if the server promises (by
ETag or Last-Modified) that the file is still the same one; else it starts again. One process writes at a time; others
wait.

A file that somebody put in its place by hand is taken as if it had been downloaded, after the same checks.
"""

import contextlib
import email.message
import fcntl
import hashlib
import http.client
import json
import os
import shutil
import sys
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from gantransfer import __version__
from gantransfer.errors import UserError

CHUNK = 1 << 18
TIMEOUT_S = 30
# How often to try again without one new byte having arrived, and how long to wait before.
ATTEMPTS, PAUSE_S = 4, 1.0
SPARE_BYTES = 64 << 20
FIELD = "download"

Log = Callable[[str], None]
Tick = Callable[[int, int | None], None]


@dataclass(frozen=True)
class PublishedFile:
    """One published file.

    Attributes:
      name: what it is called in the cache.
      url: where the file itself is.
      bytes: its exact size, where documented.
      megabytes: its size as its page rounds it, in millions of bytes; for people, never checked.
      sha256: its checksum in hexadecimal digits, where documented.
    """

    name: str
    url: str
    bytes: int | None = None
    megabytes: float | int | None = None
    sha256: str | None = None


def cache_folder() -> Path:
    """Returns where downloads are kept: `$GANTRANSFER_CACHE`, else `gantransfer` in the user's cache folder."""
    own, general = os.environ.get("GANTRANSFER_CACHE"), os.environ.get("XDG_CACHE_HOME")
    return Path(own).expanduser() if own else Path(general or "~/.cache").expanduser() / "gantransfer"


def to_stderr(line: str) -> None:
    """Prints a line where people read it."""
    print(line, file=sys.stderr)


def download(file: PublishedFile, target: Path, *, page: str, log: Log = to_stderr) -> None:
    """Makes sure that `target` is the published file.

    Args:
      file: what to download and what it must be.
      target: where it goes; its folder is made if need be.
      page: where people get it, for messages.
      log: receives one line for each thing worth knowing.

    Raises:
      UserError: no connection, no room, or not the file described; it names the file and where to put it by hand.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with _alone(target, log):
        record = _read_record(target)
        if target.is_file():
            _accept_present(file, target, record, log)
            return
        if os.environ.get("GANTRANSFER_OFFLINE", "") not in ("", "0"):
            raise _by_hand(file, target, page, "GANTRANSFER_OFFLINE is set")
        part = target.with_name(f".{target.name}.part")
        log(f"downloading {file.name}{_size_words(file)} from {urlsplit(file.url).netloc}")
        with _progress(file.name) as tick:
            _receive(file, target, part, page, tick, log)
        found = _sha256(part)
        _check(file, target, part.stat().st_size, found, record, remove=part)
        os.replace(part, target)
        _part_record(part).unlink(missing_ok=True)
        _write_record(target, found, file, log)


def unpack(archive: Path, patterns: tuple[str, ...]) -> Path:
    """Takes the members that match out of a zip, side by side into a folder beside it; returns the folder.

    Raises:
      UserError: the file is no zip, nothing matches, two members have one name, or there is no room.
    """
    folder = archive.with_name(f"{archive.stem}-files")
    with _alone(folder, lambda line: None):
        if folder.is_dir():
            return folder
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            with zipfile.ZipFile(archive) as packed:
                _extract(packed, patterns, archive, partial)
        except zipfile.BadZipFile as error:
            raise UserError(FIELD, str(archive), f"a zip archive ({error})") from error
        os.replace(partial, folder)
    return folder


def _extract(packed: zipfile.ZipFile, patterns: tuple[str, ...], archive: Path, partial: Path) -> None:
    # Members are written by their last name alone, so that no path in an archive leads out of the folder.
    chosen = {
        PurePosixPath(member.filename).name: member
        for member in packed.infolist()
        if not member.is_dir() and any(fnmatchcase(member.filename, pattern) for pattern in patterns)
    }
    matching = [m for m in packed.infolist() if any(fnmatchcase(m.filename, pattern) for pattern in patterns)]
    if not chosen or len(chosen) != len([m for m in matching if not m.is_dir()]):
        names = ", ".join(member.filename for member in packed.infolist()[:8])
        raise UserError(FIELD, str(archive), f"an archive with {' and '.join(patterns)}, each once; it has {names}")
    _check_room(str(archive), partial, sum(member.file_size for member in chosen.values()))
    for name, member in chosen.items():
        with packed.open(member) as source, (partial / name).open("wb") as sink:
            # The claimed size is a limit: a member that unpacks to more is cut and then fails its own checksum.
            shutil.copyfileobj(source, sink, CHUNK)


# ---------------------------------------------------------------------------------------------------- one file's bytes


class _Same(NamedTuple):
    """What a server says that tells one version of a file from another."""

    etag: str
    modified: str

    @property
    def condition(self) -> str:
        """Value of If-Range; weak ETags do not promise equal bytes, so the date stands in for them."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.modified


def _receive(file: PublishedFile, target: Path, part: Path, page: str, tick: Tick, log: Log) -> None:
    """Brings all bytes into `part`, trying again where a connection breaks."""
    idle = 0
    while True:
        before = part.stat().st_size if part.is_file() else 0
        try:
            if _attempt(file, target, part, tick, log):
                return
            reason = "the connection was cut"
        except urllib.error.HTTPError as error:
            error.close()
            reason = f"the server answers {error.code} {error.reason}"
            if error.code < 500 and error.code not in (408, 425, 429):
                raise _by_hand(file, target, page, reason) from error
        except urllib.error.URLError as error:
            reason = f"no connection to {urlsplit(file.url).netloc} ({error.reason})"
        except (TimeoutError, ConnectionError, http.client.HTTPException) as error:
            reason = f"the connection broke ({type(error).__name__})"
        after = part.stat().st_size if part.is_file() else 0
        idle = 0 if after > before else idle + 1
        if idle >= ATTEMPTS:
            raise _by_hand(file, target, page, f"{reason}, {ATTEMPTS} times; run again to go on from {after:,} bytes")
        log(f"{file.name}: {reason} at {after:,} bytes; trying again")
        time.sleep(PAUSE_S * 2 ** max(idle - 1, 0) if idle else 0)


def _attempt(file: PublishedFile, target: Path, part: Path, tick: Tick, log: Log) -> bool:
    """One request; appends to `part` or starts it again. Returns whether the file is complete."""
    have = part.stat().st_size if part.is_file() else 0
    known = _read_part_record(part) if have else None
    headers = {"User-Agent": f"gantransfer/{__version__}", "Accept-Encoding": "identity"}
    if have and known and known.condition:
        headers |= {"Range": f"bytes={have}-", "If-Range": known.condition}
    try:
        answer = _opener().open(urllib.request.Request(file.url, headers=headers), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != 416 or "Range" not in headers:
            raise
        # Nothing is left beyond what is here, or the file has become shorter: only its true length can tell.
        error.close()
        if str(error.headers.get("Content-Range", "")).rpartition("/")[2] == str(have):
            return True
        log(f"{file.name}: the published file has changed; starting again")
        part.unlink()
        return False
    with answer:
        if file.name.rpartition(".")[2] != "html" and answer.headers.get_content_type() == "text/html":
            raise UserError(FIELD, file.url, "a file; the host answers with a web page (a quota or a confirmation?)")
        start, total = _extent(answer.status, answer.headers, have if "Range" in headers else 0)
        if have and start == 0:
            log(f"{file.name}: starts again: {'the file has changed' if 'Range' in headers else 'it cannot go on'}")
        if start not in (0, have):
            raise http.client.HTTPException(f"asked for byte {have}, got {start}")
        if file.bytes is not None and total is not None and total != file.bytes:
            raise UserError(FIELD, file.url, f"a file of {file.bytes:,} bytes; the host has one of {total:,}")
        _check_room(str(target), part.parent, (total or file.bytes or 0) - start)
        same = _Same(answer.headers.get("ETag", ""), answer.headers.get("Last-Modified", ""))
        _part_record(part).write_text(json.dumps(same._asdict()), "utf-8")
        return _append(answer, part, start, total, file.bytes, tick)


def _append(
    answer: http.client.HTTPResponse, part: Path, start: int, total: int | None, limit: int | None, tick: Tick
) -> bool:
    """Writes what comes from byte `start` on; whether the end was reached."""
    received, most = start, total if total is not None else limit
    with part.open("r+b" if start else "wb") as sink:
        sink.truncate(start)
        sink.seek(start)
        tick(received, total)
        while block := answer.read(CHUNK):
            received += len(block)
            if most is not None and received > most:
                raise UserError(FIELD, part.name, f"a file of {most:,} bytes; the host sends more")
            sink.write(block)
            tick(received, total)
        sink.flush()
        os.fsync(sink.fileno())
    return most is None or received == most


def _extent(status: int, headers: email.message.Message, asked: int) -> tuple[int, int | None]:
    """First byte of an answer, and the whole file's length where it is said."""
    if status == 206:
        unit, _, rest = str(headers.get("Content-Range", "")).partition(" ")
        span, _, whole = rest.partition("/")
        first = span.partition("-")[0]
        if unit != "bytes" or not first.isdecimal():
            raise http.client.HTTPException("an answer in part that does not say which part")
        return int(first), int(whole) if whole.isdecimal() else None
    length = str(headers.get("Content-Length", ""))
    return 0, int(length) if length.isdecimal() else None


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to web addresses, and from a protected one only to protected ones."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        before, after = urlsplit(req.full_url).scheme, urlsplit(newurl).scheme
        if after not in ("http", "https") or (before == "https" and after == "http"):
            raise UserError(FIELD, newurl, f"an address under {before}; {req.full_url} leads there")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    """Opens web addresses only: none of the handlers of local files, ftp and data that urllib has by default."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


# ------------------------------------------------------------------------------------------------ checks and records


def _check(
    file: PublishedFile, target: Path, size: int, found: str, record: dict[str, Any], remove: Path | None = None
) -> None:
    """Refuses a file that is not the one published, or not the one that was there the first time."""
    wrong = None
    if file.bytes is not None and size != file.bytes:
        wrong = f"{file.bytes:,} bytes, not {size:,}"
    elif file.sha256 is not None and found != file.sha256:
        wrong = f"SHA-256 {file.sha256}, not {found}"
    elif file.sha256 is None and record.get("sha256", found) != found:
        at = _record(target)
        wrong = f"SHA-256 {record['sha256']} as the first time, not {found} (remove {at} to accept the new file)"
    if wrong is None:
        return
    if remove is not None:
        remove.unlink()
        _part_record(remove).unlink(missing_ok=True)
    raise UserError(FIELD, str(target), f"{file.name} with {wrong}" + ("; what came is removed" if remove else ""))


def _accept_present(file: PublishedFile, target: Path, record: dict[str, Any], log: Log) -> None:
    """Takes a file that is there: by its record if it has not been touched since, else by its content."""
    status = target.stat()
    if record.get("bytes") == status.st_size and record.get("modified_ns") == status.st_mtime_ns:
        _check(file, target, status.st_size, str(record["sha256"]), record)
        return
    found = _sha256(target)
    _check(file, target, status.st_size, found, record)
    _write_record(target, found, file, log)


def _write_record(target: Path, found: str, file: PublishedFile, log: Log) -> None:
    documented = "as documented" if file.sha256 else "not documented, so recorded: later downloads must give the same"
    log(f"{file.name}: SHA-256 {found} ({documented})")
    status = target.stat()
    record = {"sha256": found, "bytes": status.st_size, "modified_ns": status.st_mtime_ns, "url": file.url}
    partial = _record(target).with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=2) + "\n", "utf-8")
    os.replace(partial, _record(target))


def _record(target: Path) -> Path:
    # Not beside the file: `config.json` is itself a name that checkpoints have.
    return target.with_name(f".{target.name}.record.json")


def _read_record(target: Path) -> dict[str, Any]:
    path = _record(target)
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(FIELD, str(path), f"a record of a download ({error}); remove it") from error
    return record if isinstance(record, dict) else {}


def _part_record(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_part_record(part: Path) -> _Same | None:
    """What was said of the file that a part belongs to; None where that cannot be known, so that it starts again."""
    try:
        said = json.loads(_part_record(part).read_text("utf-8"))
        return _Same(str(said["etag"]), str(said["modified"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_room(field: str, folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed + SPARE_BYTES > free:
        raise UserError(field, f"{needed:,} bytes", f"at most {max(free - SPARE_BYTES, 0):,}, the room in {folder}")


def _by_hand(file: PublishedFile, target: Path, page: str, reason: str) -> UserError:
    """Names the file, where it is from, and where it must lie."""
    wanted = f"{file.name}{_size_words(file)} of {page}, put by hand at {target}"
    return UserError(FIELD, file.url, f"{wanted}, since {reason}")


def _size_words(file: PublishedFile) -> str:
    size = file.bytes / 1e6 if file.bytes is not None else file.megabytes
    return "" if size is None else f" ({size:.3g} MB)"


@contextlib.contextmanager
def _alone(target: Path, log: Log) -> Iterator[None]:
    """Holds a lock, so that one process writes `target` at a time."""
    with target.with_name(f".{target.name}.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log(f"another process is at {target.name}; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _progress(name: str) -> Iterator[Tick]:
    """A bar on standard error where that is a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda received, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn(name), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=None)
        yield lambda received, total: bar.update(task, completed=received, total=total)
