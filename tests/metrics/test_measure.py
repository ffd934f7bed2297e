"""Evaluations by protocol: right on sides whose quality is known, complete records, one line for what cannot be."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from gantransfer.errors import UserError
from gantransfer.metrics import registry, statistics
from gantransfer.metrics.jobs import jobs_of
from gantransfer.metrics.measure import Surroundings, measure
from gantransfer.metrics.pictures import GeneratedPictures, RealPictures
from gantransfer.metrics.protocols import PROTOCOLS, get_protocol, make_plan, summary
from gantransfer.metrics.records import (
    compare,
    differences,
    evaluations,
    flat_records,
    over_seeds,
    read_records,
    table,
    warnings_of,
)
from gantransfer.metrics.request import Draw, network_loader, sides
from gantransfer.metrics.statistics import Reference
from tests.contract import rig
from tests.metrics.toys import Projection, image_set

# A program for eight devices takes long to compile; test_statistics.py has them.
DEVICE = jax.devices()[:1]
ONE = Surroundings(quiet=True, devices=DEVICE)


def measured(fake, real, metrics, network=None, how=ONE, protocol="default", **more):
    plan = make_plan(protocol, metrics, "projection", **more.pop("plan", {}))
    network = network or Projection()
    return {record["metric"]: record for record in measure(plan, fake, real, lambda name: network, how=how, **more)}


def values(*arguments, **named):
    return {name: record["value"] for name, record in measured(*arguments, **named).items()}


@pytest.fixture(scope="module")
def real():
    return RealPictures(image_set(120))


ALL = ("fid", "kid", "kid_full", "fid_infinity", "intra_fid", "precision_recall", "prdc", "inception_score", "vendi")


def test_a_set_against_itself_is_perfect(real):
    found = values(real, RealPictures(image_set(120, name="the same")), ALL)
    assert found["fid"] == pytest.approx(0, abs=1e-9) and found["intra_fid"] == pytest.approx(0, abs=1e-9)
    assert abs(found["kid"]) < 0.02 and found["kid_full"] < 0
    assert found["precision"] == found["recall"] == found["coverage"] == 1 and found["density"] >= 1
    assert 1 < found["inception_score"] <= 3 and 1 < found["vendi"] < 120


def test_collapsed_fakes_have_precision_and_no_recall(real):
    pixels = np.repeat(real.read(np.array([7])), 60, axis=0)
    # Not all equal: the balls of equal points are empty.
    pixels[np.arange(60), 0, np.arange(60) % 8, 0] += np.arange(60, dtype=np.uint8) % 3
    collapsed = RealPictures(image_set(60, images=pixels))
    found = values(collapsed, real, ("fid", "prdc"))
    assert found["precision"] == 1 and found["recall"] < 0.05 and found["coverage"] < 0.2
    assert found["fid"] > values(RealPictures(image_set(60, seed=5)), real, ("fid",))["fid"] * 5


def test_noise_moves_every_distance_up(real):
    rng, pixels = np.random.Generator(np.random.PCG64(1)), image_set(120, seed=3).pixels.images
    noisier = np.clip(pixels + rng.normal(0, 90, pixels.shape), 0, 255).astype(np.uint8)
    fresh, noisy = (
        values(RealPictures(image_set(120, images=images)), real, ("fid", "kid_full", "cmmd", "fd_projection"))
        for images in (pixels, noisier)
    )
    assert all(noisy[name] > fresh[name] for name in fresh)
    assert fresh["fd_projection"] == fresh["fid"]


def test_every_number_is_a_line_with_everything_that_it_was_measured_under(real):
    fake = GeneratedPictures(rig.source("toy"), 40, seed=3, truncation=0.7)
    images = RealPictures(real.images.subset(range(100)))
    plan = {"num_images": 40, "truncation": 0.7}
    about = {"source": "toy", "images_seen": None}
    found = measured(fake, images, ("fid", "kid", "prdc", "inception_score"), seed=3, plan=plan, about=about)
    assert list(found) == ["fid", "kid", "precision", "recall", "density", "coverage", "inception_score"]
    record = found["fid"]
    assert json.loads(json.dumps(record)) == record
    expected = {
        "protocol": "default",
        "overrides": {"network": "projection", "num_images": 40, "truncation": 0.7},
        "n_generated": 40,
        "n_real": 100,
        "seed": 3,
        "network": "projection",
        "network_sha256": Projection().sha256,
        "pipeline": {"pipeline": "none"},
        "real_fingerprint": images.images.fingerprint,
        "real_split": "all",
        "mirror_real": False,
        "resolution": 8,
        "labels_rule": "turn",
        "truncation": 0.7,
        "generator_weights": "ema",
        "generator_fingerprint": rig.source("toy").fingerprint(),
        "divisor": "n - 1",
        "settings": {"ddof": 1, "output": "features"},
    }
    assert {key: record[key] for key in expected} == expected
    assert {"quantise", "batch_norm_rule", "precision", "wall_seconds", "device_kind", "versions"} <= set(record)
    assert {"gantransfer", "jax", "numpy", "scipy"} <= set(record["versions"])
    # What looks at no reals says so, and each metric has the spread that it has.
    assert found["inception_score"]["n_real"] is None and found["inception_score"]["spread"] > 0
    assert found["kid"]["spread"] > 0 and found["kid"]["details"]["subset_size"] == 40
    assert found["precision"]["settings"] == {"k": 5} and record["spread"] is None


def test_all_metrics_share_one_pass_of_each_side_and_reals_are_not_computed_again(real, tmp_path, monkeypatch):
    run, calls = statistics._run, []
    monkeypatch.setattr(
        statistics, "_run", lambda maker, *rest: calls.append(type(maker).__name__) or run(maker, *rest)
    )
    how = Surroundings(Reference(tmp_path), batch=16, devices=DEVICE, quiet=True)
    fake = GeneratedPictures(rig.source("toy"), 50)
    first = values(fake, real, ("fid", "kid", "prdc", "inception_score"), how=how)
    assert calls.count("Generating") == 4 and len(calls) == 4 + 8
    calls.clear()
    again = values(fake, real, ("fid", "kid", "prdc", "inception_score"), how=how)
    assert calls == ["Generating"] * 4 and again == first


def test_a_killed_evaluation_goes_on_and_gives_the_same_records(real, tmp_path, monkeypatch):
    monkeypatch.setenv("GANTRANSFER_CACHE", str(tmp_path))
    monkeypatch.setattr(statistics, "PORTION", 16)
    fake = GeneratedPictures(rig.source("toy"), 60)
    how = Surroundings(resume=True, batch=16, devices=DEVICE, quiet=True)
    whole = values(fake, real, ("fid", "kid"), how=replace(how, resume=False))
    run, calls = statistics._run, []

    def killed(maker, *rest):
        calls.append(maker)
        if len(calls) == 8 + 3:
            raise KeyboardInterrupt
        return run(maker, *rest)

    monkeypatch.setattr(statistics, "_run", killed)
    with pytest.raises(KeyboardInterrupt):
        values(fake, real, ("fid", "kid"), how=how)
    calls = []
    monkeypatch.setattr(statistics, "_run", lambda maker, *rest: calls.append(maker) or run(maker, *rest))
    again = values(fake, real, ("fid", "kid"), how=how)
    # Eight batches of reals and at least one of fakes are not computed again.
    assert len(calls) <= 3 and again == whole
    # Nothing of a finished evaluation stays.
    assert not any((tmp_path / "statistics" / "parts").iterdir())


def test_repetitions_with_other_seeds_give_the_mean_and_the_range(real, tmp_path):
    fake = GeneratedPictures(rig.source("toy"), 30, seed=5)
    given = {"how": replace(ONE, reference=Reference(tmp_path))}
    single = [
        measured(GeneratedPictures(rig.source("toy"), 30, seed=seed), real, ("fid", "kid"), seed=seed, **given)
        for seed in (5, 6, 7)
    ]
    found = measured(fake, real, ("fid", "kid"), seed=5, repeats=3, **given)
    for name in ("fid", "kid"):
        values = [run[name]["value"] for run in single]
        assert found[name]["value"] == pytest.approx(np.mean(values)) and len(set(values)) == 3
        assert found[name]["spread"] == pytest.approx(max(values) - min(values))
        assert found[name]["details"]["values"] == values and found[name]["details"]["seeds"] == [5, 6, 7]
        assert (found[name]["repeats"], found[name]["seed"]) == (3, 5) and single[0][name]["repeats"] == 1
    # The spread that the metric itself has is kept for each.
    assert found["kid"]["details"]["spreads"] == [run["kid"]["spread"] for run in single]
    assert "spreads" not in found["fid"]["details"] and json.loads(json.dumps(found)) == found
    lines = table(list(found.values())).splitlines()
    low, high = (f"{edge(found['fid']['details']['values']):.6g}" for edge in (min, max))
    assert lines[0].split()[:3] == ["metric", "value", "spread"] and f"{low} to {high}, 3 seeds" in lines[1]
    # One seed and several do not compare in silence.
    assert set(differences(found["fid"], single[0]["fid"])) == {"repeats"}


def test_a_number_that_one_repetition_lacks_has_no_mean():
    run = lambda value: [{"metric": "a", "value": value, "spread": None, "details": {}, "seed": 0, "repeats": 1}]
    (merged,) = over_seeds([run(1.0), run(None)])
    assert merged["value"] is None and merged["spread"] is None and merged["details"]["values"] == [1.0, None]
    shown = {"pipeline": None, "network": None, "n_generated": 3, "n_real": None, **merged}
    assert "not finite" in table([shown])


def test_a_killed_repetition_goes_on_and_pictures_are_of_the_first_seed(real, tmp_path, monkeypatch):
    monkeypatch.setenv("GANTRANSFER_CACHE", str(tmp_path))
    fake, train = GeneratedPictures(rig.source("toy"), 32), RealPictures(image_set(20, seed=8))
    how = Surroundings(resume=True, batch=16, devices=DEVICE, quiet=True)
    given = {"metrics": ("fid", "memorisation"), "train": train, "repeats": 3}
    whole = values(fake, real, how=how, **given)
    alone = replace(how, folder=tmp_path / "one")
    measured(fake, real, ("memorisation",), train=train, how=alone)
    run, calls = statistics._run, []

    def killed(maker, *rest):
        calls.append(type(maker).__name__)
        if calls.count("Generating") == 2 * 2 + 1:
            raise KeyboardInterrupt
        return run(maker, *rest)

    monkeypatch.setattr(statistics, "_run", killed)
    with pytest.raises(KeyboardInterrupt):
        values(fake, real, how=how, **given)
    calls.clear()
    monkeypatch.setattr(
        statistics, "_run", lambda maker, *rest: calls.append(type(maker).__name__) or run(maker, *rest)
    )
    assert values(fake, real, how=replace(how, folder=tmp_path / "three"), **given) == whole
    # Only the third repetition was left.
    assert calls == ["Generating"] * 2
    pictures = [(tmp_path / name / "nearest_training_images.png").read_bytes() for name in ("one", "three")]
    assert pictures[0] == pictures[1]
    assert not any((tmp_path / "statistics" / "parts").iterdir())


def test_what_is_there_already_is_not_repeated(real):
    with pytest.raises(UserError, match="--repeats: 3 .*nothing is generated, the images of noise"):
        measured(RealPictures(image_set(40)), real, ("fid",), repeats=3)
    with pytest.raises(UserError, match="--repeats: 0 .*at least 1"):
        measured(GeneratedPictures(rig.source("toy"), 30), real, ("fid",), repeats=0)


def test_few_shot_numbers_have_both_pixel_pipelines_beside_each_other(monkeypatch):
    from gantransfer import features

    plan = make_plan("fewshot")
    assert [metric.name for metric in plan.metrics][:2] == ["fid", "fid_nvidia"]
    assert [plan.network_of(metric) for metric in plan.metrics][:2] == [
        "fid_inception",
        "fid_inception@legacy_tensorflow",
    ]
    assert plan.protocol.settings_of(plan.metrics[1])["ddof"] == 0
    loaded = []
    monkeypatch.setattr(features, "load", lambda *given: loaded.append(given))
    load = network_loader(plan, ("fid_inception=weights.pth",))
    for metric in plan.metrics[:2]:
        load(plan.network_of(metric))
    assert loaded == [
        ("fid_inception", "weights.pth", "clean"),
        ("fid_inception", "weights.pth", "legacy_tensorflow"),
    ]
    # By the protocol of its own pixels it is no other network, and of another network it is left out.
    assert make_plan("nvidia", ["fid_nvidia"]).network_of(registry.find("fid_nvidia")) == "fid_inception"
    names = lambda **given: [metric.name for metric in make_plan("fewshot", **given).metrics]
    assert "fid_nvidia" not in names(features="projection") and "fid_nvidia" in names(features="random:fid_inception")
    random = make_plan("fewshot", features="random:fid_inception")
    assert random.network_of(registry.find("fid_nvidia")) == "random:fid_inception@legacy_tensorflow"
    asked = make_plan("fewshot", ["fid_nvidia"], "projection")
    assert asked.network_of(asked.metrics[0]) == "fid_inception@legacy_tensorflow"


def test_few_shot_numbers_have_a_second_column_against_the_training_images(real):
    """A copier is perfect beside what it copies, and is not beside images that it never saw."""
    train = RealPictures(image_set(40, seed=8))
    copies = RealPictures(image_set(40, seed=8, name="copies"))
    given = {"train": train, "protocol": "fewshot"}
    found = measured(copies, real, ("fid", "prdc", "inception_score"), **given)
    assert list(found) == [
        *("fid", "fid_train", "precision", "recall", "density", "coverage"),
        *("precision_train", "recall_train", "density_train", "coverage_train", "inception_score"),
    ]
    assert found["fid_train"]["value"] == pytest.approx(0, abs=1e-9) and found["fid"]["value"] > 0.01
    assert found["coverage_train"]["value"] == 1 > found["coverage"]["value"]
    # Each number says what it was compared with, and stands beside the number of an evaluation against that alone.
    alone = measured(copies, train, ("fid",), **given)
    assert list(alone) == ["fid"] and alone["fid"]["value"] == found["fid_train"]["value"]
    about = [(r["n_real"], r["real_fingerprint"]) for r in (found["fid"], found["fid_train"])]
    assert about == [(120, real.images.fingerprint), (40, train.images.fingerprint)]
    lines = evaluations(list(found.values()))
    assert [len({name.endswith("_train") for name in line["metrics"]}) for line in lines] == [1] * 5
    assert "fid_train" not in measured(copies, real, ("fid",), train=train)
    assert "fid_train" not in measured(copies, real, ("fid",), protocol="fewshot")
    few = RealPictures(image_set(4, seed=8))
    with pytest.raises(UserError, match="prdc: '4 training images.*at least 6"):
        measured(copies, real, ("prdc",), train=few, protocol="fewshot")


def test_few_shot_diversity_is_measured_where_it_is_made_for():
    names = lambda **given: [metric.name for metric in make_plan("fewshot", **given).metrics]
    assert "intra_lpips" in names() and "intra_lpips" in names(training_images=100)
    assert "intra_lpips" in names(features="vgg16") and "intra_lpips" not in names(features="projection")
    assert "intra_lpips" not in names(training_images=101)
    assert "intra_lpips" in names(metrics=["intra_lpips"], training_images=101)


def test_cmmd_is_of_the_large_network_unless_its_name_says_otherwise():
    plan = make_plan("default", ["cmmd", "cmmd_b32"])
    assert [plan.network_of(metric) for metric in plan.metrics] == ["clip_vit_l14_336", "clip_vit_b32"]
    large, small = plan.metrics
    assert large.names(large.settings, "clip_vit_l14_336") == ("cmmd",)
    assert large.names(large.settings, "clip_vit_b32") == large.names({}, "random:clip_vit_b32") == ("cmmd_b32",)
    assert small.names(small.settings, "clip_vit_b32") == ("cmmd_b32",)


def test_labels_of_samples_can_be_another_rule_than_the_protocol_s(real):
    """A conditional source against images without labels, by a protocol that draws labels from the data."""
    plain = image_set(30, classes=1)
    with pytest.raises(UserError, match=r"protocol: 'nvidia: labels of noise \(1 classes\)'.*--labels turn"):
        sides(rig.source("toy"), plain, make_plan("nvidia", ["fid"]), Draw())
    plan = make_plan("nvidia", ["fid"], labels="uniform", num_images=20)
    fake, _, _ = sides(rig.source("toy"), plain, plan, Draw(seed=3))
    assert (fake.rule, fake.seed, plan.overrides["labels"]) == ("uniform", 3, "uniform") and set(fake.labels) == {
        0,
        1,
        2,
    }
    with pytest.raises(UserError, match="--labels: 'even'.*data, turn, uniform"):
        make_plan("nvidia", labels="even")
    with pytest.raises(UserError, match="--labels: 'turn'.*pictures that are there already"):
        sides(image_set(20), plain, make_plan("default", ["fid"], labels="turn"), Draw())


def test_the_memorisation_check_finds_copies_and_shows_them(real, tmp_path):
    from PIL import Image

    train = RealPictures(image_set(30, seed=8))
    fresh = RealPictures(image_set(60, seed=9))
    copies = RealPictures(image_set(60, images=np.concatenate([train.read(np.arange(30))] * 2)))
    of_copies, of_fresh = (
        measured(side, real, ("memorisation",), train=train, how=replace(ONE, folder=folder))
        for side, folder in ((copies, tmp_path), (fresh, None))
    )
    assert of_copies["authenticity"]["value"] == 0 and of_copies["nearest_distance"]["value"] == 0
    assert of_fresh["authenticity"]["value"] > 40 and 0.7 < of_fresh["nearest_distance"]["value"] < 1.4
    details = of_copies["authenticity"]["details"]
    assert details["training_images"] == 30 and details["nearest"][0]["distance"] == 0
    assert details["nearest"][0]["training_image"] == details["nearest"][0]["sample"] % 30
    # Eight samples, each beside its seven nearest.
    assert Image.open(details["picture"]).size == (8 * 8 + 7 * 2 + 2, 8 * 8 + 7 * 2)
    sheet = np.asarray(Image.open(details["picture"]))
    np.testing.assert_array_equal(sheet[:8, :8], sheet[:8, 12:20])
    assert "picture" not in of_fresh["authenticity"]["details"]


def sides_of(count=10, real_count=10, classes=3, real_classes=3, size=8):
    return (
        RealPictures(image_set(count, classes=classes, name="ours")),
        RealPictures(image_set(real_count, classes=real_classes, size=size, seed=1, name="theirs")),
    )


@pytest.mark.parametrize(
    ("metric", "sides", "words"),
    [
        ("prdc", sides_of(5, 10), "prdc: '5 generated images .ours.' .* at least 6"),
        ("precision_recall", sides_of(10, 3), "precision_recall: '3 real images .theirs.'.* at least 4"),
        ("fid", sides_of(1, 10), "fid: '1 generated images .ours.'.* at least 2"),
        ("inception_score", sides_of(9, 10), "inception_score: '9 generated .*at least 11"),
        ("fid_infinity", sides_of(20, 20), "at least 30"),
        ("fid", sides_of(size=16), "images: 'ours and theirs: 8x8x1 and 16x16x1'.* one size"),
        ("intra_fid", sides_of(classes=2), r"intra_fid: '1 classes without images on one side: 2 \(generated\)'"),
        ("intra_fid", sides_of(classes=1, real_classes=1), "intra_fid: 'one class'.*labelled images"),
        ("memorisation", sides_of(), "memorisation: 'unknown'.*--train"),
        ("fidd", sides_of(), "metric: 'fidd'.*did you mean fid"),
    ],
)
def test_what_a_metric_cannot_be_computed_of_is_said_before_anything_is_computed(metric, sides, words):
    def load(name):
        raise AssertionError("a network was loaded")

    with pytest.raises(UserError, match=words):
        measure(make_plan("default", [metric], "projection"), *sides, load, how=ONE)


def test_a_network_without_logits_has_no_inception_score(real):
    network = Projection()
    network.outputs = ("pooled",)
    with pytest.raises(UserError, match="inception_score: 'projection gives pooled'.*a network with logits"):
        measured(real, real, ("inception_score",), network)


def test_protocols_are_as_published():
    names = {name: [metric.name for metric in make_plan(name).metrics] for name in PROTOCOLS}
    assert names["studiogan"] == ["fid", "inception_score", "prdc"]
    studiogan, nvidia = get_protocol("studiogan"), get_protocol("nvidia")
    assert (studiogan.num_images(1234), studiogan.labels, studiogan.pipeline) == (1234, "uniform", "friendly")
    assert studiogan.settings_of(registry.find("inception_score"))["splits"] == 1
    assert (nvidia.num_images(10), nvidia.labels, nvidia.pipeline) == (50_000, "data", "legacy_tensorflow")
    assert nvidia.settings_of(registry.find("fid")) == {"ddof": 0, "output": "features"}
    precision = registry.find("precision_recall")
    assert nvidia.settings_of(precision) == {"k": 3, "half": True} and nvidia.network_of(precision) == "vgg16"
    assert [get_protocol("default").num_images(n) for n in (100, 20_000, 10**6)] == [5_000, 20_000, 50_000]
    # Few training images: the default protocol adds the check for copies.
    assert "memorisation" in [metric.name for metric in make_plan(training_images=999).metrics]
    assert "memorisation" not in [metric.name for metric in make_plan(training_images=1000).metrics]
    assert all(protocol.name in summary(protocol) for protocol in PROTOCOLS.values())
    with pytest.raises(UserError, match="protocol: 'nvida'.*did you mean nvidia"):
        get_protocol("nvida")


def test_protocols_divide_and_draw_as_they_say(real):
    fake = GeneratedPictures(rig.source("toy"), 30, rule="data", data_labels=real.labels)
    nvidia, default = (measured(fake, real, ("fid",), protocol=name)["fid"] for name in ("nvidia", "default"))
    assert nvidia["divisor"] == "n" and nvidia["labels_rule"] == "data" and nvidia["value"] != default["value"]
    quick = measured(fake, real, ("kid_full",), protocol="quick")
    assert list(quick) == ["kid_full_quick"]


def test_a_distance_of_another_output_of_the_network_has_another_name(real):
    fake = RealPictures(image_set(40, seed=2))
    (found,) = measured(fake, real, ("fid",), plan={"settings": {"fid.output": "pooled"}}).values()
    assert found["metric"] == "fid_pooled"
    assert found["value"] == pytest.approx(values(fake, real, ("fid",))["fid"], rel=1e-9)
    # The protocol's own output gives way to what the network has; the user's does not.
    quick = measured(fake, real, ("fid",), protocol="quick")["fid_quick"]
    assert quick["settings"]["output"] == "features"
    with pytest.raises(UserError, match="fid.output: '768'.*features, pooled, logits"):
        measured(fake, real, ("fid",), plan={"settings": {"fid.output": 768}})


def test_numbers_of_different_protocols_do_not_compare(real, tmp_path):
    a, b = (
        list(measured(RealPictures(image_set(n, seed=2)), real, ("fid", "kid"), protocol=protocol).values())
        for n, protocol in ((40, "default"), (50, "nvidia"))
    )
    with pytest.warns(UserWarning, match="do not compare: protocol 'default' and 'nvidia'"):
        rows = compare(a, b)
    assert [row["metric"] for row in rows] == ["fid", "kid"]
    assert rows[0]["difference"] == b[0]["value"] - a[0]["value"]
    assert set(rows[0]["protocol_differences"]) == {"protocol", "n_generated", "divisor", "settings"}
    assert "fid: the numbers do not compare: protocol 'default' and 'nvidia', n_generated 40 and 50" in "\n".join(
        warnings_of(rows)
    )
    again = list(measured(RealPictures(image_set(40, seed=3)), real, ("fid",), seed=5).values())
    assert differences(a[0], again[0]) == {}
    with pytest.raises(UserError, match="a metric in common"):
        compare(a[:1], b[1:])
    # A run keeps them as lines of one protocol each, from which they come back.
    lines = evaluations(a)
    assert [set(line["metrics"]) for line in lines] == [{"fid"}, {"kid"}]
    back = [record for line in lines for record in flat_records(line)]
    assert compare(a, back)[0]["protocol_differences"] == {} and "wall_seconds" not in json.dumps(lines)
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps(record) + "\n" for record in a))
    assert read_records(tmp_path / "lines.jsonl") == a
    (tmp_path / "junk.jsonl").write_text('{"loss": 1}\n')
    with pytest.raises(UserError, match="junk.jsonl:1.*a JSON record"):
        read_records(tmp_path / "junk.jsonl")


def test_every_metric_says_what_it_is_and_whether_lower_is_better():
    for name, metric in registry.METRICS.items():
        assert metric.about and metric.makes and metric.better in ("lower", "higher", ""), name
        assert jobs_of is not None and metric.least_images({**metric.settings}) >= 1, name


def test_neighbours_of_50_000_rows_of_2_048_fit_in_8_gb():
    """By shape, not by running: the rows, their float32 copy and a few tiles."""
    from gantransfer.metrics.neighbours import TILE

    rows = 2 * 50_000 * 2_048 * 4
    tiles = 8 * TILE * TILE * 8
    assert rows + 2 * 50_000 * 2_050 * 4 + tiles < 4e9
