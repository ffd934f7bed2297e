"""The benchmark's parts: workloads build, weights translate, rounds interleave, results carry their conditions."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
BENCHMARK = CHECKOUT / "launch" / "benchmark"


@pytest.fixture(autouse=True)
def on_path(monkeypatch):
    """The scripts import each other by bare names, as they do when they are run."""
    monkeypatch.syspath_prepend(str(BENCHMARK))


def test_every_workload_builds_and_trains_what_it_says():
    import biggan_jax
    from workloads import MEASURED, WORKLOADS

    for name in ("tiny", "tiny-embedding"):
        task = biggan_jax.make_task(WORKLOADS[name], "rewritten")
        trained = {leaf.group for leaf in task.partition.leaves if leaf.trained and leaf.role == "generator"}
        assert (trained == {"class_embedding"}) == (name == "tiny-embedding")
        assert bool(task.partition.count("discriminator", True)) == (name == "tiny")
        assert task.recipe.batch_norm == ("batch" if name == "tiny" else "stored")
        assert task.networks.z_dim == WORKLOADS[name].latent
    assert set(MEASURED) <= set(WORKLOADS)
    for workload in (one for one in WORKLOADS.values() if one.family == "biggan"):
        assert biggan_jax.build_networks("biggan", biggan_jax.options_of(workload), ["a"])[0].z_dim == workload.latent


@pytest.mark.slow
def test_every_phase_of_stylegan2_trains_its_own_network():
    import stylegan2_jax
    from workloads import MEASURED_STYLE, WORKLOADS

    found = {}
    for name in ("tiny-r1", "tiny-path"):
        worker = stylegan2_jax.Worker(WORKLOADS[name], "rewritten")
        before = jax.tree.leaves(jax.device_get(worker.state["network"]["params"]))
        worker.state, found[name] = jax.jit(worker.phase)(worker.state, None, worker.draws)
        after = jax.tree.leaves(worker.state["network"]["params"])
        assert sum(bool((a != b).any()) for a, b in zip(after, before, strict=True)) > len(before) / 2
    assert set(found["tiny-r1"]) == {"r1"} and set(found["tiny-path"]) == {"path length"}
    assert all(float(value) > 0 for losses in found.values() for value in losses.values())
    assert set(MEASURED_STYLE) <= set(WORKLOADS)


def test_ratios_are_taken_round_by_round():
    import run

    slow, quick = [{"cpu": 4.0}, {"cpu": 3.0}, {"cpu": 8.0}], [{"cpu": 2.0}, {"cpu": 3.0}, {"cpu": 2.0}]
    assert run.ratio(slow, quick, "cpu") == {"median": 2.0, "min": 1.0, "max": 4.0}
    assert run.disagreement([{"a": 100.0, "b": 0.5}], [{"a": 101.0, "b": 0.5001}]) == pytest.approx(0.01)


def test_sides_are_called_in_turn_after_warm_ups():
    import run

    calls = []

    class Side:
        def __init__(self, name):
            self.name = name

        def ask(self, command, steps):
            calls.append((self.name, command, steps))
            return {"wall": 1.0, "cpu": 1.0}

    found = run.interleave({"a": Side("a"), "b": Side("b")}, 3, {"a": 5, "b": 7})
    assert calls == [("a", "run", 5), ("b", "run", 7)] * (run.WARM_UPS + 3)
    assert [len(times) for times in found.values()] == [3, 3]


@pytest.mark.slow
def test_a_tiny_round_runs_without_a_peer(tmp_path):
    out = tmp_path / "result.json"
    command = [
        sys.executable,
        str(BENCHMARK / "run.py"),
        "--workloads",
        "tiny-embedding",
        "--rounds",
        "1",
        "--seconds",
        "0.01",
    ]
    command += ["--skip", "starts", "arithmetic", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    (step,) = result["steps"]
    assert set(step["sides"]) == {"rewritten", "plain"} and step["disagreement"]["plain"] < 1e-4
    for side in step["sides"].values():
        assert side["cpu"] > 0 and side["flops"] > 0 and side["ratio"]["cpu"]["median"] > 0
    assert step["sides"]["rewritten"]["ratio"]["cpu"]["median"] == 1.0
    assert {"processor", "cores", "core"} <= set(result["machine"]) and isinstance(step["contended"], bool)
    assert "tiny-embedding" in done.stdout and "images/s" in done.stdout
