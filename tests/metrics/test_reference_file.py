"""Files of reference statistics: the same distances as from images, honest records, one line for what does not fit."""

import hashlib
import json

import jax
import numpy as np
import pytest

from gantransfer.errors import UserError
from gantransfer.metrics.frechet import Moments
from gantransfer.metrics.measure import Surroundings, measure
from gantransfer.metrics.pictures import GeneratedPictures, RealPictures
from gantransfer.metrics.protocols import make_plan
from gantransfer.metrics.reference_file import read_reference
from tests.contract import rig
from tests.metrics.toys import Projection, image_set

DEVICE = jax.devices()[:1]


def measured(real, metrics=("fid",), network=None, protocol="default", write=None, fake=None):
    network = network or Projection()
    how = Surroundings(quiet=True, devices=DEVICE, write_reference=write)
    plan = make_plan(protocol, metrics, "projection", 40)
    fake = fake or GeneratedPictures(rig.source("toy"), 40)
    return {record["metric"]: record for record in measure(plan, fake, real, lambda name: network, how=how)}


@pytest.fixture(scope="module")
def real():
    return RealPictures(image_set(90))


@pytest.fixture(scope="module")
def moments(real):
    return Moments.of(Projection()(real.read(np.arange(90)), ("features",))["features"])


def published(path, moments, **changed):
    """A file as pytorch-fid and clean-fid write it."""
    content = {"mu": moments.mean, "sigma": moments.covariance(1)} | changed
    np.savez(path, **{key: value for key, value in content.items() if value is not None})
    return path


def test_a_distance_to_a_file_is_the_distance_to_its_images_and_the_record_names_the_file(real, moments, tmp_path):
    place = published(tmp_path / "flowers.npz", moments)
    ours, direct = measured(read_reference(place), ("fid", "fd_projection"))["fid"], measured(real)["fid"]
    assert ours["value"] == pytest.approx(direct["value"], rel=1e-6)
    sha = hashlib.sha256(place.read_bytes()).hexdigest()
    assert ours["reference_file"] == {"name": "flowers.npz", "sha256": sha} and direct["reference_file"] is None
    # How many images it was made of, and which, is not known.
    assert ours["n_real"] is None and ours["real_fingerprint"] is None and json.loads(json.dumps(ours)) == ours
    counted = read_reference(published(tmp_path / "counted.npz", moments, count=np.asarray(90)))
    assert measured(counted)["fid"]["n_real"] == 90
    # The stored covariance counts as it is, whatever the protocol divides those of samples by.
    by_n = read_reference(published(tmp_path / "n.npz", moments, sigma=moments.covariance(0)))
    fake = RealPictures(image_set(40, seed=4))
    plan = {"protocol": "nvidia", "fake": fake}
    assert measured(by_n, **plan)["fid"]["value"] == pytest.approx(measured(real, **plan)["fid"]["value"], rel=1e-6)


def test_a_file_that_is_written_is_read_back_and_refuses_other_networks(real, tmp_path):
    place = tmp_path / "new" / "kept.npz"
    direct = measured(real, ("fid", "kid"), write=place)["fid"]
    kept = read_reference(place)
    assert kept.count == 90 and kept.about["network"] == "projection" and kept.about["real_fingerprint"]
    again = measured(kept)["fid"]
    assert again["value"] == pytest.approx(direct["value"], rel=1e-9)
    assert (again["n_real"], again["real_fingerprint"]) == (90, direct["real_fingerprint"])
    # Other tools read mu and sigma.
    with np.load(place) as file:
        assert file["sigma"].shape == (8, 8) and file["mu"].dtype == np.float64
    with pytest.raises(UserError, match="--reference: 'kept.npz: made with network_sha256 .*or another protocol"):
        measured(kept, network=Projection(seed=1))
    other = Projection()
    other.info = {"preprocessing": {"pipeline": "friendly"}}
    with pytest.raises(UserError, match="kept.npz: made with preprocessing"):
        measured(kept, network=other)


@pytest.mark.parametrize("metrics", [("kid", "fid"), ("kid",), ("fid", "fd_other")])
def test_only_what_a_file_can_hold_is_written(real, tmp_path, metrics):
    with pytest.raises(UserError, match="--write_reference: 'metrics .*fid or one fd_NETWORK as the first"):
        measured(real, metrics, write=tmp_path / "a.npz")
    assert not (tmp_path / "a.npz").exists()


@pytest.mark.parametrize("metric", ["kid", "prdc", "intra_fid", "fid_infinity", "cas", "class_accuracy"])
def test_what_needs_the_images_themselves_is_refused_before_anything_is_computed(moments, tmp_path, metric):
    kept = read_reference(published(tmp_path / "a.npz", moments))
    with pytest.raises(UserError, match=f"--metrics: '{metric}'.*--reference.*fid and fd_NETWORK"):
        measured(kept, (metric,), network=object())


def test_what_does_not_look_at_real_images_is_measured_beside_the_distance(moments, tmp_path):
    kept = read_reference(published(tmp_path / "a.npz", moments))
    found = measured(kept, ("fid", "vendi"))
    assert found["vendi"]["value"] > 1 and found["vendi"]["n_real"] is None


def test_statistics_of_another_width_are_refused(tmp_path):
    wide = Moments.of(np.random.default_rng(0).normal(size=(50, 9)))
    with pytest.raises(UserError, match="a.npz: 9 numbers'.*features of projection, 8 numbers"):
        measured(read_reference(published(tmp_path / "a.npz", wide)))


def test_names_of_clean_fid_tell_split_and_pixels(moments, tmp_path):
    network = Projection()
    network.info = {"preprocessing": {"pipeline": "clean"}}
    place = published(tmp_path / "cifar10_clean_trainfull_32.npz", moments)
    assert measured(read_reference(place), network=network)["fid"]["real_split"] == "trainfull"
    place = published(tmp_path / "cifar10_legacy_tensorflow_train_32.npz", moments)
    with pytest.raises(UserError, match="made with pipeline legacy_tensorflow.*made with pipeline clean"):
        measured(read_reference(place), network=network)
    place = published(tmp_path / "faces_clean_clip_vit_b_32_custom_na.npz", moments)
    assert read_reference(place).about == {"pipeline": "clean", "split": "custom", "network": "clip_vit_b32"}


def broken(kind, moments):
    changed = moments.covariance(1).copy()
    changed[0, 1] += 1.0
    with_nan = moments.mean.copy()
    with_nan[3] = np.nan
    return {
        "no sigma": {"sigma": None},
        "no mu": {"mu": None, "sigma": None, "other": moments.mean},
        "flat": {"sigma": moments.mean},
        "asymmetric": {"sigma": changed},
        "nan": {"mu": with_nan},
        "text": {"mu": np.full(8, "a")},
        "count": {"count": np.asarray(1)},
        "counts": {"count": np.asarray([5, 5])},
        "about": {"about": np.asarray("no JSON")},
    }[kind]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("no sigma", "with mu'.*mu .d,. and sigma"),
        ("no mu", "with other'"),
        ("flat", r"mu \(8,\), sigma \(8,\)"),
        ("asymmetric", "not symmetric"),
        ("nan", "NaN or infinity"),
        ("text", "<U1 and float64"),
        ("count", "count 1'.*at least 2"),
        ("counts", "count .5, 5."),
        ("about", "about 'no JSON'"),
    ],
)
def test_files_of_something_else_are_one_line(moments, tmp_path, kind, words):
    place = published(tmp_path / "a.npz", moments, **broken(kind, moments))
    with pytest.raises(UserError, match=f"--reference: .*{words}") as caught:
        read_reference(place)
    assert "\n" not in str(caught.value)


def test_what_is_no_npz_file_is_refused(moments, tmp_path):
    (tmp_path / "a.npz").write_bytes(b"hello")
    np.save(tmp_path / "b.npy", moments.mean)
    np.savez(tmp_path / "c.npz", mu=np.array([{}], object), sigma=moments.covariance(1))
    for name in ("a.npz", "b.npy", "c.npz", "missing.npz", "."):
        with pytest.raises(UserError, match="--reference: .*an npz file with mu"):
            read_reference(tmp_path / name)
