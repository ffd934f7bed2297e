"""The verb evaluate, on sources and on folders of images; and evaluations that choose and end a run."""

import json

import numpy as np
import pytest

from gantransfer import api, features
from gantransfer.__main__ import main
from gantransfer.data import open_images
from gantransfer.errors import UserError
from gantransfer.metrics import statistics
from gantransfer.training import evaluator as evaluators
from tests.metrics.toys import Projection, image_set, write_folder
from tests.runs import rig

EVALUATED = {
    **rig.TOY,
    "run.tick_kimg": 0.016,
    "run.checkpoint_kimg": 0.024,
    "run.snapshot_kimg": 0.048,
    "evaluate.metrics": "('fid','prdc')",
    "evaluate.features": "projection",
    "evaluate.samples": 24,
    "evaluate.every_kimg": 0.016,
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GANTRANSFER_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def projection(monkeypatch):
    """The toy feature network is known by name."""
    load, network = features.load, Projection()
    known = lambda name, *rest, **named: network if name == "projection" else load(name, *rest, **named)
    monkeypatch.setattr(features, "load", known)


def lines_of(capsys, *words):
    capsys.readouterr()
    assert main([str(word) for word in words]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def refused(capsys, *words):
    capsys.readouterr()
    assert main([str(word) for word in words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


# Verbs


def test_a_folder_of_images_is_measured_against_another_with_no_gan_involved(tmp_path, capsys):
    ours, theirs = (write_folder(tmp_path / name, image_set(30, seed)) for seed, name in enumerate(("a", "b")))
    base = ("evaluate", "--data", theirs, "--features", "projection", "--metrics", "fid,kid,prdc")
    found = {record["metric"]: record for record in lines_of(capsys, *base, "--source", ours)}
    assert list(found) == ["fid", "kid", "precision", "recall", "density", "coverage"]
    assert (found["fid"]["n_generated"], found["fid"]["n_real"], found["fid"]["quantise"]) == (30, 30, "image files")
    same = {record["metric"]: record["value"] for record in lines_of(capsys, *base, "--source", theirs)}
    assert same["fid"] == pytest.approx(0, abs=1e-9) and same["recall"] == 1 and found["fid"]["value"] > 0
    few = lines_of(capsys, *base, "--source", ours, "--num_images", 12, "--batch", 8)
    assert few[0]["n_generated"] == 12 and few[0]["overrides"]["num_images"] == 12
    # The same evaluation by the function, and both compared by the verb.
    records = api.evaluate(ours, theirs, features="projection", metrics=["fid"])
    assert records[0]["value"] == found["fid"]["value"]
    for name, some in (("a.jsonl", [found["fid"]]), ("b.jsonl", few)):
        (tmp_path / name).write_text("".join(json.dumps(record) + "\n" for record in some))
    assert main(["compare", str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]) == 2
    printed = capsys.readouterr()
    assert "n_generated 30 and 12" in printed.err and json.loads(printed.out)["metric"] == "fid"
    assert lines_of(capsys, "compare", tmp_path / "a.jsonl", tmp_path / "a.jsonl")[0]["difference"] == 0
    assert main(["compare", str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"), "--force"]) == 0


def test_what_does_not_fit_is_one_line(tmp_path, capsys):
    ours = write_folder(tmp_path / "ours", image_set(12))
    mixed = write_folder(write_folder(tmp_path / "mixed", image_set(4)), image_set(20, size=16, classes=2))
    base = ("evaluate", "--features", "projection")
    line = refused(capsys, *base, "--source", mixed, "--data", ours)
    assert "--source" in line and "resized" in line and "square images of one size" in line
    large = write_folder(tmp_path / "large", image_set(12, size=16))
    assert "8x8x1 and 16x16x1" in refused(capsys, *base, "--source", ours, "--data", large)
    assert "at most 12" in refused(capsys, *base, "--source", ours, "--data", ours, "--num_images", "13")
    assert "'12 generated" in refused(capsys, *base, "--source", ours, "--data", ours, "--metrics", "fid_infinity")
    assert "weights of projection" in refused(
        capsys, *base, "--source", ours, "--data", ours, "--weights", "vgg16=x.pth"
    )
    weights = refused(
        capsys, "evaluate", "--source", ours, "--data", ours, "--features", "resnet50", "--weights", "no.pth"
    )
    assert "no.pth" in weights


def test_published_networks_take_their_weights_and_the_protocol_s_pixels(shared, tmp_path, capsys):
    file = shared / "weights" / "cifar_resnet20" / "resnet20.npz"
    ours = write_folder(tmp_path / "ours", image_set(12, size=32))
    theirs = write_folder(tmp_path / "theirs", image_set(12, seed=1, size=32))
    (record,) = lines_of(
        capsys, "evaluate", "--source", ours, "--data", theirs, "--metrics", "fd_cifar_resnet20",
        "--weights", f"cifar_resnet20={file}",
    )  # fmt: skip
    assert record["metric"] == "fd_cifar_resnet20" and record["value"] > 0 and len(record["network_sha256"]) == 64


def test_samples_are_drawn_anew_with_several_seeds_and_people_see_mean_and_range(whole_dots, dots, tmp_path, capsys):
    base = ("evaluate", "--source", whole_dots / "snapshots" / "000000192", "--data", dots, "--features", "projection")
    base += ("--metrics", "fid", "--num_images", 20)
    capsys.readouterr()
    assert main([str(word) for word in (*base, "--repeats", 2, "--seed", 4)]) == 0
    printed = capsys.readouterr()
    (record,) = map(json.loads, printed.out.splitlines())
    singles = [lines_of(capsys, *base, "--seed", seed)[0]["value"] for seed in (4, 5)]
    assert record["details"]["values"] == pytest.approx(singles, rel=1e-6) and record["repeats"] == 2
    assert record["value"] == pytest.approx(sum(singles) / 2) and record["spread"] == pytest.approx(
        max(singles) - min(singles)
    )
    assert "2 seeds" in printed.err.splitlines()[-1] and f"{record['value']:.6g}" in printed.err.splitlines()[-1]
    ours = write_folder(tmp_path / "ours", image_set(12))
    line = refused(capsys, *base[:1], "--source", ours, *base[3:7], "--metrics", "fid", "--repeats", 2)
    assert "--repeats: 2" in line and "nothing is generated" in line
    assert "--batch_norm: 'standing'" in refused(capsys, *base, "--batch_norm", "standing")
    assert "--std_max: 8" in refused(capsys, *base, "--std_max", 8)


def test_a_reference_is_kept_in_a_file_and_taken_instead_of_the_images(tmp_path, capsys):
    ours, theirs = (write_folder(tmp_path / name, image_set(30, seed)) for seed, name in enumerate(("a", "b")))
    base = ("evaluate", "--source", ours, "--features", "projection", "--metrics", "fid")
    file = tmp_path / "b.npz"
    (direct,) = lines_of(capsys, *base, "--data", theirs, "--write_reference", file)
    (record,) = lines_of(capsys, *base, "--reference", file)
    assert record["value"] == pytest.approx(direct["value"], rel=1e-9)
    assert record["reference_file"]["name"] == "b.npz" and len(record["reference_file"]["sha256"]) == 64
    assert record["n_real"] == 30 and record["real_fingerprint"] == direct["real_fingerprint"]
    assert "not both" in refused(capsys, *base) and "not both" in refused(
        capsys, *base, "--data", theirs, "--reference", file
    )
    assert "--metrics: 'kid'" in refused(capsys, *base[:-1], "kid", "--reference", file)
    # How many samples a protocol takes of as many as there are reals, the file must say.
    from tests.contract.rig import source

    given = {"reference": file, "features": "projection", "metrics": ["fid"], "protocol": "studiogan"}
    assert api.evaluate(source("toy"), **given)[0]["n_generated"] == 30
    with np.load(file) as found:
        np.savez(tmp_path / "plain.npz", mu=found["mu"], sigma=found["sigma"])
    with pytest.raises(UserError, match="--num_images.*plain.npz does not say"):
        api.evaluate(source("toy"), **{**given, "reference": tmp_path / "plain.npz"})
    with pytest.raises(UserError, match="--reference: .*nothing with a classifier alone"):
        api.evaluate(source("toy"), reference=file, features="digits_cnn")


def test_a_run_keeps_what_is_measured_of_it_beside_its_own_evaluations(whole_dots, dots, capsys, tmp_path):
    import shutil

    run = tmp_path / "run"
    shutil.copytree(whole_dots, run)
    before = (run / "evaluations.jsonl").read_text() if (run / "evaluations.jsonl").exists() else ""
    records = lines_of(
        capsys, "evaluate", "--source", run, "--data", dots, "--features", "projection", "--metrics",
        "fid,memorisation", "--num_images", 30,
    )  # fmt: skip
    assert [record["metric"] for record in records] == ["fid", "authenticity", "nearest_distance"]
    assert records[0]["images_seen"] == 192 and records[0]["n_generated"] == 30
    picture = run / "evaluations" / "000000192" / "nearest_training_images.png"
    assert records[1]["details"]["picture"] == str(picture) and picture.is_file()
    added = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().removeprefix(before).splitlines()]
    assert all(line["images_seen"] == 192 and line["kimg"] == 0.192 and line["asked"] for line in added)
    assert {name: value for line in added for name, value in line["metrics"].items()} == {
        record["metric"]: record["value"] for record in records
    }
    assert "fid" in api.report([run]).read_text()
    # Where its images have gone, only what needs them is refused.
    (run / "data.json").write_text((run / "data.json").read_text().replace('"fingerprint": "', '"fingerprint": "0'))
    given = {"features": "projection", "num_images": 30}
    assert api.evaluate(run, dots, metrics=["fid"], **given)[0]["value"] == records[0]["value"]
    api.evaluate(run, dots, protocol="clean", **given)
    assert "samples are not compared with the training images" in capsys.readouterr().err
    with pytest.raises(UserError, match="these are others"):
        api.evaluate(run, dots, metrics=["memorisation"], **given)
    assert [row["metric"] for row in lines_of(capsys, "compare", run, run)][:1] == ["fid"]


def test_a_source_is_measured_by_a_protocol_and_the_reference_is_kept(dots, monkeypatch, tmp_path):
    whole, calls, run = open_images(str(dots)), [], statistics._run
    monkeypatch.setattr(statistics, "_run", lambda maker, *rest: calls.append(maker) or run(maker, *rest))
    from tests.contract.rig import source

    given = {"features": "projection", "protocol": "studiogan", "metrics": ["fid"], "batch": 8}
    (first,) = api.evaluate(source("toy"), whole, **given)
    assert len(calls) == 6 and first["n_generated"] == 24 and first["labels_rule"] == "uniform"
    (again,) = api.evaluate(source("toy"), whole, **given)
    assert len(calls) == 9 and again["value"] == first["value"]
    with pytest.raises(UserError, match="labels of .*whose labels are not drawn from the data"):
        api.evaluate(source("toy"), image_set(20, classes=2), **{**given, "protocol": "nvidia"})


# Evaluations that choose and end a run


def test_a_run_is_measured_at_intervals_keeps_its_best_and_ends_with_a_full_evaluation(dots, tmp_path):
    settings = {**EVALUATED, "kimg": 0.096, "evaluate.at_end": "fewshot", "evaluate.best": "recall"}
    assert rig.finetune(tmp_path / "run", dots, settings) == 0
    lines = rig.lines(tmp_path / "run" / "evaluations.jsonl")
    periodic = [line for line in lines if "at_end" not in line]
    assert [line["images_seen"] for line in periodic if "fid" in line["metrics"]] == [16, 32, 48, 64, 80, 96]
    last = {name for line in lines if "at_end" in line for name in line["metrics"]}
    assert {"fid", "kid_full", "authenticity", "recall"} <= last
    recalls = {
        line["images_seen"]: line["metrics"]["recall"] for line in periodic if line["metrics"].get("recall") is not None
    }
    best = api.load(f"{tmp_path / 'run'}@best").info.images_seen
    assert recalls[best] == max(recalls.values()) and best == max(recalls, key=lambda seen: (recalls[seen], -seen))


def worsening(monkeypatch, values):
    """Replaces what is measured by given numbers, by images seen."""

    def measured(self, source):
        value = values[source.info.images_seen]
        return [{"metrics": {"fid": value, "precision": 1.0}, "protocol": {"name": "given"}}]

    monkeypatch.setattr(evaluators.ByProtocol, "__call__", measured)


def test_a_run_stops_where_nothing_becomes_better_and_a_killed_one_stops_there_too(dots, tmp_path, monkeypatch, capsys):
    values = {16: 9.0, 32: 7.0, 48: 8.0, 64: 7.0, 80: None, 96: 1.0, 112: 1.0}
    worsening(monkeypatch, values)
    settings = {**EVALUATED, "kimg": 0.192, "evaluate.stop_after": 3, "evaluate.best": "fid"}
    assert rig.finetune(tmp_path / "one-run", dots, settings) == 0
    assert "fid has not become better in 3 evaluations" in capsys.readouterr().err
    assert [line["images_seen"] for line in rig.lines(tmp_path / "one-run" / "evaluations.jsonl")] == [
        16,
        32,
        48,
        64,
        80,
    ]
    assert api.Run(tmp_path / "one-run").images_seen == 80
    assert api.load(f"{tmp_path / 'one-run'}@best").info.images_seen == 32
    # Killed at an evaluation in the middle: what was best, and for how long, comes from the run's records.
    measured, count = evaluators.ByProtocol.__call__, []

    def killed(self, source):
        if source.info.images_seen == 64 and not count:
            count.append(1)
            raise KeyboardInterrupt
        return measured(self, source)

    monkeypatch.setattr(evaluators.ByProtocol, "__call__", killed)
    assert rig.finetune(tmp_path / "other-run", dots, settings) == 130
    assert rig.finetune(tmp_path / "other-run", dots, settings) == 0
    rig.assert_same_run(tmp_path / "one-run", tmp_path / "other-run")
    # With more patience it goes on.
    assert rig.finetune(tmp_path / "other-run", dots, {**settings, "evaluate.stop_after": 5, "kimg": 0.112}) == 0
    assert api.load(f"{tmp_path / 'other-run'}@best").info.images_seen == 96


def test_what_is_best_is_read_from_the_records_where_evaluations_by_hand_do_not_count():
    evaluator = object.__new__(evaluators.Evaluator)
    evaluator.best, evaluator.lower, evaluator.patience = "recall", False, 2
    line = lambda seen, value, **more: {"images_seen": seen, "metrics": {"recall": value}, "protocol": {}, **more}
    lines = [line(0, 0.3), line(20, 0.5), line(10, 0.6), line(20, 0.9, asked=True), line(20, 0.9, at_end=True)]
    evaluator.resume(lines)
    assert not evaluator.improved and not evaluator.enough
    evaluator.resume([*lines, line(30, 0.6)])
    assert evaluator.enough
    evaluator.resume([*lines, line(30, 0.61)])
    assert evaluator.improved and not evaluator.enough
    evaluator.resume([line(0, None), line(10, None)])
    assert not evaluator.improved
    evaluator.resume([])
    assert not evaluator.improved and not evaluator.enough


def test_settings_that_cannot_be_kept_are_refused_before_a_step(dots, tmp_path):
    def begun(**changed):
        assert rig.finetune(tmp_path / "run", dots, {**EVALUATED, "kimg": 0.016, **changed}) == 2
        assert not (tmp_path / "run").exists()

    begun(**{"evaluate.best": "kid"})
    begun(**{"evaluate.samples": 4})


def test_the_default_protocol_names_the_missing_weights_in_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("GANTRANSFER_FEATURES", str(tmp_path))
    from gantransfer.features import published

    def no_network(*arguments, **named):
        raise UserError("file", "x", "a connection")

    monkeypatch.setattr(published, "download", no_network)
    ours = write_folder(tmp_path / "ours", image_set(12))
    line = refused(capsys, "evaluate", "--source", ours, "--data", ours)
    assert "fid_inception" in line and "GANTRANSFER_FEATURES" in line
