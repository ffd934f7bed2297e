"""The quickstart: its table says what the runs say, and the whole of it works from one command."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
QUICKSTART = runpy.run_path(str(CHECKOUT / "launch/quickstart.py"))


def made_up_run(precision):
    protocol = {"n_generated": 20, "n_real": 30, "reference": "held out", "network": "net", "network_sha256": "0" * 64}
    metrics = {
        "class_accuracy": 0.9876,
        "frechet_distance": 1.234,
        "precision": precision,
        "recall": 0.4321,
        "coverage": 0.5,
        "memorisation": None,
    }
    leaves = [("generator", True, 640), ("generator", False, 1000), ("discriminator", True, 50)]
    return SimpleNamespace(
        partition=[{"role": role, "trained": trained, "parameters": n} for role, trained, n in leaves],
        evaluations=[{"kimg": 6.4, "metrics": metrics, "protocol": protocol | {"k": 3}}],
    )


def test_table_brackets_a_recall_that_says_nothing():
    text = QUICKSTART["table"]({"good": made_up_run(0.8), "bad": made_up_run(0.2)})
    good, bad = (next(line for line in text.splitlines() if line.startswith(name)) for name in ("good", "bad"))
    assert re.search(r"good +640 +6\.4 +0\.988 +1\.23 +0\.800 +0\.432 +0\.500 +-", good)
    assert "(0.432)" in bad and "(0.432)" not in good


def test_the_three_ways_differ_in_nothing_but_what_they_say():
    names = runpy.run_path(str(CHECKOUT / "configs/quickstart.py"))
    assert list(names["ARMS"]) == ["scratch", "class_embedding_only", "full"]
    allowed = {"mode", "optimizer.lr_g", "optimizer.lr_d", "optimizer.lr_class_embedding", "methods"}
    assert all(set(settings) <= allowed for settings in names["ARMS"].values())


@pytest.mark.slow
def test_quickstart_runs_prints_its_table_and_writes_its_page(tmp_path):
    command = [sys.executable, str(CHECKOUT / "launch/quickstart.py"), "--kimg", "0.128", "--workdir", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    for way in ("scratch", "class_embedding_only", "full"):
        records = [json.loads(line) for line in (tmp_path / way / "evaluations.jsonl").open()]
        assert [record["kimg"] for record in records] == [0.0, 0.128]
        assert f"{records[0]['metrics']['class_accuracy']:.3f}" in done.stdout
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "class_embedding_only" in page and "data:image/png;base64" in page and 'src="http' not in page
