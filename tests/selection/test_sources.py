"""Sources ranked for a target: recall first, ties by distance, all under the same conditions."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from gantransfer import api, features
from gantransfer.__main__ import main
from gantransfer.errors import UserError
from gantransfer.metrics.statistics import Reference
from gantransfer.pretrained.folder import write_source
from gantransfer.pretrained.source import with_info
from gantransfer.selection.sources import Candidate, compare_sources, pull, rank, table
from tests.contract import rig
from tests.metrics.toys import Projection, image_set, write_folder

DEVICE = jax.devices()[:1]


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    """The toy feature network is known by name, and nothing is kept between tests."""
    monkeypatch.setenv("GANTRANSFER_CACHE", str(tmp_path / "cache"))
    load, network = features.load, Projection()
    known = lambda name, *rest, **named: network if name == "projection" else load(name, *rest, **named)
    monkeypatch.setattr(features, "load", known)
    with rig.with_toys():
        yield


def varied(scale, seen=0, name="toy"):
    """The toy source with its generator's weights made larger, so that samples differ more from each other."""
    source = rig.source("toy")
    larger = jax.tree.map(lambda leaf: leaf * scale, source.ema)
    source = dataclasses.replace(source, ema=larger, generator=larger)
    return with_info(source, images_seen=seen, name=name)


def samples_of(source, count=60, seed=9):
    images = source.sample(count, seed=seed)
    return image_set(count, images=images, name="target")


def compared(candidates, target, **named):
    given = [Candidate(name, source) for name, source in candidates.items()]
    return compare_sources(given, target, Projection(), devices=DEVICE, quiet=True, **named)


def test_recall_decides_and_ties_go_to_the_smaller_distance():
    rows = [
        {"source": "a", "recall": 0.500, "fid": 1.0},
        {"source": "b", "recall": 0.905, "fid": 9.0},
        {"source": "c", "recall": 0.900, "fid": 3.0},
        {"source": "d", "recall": 0.896, "fid": 1.0},
        {"source": "e", "recall": 0.892, "fid": 2.0},
    ]
    # d and e are within 0.01 of each other, but only d and c are within 0.01 of b.
    assert [(row["rank"], row["source"]) for row in rank(rows)] == [(1, "d"), (2, "c"), (3, "b"), (4, "e"), (5, "a")]


def test_the_source_that_the_target_is_made_of_is_ranked_first_and_a_collapsed_one_last():
    candidates = {"collapsed": varied(0.0), "its own": varied(3.0, seen=12_800), "other": varied(1.0)}
    rows = compared(candidates, samples_of(candidates["its own"]))
    assert [row["source"] for row in rows][0] == "its own" and [row["source"] for row in rows][-1] == "collapsed"
    assert rows[0]["recall"] > 0.8 and rows[-1]["recall"] == 0 and rows[0]["fid"] < rows[-1]["fid"]
    same = ("n_candidate", "n_target", "k", "seed", "network_sha256", "target_fingerprint")
    assert len({tuple(row[key] for key in same) for row in rows}) == 1
    assert (rows[0]["n_candidate"], rows[0]["n_target"], rows[0]["k"]) == (60, 60, 5)
    assert all(-1 <= row["gradient_similarity"] <= 1 for row in rows) and rows[0]["images_seen"] == 12_800
    assert json.loads(json.dumps(rows)) == rows
    text = table(rows)
    assert all(name in text for name in candidates) and "k = 5, 60 samples of each against 60 of target" in text
    assert "12,800" in text.splitlines()[1]


def test_recall_is_that_of_the_metric_and_the_target_is_cut_alike_for_all(tmp_path):
    from gantransfer.metrics import precision_recall_density_coverage

    source, target = varied(3.0), samples_of(varied(2.0), 80)
    rows = compared({"a": source, "b": varied(1.0)}, target, num_images=40, k=3, reference=Reference(tmp_path))
    from gantransfer.data import choose

    cut = choose(target, images=40, seed=0).arrays()[0]
    network = Projection()
    expected = precision_recall_density_coverage(
        network(cut)["features"], network(source.sample(40, seed=0))["features"], 3
    )
    (row,) = [row for row in rows if row["source"] == "a"]
    assert row["recall"] == pytest.approx(expected["recall"], abs=0.03)
    # Reals of both candidates are one entry.
    assert len(list(tmp_path.iterdir())) == 1


def test_a_discriminator_that_pulls_to_the_target_is_told_from_one_that_pushes_away():
    import flax.linen as nn

    from gantransfer.models.family import Judgement

    class Brightness(nn.Module):
        sign: float

        @nn.compact
        def __call__(self, x, c, train=False, want=()):
            return Judgement(self.sign * x.mean((1, 2, 3)))

    source = rig.source("toy")
    bright = image_set(30, images=np.full((30, 8, 8, 1), 255, np.uint8))

    def judged(sign):
        networks = dataclasses.replace(source.networks, discriminator=Brightness(sign))
        return pull(dataclasses.replace(source, networks=networks, discriminator={}), bright)

    assert judged(1.0) > 0.9 and judged(-1.0) == pytest.approx(-judged(1.0), abs=1e-6)
    assert pull(dataclasses.replace(source, discriminator=None), bright) is None


def test_the_verb_prints_every_candidate_and_leaves_a_plot_and_json(tmp_path, capsys):
    for name, scale in (("a", 0.5), ("b", 3.0)):
        write_source(tmp_path / name, varied(scale, name=name), card="toy")
    data = write_folder(tmp_path / "data", samples_of(varied(3.0)))
    command = [
        "select", "--data", str(data), "--sources", f"{tmp_path / 'a'}, {tmp_path / 'b'}", "--features", "projection",
        "--k", "3", "--output", str(tmp_path / "out"),
    ]  # fmt: skip
    assert main(command) == 0
    printed = capsys.readouterr()
    rows = [json.loads(line) for line in printed.out.splitlines()]
    assert [row["source"] for row in rows] == [str(tmp_path / "b"), str(tmp_path / "a")]
    assert "rank" in printed.err and "recall" in printed.err
    assert json.loads((tmp_path / "out" / "selection.json").read_text()) == rows
    assert (tmp_path / "out" / "selection.png").read_bytes().startswith(b"\x89PNG")
    # Images instead of samples: sets as they are.
    other = write_folder(tmp_path / "other", image_set(60, seed=4))
    by_images = api.select([data, other], data, features="projection", by="images")
    assert by_images[0]["source"] == str(data) and by_images[0]["recall"] == 1 and by_images[0]["by"] == "images"
    assert by_images[0]["gradient_similarity"] is None


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ({"by": "features"}, "--by: 'features'.*images, samples"),
        ({"k": 60}, "--k: 60.*below both counts"),
        ({"k": 0}, "--k: 0"),
        ({"by": "images"}, "with --by images: runs, or sets of images"),
    ],
)
def test_what_cannot_be_ranked_is_refused(named, words):
    with pytest.raises(UserError, match=words):
        compared({"a": varied(1.0), "b": varied(2.0)}, image_set(60), **named)


def test_one_source_is_no_choice():
    with pytest.raises(UserError, match="--sources: 'a'.*at least two"):
        compared({"a": varied(1.0)}, image_set(60))
