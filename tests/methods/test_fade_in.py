"""A block that was added to a discriminator comes in with a share that follows the images, and is stored as it is."""

import jax.numpy as jnp
import numpy as np
import pytest

from gantransfer import config as fields
from gantransfer.errors import UserError
from gantransfer.methods.fade_in import FadeIn
from gantransfer.methods.hooks import MethodState, Observed
from gantransfer.pretrained.fresh import fresh
from gantransfer.pretrained.surgery_shape import change_resolution
from gantransfer.training.prepare import prepare
from tests.contract import rig

OPTIONS = {"resolution": 8, "channels": 1, "z_dim": 4, "w_dim": 4, "channel_base": 32, "channel_max": 4}


@pytest.fixture(scope="module")
def task():
    """A run of a tiny StyleGAN2 that was raised to 16 px; the config names no method."""
    small = fresh("stylegan2", OPTIONS | {"mapping_layers": 1, "minibatch_group": 2}, ("one", "two", "three"), seed=0)
    config, lines = fields.defaults(), []
    for name, value in {"batch": 4, "mode": "full", "objective.loss": "non_saturating", "devices.count": 1}.items():
        fields.set_field(config, name, value)
    task = prepare(config, change_resolution(small, 16)[0], rig.images(16), lines.append)
    assert any("its added block comes in by FadeIn" in line and "kimg=20.0" in line for line in lines)
    return task


def observed(images_seen):
    nothing = jnp.zeros(1)
    return Observed(nothing, nothing, nothing, nothing, 4, jnp.int32(images_seen))


@pytest.mark.parametrize(
    ("first", "seen", "share"), [(0.0, 0, 0.0), (0.0, 500, 0.5), (0.5, 500, 0.75), (0.5, 9000, 1.0)]
)
def test_the_share_rises_in_a_straight_line_from_where_it_began(first, seen, share):
    state = MethodState(carried={"first": jnp.float32(first), "share": jnp.float32(first)})
    assert float(FadeIn(kimg=1.0).update(state, observed(seen))["share"]) == pytest.approx(share)


def test_a_run_whose_discriminator_has_an_added_block_fades_it_in_and_never_trains_the_share(task):
    assert [method.name for method in task.recipe.methods] == ["fade_in"]
    assert "fade" not in task.start.discriminator.trained
    assert "fade_fromrgb" in task.start.discriminator.trained
    assert float(task.start.methods["fade_in"].carried["share"]) == 0


def test_a_snapshot_stores_the_share_that_was_reached(task):
    reached = {"first": jnp.float32(0), "share": jnp.float32(0.25)}
    state = task.start.replace(methods={"fade_in": MethodState(carried=reached)})
    assert float(np.asarray(task.as_source(state, "snapshot").discriminator["params"]["fade"])) == 0.25


def test_a_discriminator_without_such_a_block_is_refused():
    with pytest.raises(UserError, match="transfer.resolution"):
        FadeIn().needs(rig.source("biggan").networks)
