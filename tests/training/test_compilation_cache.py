"""A step is found again in the compilation cache: its program does not depend on the order of Python's sets."""

import os
import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).resolve().parents[2] / "launch" / "benchmark"
LOWER = """
import hashlib, sys
from functools import partial
sys.path.insert(0, sys.argv[1])
import jax
from biggan_jax import make_task
from workloads import WORKLOADS
from gantransfer.training.step import step
for mode in ("full", "class_embedding_only"):
    task = make_task(WORKLOADS["tiny"], "plain", mode)
    program = jax.jit(partial(step, task.recipe, frozenset())).lower(task.initial_state(), task.held)
    print(hashlib.sha256(program.as_text().encode()).hexdigest())
"""


def test_equal_runs_lower_to_equal_programs_in_every_process():
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", LOWER, str(BENCHMARK)],
            env=os.environ | {"PYTHONHASHSEED": seed, "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    one, other = (process.communicate()[0].split() for process in processes)
    assert len(one) == 2
    assert one == other
