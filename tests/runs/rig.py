"""What tests of whole runs share: tiny settings, a zip of images, command lines, and everything that a run leaves."""

import contextlib
import json
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from gantransfer.__main__ import main
from gantransfer.training.prepare import Task
from gantransfer.training.request import make_task, read_config
from gantransfer.training.state import GanState

CHECKOUT = Path(__file__).resolve().parents[2]
# A BigGAN that trains in milliseconds; one device, because a program for eight takes long to compile.
BIGGAN = {
    "model.width": 4,
    "model.z_dim": 12,
    "model.shared_dim": 8,
    "model.spectral_g": False,
    "model.spectral_d": True,
    "batch": 8,
    "devices.count": 1,
    "run.grid_columns": 2,
    "run.tensorboard": False,
    "run.compile_cache": None,
}
# The two-block family of the battery: a program of it compiles in a second.
TOY = {"model.family": "toy", **{name: value for name, value in BIGGAN.items() if not name.startswith("model.")}}
# 24 steps: a status line every 2, a checkpoint every 3, a snapshot every 6.
EVERY = {"run.tick_kimg": 0.016, "run.checkpoint_kimg": 0.024, "run.snapshot_kimg": 0.048, "data.mirror": True}
LETTERS = {
    **BIGGAN,
    **EVERY,
    "kimg": 0.192,
    "run.tensorboard": True,
    "evaluate.features": "digits_cnn",
    "evaluate.samples": 40,
    "evaluate.kimg": "('0','0.096')",
}
DOTS = {**TOY, **EVERY, "kimg": 0.192, "methods": "('r1(gamma=0.1, every=5)','toy_lora','toy_controller')"}


def write_zip(path: Path, size: int, classes: int, per_class: int, seed: int = 0) -> Path:
    """Writes a zip of grey images, one folder per class: noise around a level that tells the class."""
    draw = np.random.default_rng(seed)
    with zipfile.ZipFile(path, "w") as file:
        for k in range(classes):
            for i in range(per_class):
                pixels = np.clip(draw.normal(255 * (k + 1) / (classes + 1), 40, (size, size)), 0, 255)
                content = BytesIO()
                Image.fromarray(pixels.astype(np.uint8)).save(content, "PNG")
                file.writestr(f"class{k}/{i:02d}.png", content.getvalue())
    return path


def command(workdir: Path, data: Path | str, settings: Mapping[str, Any]) -> list[str]:
    """The command line of a run."""
    fields = [f"--config.{name}={value}" for name, value in settings.items()]
    return ["finetune", "--data", str(data), "--workdir", str(workdir), *fields]


def finetune(workdir: Path, data: Path | str, settings: Mapping[str, Any]) -> int:
    """Runs the command line in this process; returns its exit code."""
    with contextlib.redirect_stdout(None):
        return main(command(workdir, data, settings))


def start_process(arguments: Sequence[str], log: Path) -> subprocess.Popen:
    """Starts the command line in a process of its own, with the battery's toys registered."""
    code = (
        "import sys; from tests.contract.rig import with_toys; from gantransfer.__main__ import main\n"
        "with with_toys(): sys.exit(main(sys.argv[1:]))"
    )
    with log.open("a") as file:
        return subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=CHECKOUT, stdout=file, stderr=file)


def make(data: Path, settings: Mapping[str, Any]) -> Task:
    """Prepares a run, to take its steps one by one."""
    return make_task(read_config(None, {**settings, "data.path": str(data)}), None, lambda line: None)


def advance(task: Task, steps: int) -> list[GanState]:
    """Takes steps from the start; returns host copies of the state before the first and after each."""
    state = task.initial_state()
    states = [jax.tree.map(np.array, jax.device_get(state))]
    batches = task.recipe.images_per_step
    for _ in range(steps):
        state = task.step(state, task.held, due=task.recipe.due(int(state.images_seen) // batches))
        states.append(jax.tree.map(np.array, jax.device_get(state)))
    return states


def leaves(tree: Any) -> dict[str, np.ndarray]:
    """Leaves by path."""
    found = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in found}


def newest_checkpoint(workdir: Path) -> dict[str, np.ndarray]:
    """Leaves of the newest checkpoint, by path."""
    from orbax.checkpoint import v1 as ocp

    newest = max(
        (path for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()), key=lambda p: int(p.name)
    )
    with warnings.catch_warnings():
        # Orbax says that it takes the placement of arrays from the file, as it should here.
        warnings.simplefilter("ignore", UserWarning)
        tree = ocp.load_checkpointables(newest)["state"]
    return leaves(tree)


def files(workdir: Path) -> dict[str, bytes]:
    """Every file of a run that holds no clock: numbers, snapshots, grids, what the run is."""
    apart = ("log.txt", "timing.jsonl", ".lock", "environment.json")
    found = [path for path in workdir.rglob("*") if path.is_file() and path.name not in apart]
    names = {str(path.relative_to(workdir)): path for path in found}
    return {
        name: path.read_bytes()
        for name, path in sorted(names.items())
        if name.partition("/")[0] not in ("checkpoints", "tensorboard")
    }


def everything(workdir: Path) -> dict[str, bytes]:
    """Every file with its content, to see that nothing was touched."""
    return {str(path): path.read_bytes() for path in sorted(workdir.rglob("*")) if path.is_file()}


def assert_same_run(one: Path, other: Path) -> None:
    """Holds two finished runs to equal bytes: the state of the last checkpoint, numbers, snapshots and grids."""
    a, b = newest_checkpoint(one), newest_checkpoint(other)
    assert a.keys() == b.keys()
    assert [path for path in a if a[path].tobytes() != b[path].tobytes()] == []
    a, b = files(one), files(other)
    # Folders of runs are told apart by name in what is written for people, and in the config.
    named = ("config.json", "README.md")
    assert a.keys() == b.keys()
    assert [name for name in a if not name.endswith(named) and a[name] != b[name]] == []
    for name in (name for name in a if name.endswith(named)):
        assert a[name].decode().replace(str(one), str(other)).replace(one.name, other.name) == b[name].decode(), name


def lines(path: Path) -> list[dict[str, Any]]:
    """Records of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_close(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray], tolerance: float) -> None:
    """Holds leaves to each other, naming the one that differs."""
    assert one.keys() == other.keys()
    for path, leaf in one.items():
        np.testing.assert_allclose(leaf, other[path], rtol=tolerance, atol=tolerance, err_msg=path)


def leaves_of_shapes(tree: Any) -> dict[str, Any]:
    """Leaves by path, shapes as they are."""
    found = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in found}
