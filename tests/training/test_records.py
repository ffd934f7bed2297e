"""A run's folder: held by one process, refused when the run would be another, the same bytes after a kill."""

import errno
import json
import pickle
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gantransfer.errors import NotFinite, UserError
from gantransfer.training import records
from gantransfer.training.records import Records, RunFolder, check_finite, is_due, memory_in_use, status_line

FIXED = ("model.", "data.", "seed", "batch")


@pytest.fixture
def run(tmp_path):
    with RunFolder(tmp_path / "run") as folder:
        yield folder


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def train(run: RunFolder, start: int, stop: int) -> None:
    with Records(run, tensorboard=False) as numbers:
        if start:
            numbers.truncate(start)
        for images_seen in range(start + 10, stop + 1, 10):
            numbers.metrics(images_seen, {"loss_g": np.float32(1 / images_seen), "loss_d": images_seen / 3, "p": 0})
            numbers.timing(images_seen, {"images_per_second": 1.0})
            if images_seen % 20 == 0:
                numbers.evaluation({"images_seen": images_seen, "metric": "fid", "value": 1.5})
                run.grid(images_seen).write_text(f"grid {images_seen}")
                run.snapshot(images_seen).mkdir()
                (run.snapshot(images_seen) / "weights").write_text("w")


def contents(run: RunFolder) -> dict[str, bytes]:
    files = [path for path in run.path.rglob("*") if path.is_file() and path.name not in ("log.txt", ".lock")]
    return {str(path.relative_to(run.path)): path.read_bytes() for path in files}


def test_a_killed_and_resumed_run_leaves_the_same_bytes(tmp_path):
    with RunFolder(tmp_path / "a") as whole, RunFolder(tmp_path / "b") as killed:
        train(whole, 0, 100)
        train(killed, 0, 70)
        with (killed.path / "metrics.jsonl").open("a") as file:
            file.write('{"images_seen": 80, "loss_')
        train(killed, 30, 60)
        train(killed, 60, 100)
        assert contents(killed) == contents(whole)
        assert len(read_lines(killed.path / "metrics.jsonl")) == 10
        assert "metrics.jsonl: 5 lines after image 30 dropped" in (killed.path / "log.txt").read_text()


def test_truncating_at_the_end_removes_nothing(run):
    train(run, 0, 50)
    before = contents(run)
    with Records(run) as numbers:
        numbers.truncate(50)
    assert contents(run) == before
    assert (run.path / "log.txt").read_text() == ""


def test_truncating_keeps_what_was_not_numbered_by_this_program(run):
    (run.path / "grids" / "mine.png").write_text("x")
    with Records(run) as numbers:
        numbers.evaluation({"metric": "fid"})
        numbers.truncate(0)
    assert (run.path / "grids" / "mine.png").exists()
    assert read_lines(run.path / "evaluations.jsonl") == [{"metric": "fid"}]


def test_a_torn_line_is_dropped_before_the_next_is_appended(run):
    (run.path / "evaluations.jsonl").write_text('{"a": 1}\n{"b":')
    with Records(run) as numbers:
        numbers.evaluation({"c": 3})
    assert read_lines(run.path / "evaluations.jsonl") == [{"a": 1}, {"c": 3}]


def test_lines_can_be_read_while_the_run_writes_and_are_plain_json(run):
    with Records(run, tensorboard=False) as numbers:
        numbers.metrics(10, {"b": np.float32(0.5), "a": float("nan"), "c": np.arange(2)})
        assert (run.path / "metrics.jsonl").read_text() == '{"images_seen": 10, "a": null, "b": 0.5, "c": [0, 1]}\n'


def read_events(folder: Path) -> list:
    from tensorboardX.proto.event_pb2 import Event

    events = []
    for path in sorted(folder.iterdir(), key=lambda p: p.stat().st_mtime_ns):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            events.append(Event.FromString(content[at + 12 : at + 12 + length]))
            at += length + 16
    return events


def test_tensorboard_gets_the_numbers_and_forgets_those_after_a_resume(run):
    pytest.importorskip("tensorboardX")
    with Records(run) as numbers:
        numbers.metrics(10, {"loss": 0.5})
        numbers.metrics(20, {"loss": 0.25})
    with Records(run) as numbers:
        numbers.truncate(10)
        numbers.metrics(20, {"loss": 0.125})
    events = read_events(run.path / "tensorboard")
    scalars = [(event.step, value.simple_value) for event in events for value in event.summary.value]
    assert scalars == [(10, 0.5), (20, 0.25), (20, 0.125)]
    assert [event.step for event in events if event.HasField("session_log")] == [11]


def test_missing_tensorboard_is_said_once_and_nothing_else_is_lost(run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with Records(run) as numbers:
        numbers.metrics(10, {"loss": 0.5})
        numbers.metrics(20, {"loss": 0.5})
    assert capsys.readouterr().err.count("gantransfer[tensorboard]") == 1
    assert len(read_lines(run.path / "metrics.jsonl")) == 2


def test_a_second_process_on_the_folder_is_refused_naming_the_first(run):
    code = "import sys; from gantransfer.training.records import RunFolder; RunFolder(sys.argv[1])"
    checkout = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code, str(run.path)], capture_output=True, text=True, cwd=checkout)
    assert re.search(
        rf"UserError: workdir: '{run.path}' is not accepted; .* process \d+ on \S+ is$", done.stderr.strip()
    )
    holder = (run.path / ".lock").read_text()
    with pytest.raises(UserError, match=re.escape(holder.strip())):
        RunFolder(run.path)


def test_the_lock_of_a_killed_process_does_not_block(tmp_path):
    code = (
        "import os, signal, sys; from gantransfer.training.records import RunFolder; "
        "run = RunFolder(sys.argv[1]); os.kill(os.getpid(), signal.SIGKILL)"
    )
    checkout = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], cwd=checkout)
    assert done.returncode < 0 and "process" in (tmp_path / "run" / ".lock").read_text()
    RunFolder(tmp_path / "run").close()


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(records.fcntl, "flock", refuse)
    RunFolder(tmp_path / "run").close()
    assert "file system without locks" in capsys.readouterr().err


@pytest.mark.parametrize("path", ["gs://bucket/run", "file"])
def test_a_path_that_cannot_be_a_run_is_refused(tmp_path, path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="workdir"):
        RunFolder(path if "://" in path else tmp_path / path)


def test_changed_settings_of_another_run_are_refused_old_and_new(run):
    config = {
        "seed": 0,
        "batch": 8,
        "kimg": 1.0,
        "model": {"depth": 2},
        "data": {"files": ("a", "b")},
        "run": {"keep": 2},
    }
    run.compare_config(config, FIXED)
    run.compare_config(config, FIXED)
    changed = {**config, "batch": 16, "kimg": 9.0, "model": {"width": 4}}
    with pytest.raises(UserError) as refusal:
        run.compare_config(changed, FIXED)
    assert str(refusal.value).split("changed:")[1].split("\n  ")[1:] == [
        "batch: 8 -> 16",
        "model.depth: 2 -> not set",
        "model.width: not set -> 4",
    ]
    assert run.read_json("config.json")["kimg"] == 1.0


def test_a_setting_that_is_newer_than_the_run_was_at_its_default(run):
    run.compare_config({"seed": 0, "run": {}}, FIXED)
    run.compare_config({"seed": 0, "run": {}, "batch": 8}, FIXED, {"batch": 8})
    assert run.read_json("config.json")["batch"] == 8
    with pytest.raises(UserError, match="model.depth: 2 -> 3"):
        run.compare_config({"seed": 0, "run": {}, "batch": 8, "model": {"depth": 3}}, FIXED, {"model.depth": 2})


def test_changed_budget_and_reports_are_accepted_and_said(run, capsys):
    config = {"seed": 0, "seedling": 1, "kimg": 1.0, "run": {"keep": 2}}
    run.compare_config(config, FIXED)
    run.compare_config({**config, "seedling": 2, "kimg": 9.0}, FIXED)
    assert capsys.readouterr().err.splitlines() == [
        "changed since the run was started: kimg: 1.0 -> 9.0",
        "changed since the run was started: seedling: 1 -> 2",
    ]
    assert run.read_json("config.json")["kimg"] == 9.0


def test_a_changed_data_set_is_refused_with_the_difference(run):
    data = {"fingerprint": "aa", "length": 10, "classes": ["x", "y"], "empty": {}}
    run.must_match("data.json", data, "the data set")
    run.must_match("data.json", data, "the data set")
    with pytest.raises(
        UserError, match='the data set that this run was started with; changed:\n  fingerprint: "aa" -> "bb"$'
    ):
        run.must_match("data.json", {**data, "fingerprint": "bb"}, "the data set")
    assert run.read_json("data.json") == data


def test_a_json_file_is_replaced_as_a_whole(run, monkeypatch):
    run.write_json("config.json", {"a": 1})

    def kill(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(records.os, "fsync", kill)
    with pytest.raises(KeyboardInterrupt):
        run.write_json("config.json", {"a": 2})
    assert run.read_json("config.json") == {"a": 1}
    assert run.read_json("source.json") is None


def test_a_full_disk_is_one_line(run, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(records.os, "fsync", fail)
    with pytest.raises(UserError, match="a disk with at least 1 MB free"):
        run.write_json("config.json", {})
    numbers = Records(run, tensorboard=False)
    # A device that is always full.
    numbers._files["metrics.jsonl"] = open("/dev/full", "w")
    for write in (lambda: numbers.metrics(10, {"loss": 1.0}), numbers.close):
        with pytest.raises(UserError, match="a disk with at least 1 MB free"):
            write()


def test_the_status_line_keeps_its_columns():
    first = status_line(500, 50_000, 81.3, 123_456_789, {"D": 1.3862943, "G": -0.0123456})
    later = status_line(49_999, 50_000, 7.0, 12_345_678_901, {"D": 0.1, "G": 123456.0})
    assert first == (
        "kimg      0.50 / 50.00      sec/kimg    12.30  images/s     81.3  memory   0.12 GB  ETA   10m 09s  "
        "D      1.386  G   -0.01235"
    )
    for column in ("sec/kimg", "images/s", "memory", "ETA", "D ", "G "):
        assert first.index(column) == later.index(column)
    assert len(first) == len(later)
    assert "ETA    0m 00s" in later


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(59, "0m 59s"), (3600, "1h 00m"), (172_440, "47h 54m"), (50 * 3600, "2d 02h"), (0, "0m 00s")],
)
def test_the_time_left_is_readable(seconds, text):
    assert f"ETA {text:>9}" in status_line(0, seconds, 1.0, 0, {})


def test_a_status_line_before_anything_was_measured_says_so():
    assert "ETA         ?" in status_line(0, 10, 0.0, 0, {})


def test_lines_for_people_go_to_standard_error_and_the_log(run, capsys):
    run.say("one")
    run.say("two")
    output = capsys.readouterr()
    assert output.out == "" and output.err == "one\ntwo\n"
    assert (run.path / "log.txt").read_text() == "one\ntwo\n"


def test_memory_is_that_of_a_process():
    assert 10_000_000 < memory_in_use() < 1_000_000_000_000


@pytest.mark.parametrize("value", [float("nan"), np.float32("inf"), -np.inf])
def test_a_number_that_is_not_finite_stops_with_its_name(value):
    with pytest.raises(NotFinite, match="^training diverged: loss_g is (nan|inf|-inf) at 0.64 kimg; ") as stop:
        check_finite(640, {"loss_d": 1.0, "loss_g": value, "p": 0})
    assert "\n" not in str(stop.value)
    assert stop.value.metric == "loss_g" and stop.value.images_seen == 640
    assert str(pickle.loads(pickle.dumps(stop.value))) == str(stop.value)


def test_finite_numbers_pass():
    check_finite(640, {"loss": np.float32(1), "count": 3})


def test_due_where_an_iteration_reaches_or_passes_a_multiple():
    assert [n for n in range(0, 101, 10) if is_due(n, 10, 25)] == [30, 50, 80, 100]
    assert [n for n in range(0, 101, 10) if is_due(n, 10, 10)] == list(range(10, 101, 10))
    assert [n for n in range(0, 101, 10) if is_due(n, 10, 3)] == list(range(10, 101, 10))
    assert [n for n in range(0, 101, 10) if is_due(n, 10, 1000)] == []
    assert not is_due(0, 10, 5)


def test_a_resumed_run_is_due_at_the_same_images():
    whole = [n for n in range(8, 1001, 8) if is_due(n, 8, 50)]
    resumed = [n for n in range(8, 401, 8) if is_due(n, 8, 50)] + [n for n in range(408, 1001, 8) if is_due(n, 8, 50)]
    assert resumed == whole and len(whole) == 20
