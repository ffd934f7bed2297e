"""The same command works on every zip of the shared folder as it stands: grey and colour, one class and many."""

import json

import pytest

from gantransfer import api
from tests.runs import rig

# zip: (classes, resolution, channels)
SETS = {
    "apple_leaves64": (4, 64, 3),
    "blood_cells": (3, 32, 3),
    "cifar10_test": (10, 32, 3),
    "cifar10_train": (10, 32, 3),
    "crawl_tiles": (8, 32, 3),
    "emoji64": (4, 64, 3),
    "fashion": (10, 32, 1),
    "mnist": (10, 32, 1),
    "omniglot40": (40, 32, 1),
    "quickdraw3": (3, 32, 1),
    "sign_digits64": (10, 64, 3),
}
FAST = ("blood_cells",)
SETTINGS = {**rig.BIGGAN, "model.width": 2, "model.spectral_d": False, "kimg": 0.016, "run.grid_columns": 1}


def trained(path, workdir):
    run = api.finetune(data=path, workdir=workdir, settings=SETTINGS)
    assert run.images_seen == 16 and len(run.metrics) == 1
    return run


def test_every_zip_of_the_folder_is_in_the_table(shared):
    assert {path.stem for path in (shared / "data").glob("*.zip")} == set(SETS)


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in SETS])
def test_a_zip_trains_as_it_stands(shared, tmp_path, name):
    classes, resolution, channels = SETS[name]
    run = trained(shared / "data" / f"{name}.zip", tmp_path / "run")
    info = run.source.info
    assert (info.num_classes, info.resolution, info.channels) == (classes, resolution, channels)
    assert run.source.sample(3).shape == (3, resolution, resolution, channels)
    data = json.loads((run.path / "data.json").read_text())
    assert data["images"] == sum(entry["count"] for entry in data["classes"]) > 500


@pytest.mark.slow
def test_images_without_classes_are_one_class(shared, tmp_path):
    run = trained(shared / "data" / "bad_inputs" / "good_flat.zip", tmp_path / "run")
    assert run.source.info.class_names == ("all",)
