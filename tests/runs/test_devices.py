"""One device and eight train the same to rounding; parameters are replicated, or sharded by rules over paths."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from gantransfer.errors import UserError
from gantransfer.training import devices
from tests.runs import rig

STEADY = {"optimizer.eps": 1e-3, "optimizer.lr_g": 0.01, "optimizer.lr_d": 0.01, "optimizer.lr_class_embedding": 0.01}
TOY = {**rig.TOY, **STEADY, "methods": "('r1(gamma=0.1)','toy_controller')"}
KINDS = ("generator", "discriminator", "ema", "optimizer_g", "optimizer_d", "tick", "methods")


def end(data, settings, steps):
    """The state after some steps, by path, and the task."""
    task = rig.make(data, settings)
    state = rig.advance(task, steps)[-1]
    return task, rig.leaves({kind: getattr(state, kind) for kind in KINDS})


@pytest.fixture(scope="module")
def alone(dots):
    """Three steps of the toy on one device."""
    return end(dots, TOY, 3)[1]


def test_eight_devices_train_what_one_trains(dots, alone):
    task, state = end(dots, {**TOY, "devices.count": 8}, 3)
    assert task.mesh.shape == {"data": 8, "model": 1}
    assert all(where.spec == PartitionSpec() for where in jax.tree.leaves(task.shardings))
    rig.assert_close(alone, state, 2e-5)


def test_eight_devices_train_what_one_trains_with_batch_statistics_and_spectral_norm(letters):
    """Statistics of a batch are those of the whole batch, whatever it is divided over."""
    settings = {**rig.BIGGAN, **STEADY, "mode": "custom", "transfer.train_g": "*"}
    # Of D the heads only, for the sake of the compiler; passes through it are the same.
    settings |= {"transfer.train_d": "('head','projection')"}
    one, eight = end(letters, settings, 2)[1], end(letters, {**settings, "devices.count": 8}, 2)[1]
    assert any("batch_stats" in path for path in one) and any("spectral" in path for path in one)
    rig.assert_close(one, eight, 1e-4)


# An axis that needs communication in the forward pass: half of the sum over input channels is on each device.
OWN_RULES = ("*/linear/kernel=-1", "*/block_1/conv/kernel=2")


@pytest.mark.parametrize("rules", [(), OWN_RULES], ids=["default", "own"])
def test_sharded_parameters_train_what_whole_ones_train(dots, alone, rules):
    settings = {**TOY, "devices.count": 4, "devices.model": 2, "devices.rules": rules}
    task, state = end(dots, settings, 3)
    assert task.mesh.shape == {"data": 2, "model": 2}
    # Measured 1.6e-7; not a matter of Adam's signs, for the second moments are compared too.
    rig.assert_close(alone, state, 2e-6)
    specs = {path: where.spec for path, where in rig.leaves_of_shapes(task.shardings).items()}
    sharded = {path for path, spec in specs.items() if spec != PartitionSpec()}
    kernel = "discriminator/trained/block_1/conv/kernel"
    if not rules:
        # Every kernel whose last axis divides, with its average and its slot in the optimizer.
        assert specs[kernel] == PartitionSpec(None, None, None, "model")
        assert all(path.endswith("/kernel") for path in sharded)
        assert "discriminator/trained/head/kernel" not in sharded
        for part in ("generator/trained/", "ema/trained/", "optimizer_g/", "optimizer_d/"):
            assert any(path.startswith(part) for path in sharded), part
    else:
        assert specs[kernel] == PartitionSpec(None, None, "model", None)
        assert all(path.endswith(("/linear/kernel", "/block_1/conv/kernel")) for path in sharded)
    real = task.initial_state().discriminator.trained["block_1"]["conv"]["kernel"]
    assert {shard.data.size for shard in real.addressable_shards} == {real.size // 2}


def test_a_rule_of_ones_own_that_a_leaf_does_not_fit_is_refused_at_start(dots):
    """The discriminator's first convolution is given one channel, which two devices cannot share."""
    settings = {**TOY, "devices.count": 4, "devices.model": 2, "devices.rules": ("*/conv/kernel=2",)}
    with pytest.raises(UserError, match=r"devices.rules: .*an axis of discriminator/trained/block_0/conv/kernel"):
        rig.make(dots, settings)


def test_a_run_goes_on_with_its_parameters_sharded_otherwise(dots, tmp_path):
    settings = {**TOY, "kimg": 0.016, "run.tick_kimg": 0.016}
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    assert rig.finetune(whole, dots, {**settings, "kimg": 0.032}) == 0
    assert rig.finetune(moved, dots, {**settings, "devices.count": 4, "devices.model": 2}) == 0
    assert rig.finetune(moved, dots, {**settings, "kimg": 0.032, "devices.count": 8}) == 0
    rig.assert_close(rig.newest_checkpoint(whole), rig.newest_checkpoint(moved), 1e-4)


def test_a_mesh_needs_a_model_axis_that_divides_its_devices():
    assert devices.make_mesh(2, jax.devices()[:6]).shape == {"data": 3, "model": 2}
    with pytest.raises(Exception, match=r"devices.model: 4 .* a divisor of the 6 devices: 1, 2, 3, 6"):
        devices.make_mesh(4, jax.devices()[:6])


def test_rules_fit_the_leaves_or_are_refused():
    mesh = devices.make_mesh(2, jax.devices()[:2])
    tree = {"a": {"kernel": np.zeros((3, 4)), "bias": np.zeros(3)}, "count": np.zeros(())}
    specs = lambda *rules: jax.tree.map(lambda where: where.spec, devices.shardings(mesh, tree, rules))
    assert specs() == {"a": {"kernel": PartitionSpec(None, "model"), "bias": PartitionSpec()}, "count": PartitionSpec()}
    assert specs("*/kernel=1")["a"]["kernel"] == PartitionSpec(None, "model")
    for rule, words in (
        ("*/kernel=0", "an axis of a/kernel"),
        ("*/kernel=2", "an axis of a/kernel"),
        ("*/bias=0", "a/bias"),
        ("b/*=0", "matches a leaf"),
    ):
        with pytest.raises(Exception, match=words):
            specs(rule)
