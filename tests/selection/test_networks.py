"""Feature networks ranked by how well a plane tells samples from images through them."""

import json

import jax
import numpy as np
import pytest

from gantransfer import api, features
from gantransfer.errors import UserError
from gantransfer.selection.networks import compare_networks, table
from tests.contract import rig
from tests.metrics.toys import Projection, image_set

DEVICE = jax.devices()[:1]


class Blind(Projection):
    """Features that say nothing about the image but noise."""

    def forward(self, params, images, want=()):
        found = super().forward(params, images, want)
        pixels = images.astype(float).reshape(len(images), -1)
        # A rapidly turning function of the pixels' sum: as good as chance, and the same every time.
        noise = jax.numpy.sin(pixels.sum(1, keepdims=True) * jax.numpy.arange(1.0, 9.0) * 12.9898)
        return {name: noise if name == "features" else value for name, value in found.items()}


@pytest.fixture
def networks():
    return {"blind": Blind(), "sharp": Projection(scale=30.0)}


def bright(count):
    """Images unlike anything that the toy generator makes."""
    rng = np.random.Generator(np.random.PCG64(3))
    return image_set(count, images=np.clip(rng.normal(225, 10, (count, 8, 8, 1)), 0, 255).astype(np.uint8))


def probed(images, networks, **named):
    return compare_networks(rig.source("toy"), images, networks, devices=DEVICE, quiet=True, **named)


def test_the_network_that_sees_the_difference_wins_and_the_blind_one_is_at_chance(networks):
    rows = probed(bright(200), networks)
    assert [row["network"] for row in rows] == ["sharp", "blind"] and [row["rank"] for row in rows] == [1, 2]
    sharp, blind = rows
    assert sharp["validation_accuracy"] > 0.97 and sharp["low"] > 0.9
    assert blind["low"] <= 0.5 <= blind["high"] and blind["verdict"] == "cannot tell real from generated"
    assert blind["low"] < blind["validation_accuracy"] < blind["high"] and blind["n_validation"] == 200
    assert sharp["n"] == 200 and sharp["repetitions"] == 3 and len(sharp["generator_fingerprint"]) == 64
    assert json.loads(json.dumps(rows)) == rows
    assert "sharp" in table(rows) and "95 % interval" in table(rows)


def test_a_set_against_itself_cannot_be_told_apart(networks):
    source = rig.source("toy")
    own = image_set(200, images=source.sample(200, seed=77))
    (row,) = probed(own, {"sharp": networks["sharp"]})
    assert row["low"] <= 0.5 <= row["high"] or abs(row["validation_accuracy"] - 0.5) < 0.07


def test_more_images_than_asked_for_are_not_used(networks):
    (row,) = probed(image_set(60), {"sharp": networks["sharp"]}, num_images=20)
    assert row["n"] == 20 and row["n_validation"] == 20
    with pytest.raises(UserError, match="images: 3.*at least 4"):
        probed(image_set(3), networks)
    with pytest.raises(UserError, match="--networks"):
        probed(image_set(30), {})


def test_select_takes_one_source_with_networks(networks, monkeypatch, tmp_path):
    monkeypatch.setenv("GANTRANSFER_CACHE", str(tmp_path))
    monkeypatch.setattr(features, "load", lambda name, *rest: networks[name])
    source = rig.source("toy")
    rows = api.select([source], bright(40), networks=["sharp", "blind"], output=tmp_path / "out")
    assert rows[0]["network"] == "sharp"
    assert (tmp_path / "out" / "selection.png").is_file() and np.isfinite(rows[1]["validation_accuracy"])
    with pytest.raises(UserError, match="one source with --networks"):
        api.select([source, source], image_set(40), networks=["sharp"])
    with pytest.raises(UserError, match="--weights: 'blue=x'.*NAME=PATH for one of sharp"):
        api.select([source], image_set(40), networks=["sharp"], weights=["blue=x"])
