"""What one iteration does: accumulation, several updates of D, rates by group, the running average, each loss."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gantransfer.objectives.losses import LOSSES
from gantransfer.training import devices
from gantransfer.training.ema import decay_at
from gantransfer.training.prepare import rate_table
from gantransfer.training.request import read_config
from gantransfer.training.state import copy
from tests.runs import rig

# Adam divides by the size of the gradient, so that without a floor rounding would decide about the smallest ones.
STEADY = {"optimizer.eps": 1e-3, "optimizer.lr_g": 0.01, "optimizer.lr_d": 0.01, "optimizer.lr_class_embedding": 0.01}
# Half-lives of half the images seen: none, 4, 8 and 12 images at the first steps of eight; a copy until 16 images.
AVERAGE = {"ema.decay": 0.999, "ema.rampup": 0.5, "ema.start_kimg": 0.016}


@pytest.fixture(scope="module")
def toy(dots):
    """Toy runs by their settings; each is made and taken four steps once."""

    @cache
    def states(**changes):
        return rig.advance(task(**changes), 4)

    @cache
    def task(**changes):
        named = {name.replace("__", "."): value for name, value in changes.items()}
        return rig.make(dots, {**rig.TOY, **STEADY, **AVERAGE, **named})

    states.task = task
    return states


def moving(state):
    """The parts of a state that are numbers of networks."""
    return rig.leaves({"g": state.generator, "d": state.discriminator, "average": state.ema})


def metrics(state):
    return {name: total / count for name, (total, count) in state.tick.items()}


def test_micro_batches_sum_to_the_whole_batch(toy):
    whole, parts = toy(objective__d_steps=3)[2], toy(objective__d_steps=3, objective__accumulate=4)[2]
    rig.assert_close(moving(whole), moving(parts), 2e-5)
    rig.assert_close(metrics(whole), metrics(parts), 2e-5)


@pytest.mark.slow
def test_micro_batches_sum_to_the_whole_batch_where_batch_norm_is_stored(letters):
    """Of the real family, of which nothing couples the images of a batch then."""
    settings = {**rig.BIGGAN, **STEADY, "model.spectral_d": False, "transfer.batch_norm": "stored"}
    # Of D the heads only, for the sake of the compiler; of G everything.
    settings |= {"mode": "custom", "transfer.train_g": "*", "transfer.train_d": "('head','projection')"}
    whole = rig.advance(rig.make(letters, settings), 2)[-1]
    parts = rig.advance(rig.make(letters, {**settings, "objective.accumulate": 2}), 2)[-1]
    rig.assert_close(moving(whole), moving(parts), 2e-5)


@pytest.mark.parametrize("d_steps", [1, 3])
def test_each_iteration_updates_d_as_often_as_asked_and_g_once(toy, d_steps):
    counts = lambda tree: {int(leaf) for path, leaf in rig.leaves(tree).items() if path.endswith("count")}
    for iteration, state in enumerate(toy(**({"objective__d_steps": 3} if d_steps == 3 else {}))):
        assert int(state.images_seen) == 8 * d_steps * iteration
        assert counts(state.optimizer_d) == {d_steps * iteration} and counts(state.optimizer_g) == {iteration}


def test_several_updates_of_d_are_those_of_that_many_iterations(toy):
    """With G at rest, three updates in one iteration see the images of three iterations with one update each."""
    ends = []
    for task, steps in ((toy.task(objective__d_steps=3), 1), (toy.task(), 3)):
        still = task.held.rates | {"generator": jax.tree.map(jnp.zeros_like, task.held.rates["generator"])}
        state = devices.place(copy(task.start), task.shardings)
        for _ in range(steps):
            state = task.step(state, task.held.replace(rates=still), due=frozenset())
        ends.append(rig.leaves(state.discriminator))
    rig.assert_close(*ends, 1e-5)


def test_each_group_moves_at_its_own_rate(dots):
    """Without memory the second moment is the gradient's own square, so that a step is the rate, up to its sign."""
    settings = {
        **rig.TOY,
        "optimizer.lr_g": 1.0,
        "optimizer.lr_d": 2.0,
        "optimizer.lr_class_embedding": 4.0,
        "optimizer.rates": ("generator/output=0.5", "generator/blocks.*=0.25", "discriminator/head=0.125"),
        "optimizer.beta2": 0.0,
        "optimizer.eps": 0.0,
    }
    before, after = rig.advance(rig.make(dots, settings), 1)
    expected = {
        "generator": {"shared": 4.0, "linear": 1.0, "block_0": 0.25, "block_1": 0.25, "out": 0.5},
        "discriminator": {"block_0": 2.0, "block_1": 2.0, "head": 0.125, "embed": 2.0},
    }
    for role, groups in expected.items():
        old, new = (rig.leaves(getattr(state, role).trained) for state in (before, after))
        for path in old:
            module = path.partition("/")[0]
            if module in groups:
                # A unit that was at rest has no gradient, and 0 / 0 is no step.
                farthest = np.nanmax(np.abs(new[path] - old[path]))
                np.testing.assert_allclose(farthest, groups[module], rtol=1e-4, err_msg=f"{role} {path}")


def test_the_class_embedding_learns_fifty_times_as_fast_as_d_unless_told_otherwise(dots):
    config = read_config(None, {"optimizer.lr_d": 2e-3})
    assert rate_table(config)["generator"] == {"class_embedding": 0.1, "weights": 2e-4}
    assert rate_table(read_config(None, {"optimizer.lr_class_embedding": 1.0}))["generator"]["class_embedding"] == 1.0


# Running average


@pytest.mark.parametrize(
    ("seen", "start", "rampup", "expected"),
    [
        (64, 0, None, 0.999),
        (64, 65, None, 0.0),
        (64, 64, None, 0.999),
        (64, 0, 0.05, 0.0),
        # Half-life 0.05 * 1000 images after 1,000: 2 ** (-64 / 50).
        (1064, 0, 0.05, 2 ** (-64 / 50)),
        (100_064, 0, 0.05, 2 ** (-64 / 5000)),
        (10_000_064, 0, 0.05, 0.999),
    ],
)
def test_the_decay_follows_its_formula(seen, start, rampup, expected):
    decay = decay_at(jnp.int32(seen), images_per_step=64, ceiling=0.999, start=float(start), rampup=rampup)
    np.testing.assert_allclose(decay, expected, rtol=1e-5)


def test_the_average_is_a_copy_until_its_start_and_then_follows_the_ramp(toy):
    states = toy()
    first, raw = (rig.leaves(part) for part in (states[1].ema, states[1].generator))
    assert all(first[path].tobytes() == raw[path].tobytes() for path in raw)
    for step, half_life in ((2, 4), (3, 8), (4, 12)):
        decay = 2 ** (-8 / half_life)
        old, raw, new = (rig.leaves(part) for part in (states[step - 1].ema, states[step].generator, states[step].ema))
        rig.assert_close(new, {path: decay * old[path] + (1 - decay) * raw[path] for path in raw}, 1e-6)
        assert any((new[path] != raw[path]).any() for path in raw)


# Losses


def test_each_loss_trains_both_networks_in_a_way_of_its_own(toy):
    first = {}
    for name in sorted(LOSSES):
        states = toy(**({"objective__loss": name} if name != "non_saturating" else {}))
        numbers = metrics(states[1])
        assert set(numbers) >= {"loss/generator", "loss/discriminator", "logits/real", "logits/fake"}
        assert all(np.isfinite(value) for value in metrics(states[-1]).values())
        for role in ("generator", "discriminator"):
            before, after = (rig.leaves(getattr(state, role)) for state in (states[0], states[-1]))
            moved = {path for path in after if (after[path] != before[path]).any()}
            assert {path for path in after if path.endswith("conv/kernel")} <= moved, (name, role)
        first[name] = (round(float(numbers["loss/generator"]), 5), round(float(numbers["loss/discriminator"]), 5))
    # All begin with the same networks and images.
    assert len(set(first.values())) == len(LOSSES), first
