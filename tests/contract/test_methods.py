"""The battery: what holds for every method of the table, shown on runs of a few steps."""

import itertools
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from gantransfer.models.family import ROLES
from gantransfer.training.checkpoint import Checkpoints
from gantransfer.training.loop import like_of
from tests.contract import rig
from tests.contract.table import CASES, EVERYTHING

NEUTRAL = {name: case.neutral for name, case in CASES.items() if case.neutral}
PAIRS = [tuple(case.line for case in pair) for pair in itertools.combinations(CASES.values(), 2)]


# (1) Off equals absent.


@pytest.mark.parametrize("name", NEUTRAL)
def test_a_neutral_setting_leaves_the_plain_program(name):
    assert rig.program_text(rig.make_task((NEUTRAL[name],))) == rig.program_text(rig.task(()))


WITHOUT_METHODS = """
import sys, types
from pathlib import Path
import gantransfer
package = types.ModuleType("gantransfer.methods")
package.__path__ = [str(Path(gantransfer.__file__).parent / "methods")]
sys.modules["gantransfer.methods"] = package
from gantransfer.methods import hooks
package.parse_method, package.check_together = hooks.parse_method, hooks.check_together
from tests.contract import rig
assert [name for name in sys.modules if name.startswith("gantransfer.methods.")] == ["gantransfer.methods.hooks"]
print(rig.digest(rig.run(()).states))
"""


def test_a_run_without_methods_is_the_same_bytes_where_no_method_was_ever_imported():
    checkout = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_METHODS], cwd=checkout, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[-1] == rig.digest(rig.run(()).states)


# (2) On does something.


@pytest.mark.parametrize("name", CASES)
def test_its_observable_moves_in_the_stated_direction(name):
    case = CASES[name]
    on, off = rig.run((case.line,)), rig.run(())
    measured = [case.observable(run.task, run.states[0], run.last) for run in (on, off)]
    change = measured[0] - measured[1]
    assert np.sign(change) == {"lower": -1, "higher": 1}[case.direction], measured
    assert abs(change) > 0.02 * abs(measured[1]), measured


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("name", CASES)
def test_it_changes_the_updates_of_the_networks_that_it_acts_on_and_no_others(name, role):
    on, off = rig.run_with_only(role, (CASES[name].line,)), rig.run_with_only(role, ())
    found = rig.distance(rig.params(rig.task((CASES[name].line,)), on, role), rig.params(rig.task(()), off, role))
    assert found > 1e-4 if role in CASES[name].acts_on else found < 1e-6


# (3) Killed and resumed equals uninterrupted.


@pytest.mark.parametrize("name", CASES)
def test_a_run_that_goes_on_from_its_state_repeats_the_uninterrupted_bytes(name):
    whole = rig.run((CASES[name].line,))
    resumed = rig.advance(whole.task, whole.states[2], rig.STEPS - 2, rig.make_task((CASES[name].line,)).held)
    rig.assert_same_bytes(resumed[-1], whole.last)


def test_all_methods_together_resume_from_a_checkpoint_to_the_same_bytes(tmp_path):
    whole = rig.run(EVERYTHING)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(8, whole.states[2], {"seconds": 1.0}, None)
        checkpoints.wait()
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        state, _ = checkpoints.restore(like_of(rig.make_task(EVERYTHING)))
    state = jax.tree.map(np.array, jax.device_get(state))
    rig.assert_same_bytes(state, whole.states[2])
    rig.assert_same_bytes(rig.advance(whole.task, state, rig.STEPS - 2)[-1], whole.last)


# (4) One compilation per variant.


@pytest.mark.parametrize("name", CASES)
def test_each_variant_is_compiled_once(name):
    programs = rig.run((CASES[name].line,)).task.step.programs
    assert len(programs) == CASES[name].programs
    assert [program._cache_size() for program in programs.values()] == [1] * len(programs)


# (5) Two devices equal one.


def test_all_methods_together_give_on_two_devices_what_they_give_on_one():
    one, two = rig.run(EVERYTHING), rig.run(EVERYTHING, count=2)
    assert two.task.mesh.size == 2
    rig.assert_close(two.last, one.last, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_each_method_gives_on_two_devices_what_it_gives_on_one(name):
    line = (CASES[name].line,)
    rig.assert_close(rig.run(line, count=2).last, rig.run(line).last, 1e-4)


# (6) All declared pairs run together.


@pytest.mark.parametrize("family", ["toy", pytest.param("biggan", marks=pytest.mark.slow)])
def test_all_methods_run_together_and_everything_stays_finite(family):
    # The other family has no block that was added.
    lines = tuple(line for line in EVERYTHING if family == "toy" or not line.startswith("fade_in"))
    run = rig.run(lines, family, steps=2)
    logged = {name.split("/")[0] for name in run.last.tick}
    assert {"r1", "auxiliary_classifier", "orthogonal_regularization", "weight_decay"} <= logged
    assert all(np.isfinite(leaf).all() for leaf in rig.named(run.last).values())
    states = {"toy_lora", "toy_miner", "toy_controller"} | ({"fade_in"} if family == "toy" else set())
    assert run.last.methods.keys() == states


@pytest.mark.slow
@pytest.mark.parametrize("lines", PAIRS, ids=lambda lines: "+".join(line.split("(")[0] for line in lines))
def test_each_pair_runs_together(lines):
    run = rig.run(lines, steps=1)
    assert all(np.isfinite(leaf).all() for leaf in rig.named(run.last).values())
