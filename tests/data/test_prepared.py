"""Prepared TensorFlow Datasets: written as ArrayRecord and read again, in processes that cannot import TensorFlow."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gantransfer.data import open_images, prepared
from gantransfer.errors import UserError

# Prepares four small sets; images are given as encoded PNG, because encoding arrays is TensorFlow's part.
PREPARE = """
import io, sys
from importlib.machinery import PathFinder

find = PathFinder.find_spec
PathFinder.find_spec = classmethod(
    lambda cls, name, *rest: None if name.split(".")[0] == "tensorflow" else find(name, *rest)
)
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

features = tfds.features


def png(i):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(i).integers(0, 256, (9, 12, 3), np.uint8)).save(file, "PNG")
    file.seek(0)
    return file


class Base(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    extra = {"label": features.ClassLabel(names=["ant", "bee"])}
    value = staticmethod(lambda i: {"label": i % 2})

    def _info(self):
        image = {"image": features.Image(shape=(None, None, 3))}
        return tfds.core.DatasetInfo(builder=self, features=features.FeaturesDict(image | self.extra))

    def _split_generators(self, manager):
        return {"train": self._generate_examples(range(10)), "test": self._generate_examples(range(10, 14))}

    def _generate_examples(self, numbers):
        for i in numbers:
            yield i, {"image": png(i)} | self.value(i)


class Insects(Base):
    pass


class Plain(Base):
    extra, value = {}, staticmethod(lambda i: {})


class Unlabelled(Base):
    value = staticmethod(lambda i: {"label": -1 if i == 12 else i % 2})


class Twice(Base):
    extra, value = {"mask": features.Image(shape=(None, None, 3))}, staticmethod(lambda i: {"mask": png(i)})


for builder in (Insects, Plain, Unlabelled, Twice):
    builder(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
assert "tensorflow" not in sys.modules
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("tfds")
    subprocess.run(
        [sys.executable, "-c", PREPARE, str(folder)], check=True, capture_output=True, text=True, timeout=600
    )
    return str(folder)


def as_multiset(pixels: np.ndarray) -> list[bytes]:
    return sorted(image.tobytes() for image in pixels)


def test_a_prepared_set_opens_with_its_class_names_and_without_tensorflow(place):
    images = open_images(f"tfds:insects@{place}")
    assert images.class_names == ("ant", "bee") and images.counts == (5, 5)
    assert (images.resolution, images.channels) == (8, 3)
    assert "'label'" in images.class_table()
    assert "tensorflow" not in sys.modules


def test_pixels_are_those_that_were_written_under_the_rules_of_all_images(place):
    images = open_images(f"tfds:insects:test@{place}", resolution=9)
    written = [np.random.default_rng(i).integers(0, 256, (9, 12, 3), np.uint8) for i in range(10, 14)]
    assert as_multiset(images.arrays()[0]) == as_multiset(np.stack(written)[:, :, 1:10])
    with pytest.raises(UserError, match=r"test/00000000 \(12x9\)"):
        open_images(f"tfds:insects:test@{place}", resolution=9, fit="exact")


def test_the_folder_may_come_from_the_environment(place, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", place)
    assert len(open_images("tfds:insects:1.0.0:test")) == 4
    assert len(open_images("tfds:insects:train[:60%]")) == 6


def test_a_set_without_labels_is_unconditional(place):
    assert open_images(f"tfds:plain@{place}").class_names == ("all",)


def test_prepared_sets_survive_pickling(place):
    images = open_images(f"tfds:insects@{place}")
    copy = pickle.loads(pickle.dumps(images))
    np.testing.assert_array_equal(copy.arrays()[0], images.arrays()[0])
    assert copy.fingerprint == images.fingerprint != open_images(f"tfds:insects:test@{place}").fingerprint


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("tfds:insekts", "insekts.*array_record.*holds: insects, plain, twice, unlabelled"),
        ("tfds:insects:validation", "validation.*splits in .*: train, test"),
        ("tfds:insects:9.9.9:train", "9.9.9"),
        ("tfds:unlabelled:test", "has label -1.*0 to 1"),
        ("tfds:twice", "twice.*image, mask.*exactly one Image"),
        ("tfds:", "tfds:NAME"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(place, path, words):
    with pytest.raises(UserError, match=words) as caught:
        open_images(f"{path}@{place}")
    assert "\n" not in str(caught.value)


def test_a_set_prepared_in_another_format_says_how_to_prepare_it(place, tmp_path):
    copy = tmp_path / "insects" / "1.0.0"
    copy.mkdir(parents=True)
    for file in Path(place, "insects", "1.0.0").iterdir():
        (copy / file.name.replace("array_record", "tfrecord")).write_bytes(file.read_bytes())
    info = json.loads((copy / "dataset_info.json").read_text("utf-8"))
    info["fileFormat"] = "tfrecord"
    for split in info["splits"]:
        split["filepathTemplate"] = split["filepathTemplate"].replace("array_record", "tfrecord")
    (copy / "dataset_info.json").write_text(json.dumps(info), "utf-8")
    with pytest.raises(UserError, match="file_format='array_record'"):
        open_images(f"tfds:insects@{tmp_path}")


def test_damaged_records_are_named_and_can_be_skipped(place, monkeypatch):
    class Damaged(prepared.Records):
        def record(self, name):
            found = super().record(name)
            return found | {"image": b"junk"} if name.endswith("3") else found

    monkeypatch.setattr(prepared, "Records", Damaged)
    with pytest.raises(UserError, match="train/00000003"):
        open_images(f"tfds:insects@{place}")
    images = open_images(f"tfds:insects@{place}", on_corrupt="skip")
    assert len(images) == 9 and images.skipped[0][0] == "train/00000003"
