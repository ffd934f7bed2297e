"""The loop around the step: ticks, snapshots, evaluations, checkpoints, signals.

Everything periodic happens at a pure function of the number of images seen, so a run that was killed and started again
writes what an uninterrupted run writes, byte for byte; wall-clock times go to a file of their own.
"""

import json
import math
import platform
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from gantransfer import __version__
from gantransfer import config as fields
from gantransfer.data.batches import Stream, stream
from gantransfer.data.image_set import ImageSet
from gantransfer.errors import NotFinite, Stopped
from gantransfer.pretrained.card import model_card
from gantransfer.pretrained.folder import write_source
from gantransfer.pretrained.source import Source, latents, to_uint8
from gantransfer.reports import grids
from gantransfer.training.checkpoint import Checkpoints
from gantransfer.training.draws import StreamedBatch
from gantransfer.training.evaluator import Evaluator, numbers_of
from gantransfer.training.prepare import Task
from gantransfer.training.records import (
    EVALUATIONS,
    Records,
    RunFolder,
    check_finite,
    is_due,
    memory_in_use,
    one_line_for_full_disk,
    status_line,
)
from gantransfer.training.request import describe_data
from gantransfer.training.state import GanState

# The host waits for the device every so many steps, so that a signal is answered soon and no queue of steps builds up.
STEPS_IN_FLIGHT = 8
SHOWN = ("loss/generator", "loss/discriminator")
GRID_CLASSES = 16
GRID_SEED = 0


class Clock:
    """Seconds spent training: pausable, and continued over restarts."""

    def __init__(self, seconds: float = 0.0):
        self.seconds, self._since = seconds, time.perf_counter()

    def read(self) -> float:
        """Seconds so far."""
        return self.seconds + time.perf_counter() - self._since

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside does not count."""
        self.seconds = self.read()
        try:
            yield
        finally:
            self._since = time.perf_counter()


class Stop:
    """Whether SIGTERM or SIGINT has arrived; a second SIGINT interrupts at once, as usual."""

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Stop":
        # Signal handlers belong to the main thread; in a notebook's worker thread a run is stopped by its process.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: Any) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True


def describe_environment() -> dict[str, Any]:
    """What environment.json says: versions and devices of the process that started the run."""
    packages = ("gantransfer", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    versions = {"python": platform.python_version()}
    for name in packages:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return {"versions": {"gantransfer": __version__, **versions}, "devices": [str(device) for device in jax.devices()]}


def begin(task: Task, folder: RunFolder) -> None:
    """Writes what a new run starts from: config, data, source, partition, and the networks at the first step.

    Raises `UserError` where the disk is full.
    """
    with one_line_for_full_disk(folder.path):
        _write_start(task, folder)


def _write_start(task: Task, folder: RunFolder) -> None:
    write_source(
        folder.path / "start", task.source, card=model_card(task.source, "the networks at the first step of a run")
    )
    info = task.source.info
    record = {
        "name": task.config.source or "scratch",
        "family": info.family,
        "licence": info.licence,
        "origin": info.origin,
    }
    folder.write_json("source.json", record | {"fingerprint": task.source.fingerprint(), "options": dict(info.options)})
    folder.write_json("data.json", describe_data(task.images))
    folder.write_json("environment.json", describe_environment())
    folder.write_json("partition.json", task.partition.to_json())
    # Last: a folder with a config is a run that has begun.
    folder.write_json("config.json", fields.to_json(task.config))


class Trainer:
    """One process's work on a run, from its newest checkpoint to its end."""

    def __init__(
        self,
        task: Task,
        folder: RunFolder,
        records: Records,
        checkpoints: Checkpoints,
        evaluator: Evaluator | None = None,
    ):
        self.task, self.folder, self.records, self.checkpoints = task, folder, records, checkpoints
        self.evaluator = evaluator
        self.config = task.config
        per_step = task.recipe.images_per_step
        self.total = -(-int(round(1000 * self.config.kimg)) // per_step) * per_step
        self.grid_z, self.grid_labels = grid_inputs(task)

    def restore(self) -> tuple[GanState, float]:
        """The state to go on from, and the seconds of training that it took."""
        found = self.checkpoints.restore(like_of(self.task))
        if found is None:
            return self.task.initial_state(), 0.0
        state, extra = found
        return state, float(extra["seconds"])

    def run(self, stop: Stop) -> None:
        """Trains until the end of the budget or a signal."""
        task, per_step = self.task, self.task.recipe.images_per_step
        state, seconds = self.restore()
        seen = int(state.images_seen)
        # Where nothing is restored, what was written at image 0 comes again too.
        self.records.truncate(seen if seen else -1)
        if self.evaluator is not None:
            self.evaluator.resume(read_lines(self.folder.path / EVALUATIONS))
        self.folder.say(f"{'resumed' if seen else 'started'} at {seen / 1000:g} of {self.total / 1000:g} kimg")
        if seen == 0:
            self.show(state, 0)
        clock = Clock(seconds)
        tick_seen, tick_seconds = seen, seconds
        batches = self.open_stream(seen)
        try:
            while seen < self.total and not self.enough:
                state = task.step(state, task.held, self.next_batch(batches), due=task.recipe.due(seen // per_step))
                seen += per_step
                # Read once: a signal that comes later in this iteration is answered, with a checkpoint, in the next.
                last, asked = seen >= self.total, stop.requested
                if seen // per_step % STEPS_IN_FLIGHT == 0 or last or asked:
                    jax.block_until_ready(state.images_seen)
                if self.due(seen, self.config.run.tick_kimg) or last:
                    jax.block_until_ready(state.images_seen)
                    now = clock.read()
                    state = self.tick(state, seen, now, (seen - tick_seen) / 1000, now - tick_seconds)
                    tick_seen, tick_seconds = seen, now
                with clock.paused():
                    lines = self.occasional(state, seen, last)
                    best = bool(lines) and self.evaluator.improved
                    if self.due(seen, self.config.run.checkpoint_kimg) or last or asked or best or self.enough:
                        self.save(state, seen, clock.seconds, lines)
                if asked and not last:
                    self.checkpoints.wait()
                    raise Stopped(str(self.folder.path), seen)
        finally:
            if batches is not None:
                batches.close()
        if seen >= self.total and not self.folder.snapshot(seen).exists():
            # The budget was made smaller than what had been reached, so no step was the last one.
            self.occasional(state, seen, last=True)
        self.checkpoints.wait()
        if self.enough and seen < self.total:
            told = f"{self.evaluator.best} has not become better in {self.evaluator.patience} evaluations"
            self.folder.say(f"stopped at {seen / 1000:g} of {self.total / 1000:g} kimg: {told}")
        self.folder.say(
            f"done: {seen / 1000:g} kimg; gantransfer sample --source {self.folder.path} --output samples.png"
        )

    def due(self, seen: int, kimg: float) -> bool:
        """Whether the iteration that has just ended crossed a multiple of `kimg`."""
        return is_due(seen, self.task.recipe.images_per_step, round(1000 * kimg))

    def open_stream(self, seen: int) -> Stream | None:
        """The host's reader, at the position of the run."""
        if not self.task.streamed:
            return None
        config, task = self.config, self.task
        return stream(
            task.images,
            seed=config.seed,
            batch=config.batch,
            first=seen,
            mirror=config.data.mirror,
            workers=config.data.workers,
        )

    def next_batch(self, batches: Stream | None) -> StreamedBatch | None:
        """The real images of one iteration, where the host reads them."""
        if batches is None:
            return None
        parts = [next(batches) for _ in range(self.task.recipe.d_steps)]
        return StreamedBatch(*(np.stack(arrays) for arrays in zip(*parts, strict=True)))

    def tick(self, state: GanState, seen: int, seconds: float, kimg: float, took: float) -> GanState:
        """Fetches the tick's metrics, checks and writes them, and begins a new tick."""
        metrics = means(state)
        check_finite(seen, metrics)
        self.records.metrics(seen, {"kimg": seen / 1000, **metrics})
        speed, memory = 1000 * kimg / took, memory_in_use()
        timing = {
            "seconds": seconds,
            "seconds_per_kimg": took / kimg,
            "images_per_second": speed,
            "memory_bytes": memory,
        }
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self.records.timing(seen, {"kimg": seen / 1000, "time": now, **timing})
        shown = {name.removeprefix("loss/"): value for name, value in metrics.items() if name in SHOWN}
        self.folder.say(status_line(seen, self.total, speed, memory, shown))
        return state.replace(tick=jax.tree.map(jnp.zeros_like, state.tick))

    @property
    def enough(self) -> bool:
        """Whether evaluations say that training should stop."""
        return self.evaluator is not None and self.evaluator.enough

    def occasional(self, state: GanState, seen: int, last: bool) -> list[dict[str, Any]]:
        """Snapshot, grid and evaluation where they are due; returns the evaluation's lines."""
        snapshot = self.due(seen, self.config.run.snapshot_kimg) or last
        if snapshot:
            self.show(state, seen)
        evaluator = self.evaluator
        if evaluator is None or not (last or evaluator.due(seen, snapshot, self.task.recipe.images_per_step)):
            return []
        source = self.task.as_source(state, self.folder.path.name)
        lines = self.evaluate(source, seen)
        if evaluator.improved:
            self.write_snapshot(source, "best")
        if last or evaluator.enough:
            self.record(evaluator.at_end(source), seen)
        if evaluator.enough and not snapshot:
            self.show(state, seen)
        return lines

    def show(self, state: GanState, seen: int) -> None:
        """Writes a snapshot and the image grid; at the start also the grid of reals and, if asked for, an
        evaluation.
        """
        check_state(seen, state)
        source = self.task.as_source(state, self.folder.path.name)
        names = source.info.class_names
        fakes = to_uint8(source.generate(self.grid_z, self.grid_labels))
        columns = self.config.run.grid_columns
        grids.save_grid(self.folder.grid(seen), fakes, columns=columns, labels=self.grid_labels, class_names=names)
        if seen == 0:
            reals, labels = real_examples(self.task.images, columns)
            grids.save_grid(
                self.folder.path / "grids" / "reals.png", reals, columns=columns, labels=labels, class_names=names
            )
            if self.evaluator is not None and self.evaluator.at_start:
                self.evaluate(source, 0)
        self.write_snapshot(source, self.folder.snapshot(seen).name)
        newest = sorted(path for path in (self.folder.path / "snapshots").iterdir() if path.name.isdigit())
        for old in newest[: -self.config.run.keep_snapshots]:
            shutil.rmtree(old)

    def write_snapshot(self, source: Source, name: str) -> None:
        """Writes a snapshot's folder."""
        card = model_card(source, f"made by run {self.folder.path.name}")
        write_source(self.folder.path / "snapshots" / name, source, card=card)

    def evaluate(self, source: Source, seen: int) -> list[dict[str, Any]]:
        """Measures a snapshot and writes the lines."""
        lines = self.evaluator.measure(source)
        self.record(lines, seen)
        return lines

    def record(self, lines: Sequence[dict[str, Any]], seen: int) -> None:
        """Writes lines of an evaluation, and says their numbers."""
        for line in lines:
            self.records.evaluation({"images_seen": seen, "kimg": seen / 1000, **line})
        if lines:
            told = "  ".join(f"{name} {value:.4g}" for name, value in numbers_of(lines).items())
            self.folder.say(f"{'evaluation at the end' if 'at_end' in lines[0] else 'evaluation'}: {told}")

    def save(self, state: GanState, seen: int, seconds: float, lines: Sequence[dict[str, Any]]) -> None:
        """Checkpoint; a state that is no longer finite is never saved."""
        check_finite(seen, means(state))
        check_state(seen, state)
        self.checkpoints.save(seen, state, {"seconds": seconds}, numbers_of(lines) if lines else None)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a file of JSON lines; none where it is not there."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.is_file() else []


def train(task: Task, folder: RunFolder, evaluator: Evaluator | None = None) -> None:
    """Trains a run from where it is to the end of its budget.

    Raises:
      NotFinite: a metric is no longer finite.
      Stopped: a signal arrived; everything is saved.
      UserError: the disk is full; the newest complete checkpoint is good.
    """
    config = task.config
    folder.say("\n".join([task.images.class_table(), *task.images.notes]))
    trained = {role: task.partition.count(role, True) for role in ("generator", "discriminator")}
    folder.say(f"mode {config.mode}: {trained['generator']:,} numbers of G and {trained['discriminator']:,} of D train")
    best, lower = (None, True) if evaluator is None else (evaluator.best, evaluator.lower)
    checkpoints = Checkpoints(
        folder.path / "checkpoints", keep=config.run.keep, best_metric=best, lower_is_better=lower
    )
    with (
        one_line_for_full_disk(folder.path),
        Stop() as stop,
        Records(folder, config.run.tensorboard) as records,
        checkpoints,
    ):
        Trainer(task, folder, records, checkpoints, evaluator).run(stop)


def like_of(task: Task) -> GanState:
    """Shapes and places of the state, for restoring."""
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(np.shape(leaf), np.asarray(leaf).dtype, sharding=where),
        task.start,
        task.shardings,
    )


def means(state: GanState) -> dict[str, float]:
    """Means of the tick's metrics; those that were not computed are left out."""
    sums = jax.device_get(state.tick)
    return {name: float(total / count) for name, (total, count) in sums.items() if count > 0}


@jax.jit
def _finite(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.isfinite(leaf).all(), tree)


def check_state(images_seen: int, state: GanState) -> None:
    """Raises `NotFinite` for the first leaf of a state that holds a number that is not finite.

    A step's metrics are computed before its update, so they alone would let a state through that the update has broken.
    """
    for path, finite in jax.tree_util.tree_leaves_with_path(jax.device_get(_finite(state.replace(tick={})))):
        if not finite:
            raise NotFinite(jax.tree_util.keystr(path, simple=True, separator="/"), math.nan, images_seen)


def grid_inputs(task: Task) -> tuple[np.ndarray, np.ndarray]:
    """Fixed latents and labels of the grids: rows by class, the same latents in every row and at every time."""
    columns, classes = task.config.run.grid_columns, min(task.networks.num_classes, GRID_CLASSES)
    z = latents(columns, task.networks.z_dim, GRID_SEED, latent=task.networks.latent)
    return np.tile(z, (classes, 1)), np.repeat(np.arange(classes, dtype=np.int32), columns)


def real_examples(images: ImageSet, columns: int) -> tuple[UInt8[np.ndarray, "n h w c"], np.ndarray]:
    """The first images of each class, as many as a grid shows."""
    chosen = [
        i
        for k in range(min(len(images.class_names), GRID_CLASSES))
        for i in np.flatnonzero(images.labels == k)[:columns]
    ]
    return np.stack([images.read(int(i))[0] for i in chosen]), np.asarray(images.labels)[chosen]
