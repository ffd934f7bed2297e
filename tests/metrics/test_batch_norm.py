"""What generators normalise by in evaluations: stored, standing and batch statistics, and the record of it."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gantransfer.errors import UserError
from gantransfer.metrics.batch_norm import (
    APART,
    GROUP,
    BatchNorm,
    choose_batch_norm,
    standing_batches,
    with_standing_statistics,
)
from gantransfer.metrics.measure import Surroundings, measure
from gantransfer.metrics.pictures import GeneratedPictures, RealPictures
from gantransfer.metrics.protocols import make_plan
from gantransfer.metrics.statistics import collect
from gantransfer.models import layers
from gantransfer.models.family import Picture
from gantransfer.pretrained.source import latents
from tests.contract import rig
from tests.metrics.toys import Projection, image_set

DEVICE = jax.devices()[:1]
FEATURES = {"projection": frozenset({"features"})}


class Normed(nn.Module):
    """A generator of 8x8 images with one batch norm."""

    @nn.compact
    def __call__(self, z, c, train=False, want=()):
        x = layers.Dense(64, layers.Recipe(), name="linear")(z).reshape(-1, 8, 8, 1)
        x = x + c[:, None, None, None] / 2
        return Picture(jnp.tanh(layers.BatchNorm(layers.NormRule(), layers.Recipe(), name="bn")(x, train)))


@pytest.fixture(scope="module")
def normed():
    """A source whose stored statistics are those of a fresh network: mean 0, variance 1."""
    source = rig.source("toy")
    width = source.networks.z_dim
    variables = Normed().init(jax.random.key(0), jnp.zeros((1, width)), jnp.zeros(1, jnp.int32))
    networks = dataclasses.replace(source.networks, generator=Normed())
    return dataclasses.replace(source, networks=networks, generator=variables, ema=variables)


@pytest.fixture(scope="module")
def biggan():
    return rig.source("biggan")


def with_options(source, **options):
    return dataclasses.replace(source, info=dataclasses.replace(source.info, options=source.info.options | options))


def test_standing_statistics_are_the_mean_of_every_batch_s_moments_in_every_layer(biggan):
    """By hand: what each layer is given, its mean and variance, batch by batch."""
    rule, generator = BatchNorm("standing", largest=3, steps=5), biggan.networks.generator

    @jax.jit
    def moments(z, c):
        found = {}

        def watch(call, args, kwargs, context):
            kinds = (layers.BatchNorm, layers.ConditionalBatchNorm)
            if isinstance(context.module, kinds) and context.method_name == "__call__":
                x = args[0].astype(jnp.float32)
                found[context.module.path] = x.mean((0, 1, 2)), x.var((0, 1, 2))
            return call(*args, **kwargs)

        with nn.intercept_methods(watch):
            generator.apply(biggan.ema, z, c, train=True)
        return [found[path] for path in sorted(found)]

    batches = standing_batches(rule, 3, seed=7)
    z = 0.5 * latents(sum(labels.size for _, labels in batches), biggan.networks.z_dim, 7 + APART, cut=True)
    sums, start = None, 0
    for size, listed in batches:
        for labels in listed:
            own = moments(z[start : start + size], labels)
            start += size
            sums = own if sums is None else jax.tree.map(jnp.add, sums, own)
    expected = [part / 5 for pair in sums for part in pair]
    found = with_standing_statistics(biggan, rule, seed=7, truncation=0.5)
    leaves = jax.tree.leaves(found["batch_stats"])
    assert len(leaves) == len(expected) > 8 and start == len(z)
    # Both in the order of the layers' names.
    for ours, theirs in zip(leaves, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-5)
    # The source is as it was, and so are its weights.
    assert found["params"] is biggan.ema["params"]
    assert all(np.all(leaf == 0) or np.all(leaf == 1) for leaf in jax.tree.leaves(biggan.ema["batch_stats"]))


def test_batches_have_random_sizes_up_to_the_largest_and_labels_of_all_classes():
    batches = standing_batches(BatchNorm("standing", 64, 200), 3, seed=0)
    sizes = [size for size, _ in batches]
    assert sizes == [8, 16, 24, 32, 40, 48, 56, 64] and sum(len(labels) for _, labels in batches) == 200
    assert all(labels.shape[1] == size for size, labels in batches)
    assert {int(label) for _, labels in batches for label in np.unique(labels)} == {0, 1, 2}
    assert [size for size, _ in standing_batches(BatchNorm("standing", 1, 4), 3, seed=0)] == [1]
    assert all(1 <= size <= 5 for size, _ in standing_batches(BatchNorm("standing", 5, 50), 3, seed=1))
    (one, first), (other, second) = standing_batches(BatchNorm("standing", 2, 9), 3, 0)
    (again, third), _ = standing_batches(BatchNorm("standing", 2, 9), 3, 0)
    assert (one, other) == (1, 2) and len(first) + len(second) == 9 and again == 1
    np.testing.assert_array_equal(first, third)


def pictures_of(source, count=6, kind="stored", **more):
    return GeneratedPictures(source, count, batch_norm=choose_batch_norm(source, kind, **more))


def test_samples_by_standing_statistics_are_those_of_the_generator_with_them(normed):
    pictures = pictures_of(normed, 6, "standing", largest=4, steps=3)
    changed = with_standing_statistics(normed, pictures.batch_norm, seed=0)
    plain = GeneratedPictures(dataclasses.replace(normed, ema=changed), 6)
    rows = np.arange(6)
    np.testing.assert_array_equal(pictures.read(rows), plain.read(rows))
    assert (pictures.read(rows) != pictures_of(normed).read(rows)).mean() > 0.5
    # Another seed draws other statistics, and what is computed under one is never taken for the other's.
    other = pictures.again(1)
    assert np.any(other.constants["batch_stats"]["bn"]["mean"] != pictures.constants["batch_stats"]["bn"]["mean"])
    identities = [pictures.identity, other.identity, pictures_of(normed).identity]
    identities.append(pictures_of(normed, 6, "standing", largest=4, steps=4).identity)
    assert len({str(identity) for identity in identities}) == 4


def test_in_batch_statistics_a_sample_depends_on_its_group_and_on_no_program(normed):
    network, count = Projection(), GROUP + 6
    pictures = pictures_of(normed, count, "batch")
    assert len(pictures.labels) == count
    z = jnp.asarray(latents(2 * GROUP, normed.networks.z_dim, 0))
    labels = (np.arange(2 * GROUP) % 3).astype(np.int32)
    call = lambda part: Normed().apply(normed.ema, z[part], labels[part], train=True).images
    made = np.concatenate([call(slice(0, GROUP)), call(slice(GROUP, 2 * GROUP))])
    expected = np.floor(np.clip(made * 127.5 + 128, 0, 255)).astype(int)[:count]
    assert np.abs(pictures.read(np.arange(count)).astype(int) - expected).max() <= 1
    np.testing.assert_array_equal(pictures.read(np.array([65, 3])), pictures.read(np.arange(count))[[65, 3]])
    given = {"networks": {"projection": network}, "wants": FEATURES, "devices": DEVICE}
    rows = [collect(pictures, batch=batch, **given)["projection"].features for batch in (None, 10, 3 * GROUP)]
    direct = network(pictures.read(np.arange(count)), ("features",))["features"]
    for found in rows:
        np.testing.assert_allclose(found, direct, atol=2e-2)
        np.testing.assert_allclose(found, rows[0], atol=1e-5)
    # The groups of a batch lie on different devices.
    split = collect(pictures, **{**given, "devices": jax.devices()[:2]})["projection"].features
    np.testing.assert_allclose(split, rows[0], atol=1e-5)
    # A smaller request has the same first pictures: the last group is filled with those that follow.
    few = pictures_of(normed, 5, "batch")
    np.testing.assert_allclose(collect(few, **given)["projection"].features, rows[0][:5], atol=1e-5)


def test_the_record_says_what_was_used(normed):
    real, rules = RealPictures(image_set(20)), {}
    for kind in ("stored", "standing", "batch"):
        fake = pictures_of(normed, 12, kind, **({"largest": 4, "steps": 3} if kind == "standing" else {}))
        plan = make_plan("default", ["fid"], "projection", 12, batch_norm=kind)
        how = Surroundings(quiet=True, devices=DEVICE)
        (record,) = measure(plan, fake, real, lambda name: Projection(), how=how)
        rules[kind] = record["batch_norm_rule"], record["value"]
        assert record["overrides"]["batch_norm"] == kind
        assert record["generator_fingerprint"] == normed.fingerprint()
    assert rules["stored"][0] == "stored averages"
    assert rules["standing"][0] == "standing statistics of 3 batches of up to 4"
    assert rules["batch"][0] == "statistics of batches of 64"
    assert len({value for _, value in rules.values()}) == 3


def test_generators_have_the_statistics_that_they_can_have(normed):
    toy = rig.source("toy")
    assert choose_batch_norm(toy).described == choose_batch_norm(toy, "stored").described == "no batch norm"
    for kind in ("standing", "batch"):
        with pytest.raises(UserError, match=f"--batch_norm: '{kind}'.*stored for .*no batch norm"):
            choose_batch_norm(toy, kind)
    # Networks whose own evaluation normalises by the batch.
    own = with_options(normed, statistics_g="batch")
    assert GeneratedPictures(own, 5).group == GROUP and GeneratedPictures(normed, 5).group == 1
    assert choose_batch_norm(own).kind == "batch" and choose_batch_norm(normed).kind == "stored"
    for kind in ("standing", "stored"):
        with pytest.raises(UserError, match=f"--batch_norm: '{kind}'.*batch for .*statistics_g"):
            choose_batch_norm(own, kind)
    with pytest.raises(UserError, match="--batch_norm: 'standin'.*did you mean standing"):
        choose_batch_norm(normed, "standin")
    with pytest.raises(UserError, match="--std_max: 8 .*nothing without --batch_norm standing"):
        choose_batch_norm(normed, "batch", largest=8)
    with pytest.raises(UserError, match="--std_step: 0 .*at least 1"):
        choose_batch_norm(normed, "standing", steps=0)
