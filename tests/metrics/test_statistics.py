"""The streaming pass: exactly as many pictures as asked for, in any batches, resumable, and kept under a true key."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gantransfer.errors import UserError
from gantransfer.metrics import statistics
from gantransfer.metrics.frechet import Moments, frechet_distance
from gantransfer.metrics.pictures import GeneratedPictures, RealPictures
from gantransfer.metrics.progress import Progress
from gantransfer.metrics.statistics import Parts, Reference, collect, gather
from gantransfer.models.family import Picture
from tests.contract import rig
from tests.metrics.toys import Projection, image_set

ALL = {"projection": frozenset({"moments", "features", "logits"})}


@pytest.fixture(scope="module")
def network():
    return {"projection": Projection()}


@pytest.fixture
def calls(monkeypatch):
    """Counts how often the compiled program runs."""
    made, run = [], statistics._run

    def counted(*arguments):
        made.append(len(arguments[-1]))
        return run(*arguments)

    monkeypatch.setattr(statistics, "_run", counted)
    return made


@pytest.fixture
def short_portions(monkeypatch):
    monkeypatch.setattr(statistics, "PORTION", 16)


def rows_of(pictures, network):
    images = pictures.read(np.arange(len(pictures)))
    return network["projection"](images, ("features", "logits"))


@pytest.mark.parametrize("batch", [8, 24, 64])
def test_a_pass_in_batches_sees_every_picture_once_whatever_the_batch(network, batch, calls, short_portions):
    pictures = RealPictures(image_set(50))
    found = collect(pictures, network, ALL, batch=batch)["projection"]
    whole = rows_of(pictures, network)
    np.testing.assert_allclose(found.features, whole["features"], atol=1e-6)
    np.testing.assert_allclose(found.rows["logits"], whole["logits"], atol=1e-5)
    # As many batches as it takes, each padded to the same size on eight devices.
    size = -(-min(batch, 50) // 8) * 8
    assert calls == [size] * -(-50 // size)
    exact = Moments.of(found.features)
    assert found.moments.count == 50
    np.testing.assert_allclose(found.moments.mean, exact.mean, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.moments.scatter, exact.scatter, rtol=1e-9, atol=1e-12)
    other = Moments.of(rows_of(RealPictures(image_set(40, seed=1)), network)["features"])
    assert frechet_distance(found.moments, other) == pytest.approx(frechet_distance(exact, other), abs=1e-9)


def test_generator_and_network_are_one_program_that_runs_once_a_batch(network, calls):
    pictures = GeneratedPictures(rig.source("toy"), 37, seed=3)
    before = network["projection"].traced
    found = collect(pictures, network, ALL, batch=16)["projection"]
    assert calls == [16] * 3 and network["projection"].traced - before == 1
    images = pictures.source.sample(37, seed=3)
    np.testing.assert_array_equal(pictures.read(np.arange(37)), images)
    # Features of bytes, not of the generator's floats: XLA would drop a conversion to bytes and back.
    expected = network["projection"](images)["features"]
    np.testing.assert_allclose(found.features, expected, atol=1e-5)
    floats = pictures.source.generate(pictures.z, pictures.labels) * 127.5 + 128
    assert np.abs(network["projection"](floats)["features"] - expected).max() > 1e-4
    # Two networks ask the generator no more often.
    both = {"projection": network["projection"], "other": Projection(1, "other")}
    collect(pictures, both, dict.fromkeys(both, frozenset({"moments"})), batch=16)
    assert len(calls) == 6


@pytest.mark.parametrize("rule", ["turn", "uniform", "data"])
def test_a_larger_request_begins_with_the_same_pictures(rule):
    labels = np.array([0, 0, 0, 2], np.int32)
    few, many = (GeneratedPictures(rig.source("toy"), n, 5, 0.5, rule, labels) for n in (6, 20))
    np.testing.assert_array_equal(few.labels, many.labels[:6])
    np.testing.assert_array_equal(few.z, many.z[:6])
    assert (1 in many.labels) == (rule != "data")
    with pytest.raises(UserError, match="labels: 'data'.*turn or uniform"):
        GeneratedPictures(rig.source("toy"), 5, rule="data")


def test_an_interrupted_pass_goes_on_where_it_stopped_and_ends_equal(network, tmp_path, monkeypatch, short_portions):
    pictures = GeneratedPictures(rig.source("toy"), 100, seed=1)
    whole = collect(pictures, network, ALL, batch=8)["projection"]
    run, made = statistics._run, []

    def killed(*arguments):
        made.append(arguments)
        if len(made) == 7:
            raise KeyboardInterrupt
        return run(*arguments)

    parts = Parts(tmp_path / "pass")
    monkeypatch.setattr(statistics, "_run", killed)
    with pytest.raises(KeyboardInterrupt):
        collect(pictures, network, ALL, batch=8, parts=parts)
    made, monkeypatched = [], made
    monkeypatch.setattr(statistics, "_run", lambda *arguments: made.append(1) or run(*arguments))
    again = collect(pictures, network, ALL, batch=8, parts=parts)["projection"]
    # Portions of 16: of six finished batches, four (two portions) are surely kept.
    assert len(monkeypatched) == 7 and 0 < len(made) <= 13 - 4
    np.testing.assert_array_equal(again.features, whole.features)
    np.testing.assert_array_equal(again.rows["logits"], whole.rows["logits"])
    np.testing.assert_array_equal(again.moments.scatter, whole.moments.scatter)
    # A finished pass is not run again at all.
    made.clear()
    collect(pictures, network, ALL, batch=8, parts=parts)
    assert made == []


def test_a_damaged_state_is_not_taken_up(network, tmp_path, calls, capsys):
    pictures, parts = RealPictures(image_set(20)), Parts(tmp_path / "pass")
    collect(pictures, network, ALL, batch=8, parts=parts)
    assert len(calls) == 3
    (parts.folder / "state.npz").write_bytes(b"PK cut short")
    collect(pictures, network, ALL, batch=8, parts=parts)
    assert len(calls) == 6 and "made again" in capsys.readouterr().err


def test_reference_statistics_are_computed_once_for_one_content_and_network(network, tmp_path, calls):
    kept = Reference(tmp_path)
    pictures = RealPictures(image_set(20))
    first = gather(pictures, network, ALL, reference=kept, batch=8)
    assert len(calls) == 3
    again = gather(RealPictures(image_set(20, name="renamed")), network, ALL, reference=kept, batch=8)
    assert len(calls) == 3
    np.testing.assert_array_equal(again["projection"].features, first["projection"].features)
    np.testing.assert_array_equal(again["projection"].moments.scatter, first["projection"].moments.scatter)
    less = {"projection": frozenset({"moments"})}
    assert gather(pictures, network, less, reference=kept)["projection"].rows == {} and len(calls) == 3


def test_what_changes_the_features_changes_the_key(network, tmp_path):
    kept, images = Reference(tmp_path), image_set(20)
    plain = network["projection"]
    key = kept.key(RealPictures(images), plain)
    changed = images.pixels.images.copy()
    changed[3, 0, 0, 0] ^= 1
    resized = Projection()
    resized.info = {"preprocessing": {"pipeline": "clean"}}
    others = [
        (RealPictures(image_set(20, images=changed)), plain),
        (RealPictures(images.subset(range(19))), plain),
        (RealPictures(images, mirror=True), plain),
        (RealPictures(images), Projection(1)),
        (RealPictures(images), resized),
    ]
    keys = {kept.key(*other) for other in others}
    assert key not in keys and len(keys) == len(others)
    assert kept.key(RealPictures(image_set(20, name="elsewhere")), Projection()) == key


def test_mirror_images_count_as_further_pictures(network):
    plain, both = RealPictures(image_set(5)), RealPictures(image_set(5), mirror=True)
    assert len(both) == 10 and both.labels.tolist() == [0, 1, 2, 0, 1] * 2
    np.testing.assert_array_equal(both.read(np.arange(5, 10)), plain.read(np.arange(5))[:, :, ::-1])


def test_features_that_are_not_finite_are_refused(tmp_path):
    images = image_set(20)
    pixels = images.pixels.images.copy()
    pixels[:, 0, 0, 0] = 0
    pixels[[4, 9], 0, 0, 0] = 7
    broken = {"projection": Projection(broken=True)}
    with pytest.raises(UserError, match="features of projection: '2 of 20 .* hold NaN or infinity'"):
        collect(RealPictures(image_set(20, images=pixels)), broken, ALL)


def test_values_far_outside_the_range_of_pictures_are_said(network, capsys):
    class Loud(nn.Module):
        @nn.compact
        def __call__(self, z, c, train=False, want=()):
            return Picture(jnp.full((len(z), 8, 8, 1), 0.9).at[:, :2].set(1.6))

    source = rig.source("toy")
    loud = dataclasses.replace(source, networks=dataclasses.replace(source.networks, generator=Loud()), ema={})
    collect(GeneratedPictures(loud, 10), network, ALL)
    assert "25 % of values lie outside [-1.5, 1.5]" in capsys.readouterr().err


def test_a_generator_that_makes_nan_is_refused_not_measured(network):
    source = rig.source("toy")
    ruined = dataclasses.replace(source, ema=jax.tree.map(lambda leaf: leaf * np.nan, source.ema))
    with pytest.raises(UserError, match="generated images: '10 of 10 .* hold NaN"):
        collect(GeneratedPictures(ruined, 10), network, ALL)


def test_progress_tells_the_time_left_and_where_it_went_on():
    now, said = [0.0], []
    progress = Progress("features of x", every=10, clock=lambda: now[0], say=said.append)
    progress.begin(1000, 5000)
    for seconds, done in ((4, 1500), (12, 2000), (15, 2500), (36, 4000), (48, 5000)):
        now[0] = seconds
        progress.at(done)
    assert said == [
        "features of x: goes on at 1,000 of 5,000",
        "features of x: 2,000 of 5,000, 0:36 left",
        "features of x: 4,000 of 5,000, 0:12 left",
        "features of x: 5,000 in 0:48, 12 s per 1000",
    ]
