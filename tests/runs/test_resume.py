"""A run that is killed or stopped and started again ends as one that was never interrupted, bit for bit."""

import json
import random
import signal
import time

import numpy as np
import pytest

from gantransfer.run import Run
from gantransfer.training import loop
from tests.runs import rig

LETTERS, DOTS = rig.LETTERS, rig.DOTS


def status_lines(workdir):
    log = workdir / "log.txt"
    return log.read_text().count("kimg ") if log.exists() else 0


def run_and_kill(arguments, workdir, draw, log):
    """Starts the command and kills it at a random moment after it has begun to train; True if the kill came in time."""
    before, more = status_lines(workdir), draw.randint(0, 4)
    process = rig.start_process(arguments, log)
    while process.poll() is None and (not (workdir / "config.json").exists() or status_lines(workdir) < before + more):
        time.sleep(0.005)
    time.sleep(draw.random() / 4)
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def kill_and_finish(workdir, data, settings, kills, seed):
    """Kills a run `kills` times and lets it finish; the moments follow from the seed, which is printed."""
    print(f"moments of the kills: seed {seed}")
    draw, log = random.Random(seed), workdir.parent / "process.txt"
    arguments = rig.command(workdir, data, settings)
    killed = sum(run_and_kill(arguments, workdir, draw, log) for _ in range(kills))
    assert killed > 0, log.read_text()
    assert rig.finetune(workdir, data, settings) == 0
    return killed


def test_a_run_killed_at_a_random_moment_ends_as_one_that_was_not(whole, letters, tmp_path):
    kill_and_finish(tmp_path / "killed", letters, LETTERS, 1, time.time_ns())
    rig.assert_same_run(whole, tmp_path / "killed")


@pytest.mark.slow
def test_a_run_killed_three_times_ends_as_one_that_was_not(whole, letters, tmp_path):
    assert kill_and_finish(tmp_path / "killed", letters, LETTERS, 3, time.time_ns()) >= 2
    rig.assert_same_run(whole, tmp_path / "killed")


@pytest.mark.slow
def test_a_run_with_method_states_killed_eight_times_ends_as_one_that_was_not(whole_dots, dots, tmp_path):
    settings = {**DOTS, "kimg": 0.192}
    assert kill_and_finish(tmp_path / "killed", dots, settings, 8, time.time_ns()) >= 5
    rig.assert_same_run(whole_dots, tmp_path / "killed")
    carried = [path for path in rig.newest_checkpoint(whole_dots) if path.startswith("methods/")]
    assert any("carried" in path or path.count("/") > 1 for path in carried), carried


def stop_at(monkeypatch, step, number=signal.SIGTERM):
    """Sends this process a signal when `step` steps of this start have been taken."""
    steps = iter(range(10**6))
    original = loop.Trainer.next_batch

    def next_batch(self, batches):
        if next(steps) == step:
            signal.raise_signal(number)
        return original(self, batches)

    monkeypatch.setattr(loop.Trainer, "next_batch", next_batch)


def test_sigterm_saves_exits_with_75_and_the_same_command_goes_on_exactly(
    whole, letters, tmp_path, monkeypatch, capsys
):
    workdir = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        stop_at(patch, 4)
        assert rig.finetune(workdir, letters, LETTERS) == 75
    # Five steps: neither a tick nor a checkpoint was due.
    message = f"gantransfer: stopped by a signal at 0.04 kimg, saved in {workdir}; run the same command again to go on"
    assert capsys.readouterr().err.splitlines()[-1] == message
    assert (workdir / "checkpoints" / "40" / "seal.json").exists()
    assert rig.finetune(workdir, letters, LETTERS) == 0
    assert "resumed at 0.04 of 0.192 kimg" in capsys.readouterr().err
    rig.assert_same_run(whole, workdir)


def test_stopped_again_and_again_method_states_go_on_exactly(whole_dots, dots, tmp_path, monkeypatch):
    workdir = tmp_path / "stopped"
    for step in (0, 3, 5):
        with monkeypatch.context() as patch:
            stop_at(patch, step, signal.SIGINT)
            assert rig.finetune(workdir, dots, DOTS) == 75
    assert rig.finetune(workdir, dots, DOTS) == 0
    rig.assert_same_run(whole_dots, workdir)
    state = rig.newest_checkpoint(workdir)
    assert any(path.startswith("methods/toy_controller") for path in state)
    assert any(path.startswith("methods/toy_lora") for path in state)


def test_the_end_of_a_run_is_the_end_however_often_the_command_comes(whole_dots, dots):
    before = rig.files(whole_dots)
    assert rig.finetune(whole_dots, dots, DOTS) == 0
    assert rig.files(whole_dots) == before


def test_a_longer_budget_goes_on_and_is_said(dots, tmp_path, capsys):
    settings = {**rig.TOY, "kimg": 0.016, "run.tick_kimg": 0.016}
    assert rig.finetune(tmp_path / "run", dots, settings) == 0
    capsys.readouterr()
    # As a run that was started before these settings existed.
    stored = tmp_path / "run" / "config.json"
    config = json.loads(stored.read_text())
    del config["transfer"]["warmup_gap"], config["evaluate"]
    stored.write_text(json.dumps(config))
    assert rig.finetune(tmp_path / "run", dots, {**settings, "kimg": 0.032, "run.keep": 3}) == 0
    said = capsys.readouterr().err
    assert "changed since the run was started: kimg: 0.016 -> 0.032" in said and "run.keep: 2 -> 3" in said
    assert [record["images_seen"] for record in rig.lines(tmp_path / "run" / "metrics.jsonl")] == [16, 32]


def test_a_budget_made_smaller_than_what_is_reached_ends_with_a_snapshot_of_that(dots, tmp_path, monkeypatch):
    settings = {**rig.TOY, "run.tick_kimg": 0.008, "run.checkpoint_kimg": 0.008, "run.snapshot_kimg": 1}

    def stop_at_the_third(stop):
        stop.asked += 1
        return stop.asked >= 3

    with monkeypatch.context() as patch:
        patch.setattr(loop.Stop, "asked", 0, raising=False)
        patch.setattr(loop.Stop, "requested", property(stop_at_the_third, lambda stop, value: None), raising=False)
        assert rig.finetune(tmp_path / "run", dots, {**settings, "kimg": 0.08}) == 75
    assert Run(tmp_path / "run").images_seen == 0
    assert rig.finetune(tmp_path / "run", dots, {**settings, "kimg": 0.016}) == 0
    assert Run(tmp_path / "run").images_seen == 24


def test_a_run_that_dies_before_its_first_checkpoint_begins_again_without_traces(letters, whole, tmp_path, monkeypatch):
    class Lightning(Exception):
        pass

    def strike(self, batches):
        raise Lightning

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "next_batch", strike)
        for _ in range(2):
            with pytest.raises(Lightning):
                rig.finetune(tmp_path / "run", letters, LETTERS)
    first = rig.lines(whole / "evaluations.jsonl")[0]
    assert first["images_seen"] == 0
    assert rig.lines(tmp_path / "run" / "evaluations.jsonl") == [first]
    assert sorted(path.name for path in (tmp_path / "run" / "snapshots").iterdir()) == ["000000000"]


def test_a_damaged_newest_checkpoint_is_set_aside_and_the_run_ends_the_same(
    whole_dots, dots, tmp_path, monkeypatch, capsys
):
    workdir = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(patch, 13)
        assert rig.finetune(workdir, dots, DOTS) == 75
    steps = sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())
    largest = max((workdir / "checkpoints" / str(steps[-1])).rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    capsys.readouterr()
    assert rig.finetune(workdir, dots, DOTS) == 0
    said = capsys.readouterr().err
    assert f"renamed to damaged-{steps[-1]}" in said and f"resumed at {steps[-2] / 1000:g} of" in said
    rig.assert_same_run(whole_dots, workdir)


CHANGES = {
    "architecture": ({"model.width": 8}, "model.width: 4 -> 8"),
    "batch": ({"batch": 16}, "batch: 8 -> 16"),
    "seed": ({"seed": 1}, "seed: 0 -> 1"),
    "mode": ({"mode": "none"}, 'mode: "full" -> "none"'),
    "methods": ({"methods": "r1(gamma=2.0)"}, 'methods: [] -> ["r1(gamma=2.0)"]'),
    "loss": ({"objective.loss": "hinge"}, 'objective.loss: "non_saturating" -> "hinge"'),
    "rates": ({"optimizer.lr_d": 0.5}, "optimizer.lr_d: 0.001 -> 0.5"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_resuming_another_run_is_refused_with_the_difference(whole, letters, capsys, name):
    change, difference = CHANGES[name]
    before = rig.everything(whole)
    assert rig.finetune(whole, letters, {**LETTERS, **change}) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"gantransfer: workdir: '{whole}' is not accepted; allowed: the settings that")
    assert said.splitlines()[1:] == [f"  {difference}"]
    assert rig.everything(whole) == before


def test_resuming_on_changed_images_is_refused_with_the_difference(dots, tmp_path, capsys):
    data, settings = tmp_path / "data.zip", {**rig.TOY, "kimg": 0.008}
    data.write_bytes(dots.read_bytes())
    assert rig.finetune(tmp_path / "run", data, settings) == 0
    before = rig.files(tmp_path / "run")
    rig.write_zip(data, 8, 3, 8, seed=1)
    capsys.readouterr()
    assert rig.finetune(tmp_path / "run", data, settings) == 2
    said = capsys.readouterr().err.splitlines()
    assert "the data set that this run was started with; changed:" in said[-2]
    old = json.loads(before["data.json"])["fingerprint"]
    assert said[-1].startswith(f'  fingerprint: "{old}" -> "')
    assert rig.files(tmp_path / "run") == before


def test_a_run_needs_its_source_only_to_begin(letters, tmp_path):
    """The networks at the first step are kept, so a source that has gone is not missed."""
    import shutil

    source, workdir = tmp_path / "source", tmp_path / "run"
    settings = {**rig.TOY, "kimg": 0.008}
    data = rig.write_zip(tmp_path / "dots.zip", 8, 3, 4)
    assert rig.finetune(source, data, settings) == 0
    settings = {**settings, "source": source}
    assert rig.finetune(workdir, data, settings) == 0
    shutil.rmtree(source)
    assert rig.finetune(workdir, data, {**settings, "kimg": 0.016}) == 0
    assert rig.lines(workdir / "metrics.jsonl")[-1]["images_seen"] == 16


# Where images come from


STREAMED = {"data.device_limit_mb": 0, "data.workers": 0}


def test_streamed_and_resident_images_train_the_same(whole_dots, dots, tmp_path, capsys):
    assert rig.finetune(tmp_path / "streamed", dots, {**DOTS, **STREAMED}) == 0
    assert "streamed by the host" in capsys.readouterr().err
    assert_same_images_seen(whole_dots, tmp_path / "streamed")


def assert_same_images_seen(one, other):
    """Equal to rounding, since images from the host are another program; one other image or flip moves all by more."""
    for a, b in zip(*(rig.lines(run / "metrics.jsonl") for run in (one, other)), strict=True):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-6)
    one, other = rig.newest_checkpoint(one), rig.newest_checkpoint(other)
    for path, leaf in one.items():
        np.testing.assert_allclose(other[path], leaf, rtol=0, atol=1e-5 * np.abs(leaf).max(), err_msg=path)


def test_mirroring_changes_what_is_learned(whole_dots, dots, tmp_path):
    """Otherwise the test above would pass without it."""
    assert rig.finetune(tmp_path / "plain", dots, {**DOTS, "data.mirror": False}) == 0
    one, other = rig.newest_checkpoint(whole_dots), rig.newest_checkpoint(tmp_path / "plain")
    assert any(
        np.abs(one[path] - other[path]).max() > 1e-3 * np.abs(one[path]).max()
        for path in one
        if path.startswith("discriminator/trained") and one[path].any()
    )


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_streamed_run_goes_on_elsewhere_and_with_other_workers(whole_dots, dots, tmp_path, monkeypatch, workers):
    workdir = tmp_path / "run"
    for step, ways in ((4, STREAMED), (5, {}), (3, {**STREAMED, "data.workers": workers})):
        with monkeypatch.context() as patch:
            stop_at(patch, step)
            assert rig.finetune(workdir, dots, {**DOTS, **ways}) == 75
    assert rig.finetune(workdir, dots, {**DOTS, **STREAMED}) == 0
    assert_same_images_seen(whole_dots, workdir)


# Divergence


def test_a_run_that_diverges_stops_with_the_name_of_the_number_and_keeps_what_was_good(
    dots, tmp_path, monkeypatch, capsys
):
    settings = {**rig.TOY, "kimg": 0.08, "run.tick_kimg": 0.008, "run.checkpoint_kimg": 0.008}
    original = loop.Trainer.next_batch

    def poison(self, batches):
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls == 5:
            rates = self.task.held.rates
            rates["discriminator"] = {name: rate * 1e30 for name, rate in rates["discriminator"].items()}
        return original(self, batches)

    monkeypatch.setattr(loop.Trainer, "next_batch", poison)
    assert rig.finetune(tmp_path / "run", dots, settings) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("gantransfer: training diverged: ") and " kimg; lower optimizer.lr_g" in last
    assert any(name in last for name in ("loss/", "logits/", "discriminator/", "optimizer")), last
    state = rig.newest_checkpoint(tmp_path / "run")
    assert all(np.isfinite(leaf).all() for leaf in state.values())
    for snapshot in (tmp_path / "run" / "snapshots").iterdir():
        assert int(snapshot.name) <= 40


def test_weights_that_the_update_broke_are_not_saved(dots, tmp_path, monkeypatch, capsys):
    """The metrics of a step are computed before its update, so they are still finite."""
    settings = {**rig.TOY, "kimg": 0.032, "run.tick_kimg": 0.008, "run.checkpoint_kimg": 0.008}
    settings |= {"optimizer.lr_d": 1e38, "optimizer.beta2": 0.0, "optimizer.lr_class_embedding": 0.1}
    monkeypatch.setattr(loop, "means", lambda state: {"loss/generator": 1.0})
    assert rig.finetune(tmp_path / "run", dots, settings) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("gantransfer: training diverged: ") and " is nan at 0.0" in last
    broken = round(1000 * float(last.partition(" is nan at ")[2].partition(" kimg")[0]))
    for folder in ("checkpoints", "snapshots"):
        assert all(int(path.name) < broken for path in (tmp_path / "run" / folder).iterdir())
