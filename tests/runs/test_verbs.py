"""What each verb leaves: a run's folder, samples, measurements, pages, lists; and that each is a function too."""

import json
import re

import numpy as np
import pytest
from PIL import Image

import gantransfer
from gantransfer import api
from gantransfer.__main__ import main
from gantransfer.data import open_images
from gantransfer.errors import UserError
from gantransfer.pretrained.folder import read_source
from gantransfer.pretrained.source import latents, to_uint8
from gantransfer.reports import grids
from tests.runs import rig


def printed(capsys, *words):
    """What a command line that ends well writes for programs."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == 0
    return capsys.readouterr().out


# A run's folder


def test_a_run_says_a_line_and_writes_a_record_each_tick(whole):
    ticks = [16 * i for i in range(1, 13)]
    said = [line for line in (whole / "log.txt").read_text().splitlines() if line.startswith("kimg ")]
    assert len(said) == len(ticks) and all("sec/kimg" in line and "ETA" in line for line in said)
    records = rig.lines(whole / "metrics.jsonl")
    assert [record["images_seen"] for record in records] == ticks
    assert all({"loss/generator", "loss/discriminator", "logits/real"} < set(record) for record in records)
    assert [record["images_seen"] for record in rig.lines(whole / "timing.jsonl")] == ticks


def test_a_tick_is_the_mean_over_its_steps(letters, dots):
    settings = {**rig.TOY, "batch": 8}
    states = rig.advance(rig.make(dots, settings), 2)
    first, both = (states[i].tick["loss/generator"] for i in (1, 2))
    assert first[1] == 1 and both[1] == 2 and both[0] != 2 * first[0]


def test_a_run_writes_tensorboard_files(whole):
    pytest.importorskip("tensorboardX")
    content = b"".join(path.read_bytes() for path in (whole / "tensorboard").iterdir())
    assert content.count(b"loss/generator") >= 12 and b"logits/fake" in content


def test_grids_show_the_same_latents_of_the_average_with_a_class_to_a_row(whole, tmp_path):
    names = {path.name for path in (whole / "grids").iterdir()}
    assert names == {"reals.png", *(f"fakes_{seen:09d}.png" for seen in (0, 48, 96, 144, 192))}
    for seen in (0, 96, 192):
        source = read_source(whole / "snapshots" / f"{seen:09d}")
        z, classes = latents(2, source.networks.z_dim, 0), np.repeat(np.arange(10, dtype=np.int32), 2)
        images = to_uint8(source.generate(np.tile(z, (10, 1)), classes))
        again = grids.save_grid(
            tmp_path / f"{seen}.png", images, columns=2, labels=classes, class_names=source.info.class_names
        )
        assert again.read_bytes() == (whole / "grids" / f"fakes_{seen:09d}.png").read_bytes()
    one, other = ((whole / "grids" / f"fakes_{seen:09d}.png").read_bytes() for seen in (0, 192))
    assert one != other


def test_a_snapshot_is_a_source_with_weights_config_and_card(whole):
    folders = sorted(path.name for path in (whole / "snapshots").iterdir() if path.name != "best")
    assert folders == [f"{seen:09d}" for seen in (0, 48, 96, 144, 192)]
    folder = whole / "snapshots" / folders[-1]
    assert {"generator.safetensors", "discriminator.safetensors", "config.json", "README.md"} <= {
        p.name for p in folder.iterdir()
    }
    card = (folder / "README.md").read_text()
    assert "| real images seen | 192 |" in card and "class3" in card
    source, state = gantransfer.load(str(whole)), rig.newest_checkpoint(whole)
    assert source.info.images_seen == 192 and source.info.class_names[3] == "class3"
    average, raw = rig.leaves(source.ema["params"]), rig.leaves(source.generator["params"])
    assert {path: leaf.tobytes() for path, leaf in average.items()} == {
        path.removeprefix("ema/trained/"): leaf.tobytes()
        for path, leaf in state.items()
        if path.startswith("ema/trained/")
    }
    assert any(average[path].tobytes() != raw[path].tobytes() for path in raw)


def test_a_run_can_be_asked_what_it_is(whole):
    run = api.Run(str(whole))
    assert run.images_seen == 192 and run.snapshot.name == "000000192"
    assert len(run.metrics) == 12 and [record["images_seen"] for record in run.evaluations] == [0, 96, 192]
    assert sum(leaf["parameters"] for leaf in run.partition) == sum(
        leaf.size for tree in (run.source.ema, run.source.discriminator) for leaf in rig.leaves(tree["params"]).values()
    )
    assert run.source.sample(2).shape == (2, 16, 16, 1)
    assert json.loads((whole / "config.json").read_text())["batch"] == 8


def test_the_best_checkpoint_is_kept_beside_the_newest(whole):
    scores = {
        record["images_seen"]: record["metrics"]["frechet_distance"]
        for record in rig.lines(whole / "evaluations.jsonl")
    }
    kept = {int(path.name) for path in (whole / "checkpoints").iterdir() if path.name.isdigit()}
    best = min((96, 192), key=scores.__getitem__)
    assert kept == {168, 192, best}


def test_finetune_is_a_function(dots, tmp_path):
    settings = {name: value for name, value in rig.TOY.items() if name != "batch"}
    run = gantransfer.finetune(data=dots, kimg=0.016, batch=8, workdir=tmp_path / "run", seed=5, settings=settings)
    assert run.images_seen == 16 and run.path == tmp_path / "run"
    source = run.source
    again = gantransfer.finetune(
        source,
        dots,
        mode="class_embedding_only",
        kimg=0.008,
        batch=8,
        workdir=tmp_path / "b",
        settings={name: value for name, value in settings.items() if not name.startswith("model.")},
    )
    assert json.loads((again.path / "source.json").read_text())["fingerprint"] == source.fingerprint()
    assert {leaf["group"] for leaf in again.partition if leaf["trained"] and leaf["role"] == "generator"} == {
        "class_embedding"
    }


def test_a_config_may_hold_any_part_of_the_fields(dots, tmp_path):
    path = tmp_path / "config.py"
    path.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n"
        "    return ConfigDict({'batch': 8, 'optimizer': {'lr_d': 0.5}, 'model': {'family': 'toy'}})\n"
    )
    config = api.read_config(path, {"optimizer.lr_g": "1e-3"})
    assert (config.batch, config.optimizer.lr_d, config.optimizer.lr_g, config.ema.decay) == (8, 0.5, 1e-3, 0.995)
    path.write_text("from ml_collections import ConfigDict\ndef get_config(): return ConfigDict({'bach': 8})\n")
    with pytest.raises(UserError, match=r"config.bach: 8 .* did you mean batch\?"):
        api.read_config(path, {})


def test_options_of_a_family_that_are_text_stay_text():
    config = api.read_config(None, {"model.attention_g": "32_64", "model.width": "16", "model.spectral_g": "false"})
    assert dict(config.model) == {"attention_g": "32_64", "width": 16, "spectral_g": False}


# Dry run


def test_a_dry_run_says_everything_and_touches_nothing(dots, tmp_path, capsys):
    words = [*rig.command(tmp_path / "run", dots, {**rig.TOY, "mode": "class_embedding_only"}), "--dry_run"]
    text = printed(capsys, *words)
    assert not (tmp_path / "run").exists()
    sections = re.findall(r"^== (.*) ==$", text, re.M)
    assert sections == ["config", "data", "decisions", "partition", "parameters", "memory and cost"]
    assert '"mode": "class_embedding_only"' in text and "24 images, 8x8, grey; 3 classes" in text
    assert re.search(r"^generator: 9 of \d+ values train$", text, re.M)
    assert re.search(r"frozen +linear/kernel +linear", text) and "mode trains class_embedding" in text
    # clu's table.
    assert re.search(r"\| shared/embedding +\|", text) and "Total:" in text
    assert re.search(r"^running average of G +0\.00 MiB$", text, re.M) and re.search(
        r"^step: arithmetic .* GFLOP$", text, re.M
    )
    assert (
        gantransfer.dry_run(data=dots, mode="class_embedding_only", settings=rig.TOY).splitlines()[-1]
        == text.splitlines()[-1]
    )


# Sample


def test_a_grid_has_a_row_for_each_class_and_a_column_for_each_seed(whole, tmp_path, capsys):
    out = tmp_path / "grid.png"
    text = printed(capsys, "sample", "--source", whole, "--output", out, "--seeds", "0-2,7", "--classes", "class3,1")
    assert json.loads(text) == {"written": [str(out)]}
    source = gantransfer.load(str(whole))
    z = np.concatenate([latents(1, 12, seed) for seed in (0, 1, 2, 7)])
    expected = to_uint8(source.generate(np.tile(z, (2, 1)), np.repeat([3, 1], 4)))
    picture = grids.grid(expected, columns=4, row_titles=["class3", "class1"])
    assert out.read_bytes() == grids.png_bytes(picture)


def test_single_images_are_named_by_class_and_seed_and_do_not_depend_on_what_else_is_asked(whole, tmp_path, capsys):
    printed(capsys, "sample", "--source", whole, "--output", tmp_path / "many", "--seeds", "0-3")
    printed(capsys, "sample", "--source", whole, "--output", tmp_path / "one", "--seeds", "2", "--classes", "5")
    assert len(list((tmp_path / "many").iterdir())) == 40
    (one,) = (tmp_path / "one").iterdir()
    assert one.name == "class0005_seed000002.png"
    assert one.read_bytes() == (tmp_path / "many" / one.name).read_bytes()
    assert np.asarray(Image.open(one)).shape == (16, 16)


def test_truncation_narrows_the_samples(whole, tmp_path):
    paths = {
        t: api.sample(str(whole), tmp_path / str(int(100 * t)), seeds=range(30), classes=[0], truncation=t)
        for t in (1.0, 0.2)
    }
    spread = {
        t: np.stack([np.asarray(Image.open(path), float) for path in files]).std(axis=0).mean()
        for t, files in paths.items()
    }
    assert spread[0.2] < 0.6 * spread[1.0]


def test_a_walk_begins_and_ends_at_its_seeds(whole, tmp_path, capsys):
    strip = tmp_path / "walk.png"
    printed(
        capsys, "sample", "--source", whole, "--output", strip, "--seeds", "1,4", "--classes", "2", "--interpolate", 5
    )
    source = gantransfer.load(str(whole))
    z = np.concatenate([latents(1, 12, seed) for seed in (1, 4)])
    ends = to_uint8(source.generate(z, np.array([2, 2])))
    picture = np.asarray(Image.open(strip))
    assert picture.shape == (32, 5 * 32)
    assert (picture[:, :32] == np.kron(ends[0, ..., 0], np.ones((2, 2)))).all()
    assert (picture[:, -32:] == np.kron(ends[1, ..., 0], np.ones((2, 2)))).all()
    assert (picture[:, :32] != picture[:, 64:96]).any()


def test_a_walk_can_be_a_film(whole, tmp_path):
    (path,) = api.sample(str(whole), tmp_path / "walk.gif", seeds="0-1", classes=[0, 1], interpolate=4)
    with Image.open(path) as film:
        assert film.n_frames == 4


# Evaluate and report


def test_a_run_is_measured_against_what_it_was_trained_on(whole, letters, capsys):
    text = printed(
        capsys, "evaluate", "--source", whole, "--data", letters, "--features", "digits_cnn", "--num_images", 40
    )
    record = json.loads(text)
    assert (
        record["protocol"]["n_train"] == 60
        and record["protocol"]["reference"] == "all real images, 60 of them trained on"
    )
    (last,) = [r for r in rig.lines(whole / "evaluations.jsonl") if r["images_seen"] == 192]
    # The same samples and images as in the evaluation that ended the run.
    assert record["metrics"] == last["metrics"]
    assert record["protocol"]["reference_set"] == str(letters) and record["protocol"]["truncation"] == 1.0


def test_where_training_images_are_not_known_memorisation_is_left_out_and_said(whole, letters):
    snapshot = whole / "snapshots" / "000000192"
    (record,) = api.evaluate(snapshot, letters, features="digits_cnn", num_images=40)
    assert record["metrics"]["memorisation"] is None and record["protocol"]["n_train"] is None
    assert "not known" in record["protocol"]["reference"]
    few = open_images(str(letters)).subset(range(0, 60, 2)).arrays()[0]
    (known,) = api.evaluate(snapshot, letters, features="digits_cnn", num_images=40, train_images=few)
    assert known["metrics"]["memorisation"] > 0 and known["protocol"]["n_train"] == 30
    assert known["metrics"]["frechet_distance"] == record["metrics"]["frechet_distance"]


def test_reference_images_are_numbered_as_the_source_is(whole, letters):
    images = open_images(str(letters))
    turned = images.with_classes(images.class_names[::-1])
    one, other = (
        api.evaluate(whole, data, features="digits_cnn", num_images=40)[0]["metrics"] for data in (images, turned)
    )
    assert one["within_class_deviation"] == pytest.approx(other["within_class_deviation"])


def test_a_run_whose_images_have_changed_is_not_measured_as_if_they_had_not(dots, tmp_path):
    data = rig.write_zip(tmp_path / "data.zip", 16, 10, 1)
    assert rig.finetune(tmp_path / "run", data, {**rig.BIGGAN, "kimg": 0.0}) == 0
    rig.write_zip(data, 16, 10, 1, seed=9)
    with pytest.raises(UserError, match="was trained on; these are others"):
        api.evaluate(tmp_path / "run", data, features="digits_cnn", num_images=4)


def test_a_report_is_one_page(whole, whole_dots, tmp_path, capsys):
    page = json.loads(printed(capsys, "report", whole))["written"]
    assert page == str(whole / "report.html") and "<html" in (whole / "report.html").read_text()
    (whole / "report.html").unlink()
    written = api.report([api.Run(whole), whole_dots], tmp_path / "both.html", title="Two runs")
    assert "Two runs" in written.read_text()


# List


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("sources", "glyphs: biggan, 16 px, glyphs, 37 classes"),
        ("modes", "class_embedding_only: only the class embedding of G trains"),
        ("methods", "r1(gamma=10.0"),
        ("families", "biggan: Brock et al. 2018"),
        ("features", "digits_cnn: 10 classes of 16x16 grey images, 48 features, right on 99.4 % of 360"),
        ("metrics", "kid_full: the same over all pairs of the whole sets"),
        ("protocols", "studiogan: PyTorch-StudioGAN 0.4"),
        ("config", "batch = 64: real images in one update of D, over all devices (an integer of at least 1)"),
    ],
)
def test_what_can_be_named_is_listed_a_line_each(capsys, what, line):
    text = printed(capsys, "list", what)
    assert any(shown.startswith(line) for shown in text.splitlines()), text
    assert text.splitlines() == sorted(text.splitlines(), key=lambda shown: re.split(r"[:(= ]", shown)[0])
    assert "None: " not in text.splitlines()[0][:6] and len(text.splitlines()) >= 1


def test_a_list_can_be_narrowed(capsys):
    assert {line.split(" ")[0] for line in printed(capsys, "list", "config", "evaluate.*").splitlines()} == {
        f"evaluate.{name}"
        for name in "protocol metrics features weights data kimg every_kimg samples best stop_after at_end".split()
    }
