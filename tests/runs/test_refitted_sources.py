"""A run from a source that surgery changed: a new optimizer, a warm-up of D that leaves G alone, what is printed."""

import math

import jax
import numpy as np
import pytest

from gantransfer.errors import UserError
from gantransfer.training.checkpoint import Checkpoints
from gantransfer.training.loop import like_of
from gantransfer.training.recipe import WARM_UP
from gantransfer.training.request import make_task, read_config
from tests.runs import rig

WARM = {**rig.TOY, "transfer.warmup_kimg": 0.016, "ema.start_kimg": 0.0, "transfer.batch_norm": "batch"}
GLYPHS = {
    "source": "glyphs",
    "batch": 8,
    "devices.count": 1,
    "run.compile_cache": None,
    "run.tensorboard": False,
    "transfer.classes": "mean",
}


@pytest.fixture(scope="module")
def warm(dots):
    task = rig.make(dots, WARM)
    return task, rig.advance(task, 4)


def test_the_generator_waits_for_the_discriminator(warm):
    _, states = warm
    parts = [rig.leaves({"g": s.generator, "average": s.ema, "optimizer": s.optimizer_g}) for s in states]
    judges = [rig.leaves(s.discriminator.trained) for s in states]
    for k in (1, 2):
        assert [path for path in parts[0] if parts[0][path].tobytes() != parts[k][path].tobytes()] == []
    assert any((parts[2][path] != parts[3][path]).any() for path in parts[2] if path.startswith("g/trained"))
    assert any((parts[2][path] != parts[3][path]).any() for path in parts[2] if path.startswith("average"))
    for before, after in zip(judges[:-1], judges[1:], strict=True):
        assert any((before[path] != after[path]).any() for path in before)
    assert [int(s.images_seen) for s in states] == [0, 8, 16, 24, 32]


def test_the_warm_up_is_one_program_and_the_rest_another(warm):
    task, _ = warm
    assert set(task.step.programs) == {frozenset(), frozenset({WARM_UP})}
    assert [task.recipe.due(k) for k in range(3)] == [frozenset({WARM_UP})] * 2 + [frozenset()]


def test_without_a_warm_up_the_program_is_the_plain_one(dots):
    task = rig.make(dots, rig.TOY)
    assert task.recipe.warmup == 0 and task.recipe.due(0) == frozenset()


def test_a_warm_up_of_a_frozen_discriminator_is_refused(dots):
    with pytest.raises(UserError, match="transfer.warmup_kimg"):
        rig.make(dots, {**WARM, "mode": "custom", "transfer.train_g": "*", "transfer.train_d": "()"})


# A warm-up that a gap of the logits ends. Its limit is four iterations.

LIMIT = {**WARM, "transfer.warmup_kimg": 0.032, "objective.d_steps": 1}
NEVER = 1e9


@pytest.fixture(scope="module")
def patient(dots):
    """A warm-up whose gap is never reached, and what the gap was in each of its iterations."""
    task = rig.make(dots, {**LIMIT, "transfer.warmup_gap": NEVER})
    states = rig.advance(task, 6)
    sums = [state.tick["logits/real"] - state.tick["logits/fake"] for state in states]
    return task, states, [float(b[0] - a[0]) for a, b in zip(sums[:-1], sums[1:], strict=True)]


def moved(states):
    """In which iterations something of the generator, its statistics, its average or its optimizer has moved."""
    parts = [rig.leaves({"g": s.generator, "average": s.ema, "optimizer": s.optimizer_g}) for s in states]
    pairs = zip(parts[:-1], parts[1:], strict=True)
    return [any(a[path].tobytes() != b[path].tobytes() for path in a) for a, b in pairs]


def test_a_gap_that_is_not_reached_leaves_the_limit(patient):
    task, states, _ = patient
    assert moved(states) == [False] * 4 + [True] * 2
    assert {int(state.warmed_at) for state in states} == {-1}
    counts = [state.tick["loss/generator"][1] for state in states]
    assert counts == [0, 0, 0, 0, 0, 1, 2]
    assert [float(state.tick["loss/discriminator"][1]) for state in states] == list(range(7))
    assert set(task.step.programs) == {frozenset(), frozenset({WARM_UP})}


def test_a_gap_that_is_reached_ends_the_warm_up_before_its_limit(patient, dots):
    _, waiting, gaps = patient
    # Above what the first iteration reaches, if the second one reaches more.
    threshold = math.nextafter(gaps[0], math.inf) if max(gaps[1:3]) > gaps[0] else min(gaps[:3]) - 1e-3
    end = next(k for k, gap in enumerate(gaps) if gap > threshold)
    assert end < 3
    states = rig.advance(rig.make(dots, {**LIMIT, "transfer.warmup_gap": threshold}), 6)
    assert moved(states) == [k > end for k in range(6)]
    assert [int(s.warmed_at) for s in states] == [-1] * (end + 1) + [8 * (end + 1)] * (6 - end)
    losses = [state.tick["loss/generator"] for state in states]
    assert [float(loss[1]) for loss in losses] == [max(0, k - end - 1) for k in range(7)]
    assert losses[end + 2][0] != 0
    # Until then it is the same run.
    for early, other in zip(states[: end + 2], waiting, strict=False):
        a, b = rig.leaves(early.discriminator), rig.leaves(other.discriminator)
        assert [path for path in a if a[path].tobytes() != b[path].tobytes()] == []


def test_a_warm_up_by_gap_goes_on_exactly_from_a_checkpoint(dots, tmp_path):
    task = rig.make(dots, {**LIMIT, "transfer.warmup_gap": -NEVER})
    due = lambda state: task.recipe.due(int(state.images_seen) // task.recipe.images_per_step)
    state = task.initial_state()
    for k in range(5):
        state = task.step(state, task.held, due=due(state))
        if k == 1:
            with Checkpoints(tmp_path / "checkpoints") as kept:
                kept.save(int(state.images_seen), state, {})
    with Checkpoints(tmp_path / "checkpoints") as kept:
        resumed, _ = kept.restore(like_of(task))
    assert int(resumed.warmed_at) == 8
    for _ in range(3):
        resumed = task.step(resumed, task.held, due=due(resumed))
    a, b = (rig.leaves(jax.device_get(s)) for s in (state, resumed))
    assert a.keys() == b.keys() and [path for path in a if a[path].tobytes() != b[path].tobytes()] == []


@pytest.mark.slow
def test_several_devices_decide_as_one(patient, dots):
    """The gap is that of the whole batch, so what one device has seen of it passes in the same iteration."""
    _, _, gaps = patient
    threshold = sorted(gaps[:3])[1] - 1e-3 * (max(gaps) - min(gaps))
    end = next(k for k, gap in enumerate(gaps) if gap > threshold)
    states = rig.advance(rig.make(dots, {**LIMIT, "transfer.warmup_gap": threshold, "devices.count": 2}), end + 2)
    assert moved(states) == [False] * (end + 1) + [True]
    assert int(states[-1].warmed_at) == 8 * (end + 1)


def test_a_gap_without_a_limit_is_refused(dots):
    with pytest.raises(UserError, match="transfer.warmup_gap.*transfer.warmup_kimg"):
        rig.make(dots, {**LIMIT, "transfer.warmup_kimg": 0.0, "transfer.warmup_gap": 1.0})
    with pytest.raises(UserError, match="transfer.warmup_gap"):
        rig.make(dots, {**LIMIT, "transfer.warmup_gap": "soon"})


def test_without_a_gap_the_state_holds_nothing_of_it(warm):
    task, states = warm
    assert states[0].warmed_at is None and not any("warmed" in path for path in rig.leaves(states[0]))


@pytest.fixture(scope="module")
def refitted(letters):
    said = []
    task = make_task(read_config(None, {**GLYPHS, "data.path": str(letters)}), None, said.append)
    return task, said


def test_the_optimizer_is_made_for_the_shapes_after_surgery(refitted):
    task, _ = refitted
    assert task.source.info.num_classes == 10
    for role, optimizer in (("generator", task.start.optimizer_g), ("discriminator", task.start.optimizer_d)):
        trained = {leaf.shape for leaf in jax.tree.leaves(getattr(task.start, role).trained)}
        moments = [leaf for leaf in jax.tree.leaves(optimizer) if leaf.ndim]
        assert {leaf.shape for leaf in moments} == {shape for shape in trained if shape}
        assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(optimizer))
    rows = {leaf.shape[0] for leaf in jax.tree.leaves(task.start.optimizer_g) if leaf.ndim == 2}
    assert 10 in rows and 37 not in rows


def test_what_was_replaced_is_printed(refitted):
    _, said = refitted
    text = "\n".join(said)
    assert "reshaped generator/params/shared/embedding" in text
    assert "class class0 <- " in text


def test_a_grey_source_is_made_colour_for_colour_images(letters):
    said = []
    settings = {**GLYPHS, "transfer.channels": 3, "data.path": str(letters)}
    task = make_task(read_config(None, settings), None, said.append)
    assert task.images.channels == task.networks.channels == task.source.info.channels == 3
    assert task.source.generate(np.zeros((1, task.networks.z_dim), np.float32)).shape == (1, 16, 16, 3)
    assert "1 to 3 channels" in "\n".join(said)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"source": "glyphs", "transfer.resolution": 32}, "only stylegan2"),
        ({"source": "glyphs", "transfer.channels": 2}, "transfer.channels"),
        ({"transfer.channels": 3}, "nothing without a source"),
    ],
)
def test_surgery_that_is_not_possible_is_refused_by_name(letters, settings, words):
    with pytest.raises(UserError, match=words):
        make_task(read_config(None, {**rig.BIGGAN, **settings, "data.path": str(letters)}), None, lambda line: None)
