"""A run from a source that surgery changed: a new optimizer, a warm-up of D that leaves G alone, what is printed."""

import jax
import numpy as np
import pytest

from gantransfer.errors import UserError
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
