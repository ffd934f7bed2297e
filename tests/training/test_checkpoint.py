"""A checkpoint is what was saved or it is not used: kills, full disks, changed bytes, other devices, other networks."""

import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gantransfer.errors import UserError
from gantransfer.training.checkpoint import SEAL, Checkpoints, _damage

CHECKOUT = Path(__file__).resolve().parents[2]


@struct.dataclass
class State:
    images_seen: jax.Array
    weights: dict
    optimizer: tuple
    key: jax.Array


def make_state(images_seen: int = 0, width: int = 4) -> State:
    weights = {
        "block/0": {"kernel": jnp.full((3, width), images_seen, jnp.float32)},
        "bias": jnp.ones(width, jnp.bfloat16),
    }
    return State(jnp.int32(images_seen), weights, optax.adam(1e-3).init(weights), jax.random.key(images_seen))


def assert_same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for (path, a), b in zip(jax.tree_util.tree_flatten_with_path(left)[0], jax.tree.leaves(right), strict=True):
        assert a.dtype == b.dtype, path
        assert bool((a == b).all()), path


def fill(folder: Path, *steps: int, **settings) -> None:
    with Checkpoints(folder, **settings) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_state(step), {"step": step}, {"fid": float(step)})


def largest(folder: Path) -> Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def flip_text(path: Path, old: str, new: str) -> None:
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(bytes(content))


def test_state_and_extra_come_back_exactly(tmp_path):
    extra = {"none": None, "nested": {"list": [1, 2.5, "x"], "a/b": {}}}
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.latest is None
        assert checkpoints.restore(make_state()) is None
        checkpoints.save(300, make_state(300), extra)
        checkpoints.wait()
        assert checkpoints.latest == 300
    with Checkpoints(tmp_path / "c") as checkpoints:
        state, again = checkpoints.restore(make_state())
    assert again == extra
    assert_same(state, make_state(300))


def test_an_older_checkpoint_can_be_asked_for_by_number(tmp_path):
    fill(tmp_path, 1, 2)
    with Checkpoints(tmp_path) as checkpoints:
        assert_same(checkpoints.restore(make_state(), images_seen=1)[0], make_state(1))
        with pytest.raises(UserError, match="one of 1, 2"):
            checkpoints.restore(make_state(), images_seen=3)


def test_what_was_saved_is_the_state_before_it_was_donated(tmp_path):
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    values = jnp.arange(100_000, dtype=jnp.float32)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"x": values}, {})
        for _ in range(20):
            values = step(values)
        state, _ = checkpoints.restore({"x": values})
    np.testing.assert_array_equal(state["x"], np.arange(100_000, dtype=np.float32))


def test_saving_a_number_twice_keeps_the_first(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, make_state(5), {"first": True})
        checkpoints.save(5, make_state(5), {"first": False})
        assert checkpoints.restore(make_state())[1] == {"first": True}


def test_retention_keeps_the_newest_and_the_best(tmp_path):
    scores = [30.0, 10.0, float("nan"), 40.0, None, 35.0, float("-inf")]
    with Checkpoints(tmp_path, keep=2, best_metric="fid") as checkpoints:
        for step, score in enumerate(scores, start=1):
            metrics = {"other": 0.0} if score is None else {"fid": score}
            checkpoints.save(step, make_state(step), {}, None if step == 1 else metrics)
        checkpoints.wait()
        assert checkpoints.steps == [2, 6, 7]
        assert checkpoints.best == 2


def test_retention_keeps_the_highest_where_higher_is_better(tmp_path):
    with Checkpoints(tmp_path, keep=1, best_metric="precision", lower_is_better=False) as checkpoints:
        for step, score in enumerate([0.1, 0.9, float("nan"), 0.3], start=1):
            checkpoints.save(step, make_state(step), {}, {"precision": score})
        checkpoints.wait()
        assert checkpoints.steps == [2, 4]
        assert checkpoints.best == 2


def test_a_changed_architecture_is_refused_with_the_difference(tmp_path):
    fill(tmp_path, 1)
    like = make_state(width=6)
    like = like.replace(weights={**like.weights, "new": jnp.zeros(2, jnp.int32)})
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(UserError) as refusal:
            checkpoints.restore(like)
    assert "weights/block/0/kernel: float32[3, 4] in the checkpoint, float32[3, 6] now" in str(refusal.value)
    assert "weights/new: not there in the checkpoint, int32[2] now" in str(refusal.value)
    # bias, kernel and new of the weights; bias and kernel of both moments
    assert str(refusal.value).count(" now") == 7


def test_a_changed_dtype_is_refused_and_a_long_difference_is_counted(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {f"x{i:02d}": jnp.zeros(2) for i in range(20)}, {})
        with pytest.raises(UserError) as refusal:
            checkpoints.restore({f"x{i:02d}": jnp.zeros(2, jnp.bfloat16) for i in range(20)})
    assert str(refusal.value).count("float32[2] in the checkpoint, bfloat16[2] now") == 8
    assert str(refusal.value).endswith("... and 12 more")


@pytest.mark.parametrize("num_devices", [1, 2])
def test_a_checkpoint_of_eight_devices_restores_on_fewer(tmp_path, num_devices):
    def place(devices, spec):
        return NamedSharding(Mesh(np.array(devices).reshape(-1), ("x",)), spec)

    values = np.arange(16 * 8, dtype=np.float32).reshape(16, 8)
    eight = jax.devices()
    assert len(eight) == 8
    state = {
        "rows": jax.device_put(values, place(eight, PartitionSpec("x"))),
        "all": jax.device_put(values, place(eight, PartitionSpec())),
    }
    fewer = place(eight[:num_devices], PartitionSpec(None, "x"))
    like = {name: jax.ShapeDtypeStruct((16, 8), jnp.float32, sharding=fewer) for name in state}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        restored, _ = checkpoints.restore(like)
    for leaf in restored.values():
        assert leaf.sharding == fewer
        np.testing.assert_array_equal(leaf, values)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "a flipped bit in an array": lambda step: flip(largest(step)),
    "a truncated array": lambda step: os.truncate(largest(step), largest(step).stat().st_size // 2),
    "a missing array": lambda step: largest(step).unlink(),
    "no seal": lambda step: (step / SEAL).unlink(),
    "a torn seal": lambda step: os.truncate(step / SEAL, 20),
    "a flipped bit in the extra": lambda step: flip_text(step / SEAL, '\\"step\\": 2', '\\"step\\": 3'),
    "a flipped bit in what is read at the start": lambda step: flip(step / "metrics" / "metrics"),
    "an empty folder": lambda step: (shutil.rmtree(step), step.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_set_aside_and_the_one_before_it_used(tmp_path, capfd, damage):
    fill(tmp_path, 1, 2)
    DAMAGES[damage](tmp_path / "2")
    with Checkpoints(tmp_path) as checkpoints:
        state, extra = checkpoints.restore(make_state())
        assert checkpoints.steps == [1]
        assert extra == {"step": 1}
        assert_same(state, make_state(1))
        checkpoints.save(2, make_state(2), {"step": 2})
        assert checkpoints.restore(make_state())[1] == {"step": 2}
    assert (tmp_path / "damaged-2").is_dir()
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert str(tmp_path / "2") in lines[0] and "damaged-2" in lines[0]


def test_what_orbax_notes_about_itself_does_not_matter(tmp_path):
    fill(tmp_path, 1, 2)
    flip(tmp_path / "2" / "_CHECKPOINT_METADATA")
    (tmp_path / "1" / "_CHECKPOINT_METADATA").unlink()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps == [1, 2]
        for step in (1, 2):
            assert_same(checkpoints.restore(make_state(), images_seen=step)[0], make_state(step))


def test_a_checkpoint_is_good_the_moment_it_is_complete(tmp_path):
    # Orbax writes some of its files in the background; the seal must not hold what they were before.
    with Checkpoints(tmp_path, keep=100) as checkpoints:
        for step in range(1, 41):
            checkpoints.save(step, {"x": jnp.zeros(3)}, {})
            checkpoints.wait()
            assert _damage(tmp_path / str(step), deep=True) is None


def test_the_rest_of_an_interrupted_deletion_is_deleted(tmp_path, capfd):
    fill(tmp_path, 1, 2)
    largest(tmp_path / "1").unlink()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(make_state())[1] == {"step": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["2"]
    assert capfd.readouterr().err == f"checkpoint {tmp_path / '1'} was half deleted; the rest is deleted now\n"


def test_a_flipped_bit_in_a_large_file_is_found_before_it_is_loaded(tmp_path):
    # Larger than what is checked when the folder is opened, and random, so that it does not compress.
    large = {"x": jax.random.normal(jax.random.key(0), (500_000,))}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, large, {"step": 1})
        checkpoints.save(2, large, {"step": 2})
        checkpoints.wait()
        flip(largest(tmp_path / "2"))
        assert largest(tmp_path / "2").stat().st_size > 1_500_000
        state, extra = checkpoints.restore(large)
    assert extra == {"step": 1}
    assert_same(state, large)


def test_a_run_whose_checkpoints_are_all_damaged_never_starts_anew_by_itself(tmp_path):
    fill(tmp_path, 1, 2)
    flip(largest(tmp_path / "1"))
    flip(largest(tmp_path / "2"))
    for _ in range(2):
        with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match="all of its own are damaged"):
            checkpoints.restore(make_state())


def test_the_leavings_of_a_killed_save_are_cleared_and_never_chosen(tmp_path):
    fill(tmp_path, 1)
    shutil.copytree(tmp_path / "1", tmp_path / "2.orbax-checkpoint-tmp")
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps == [1]
        assert checkpoints.restore(make_state())[1] == {"step": 1}
        checkpoints.save(2, make_state(2), {"step": 2})
        assert checkpoints.restore(make_state())[1] == {"step": 2}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


def test_constants_are_stored_once_and_must_stay_the_same(tmp_path):
    frozen = {"kernel": jnp.arange(12.0).reshape(3, 4)}
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.restore_constant("frozen", frozen) is None
        checkpoints.save_constant("frozen", frozen)
        written = largest(tmp_path / "constants").stat().st_mtime_ns
        checkpoints.save_constant("frozen", frozen)
        assert largest(tmp_path / "constants").stat().st_mtime_ns == written
        assert_same(checkpoints.restore_constant("frozen", jax.tree.map(jnp.zeros_like, frozen)), frozen)
        with pytest.raises(UserError, match="these have other values"):
            checkpoints.save_constant("frozen", {"kernel": frozen["kernel"].at[0, 0].set(7)})
        with pytest.raises(UserError, match=r"kernel: float32\[3, 4\] in the checkpoint, float32\[2, 4\] now"):
            checkpoints.restore_constant("frozen", {"kernel": jnp.zeros((2, 4))})
        flip(largest(tmp_path / "constants" / "frozen" / "0"))
        with pytest.raises(UserError, match="damaged"):
            checkpoints.restore_constant("frozen", frozen)


def test_too_little_free_space_is_refused_before_writing(tmp_path, monkeypatch):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"x": jnp.zeros(1_000_000)}, {})
        checkpoints.wait()
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(1 << 30, 1 << 30, 3_999_999))
        with pytest.raises(
            UserError, match="at least 4 MB free .checkpoint 2 could not be written, checkpoint 1 is still"
        ):
            checkpoints.save(2, {"x": jnp.ones(1_000_000)}, {})
        monkeypatch.undo()
        assert float(checkpoints.restore({"x": jnp.zeros(1_000_000)})[0]["x"].sum()) == 0
        checkpoints.save(2, {"x": jnp.ones(1_000_000)}, {})
        assert float(checkpoints.restore({"x": jnp.zeros(1_000_000)})[0]["x"].sum()) == 1_000_000


# Random numbers, because Orbax compresses; the size of the state is the number of float32 values.
FULL_DISK = """
import os, resource, signal, sys
import jax
from gantransfer.errors import UserError
from gantransfer.training.checkpoint import Checkpoints
from gantransfer.training import checkpoint

folder, kind = sys.argv[1:]
small = {"x": jax.random.normal(jax.random.key(0), (1_000,))}
large = {"x": jax.random.normal(jax.random.key(1), (1_000_000,))}
# The check before saving is tested by itself; here the disk runs full while the save is under way.
checkpoint.shutil.disk_usage = lambda folder: checkpoint.shutil._ntuple_diskusage(1 << 40, 0, 1 << 40)
with Checkpoints(folder) as checkpoints:
    checkpoints.save(1, small, {"step": 1})
    checkpoints.wait()
    if kind == "limit":
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
    try:
        checkpoints.save(2, large, {})
        checkpoints.save(3, large, {})
    except UserError as error:
        print("refused:", error)
    print("left:", os.listdir(folder), checkpoints.restore(small)[1])
    checkpoints.save(4, small, {"step": 4})
    print("then:", checkpoints.restore(small)[1])
"""


@pytest.mark.parametrize("kind", ["limit", "tmpfs"])
def test_a_disk_that_runs_full_while_saving_is_one_line_and_the_checkpoint_before_stays(tmp_path, kind):
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path), kind]
    if kind == "tmpfs":
        if subprocess.run(["unshare", "--map-root-user", "--mount", "true"], capture_output=True).returncode:
            pytest.skip("this machine does not let a test mount a small disk")
        mount = f'mount -t tmpfs -o size=2m tmpfs "{tmp_path}" && exec "$@"'
        command = ["unshare", "--map-root-user", "--mount", "sh", "-c", mount, "sh", *command]
    done = subprocess.run(command, capture_output=True, text=True, cwd=CHECKOUT, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith(
        f"refused: workdir: '{tmp_path}' is not accepted; allowed: a disk with at least 4 MB free"
    )
    assert lines[0].endswith("(checkpoint 2 could not be written, checkpoint 1 is still good)")
    assert lines[1:] == ["left: ['1'] {'step': 1}", "then: {'step': 4}"]
    assert "Traceback" not in done.stderr


# One process pays for the imports and forks a worker for each line that it is sent, before jax has started any thread.
WORKER = """
import os, sys
import jax, jax.numpy as jnp
import orbax.checkpoint.experimental.v1
from gantransfer.training.checkpoint import Checkpoints

def work(folder):
    state = {"n": jnp.int32(0), "x": jnp.arange(300_000, dtype=jnp.uint32)}
    step = jax.jit(lambda s: {"n": s["n"] + 1, "x": s["x"] * 1664525 + 1013904223})
    with Checkpoints(folder) as checkpoints:
        found = checkpoints.restore(state)
        if found is not None:
            state = found[0]
            assert found[1] == {"n": int(state["n"])}
        print("resumed", os.getpid(), flush=True)
        for _ in range(500):
            state = step(state)
            n = int(state["n"])
            checkpoints.save(n, state, {"n": n})
            print("complete", n - 1, flush=True)

for line in sys.stdin:
    if (child := os.fork()) == 0:
        work(sys.argv[1])
        os._exit(0)
    os.waitpid(child, 0)
"""


def test_a_run_killed_at_any_moment_goes_on_from_a_complete_checkpoint(tmp_path):
    delays = random.Random(0)
    command = [sys.executable, "-c", WORKER, str(tmp_path)]
    complete = 0
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=CHECKOUT) as process:
        for start in range(1, 7):
            process.stdin.write("start\n")
            process.stdin.flush()
            child = None
            while child is None or complete < 2 * start:
                line = process.stdout.readline()
                assert line, "the worker has ended"
                # A kill may leave half a line, to which the next process adds its own.
                if told := re.search(r"(resumed|complete) (\d+)$", line):
                    child, complete = (int(told[2]), complete) if told[1] == "resumed" else (child, int(told[2]))
            time.sleep(delays.uniform(0, 0.15))
            os.kill(child, signal.SIGKILL)
        process.stdin.close()
        complete = max([complete, *map(int, re.findall(r"complete (\d+)$", process.stdout.read(), re.M))])
    with Checkpoints(tmp_path) as checkpoints:
        state, extra = checkpoints.restore({"n": jnp.int32(0), "x": jnp.zeros(300_000, jnp.uint32)})
    assert extra["n"] == int(state["n"]) >= complete >= 12
    expected = np.arange(300_000, dtype=np.uint32)
    for _ in range(extra["n"]):
        expected = expected * np.uint32(1664525) + np.uint32(1013904223)
    np.testing.assert_array_equal(state["x"], expected)


TWO_HOSTS = """
import os, sys
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec

index, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{port}", 2, index)
from gantransfer.training.checkpoint import Checkpoints

mesh = jax.make_mesh((jax.device_count(),), ("data",))
rows = NamedSharding(mesh, PartitionSpec("data"))
make = jax.jit(lambda n: jnp.arange(4096.0).reshape(64, 64) + n, out_shardings=rows)
with Checkpoints(folder) as checkpoints:
    checkpoints.save_constant("frozen", {"w": make(7)})
    for n in (1, 2**31 - 1):
        checkpoints.save(n, {"x": make(n % 100)}, {"n": n})
    checkpoints.wait()
    state, extra = checkpoints.restore({"x": make(0)})
    assert extra == {"n": 2**31 - 1} and state["x"].sharding == rows
    np.testing.assert_array_equal(state["x"].addressable_data(0), make(47).addressable_data(0))
    assert float(checkpoints.restore_constant("frozen", {"w": make(0)})["w"].addressable_data(0)[0, 1]) % 64 == 8
    if index == 0:
        files = (path for path in Path(folder, "2147483647").rglob("*") if path.is_file())
        bad = max(files, key=lambda path: path.stat().st_size)
        bad.write_bytes(bad.read_bytes()[:-1])
    assert checkpoints.restore({"x": make(0)})[1] == {"n": 1}
print("agreed", flush=True)
"""


@pytest.mark.slow
def test_two_processes_save_one_checkpoint_and_agree_on_which_to_use(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-c", TWO_HOSTS]
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    processes = [
        subprocess.Popen(
            [*command, str(index), port, str(tmp_path / "run" / "checkpoints")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=CHECKOUT,
            env=environment,
        )
        for index in range(2)
    ]
    try:
        for process in processes:
            output, errors = process.communicate(timeout=120)
            assert output.endswith("agreed\n"), errors
    finally:
        for process in processes:
            process.kill()
            process.communicate()
