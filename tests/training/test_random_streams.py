"""Generators that draw noise of their own get it from the run's seed and place, like every other draw."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from gantransfer import config as fields
from gantransfer.pretrained.fresh import fresh
from gantransfer.pretrained.source import Source
from gantransfer.training.bound import Bound
from gantransfer.training.draws import draw_update, keys_at
from gantransfer.training.prepare import prepare
from gantransfer.training.state import copy
from gantransfer.training.step import step
from tests.contract import rig

OPTIONS = {"resolution": 8, "channels": 1, "z_dim": 4, "w_dim": 4, "channel_base": 32, "channel_max": 4}


@pytest.fixture(scope="module")
def task():
    """A run of a tiny StyleGAN2 whose noise is as strong as its features."""
    made = fresh("stylegan2", OPTIONS | {"mapping_layers": 1, "minibatch_group": 2}, ("one", "two", "three"), seed=0)
    loud = {
        path: leaf + 1 if path[-1] == "noise_strength" else leaf for path, leaf in flatten_dict(made.generator).items()
    }
    generator = unflatten_dict(loud)
    config = fields.defaults()
    for name, value in {"batch": 4, "mode": "full", "objective.loss": "non_saturating", "devices.count": 1}.items():
        fields.set_field(config, name, value)
    source = Source(made.info, made.networks, generator, generator, made.discriminator)
    return prepare(config, source, rig.images(8))


def test_noise_follows_the_key_of_the_batch(task):
    state, draw = task.initial_state(), draw_update(task.recipe, task.held, jnp.int32(0), None, "generator", 0)
    bound = Bound(task.recipe, task.held, {})
    generate = lambda keys: bound.generate(state.generator.trained, state.generator.stats, keys, draw.z, draw.c)[0]
    here, again, there = (
        np.asarray(generate(keys_at(jnp.uint32(0), jnp.arange(place, place + 4))).images) for place in (0, 0, 4)
    )
    np.testing.assert_array_equal(here, again)
    assert np.abs(here - there).max() > 1e-2


def test_a_step_trains_noise_and_moves_the_mean_style(task):
    start = copy(task.initial_state())
    after = jax.jit(lambda state: step(task.recipe, frozenset(), state, task.held))(task.initial_state())
    before, moved = (flatten_dict(state.generator.trained, sep="/") for state in (start, after))
    strengths = [path for path in before if path.endswith("noise_strength")]
    assert strengths and all(before[path] != moved[path] for path in strengths)
    averages = [flatten_dict(state.generator.stats, sep="/") for state in (start, after)]
    (place,) = [path for path in averages[0] if "w_avg" in path]
    assert np.abs(averages[0][place] - averages[1][place]).max() > 0
    copied = flatten_dict(after.ema.stats, sep="/")[place]
    np.testing.assert_array_equal(copied, averages[1][place], "the mean style of the average is the generator's own")
