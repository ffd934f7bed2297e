"""Metrics that look at pictures: diversity, path length, and what a classifier learns from samples."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gantransfer import features
from gantransfer.errors import UserError
from gantransfer.metrics.measure import Surroundings, measure
from gantransfer.metrics.pictures import GeneratedPictures, RealPictures
from gantransfer.metrics.protocols import make_plan
from gantransfer.models.family import Picture
from tests.contract import rig
from tests.metrics.toys import Projection, image_set

ONE = Surroundings(quiet=True, devices=jax.devices()[:1])


def measured(fake, real, metric, settings, network=None, train=None):
    network = network or Projection()
    plan = make_plan("default", [metric], "projection", settings=settings)
    return measure(plan, fake, real, lambda name: network, train=train, how=ONE)


@pytest.fixture(scope="module")
def real():
    return RealPictures(image_set(90))


def test_diversity_is_nothing_for_one_picture_and_grows_with_variety(real):
    levels = [np.full((30, 8, 8, 1), 100), image_set(30, spread=10.0).pixels.images, image_set(30).pixels.images]
    settings = {"lpips_diversity.size": 8, "lpips_diversity.pairs": 60}
    found = [
        measured(RealPictures(image_set(30, images=images.astype(np.uint8))), real, "lpips_diversity", settings)[0]
        for images in levels
    ]
    one, some, many = (record["value"] for record in found)
    assert one == 0 and 0 <= some < many
    assert found[0]["details"] == {"heads": "none: every channel weighs 1"}
    assert found[0]["settings"]["pairs"] == 60 and found[0]["overrides"]["settings"] == settings


def test_copies_have_no_diversity_inside_their_clusters(real):
    train = RealPictures(image_set(6, seed=4))
    copies = RealPictures(image_set(24, images=np.concatenate([train.read(np.arange(6))] * 4)))
    settings = {"intra_lpips.size": 8}
    (of_copies,) = measured(copies, real, "intra_lpips", settings, train=train)
    (of_fresh,) = measured(RealPictures(image_set(24, seed=5)), real, "intra_lpips", settings, train=train)
    assert of_copies["value"] == pytest.approx(0, abs=1e-6) and of_fresh["value"] > 0.001
    assert of_copies["details"]["clusters_without_pairs"] == 0
    many = RealPictures(image_set(101))
    with pytest.raises(UserError, match="101 training images"):
        measured(copies, real, "intra_lpips", settings, train=many)


class Styled(nn.Module):
    """A generator with a space w: pictures are a fixed direction times the first number of w."""

    constant: bool = False

    def mapping(self, z, c=None, train=False):
        return jnp.tile(z[:, None] * 2, (1, 3, 1))

    def synthesis(self, ws, train=False):
        weight = 0.0 if self.constant else 1.0
        ramp = jnp.linspace(-1, 1, 64).reshape(8, 8, 1)
        return Picture(weight * jnp.tanh(ws[:, 0, :1, None, None] * ramp))

    @nn.compact
    def __call__(self, z, c, train=False, want=()):
        return self.synthesis(self.mapping(z, c))


def styled(constant=False):
    source = rig.source("toy")
    networks = dataclasses.replace(source.networks, generator=Styled(constant))
    return GeneratedPictures(dataclasses.replace(source, networks=networks, generator={}, ema={}), 30)


@pytest.mark.parametrize(("space", "sampling"), [("w", "end"), ("z", "full")])
def test_path_length_is_nothing_for_a_constant_generator_and_does_not_depend_on_the_step(real, space, sampling):
    base = {"ppl.pairs": 40, "ppl.space": space, "ppl.sampling": sampling, "ppl.epsilon": 1e-2}
    (still,) = measured(styled(True), real, "ppl", base)
    assert still["value"] == 0 and still["metric"] == f"ppl_{space}{sampling}"
    (moving,) = measured(styled(), real, "ppl", base)
    (shorter,) = measured(styled(), real, "ppl", {**base, "ppl.epsilon": 3e-3})
    assert moving["value"] > 0 and shorter["value"] == pytest.approx(moving["value"], rel=0.1)


def test_path_length_in_w_needs_a_w(real):
    with pytest.raises(UserError, match="ppl.space: 'w'.*has no w; --set ppl.space=z"):
        measured(GeneratedPictures(rig.source("toy"), 30), real, "ppl", {"ppl.pairs": 4})
    with pytest.raises(UserError, match="ppl: 'noise'.*a source that generates"):
        measured(RealPictures(image_set(30)), real, "ppl", {"ppl.pairs": 4})


def test_a_classifier_learns_from_samples_of_the_right_classes_only(real):
    settings = {"cas.epochs": 20, "cas.batch": 15, "cas.width": 8, "cas.repetitions": 1}
    good = RealPictures(image_set(90, seed=7))
    shuffled = np.random.Generator(np.random.PCG64(0)).permutation(90)
    wrong = RealPictures(dataclasses.replace(good.images, labels=good.labels[shuffled]))
    ours, theirs = ({r["metric"]: r for r in measured(side, real, "cas", settings)} for side in (good, wrong))
    assert ours["cas_real_on_real"]["value"] > 0.75 and ours["cas"]["value"] > 0.75
    assert theirs["cas"]["value"] < 0.65 and theirs["cas_real_on_real"]["value"] == ours["cas_real_on_real"]["value"]
    assert ours["cas"]["details"] == {"trained_on": 45, "judged_on": 45, "classes": 3}


def test_lpips_takes_the_published_stages_and_goes_without_heads_where_weights_are_random():
    network = features.load("random:alexnet")
    fake = RealPictures(image_set(6, size=64))
    settings = {"lpips_diversity.pairs": 3, "lpips_diversity.size": 64}
    plan = make_plan("default", ["lpips_diversity"], "random:alexnet", settings=settings)
    (record,) = measure(plan, fake, RealPictures(image_set(6, size=64)), lambda name: network, how=ONE)
    assert record["value"] > 0 and record["network"] == "random:alexnet"
    assert record["details"]["heads"] == "none: every channel weighs 1"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"prdc.k": 3}, "--set: 'prdc'.*fid"),
        ({"fid.k": 3}, "--set fid: 'k'.*ddof"),
        ({"fid.ddof": "half"}, "--set fid.ddof: 'half'.*a value like 1"),
    ],
)
def test_settings_that_a_metric_has_not_are_refused(settings, words):
    with pytest.raises(UserError, match=words):
        make_plan("default", ["fid"], settings=settings)
