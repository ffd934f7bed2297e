"""The run's folder and what is written into it: settings, numbers, status lines; exact again after a kill.

`metrics.jsonl` holds no clock, so a run that was killed and resumed leaves the same bytes as one that was not; times
are in `timing.jsonl`. One process writes a run's folder: the first of several hosts.
"""

import contextlib
import errno
import fcntl
import json
import math
import os
import re
import shutil
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gantransfer.errors import NotFinite, UserError
from gantransfer.training.checkpoint import disk_full, is_disk_full, listing

FOLDERS = ("tensorboard", "checkpoints", "snapshots", "grids")
METRICS, TIMING, EVALUATIONS = "metrics.jsonl", "timing.jsonl", "evaluations.jsonl"
# Folders on some network file systems cannot be locked at all.
CANNOT_LOCK = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


class RunFolder:
    """A run's folder, held by this process until `close`.

    Args:
      path: a local or mounted folder; made, with its sub-folders, if it is not there.

    Attributes:
      path: the folder, absolute.

    Raises:
      UserError: another process holds the folder (it is named), or it cannot be made.
    """

    def __init__(self, path: str | Path):
        if "://" in str(path):
            raise UserError("workdir", str(path), "a local or mounted folder")
        self.path = Path(path).expanduser().absolute()
        with one_line_for_full_disk(self.path):
            try:
                for name in FOLDERS:
                    (self.path / name).mkdir(parents=True, exist_ok=True)
                self._lock = (self.path / ".lock").open("a+")
                self._log = (self.path / "log.txt").open("a", encoding="utf-8")
            except (FileExistsError, NotADirectoryError, PermissionError) as error:
                raise UserError(
                    "workdir", str(self.path), f"a folder that can be written ({error.strerror})"
                ) from error
            self._take_lock()

    def say(self, line: str) -> None:
        """Prints a line for people: on standard error and in `log.txt`."""
        print(line, file=sys.stderr, flush=True)
        with one_line_for_full_disk(self.path):
            self._log.write(line + "\n")
            self._log.flush()

    def write_json(self, name: str, value: Any) -> None:
        """Writes a JSON file as a whole: a reader, or a kill, sees the old one or the new one."""
        self.write_text(name, json.dumps(value, indent=2) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Writes a file as a whole, as `write_json` does."""
        temporary = self.path / f".{name}.new"
        with one_line_for_full_disk(self.path):
            with temporary.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path / name)

    def read_json(self, name: str) -> Any:
        """Returns what a JSON file of the run holds; None where it is not there."""
        path = self.path / name
        return read_run_json(path) if path.exists() else None

    def compare_config(
        self, new: Mapping[str, Any], fixed: Iterable[str], defaults: Mapping[str, Any] | None = None
    ) -> None:
        """Stores the settings of a new run; of a resumed one refuses changes that would make another run of it.

        Args:
          new: nested settings, JSON values.
          fixed: dotted names or prefixes (`"seed"`, `"model."`) that may not change. Other changes are said and stored.
          defaults: by dotted name, what a run went by that was started before the setting existed.

        Raises:
          UserError: lists what changed among the fixed, old -> new.
        """
        old = self.read_json("config.json")
        if old is not None:
            changes = _changes(old, new, defaults)
            fixed = tuple(fixed)
            refused = [line for name, line in changes.items() if _is_under(name, fixed)]
            if refused:
                raise UserError(
                    "workdir",
                    str(self.path),
                    "the settings that this run was started with; changed:" + listing(refused),
                )
            for line in changes.values():
                self.say(f"changed since the run was started: {line}")
        self.write_json("config.json", new)

    def must_match(self, name: str, record: Mapping[str, Any], what: str) -> None:
        """Stores a record (`source.json`, `data.json`) at the start; later raises `UserError` if it differs.

        Args:
          name: the file.
          record: nested JSON values.
          what: what it describes, in words ("the data set").
        """
        old = self.read_json(name)
        if old is None:
            self.write_json(name, record)
        elif changes := _changes(old, record):
            raise UserError(
                "workdir",
                str(self.path),
                f"{what} that this run was started with; changed:" + listing(list(changes.values())),
            )

    def grid(self, images_seen: int) -> Path:
        """Where the image grid made after so many images belongs."""
        return self.path / "grids" / f"fakes_{images_seen:09d}.png"

    def snapshot(self, images_seen: int) -> Path:
        """Where the snapshot (a folder) made after so many images belongs."""
        return self.path / "snapshots" / f"{images_seen:09d}"

    def close(self) -> None:
        """Frees the folder for other processes."""
        self._log.close()
        self._lock.close()

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _take_lock(self) -> None:
        try:
            # The system gives the lock back when its process ends in any way, so a dead run never blocks.
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.seek(0)
            holder = self._lock.read().strip() or "another process"
            self.close()
            raise UserError("workdir", str(self.path), f"a folder that no other run is using; {holder} is") from error
        except OSError as error:
            if error.errno not in CANNOT_LOCK:
                raise
            self.say(f"{self.path} is on a file system without locks: make sure that only one run uses it")
        self._lock.truncate(0)
        self._lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self._lock.flush()


def read_run_json(path: Path) -> Any:
    """Returns what a JSON file of a run holds; raises `UserError` where it is none, so the folder is no run's."""
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(str(path), "not JSON", f"the {path.name} of a run; choose another workdir") from error


class Records:
    """The numbers of a run as JSON lines, and TensorBoard where it is wanted and installed.

    Lines are flushed one by one. Write what belongs to `images_seen` before the checkpoint of that number is saved:
    resuming there drops what comes after it and keeps the rest. NaN and infinity are written as null.

    Args:
      run: the folder.
      tensorboard: whether to write TensorBoard files too; where tensorboardX is missing this is said once.
    """

    def __init__(self, run: RunFolder, tensorboard: bool = True):
        self._run, self._files = run, {}
        self._tensorboard_wanted, self._tensorboard, self._resumed_at = tensorboard, None, None

    def metrics(self, images_seen: int, values: Mapping[str, Any]) -> None:
        """Appends a line to `metrics.jsonl`; nothing that depends on the machine or the clock belongs here."""
        self._append(METRICS, {"images_seen": images_seen, **dict(sorted(values.items()))})
        if (writer := self._open_tensorboard()) is not None:
            for name, value in sorted(values.items()):
                writer.add_scalar(name, float(value), images_seen)
            writer.flush()

    def timing(self, images_seen: int, values: Mapping[str, Any]) -> None:
        """Appends a line to `timing.jsonl`: seconds, images per second, memory."""
        self._append(TIMING, {"images_seen": images_seen, **dict(sorted(values.items()))})

    def evaluation(self, record: Mapping[str, Any]) -> None:
        """Appends a record to `evaluations.jsonl`; with `images_seen` in it, resuming earlier drops it."""
        self._append(EVALUATIONS, dict(record))

    def truncate(self, images_seen: int) -> None:
        """Takes the folder back to `images_seen`: later lines, grids and snapshots are removed, which is said.

        A last line that was cut short by a kill counts as later.
        """
        self._close_files()
        for name in (METRICS, TIMING, EVALUATIONS):
            path = self._run.path / name
            content = path.read_text("utf-8", errors="replace") if path.exists() else ""
            lines = content.splitlines(keepends=True)
            kept = [
                line for line in lines if line.endswith("\n") and json.loads(line).get("images_seen", 0) <= images_seen
            ]
            if len(kept) < len(lines):
                self._run.write_text(name, "".join(kept))
                self._run.say(
                    f"{name}: {len(lines) - len(kept)} lines after image {images_seen} dropped; they come again"
                )
        for folder in ("grids", "snapshots"):
            for path in sorted((self._run.path / folder).iterdir()):
                if (number := re.match(r"(?:fakes_)?(\d{9,})", path.name)) and int(number[1]) > images_seen:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                    self._run.say(f"{folder}/{path.name}: from after image {images_seen}, removed; it comes again")
        self._resumed_at = images_seen

    def close(self) -> None:
        """Closes the files."""
        self._close_files()

    def __enter__(self) -> "Records":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _append(self, name: str, record: dict[str, Any]) -> None:
        with one_line_for_full_disk(self._run.path):
            if name not in self._files:
                path = self._run.path / name
                _drop_torn_line(path)
                self._files[name] = path.open("a", encoding="utf-8")
            self._files[name].write(json.dumps(_plain(record), allow_nan=False) + "\n")
            self._files[name].flush()

    def _open_tensorboard(self) -> Any:
        if self._tensorboard_wanted and self._tensorboard is None:
            try:
                from tensorboardX import SummaryWriter
            except ImportError:
                self._tensorboard_wanted = False
                self._run.say("no TensorBoard files: install gantransfer[tensorboard], or set run.tensorboard=false")
                return None
            purge = None if self._resumed_at is None else self._resumed_at + 1
            # File names tell whole seconds only; without the suffix a fast resume would overwrite what was there.
            folder, suffix = str(self._run.path / "tensorboard"), f".from{purge or 0}"
            self._tensorboard = SummaryWriter(folder, purge_step=purge, filename_suffix=suffix)
        return self._tensorboard

    def _close_files(self) -> None:
        files, self._files = self._files, {}
        with one_line_for_full_disk(self._run.path):
            for file in files.values():
                file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
            self._tensorboard = None


def status_line(
    images_seen: int, total_images: int, images_per_second: float, memory_bytes: int, losses: Mapping[str, Any]
) -> str:
    """The line of one tick, in fixed columns.

    Args:
      images_seen, total_images: so far, and in the whole run.
      images_per_second: over this tick.
      memory_bytes: as `memory_in_use` gives it.
      losses: what to show at the end, in order.
    """
    left = max(0, total_images - images_seen) / images_per_second if images_per_second > 0 else math.inf
    columns = [
        f"kimg {images_seen / 1000:9.2f} / {total_images / 1000:<9.2f}",
        f"sec/kimg {1000 / images_per_second if images_per_second > 0 else math.inf:8.2f}",
        f"images/s {images_per_second:8.1f}",
        f"memory {memory_bytes / 1e9:6.2f} GB",
        f"ETA {_duration(left):>9}",
        *(f"{name} {float(value):10.4g}" for name, value in losses.items()),
    ]
    return "  ".join(columns)


def memory_in_use() -> int:
    """Peak bytes of the fullest local device where it tells, otherwise of this process."""
    import resource

    import jax

    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    if peaks := [s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s]:
        return max(peaks)
    # Kilobytes on Linux, bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def check_finite(images_seen: int, metrics: Mapping[str, Any]) -> None:
    """Raises `NotFinite` for the first metric that is NaN or infinite."""
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise NotFinite(name, float(value), images_seen)


def is_due(images_seen: int, per_iteration: int, every: int) -> bool:
    """Whether the iteration that ended at `images_seen` reached or passed a multiple of `every` images.

    Depends on nothing else, so a resumed run does everything at the same images as one that was not killed.
    """
    return images_seen > 0 and images_seen // every > (images_seen - per_iteration) // every


@contextlib.contextmanager
def one_line_for_full_disk(folder: Path) -> Iterator[None]:
    """Turns a full disk into the `UserError` that the user gets for it."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not is_disk_full(error):
            raise
        raise disk_full(folder, 1, "the run's records could not be written; its checkpoints are still good") from error


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {name: leaf for key, item in value.items() for name, leaf in _flat(item, f"{prefix}{key}.").items()}
    return {prefix.removesuffix("."): value}


def _changes(
    old: Mapping[str, Any], new: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
) -> dict[str, str]:
    """`{dotted name: "name: old -> new"}` of what differs once both are JSON; what only `new` has was the default."""
    before, after = _flat(old), _flat(json.loads(json.dumps(new)))
    known = json.loads(json.dumps(dict(defaults or {})))
    before |= {name: known[name] for name in after.keys() & known.keys() if name not in before}

    def text(side: dict[str, Any], name: str) -> str:
        return json.dumps(side[name]) if name in side else "not set"

    names = sorted(name for name in before.keys() | after.keys() if text(before, name) != text(after, name))
    return {name: f"{name}: {text(before, name)} -> {text(after, name)}" for name in names}


def _is_under(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == p.removesuffix(".") or name.startswith(p.removesuffix(".") + ".") for p in prefixes)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(np.asarray(value).tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _drop_torn_line(path: Path) -> None:
    if path.exists():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(path, whole)


def _duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "?"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours // 24}d {hours % 24:02d}h"
        if hours >= 48
        else f"{hours}h {minutes:02d}m"
        if hours
        else f"{minutes}m {seconds:02d}s"
    )
