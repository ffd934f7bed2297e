"""Keeps a run's state on disk so that a killed run goes on exactly: Orbax, plus a seal over every file it wrote.

Orbax writes a checkpoint into a temporary folder and renames it when it is complete, so a killed process leaves no half
checkpoint under a final name. It does not notice bytes that change afterwards: a flipped bit inside an array loads as
another number, without an error. So each checkpoint carries `seal.json`, sizes and CRC-32 of its files, written just
before the rename; only what agrees with it is restored.

This is the one file that knows Orbax. A folder of checkpoints belongs to one run at a time (`records.RunFolder`) and is
local or mounted.
"""

import contextlib
import errno
import hashlib
import json
import logging
import math
import re
import shutil
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import SingleDeviceSharding

from gantransfer.errors import UserError

Tree = Any

SEAL = "seal.json"
# Orbax writes these on, in the background or after the seal is made; nothing that is restored is in them.
UNSEALED = ("_CHECKPOINT_METADATA", "commit_success.txt")
# EFBIG is a limit on the size of one file: for whoever waits for the checkpoint it is a full disk.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_CHECKPOINT, UNREADABLE = -1, -2
MISSING = " is missing"
SHOWN_LINES = 8
SMALL_FILE_BYTES = 1 << 20


class Checkpoints:
    """The checkpoints of one run, by the number of images seen.

    Args:
      folder: where they are; made if it is not there. Unreadable ones are renamed to `damaged-<images seen>` when they
        are found, which is printed.
      keep: newest checkpoints kept.
      keep_best: checkpoints with the best `best_metric` kept besides.
      best_metric: a key of the `metrics` given to `save`; None keeps the newest only. A missing or non-finite value is
        the worst.
      lower_is_better: direction of `best_metric`.

    Several processes of one run call every method alike; the first of them touches files.
    """

    def __init__(
        self,
        folder: str | Path,
        keep: int = 2,
        keep_best: int = 1,
        best_metric: str | None = None,
        lower_is_better: bool = True,
    ):
        # A second of imports that only a training run should pay.
        from orbax.checkpoint import v1 as ocp

        logging.getLogger("absl").addFilter(_without_orbax_tracebacks)
        self._folder = Path(folder).absolute()
        self._best_metric, self._sign = best_metric, 1 if lower_is_better else -1
        self._saving, self._extra, self._bytes, self._response = 0, None, 0, None
        if jax.process_index() == 0:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._tidy()
        _wait_for_all("checkpoints")
        policies = ocp.training.preservation_policies
        wanted = [policies.LatestN(keep)]
        if best_metric is not None and keep_best:
            best = policies.BestN(
                n=keep_best, get_metric_fn=self._score, reverse=True, keep_checkpoints_without_metrics=False
            )
            wanted.append(best)
        context = ocp.Context()
        # Orbax copies its options deeply: a bound method would come out bound to a copy of this object.
        context.async_options.post_finalization_callback = lambda: self._seal()
        self._orbax = ocp.training.Checkpointer(
            self._folder,
            context=context,
            preservation_policy=policies.AnyPreservationPolicy(wanted),
            cleanup_tmp_directories=True,
        )

    @property
    def steps(self) -> list[int]:
        """Images seen at each complete checkpoint, ascending."""
        return [step for step in self._numbered() if (self._folder / str(step) / SEAL).is_file()]

    @property
    def latest(self) -> int | None:
        """Images seen at the newest complete checkpoint; None where there is none."""
        return max(self.steps, default=None)

    @property
    def best(self) -> int | None:
        """Images seen at the kept checkpoint with the best metric; None where none has a finite one."""
        complete = set(self.steps)
        scores = {self._score(c.metrics): c.step for c in self._orbax.checkpoints if c.step in complete}
        return scores[min(scores)] if scores and math.isfinite(min(scores)) else None

    def save(
        self, images_seen: int, state: Tree, extra: Mapping[str, Any], metrics: Mapping[str, float] | None = None
    ) -> None:
        """Starts writing a checkpoint; the files are complete at the next `save`, `wait` or `close`.

        Returns once the state has been copied, so the arrays may be donated to the next step at once. What is already
        saved for this number of images stays (a run is a pure function, so it is the same state).

        Args:
          images_seen: the checkpoint's number, below 2**31 (as counts are on the device).
          state: pytree of jax arrays, none of them empty; typed keys and any sharding are fine.
          extra: JSON that comes back with the state.
          metrics: numbers that tell how good it is.

        Raises:
          UserError: the disk is full, now or while the checkpoint before was written; older checkpoints are still good.
        """
        self.wait()
        if images_seen in self.steps:
            return
        self._saving, self._extra = images_seen, json.loads(json.dumps(extra))
        self._bytes = sum(math.prod(shape) * dtype.itemsize for shape, dtype in _named(state).values())
        with self._disk_full_in_one_line():
            if shutil.disk_usage(self._folder).free < self._bytes:
                raise OSError(errno.ENOSPC, "less space is free than the state takes", str(self._folder))
            self._response = self._orbax.save_checkpointables_async(
                images_seen,
                {"state": state},
                force=True,
                metrics=None if metrics is None else {name: float(value) for name, value in metrics.items()},
            )

    def restore(self, like: Tree, images_seen: int | None = None) -> tuple[Tree, Any] | None:
        """Reads the newest good checkpoint, or the one asked for.

        Args:
          like: pytree of arrays or `ShapeDtypeStruct`s with the structure, shapes, dtypes and shardings of what comes
            back. The checkpoint may have been written on another number of devices.
          images_seen: which checkpoint; None takes the newest.

        Returns:
          `(state, extra)` as they were saved; None where no checkpoint was ever saved.

        Raises:
          UserError: shapes, dtypes or names differ from `like` (the differences are listed); no checkpoint can be read;
            the one asked for is not there.
        """
        self.wait()
        step = _same_everywhere(self._newest_good(images_seen) if jax.process_index() == 0 else 0)
        self._orbax.reload()
        if step == NO_CHECKPOINT:
            return None
        if step == UNREADABLE:
            raise UserError(
                "workdir",
                str(self._folder),
                "a run with a checkpoint that can be read; all of its own are damaged: copy one back, or go elsewhere",
            )
        stored = self._orbax.checkpointables_metadata(step).metadata["state"]
        if differences := _differences(stored, like):
            raise UserError(
                "workdir",
                str(self._folder / str(step)),
                "a checkpoint of the same networks, optimizer and methods; this one differs:" + listing(differences),
            )
        loaded = self._orbax.load_checkpointables(step, {"state": jax.tree.map(_target, like)})
        return loaded["state"], _read_seal(self._folder / str(step))["extra"]

    def save_constant(self, name: str, tree: Tree) -> None:
        """Stores a tree that never changes, once, in `constants/<name>` beside the checkpoints, before it returns.

        Raises `UserError` where another tree is stored under this name, or the disk is full.
        """
        fingerprint = _fingerprint(tree)
        with Checkpoints(self._constant(name), keep=1) as stored:
            if stored.latest is None:
                stored.save(0, tree, {"fingerprint": fingerprint})
                return
            _, extra = stored.restore(tree)
        if extra["fingerprint"] != fingerprint:
            raise UserError(
                "workdir",
                str(self._constant(name)),
                "the frozen leaves that this run was started with; these have other values",
            )

    def restore_constant(self, name: str, like: Tree) -> Tree | None:
        """Reads what `save_constant` stored, placed as `like` says; None where nothing was.

        Raises `UserError` as `restore` does.
        """
        if not self._constant(name).is_dir():
            return None
        with Checkpoints(self._constant(name), keep=1) as stored:
            found = stored.restore(like)
        if found is None:
            return None
        tree, extra = found
        if extra["fingerprint"] != _fingerprint(tree):
            raise UserError(
                "workdir",
                str(self._constant(name)),
                "the frozen leaves as they were stored; they do not match their fingerprint",
            )
        return tree

    def wait(self) -> None:
        """Blocks until the checkpoint being written is complete; raises what went wrong with it."""
        with self._disk_full_in_one_line():
            response, self._response = self._response, None
            try:
                if response is not None:
                    response.result()
            finally:
                self._orbax.wait()

    def close(self) -> None:
        """Waits for what is being written and frees Orbax's threads."""
        try:
            self.wait()
        finally:
            with self._disk_full_in_one_line():
                self._orbax.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _constant(self, name: str) -> Path:
        return self._folder.parent / "constants" / name

    def _numbered(self) -> list[int]:
        return sorted(int(path.name) for path in self._folder.iterdir() if path.name.isdecimal())

    def _score(self, metrics: Mapping[str, float] | None) -> float:
        value = (metrics or {}).get(self._best_metric, math.inf)
        return self._sign * value if math.isfinite(value) else math.inf

    def _tidy(self) -> None:
        # Orbax reads every checkpoint's small files when it opens a folder, and a bad one would stop it.
        damages = {step: _damage(self._folder / str(step), deep=False) for step in self._numbered()}
        newest = max((step for step, damage in damages.items() if damage is None), default=-1)
        for step, damage in damages.items():
            if damage is not None and step < newest and damage.endswith(MISSING):
                shutil.rmtree(self._folder / str(step))
                print(
                    f"checkpoint {self._folder / str(step)} was half deleted; the rest is deleted now", file=sys.stderr
                )
            elif damage is not None:
                self._set_aside(step, damage)

    def _seal(self) -> None:
        # Called by Orbax on the first process, after everything else is written and before the rename.
        _write_seal(next(path for path in self._folder.glob(f"{self._saving}.*") if path.is_dir()), self._extra)

    def _newest_good(self, images_seen: int | None) -> int:
        steps = self._numbered()
        if images_seen is not None:
            if images_seen not in steps:
                raise UserError(
                    "images_seen",
                    images_seen,
                    "one of " + (", ".join(map(str, steps)) or "none: there is no checkpoint"),
                )
            if damage := _damage(self._folder / str(images_seen), deep=True):
                raise UserError("images_seen", images_seen, f"a checkpoint that can be read; in this one {damage}")
            return images_seen
        for step in reversed(steps):
            if not (damage := _damage(self._folder / str(step), deep=True)):
                return step
            self._set_aside(step, damage)
        return UNREADABLE if any(self._folder.glob("damaged-*")) else NO_CHECKPOINT

    def _set_aside(self, step: int, damage: str) -> None:
        aside, again = self._folder / f"damaged-{step}", 1
        while aside.exists():
            again += 1
            aside = self._folder / f"damaged-{step}-{again}"
        (self._folder / str(step)).rename(aside)
        print(
            f"checkpoint {self._folder / str(step)} cannot be used: {damage}; renamed to {aside.name}", file=sys.stderr
        )

    @contextlib.contextmanager
    def _disk_full_in_one_line(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if jax.process_index() == 0:
                # What was written of it takes space that the user now needs; the next start clears what stays.
                for partial in self._folder.glob(f"{self._saving}.*"):
                    shutil.rmtree(partial, ignore_errors=True)
            if not is_disk_full(error):
                raise
            last = self.latest
            state = f"checkpoint {last} is still good" if last is not None else "there is no earlier one"
            raise disk_full(
                self._folder, self._bytes, f"checkpoint {self._saving} could not be written, {state}"
            ) from error


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or one that it was raised from, says that no more can be written to the disk."""
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        link = pending.pop()
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        # TensorStore and safetensors tell the operating system's code in their text only.
        code = re.search(r"os_error_code='(\d+)'|\(os error (\d+)\)", str(link))
        if getattr(link, "errno", None) in FULL or (code and int(code[1] or code[2]) in FULL):
            return True
        pending += [link.__cause__, link.__context__]
    return False


def disk_full(folder: str | Path, num_bytes: int, what: str) -> UserError:
    """The one line that a user gets for a full disk: `num_bytes` more are needed, and `what` could not be done."""
    return UserError(
        "workdir", str(folder), f"a disk with at least {max(1, math.ceil(num_bytes / 1e6))} MB free ({what})"
    )


def listing(lines: Sequence[str]) -> str:
    """Puts each of the first 8 lines on an indented line of its own, and says how many more there are."""
    shown = [*lines[:SHOWN_LINES], *([f"... and {len(lines) - SHOWN_LINES} more"] if len(lines) > SHOWN_LINES else [])]
    return "".join(f"\n  {line}" for line in shown)


def _without_orbax_tracebacks(record: logging.LogRecord) -> bool:
    # Every thread of a failed save logs its traceback; the same error reaches the caller as an exception.
    return record.levelno < logging.ERROR or "/orbax/" not in record.pathname


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(SMALL_FILE_BYTES):
            checksum = zlib.crc32(block, checksum)
    return checksum


def _write_seal(folder: Path, extra: Any) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in UNSEALED)
    sizes = {str(path.relative_to(folder)): [path.stat().st_size, _checksum(path)] for path in files}
    content = json.dumps({"extra": extra, "files": sizes})
    (folder / SEAL).write_text(json.dumps({"checksum": zlib.crc32(content.encode()), "content": content}))


def _read_seal(folder: Path) -> dict[str, Any]:
    seal = json.loads((folder / SEAL).read_text())
    if zlib.crc32(seal["content"].encode()) != seal["checksum"]:
        raise ValueError("its checksum differs")
    return json.loads(seal["content"])


def _damage(folder: Path, deep: bool) -> str | None:
    """What is wrong with a checkpoint, in words; None if nothing is. `deep` reads the large files too."""
    try:
        files = _read_seal(folder)["files"]
    except FileNotFoundError:
        return SEAL + MISSING
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return f"{SEAL} cannot be read ({error})"
    for name, (size, checksum) in files.items():
        path = folder / name
        if not path.is_file():
            return name + MISSING
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, not {size}"
        if (deep or size <= SMALL_FILE_BYTES) and _checksum(path) != checksum:
            return f"the bytes of {name} have changed"
    return None


def _named(tree: Tree) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape and dtype of each leaf as it is stored (a typed random key is the integers inside it), by path."""

    def stored(leaf: Any) -> tuple[tuple[int, ...], np.dtype]:
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.eval_shape(jax.random.key_data, leaf)
        return tuple(leaf.shape), np.dtype(leaf.dtype)

    # Orbax stores records and tuples as dictionaries and lists, so only the names on the way can be compared.
    return {
        "/".join(map(_key_name, path)): stored(leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


def _key_name(key: Any) -> str:
    return str(next(getattr(key, kind) for kind in ("key", "name", "idx") if hasattr(key, kind)))


def _differences(stored: Tree, like: Tree) -> list[str]:
    def text(leaf: tuple[tuple[int, ...], np.dtype] | None) -> str:
        return "not there" if leaf is None else f"{leaf[1]}{list(leaf[0])}"

    old, new = _named(stored), _named(like)
    changed = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    return [f"{name}: {text(old.get(name))} in the checkpoint, {text(new.get(name))} now" for name in changed]


def _target(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None) or SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _fingerprint(tree: Tree) -> str:
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        value = np.ascontiguousarray(leaf)
        digest.update(f"{'/'.join(map(_key_name, path))} {value.dtype} {value.shape}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def _wait_for_all(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def _same_everywhere(step: int) -> int:
    if jax.process_count() == 1:
        return step
    return int(multihost_utils.broadcast_one_to_all(np.int32(step)))
