"""What a user gets wrong is one line: the field, its value, what is allowed; exit code 2, and nothing is touched."""

import contextlib
import resource
import shutil

import pytest

from gantransfer.__main__ import main
from gantransfer.training import loop
from tests.runs import rig

SOURCE = ("finetune", "--source", "glyphs", "--data", "DATA", "--workdir", "RUN")
MEAN = (*SOURCE, "--config.transfer.classes=mean", "--batch", "8")
TOY = ("finetune", "--data", "DOTS", "--workdir", "RUN", "--batch", "8", "--config.model.family=toy")
SAMPLE = ("sample", "--source", "glyphs", "--output", "RUN")

# name: (command line, the field as the user would write it, its value, words of what is allowed)
CASES = {
    # The command line itself.
    "verb": (
        ("finetun", "--data", "x"),
        "verb",
        "finetun",
        ("convert, evaluate, export, finetune", "did you mean finetune?"),
    ),
    "flag": (("finetune", "--sorce", "x"), "finetune", "--sorce", ("--batch, --config", "did you mean --source?")),
    "flag with value": (("sample", "--source=a", "--output=b", "--sed=1"), "sample", "--sed", ("did you mean --seed",)),
    "fields of another verb": (("list", "modes", "--config.kimg=1"), "--config.kimg", "list", ("the verb finetune",)),
    "list with spaces": (
        ("evaluate", "--source", "glyphs", "--metrics", "fid", "kid"),
        "evaluate",
        "kid",
        ("joined by commas",),
    ),
    "thing to list": (("list", "method"), "list", "method", ("did you mean methods?",)),
    # Missing paths.
    "source": (
        ("finetune", "--source", "glyph", "--data", "DATA", "--workdir", "RUN"),
        "source",
        "glyph",
        ("did you mean glyphs?",),
    ),
    "no source there": (
        (*SOURCE, "--source", "MISSING/x"),
        "source",
        "MISSING/x",
        ("a source folder or snapshot, a converted folder, a run",),
    ),
    "source folder of junk": (
        (*SOURCE, "--source", "JUNK"),
        "JUNK",
        "a folder without a checkpoint",
        ("a checkpoint of PyTorch",),
    ),
    "data": ((*SOURCE, "--data", "MISSING.zip"), "data", "MISSING.zip", ("there is nothing at this path",)),
    "no data": (("finetune", "--source", "glyphs", "--workdir", "RUN"), "data", None, ("a folder, a zip",)),
    "no workdir": (("finetune", "--source", "glyphs", "--data", "DATA"), "workdir", None, ("a folder for the run",)),
    "data that are no images": ((*SOURCE, "--data", "JUNK"), "data", "JUNK", ("at least one image file",)),
    "config file": (
        (*SOURCE, "--config", "MISSING.py"),
        "--config",
        "MISSING.py",
        ("a Python file with get_config()",),
    ),
    "config file of junk": ((*SOURCE, "--config", "JUNK/bad.py"), "--config", "JUNK/bad.py, line 1", ("get_config()",)),
    "config file without config": ((*SOURCE, "--config", "JUNK/no.py"), "--config", "JUNK/no.py", ("get_config()",)),
    "files": ((*MEAN, "--config.data.files=MISSING.txt"), "data.files", "MISSING.txt", ()),
    # Misspelt names.
    "key": (
        (*SOURCE, "--config.optimiser.lr_g=1"),
        "config.optimiser.lr_g",
        "1",
        ("list config", "mean optimizer.lr_g?"),
    ),
    "section": ((*SOURCE, "--config.lr_g=1"), "config.lr_g", "1", ("did you mean optimizer.lr_g?",)),
    "model option": ((*TOY, "--config.model.with=4"), "model", "with", ("num_classes",)),
    "family": ((*SOURCE, "--config.model.family=bigan"), "model.family", "bigan", ("did you mean biggan?",)),
    "mode": (
        (*SOURCE, "--mode", "class_embeding_only"),
        "mode",
        "class_embeding_only",
        ("mean class_embedding_only?",),
    ),
    "method": ((*MEAN, "--config.methods=weight_decai"), "methods", "weight_decai", ("did you mean weight_decay?",)),
    "method's setting": ((*MEAN, "--config.methods=r1(gama=1.0)"), "methods.r1", "gama", ("did you mean gamma?",)),
    "loss": ((*SOURCE, "--config.objective.loss=hinges"), "objective.loss", "hinges", ("hinge, least_squares",)),
    "policy": ((*SOURCE, "--config.transfer.classes=average"), "transfer.classes", "average", ("mean, nearest",)),
    "class of a map": (
        (*SOURCE, "--config.transfer.classes=list", "--config.transfer.class_map=('class0=A',)"),
        "transfer.class_map",
        None,
        ("missing class1",),
    ),
    "network": ((*MEAN, "--config.evaluate.features=digit_cnn"), "feature network", "digit_cnn", ("digits_cnn?",)),
    "metric": (
        (*MEAN, "--config.evaluate.features=digits_cnn", "--config.evaluate.best=fid"),
        "evaluate.best",
        "fid",
        ("frechet_distance",),
    ),
    "best of nothing": ((*MEAN, "--config.evaluate.best=fid"), "evaluate.best", "fid", ("nothing without",)),
    "protocol": ((*MEAN, "--config.evaluate.protocol=clea"), "protocol", "clea", ("did you mean clean?",)),
    "protocol's metric": (
        (*MEAN, "--config.evaluate.metrics=('fidd',)"),
        "metric",
        "fidd",
        ("did you mean fid?",),
    ),
    # Values out of range.
    "kimg": ((*SOURCE, "--kimg", "-1"), "kimg", -1.0, ("a number of at least 0",)),
    "kimg as text": ((*SOURCE, "--kimg", "long"), "kimg", "long", ("a number of at least 0",)),
    "batch": ((*SOURCE, "--batch", "0"), "batch", 0, ("an integer of at least 1",)),
    "half an image": ((*SOURCE, "--batch", "2.5"), "batch", 2.5, ("an integer of at least 1",)),
    "seed": ((*SOURCE, "--seed", "-3"), "seed", -3, ("an integer from 0",)),
    "infinite rate": ((*SOURCE, "--config.optimizer.lr_d=1e999"), "optimizer.lr_d", float("inf"), ("at least 0",)),
    "no rate": (
        (*MEAN, "--config.optimizer.rates=('generator=1',)"),
        "optimizer.rates",
        "generator=1",
        ("GROUP=RATE",),
    ),
    "decay": ((*SOURCE, "--config.ema.decay=1"), "ema.decay", 1.0, ("a number from 0 to",)),
    "period": ((*SOURCE, "--config.run.tick_kimg=0"), "run.tick_kimg", 0.0, ("at least 0.001",)),
    "strength": ((*MEAN, "--config.methods=r1(gamma=-1.0)"), "r1.gamma", -1.0, ("at least 0",)),
    "points": (
        (*TOY, "--config.evaluate.features=digits_cnn", "--config.evaluate.kimg=('soon',)"),
        "evaluate.kimg",
        ("soon",),
        ("numbers of kimg",),
    ),
    "shots": ((*MEAN, "--config.data.images=900"), "data.images", 900, ()),
    # What does not fit together.
    "classes": (SOURCE, "transfer.classes", None, ("37 source classes and 10 target classes", "one of mean, nearest")),
    "resolution": ((*MEAN, "--config.data.resolution=32"), "data.resolution", 32, ("16, as source glyphs makes",)),
    "channels": ((*MEAN, "--config.data.channels=3"), "data.channels", 3, ("1, as source glyphs makes",)),
    "exact size": ((*MEAN, "--data", "DOTS", "--config.data.fit=exact"), "data", None, ("16",)),
    "architecture beside a source": ((*MEAN, "--config.model.width=8"), "model.width", 8, ("nothing beside a source",)),
    "batch over devices": (
        (*SOURCE, "--config.transfer.classes=mean", "--batch", "12"),
        "batch",
        12,
        ("a multiple of 8 (8 devices along data x 1 micro-batches)",),
    ),
    "micro-batches": (
        (*SOURCE, "--batch", "8", "--config.objective.accumulate=3"),
        "objective.accumulate",
        3,
        ("divisor",),
    ),
    "micro-batches over devices": ((*MEAN, "--config.objective.accumulate=2"), "batch", 8, ("a multiple of 16",)),
    "model axis": (
        (*MEAN, "--config.devices.model=3"),
        "devices.model",
        3,
        ("a divisor of the 8 devices: 1, 2, 4, 8",),
    ),
    "devices": ((*MEAN, "--config.devices.count=9"), "devices.count", 9, ("from 1 to 8",)),
    "pattern": (
        (*MEAN, "--mode", "custom", "--config.transfer.train_g=block.8"),
        "transfer.train_g",
        "block.8",
        ("blocks.16, blocks.8, class_embedding",),
    ),
    "pattern beside a mode": ((*MEAN, "--config.transfer.train_g=*"), "transfer.train_g", ("*",), ("mode=custom",)),
    "nothing to train": (
        (
            *TOY,
            "--mode",
            "custom",
            "--config.transfer.train_d=*",
            "--config.methods=('freeze_discriminator(blocks=2, heads=True)','fade_in')",
        ),
        "transfer.train_g",
        (),
        ("something to train",),
    ),
    "methods": ((*MEAN, "--config.methods=('r1','r1')"), "methods", "r1, r1", ("one method only",)),
    "rule of sharding": ((*TOY, "--config.devices.rules=kernel"), "devices.rules", "kernel", ("pattern=axis",)),
    "rule of two signs": ((*TOY, "--config.devices.rules=*=--1"), "devices.rules", "*=--1", ("pattern=axis",)),
    "rule for nothing": (
        (*TOY, "--config.devices.rules=*/kernels=-1"),
        "devices.rules",
        "*/kernels=-1",
        ("matches a leaf",),
    ),
    "state that does not fit the rule": (
        (*TOY, "--config.devices.model=2", "--config.devices.rules=generator/*/bias=1"),
        "devices.rules",
        "generator/*/bias=1",
        ("an axis of generator/trained/", "that 2 devices divide"),
    ),
    "network of other classes": (
        (*SOURCE, "--data", "glyphs:test", "--batch", "8", "--config.evaluate.features=digits_cnn"),
        "evaluate.features",
        "digits_cnn: 10 classes",
        ("37 classes",),
    ),
    "network of another size": (
        (*TOY, "--config.evaluate.features=digits_cnn"),
        "images for digits_cnn",
        "8x8x1",
        ("16x16x1",),
    ),
    # Where a run cannot be.
    "workdir is a file": ((*TOY, "--workdir", "DATA"), "workdir", "DATA", ("a folder that can be written",)),
    "workdir is remote": ((*TOY, "--workdir", "gs://bucket/run"), "workdir", "gs://bucket/run", ("local or mounted",)),
    "workdir of something else": ((*TOY, "--workdir", "JUNK"), "JUNK/config.json", "not JSON", ("another workdir",)),
    "workdir of a source": ((*TOY, "--workdir", "KEPT"), "workdir", "KEPT", ("a new folder or a run's",)),
    # The other verbs.
    "seeds": ((*SAMPLE, "--seeds", "a-b"), "--seeds", "a-b", ("such as 0-15,40",)),
    "backward seeds": ((*SAMPLE, "--seeds", "3-1"), "--seeds", "3-1", ("ranges from low to high",)),
    "endless seeds": ((*SAMPLE, "--seeds", "0-99999999999"), "--seeds", "0-99999999999", ("from 1 to 100000",)),
    "class": ((*SAMPLE, "--classes", "AA"), "classes", "AA", ("A, B",)),
    "index of a class": ((*SAMPLE, "--classes", "99"), "classes", "99", ("0..36",)),
    "truncation": ((*SAMPLE, "--truncation", "0"), "--truncation", 0.0, ("above 0, up to 1",)),
    "output": (("sample", "--source", "glyphs", "--output", "RUN.jpg"), "--output", "RUN.jpg", ("a .png or a folder",)),
    "output is a folder": (
        ("sample", "--source", "glyphs", "--output", "JUNK/made.png"),
        "--output",
        "JUNK/made.png",
        ("another name",),
    ),
    "output of a walk": ((*SAMPLE, "--interpolate", "8"), "--output", "RUN", (".png, .gif or .mp4",)),
    "frames": (
        ("sample", "--source", "glyphs", "--output", "RUN.gif", "--interpolate", "1"),
        "--interpolate",
        1,
        ("2 frames",),
    ),
    "columns": (
        ("sample", "--source", "glyphs", "--output", "RUN.png", "--seeds", "0", "--classes", "A", "--columns", "0"),
        "grid.columns",
        0,
        ("at least 1",),
    ),
    "reference of other classes": (
        ("evaluate", "--source", "glyphs", "--data", "DATA", "--features", "letters_cnn"),
        "data",
        "DATA: 10 classes",
        ("37 classes of glyphs",),
    ),
    "network of the reference": (
        ("evaluate", "--source", "glyphs", "--data", "glyphs:test", "--features", "digits_cnn"),
        "features",
        "digits_cnn: 10 classes",
        ("37 classes",),
    ),
    "samples": (
        ("evaluate", "--source", "glyphs", "--data", "DATA", "--features", "letters_cnn", "--num_images", "1"),
        "--num_images",
        1,
        ("at least 2",),
    ),
    "report of nothing": (("report", "MISSING"), "report.runs", "MISSING", ("a run's folder",)),
}
# What argparse says of words that it takes itself.
BARE = {
    "missing flag": (("sample", "--source", "glyphs"), "the following arguments are required: --output"),
    "number": ((*SAMPLE, "--truncation", "half"), "argument --truncation: invalid float value: 'half'"),
    "value": (("finetune", "--data"), "argument --data: expected one argument"),
}


@pytest.fixture(scope="module")
def places(letters, dots, tmp_path_factory):
    """What the words in capitals of the command lines stand for."""
    folder = tmp_path_factory.mktemp("bad")
    junk = folder / "junk"
    (junk / "made.png").mkdir(parents=True)
    (junk / "config.json").write_text("{")
    (junk / "bad.py").write_text("def (")
    (junk / "no.py").write_text("x = 1")
    kept = folder / "kept"
    kept.mkdir()
    (kept / "config.json").write_text('{"family": "biggan"}')
    words = {"RUN": folder / "run", "MISSING": folder / "missing", "JUNK": junk, "KEPT": kept}
    return {"DATA": letters, "DOTS": dots, **words}


def written(value, places):
    if isinstance(value, str):
        for word, place in places.items():
            value = value.replace(word, str(place))
    return value


@pytest.mark.parametrize("name", CASES)
def test_what_is_wrong_is_one_line_with_field_value_and_what_is_allowed(places, capsys, name):
    words, field, value, allowed = CASES[name]
    before = rig.everything(places["JUNK"].parent)
    code = main([written(word, places) for word in words])
    output = capsys.readouterr()
    assert code == 2, output.err
    assert output.out == "" and "Traceback" not in output.err
    assert len(output.err.splitlines()) == 1, output.err
    assert output.err.startswith(f"gantransfer: {written(field, places)}: "), output.err
    assert " is not accepted; allowed: " in output.err
    if value is not None:
        said = repr(written(value, places))
        assert f": {said[:-1] if said.endswith(chr(39)) else said}" in output.err
    for part in allowed:
        assert part in output.err.partition("; allowed: ")[2]
    assert rig.everything(places["JUNK"].parent) == before and not places["RUN"].exists()


@pytest.mark.parametrize("name", BARE)
def test_words_that_cannot_be_parsed_are_one_line(places, capsys, name):
    words, message = BARE[name]
    assert main([written(word, places) for word in words]) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err == f"gantransfer: {message}\n"


def test_without_a_verb_the_help_is_shown(capsys):
    assert main([]) == 2
    assert "gantransfer finetune --source glyphs" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_one_line(places, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    assert (
        main(["sample", "--source", "glyphs", "--seeds", "0", "--classes", "A", "--output", f"{tmp_path}/file/a.png"])
        == 2
    )
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and str(tmp_path / "file") in said and "a place to write to" in said


# Disks and damage


@contextlib.contextmanager
def full_disk_from(monkeypatch, name, call):
    """From a certain call of a method of the trainer on no file can grow beyond 16 kB, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    original, calls = getattr(loop.Trainer, name), iter(range(10**6))

    def limited(self, *arguments):
        if next(calls) == call:
            # What is still being written of the checkpoint before is not what this disk is too small for.
            self.checkpoints.wait()
            resource.setrlimit(resource.RLIMIT_FSIZE, (16_000, hard))
        return original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, name, limited)
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(("while_writing", "call"), [("save", 1), ("show", 1)])
def test_a_disk_that_runs_full_is_one_line_and_the_run_goes_on_from_the_checkpoint_before(
    whole, letters, tmp_path, monkeypatch, capfd, while_writing, call
):
    workdir = tmp_path / "run"
    with full_disk_from(monkeypatch, while_writing, call):
        assert rig.finetune(workdir, letters, rig.LETTERS) == 2
    said = capfd.readouterr().err.splitlines()
    assert f"workdir: '{workdir}" in said[-1] and "MB free" in said[-1] and "still good" in said[-1]
    assert not any("Traceback" in line for line in said)
    assert rig.finetune(workdir, letters, rig.LETTERS) == 0
    rig.assert_same_run(whole, workdir)


def test_a_run_whose_checkpoints_are_all_damaged_is_refused_and_nothing_is_overwritten(
    whole_dots, dots, tmp_path, capsys
):
    workdir = tmp_path / "whole"
    shutil.copytree(whole_dots, workdir)
    for checkpoint in (workdir / "checkpoints").iterdir():
        largest = max(checkpoint.rglob("*"), key=lambda path: path.stat().st_size)
        largest.write_bytes(largest.read_bytes()[:-1])
    before = rig.files(workdir)
    assert rig.finetune(workdir, dots, {**rig.DOTS, "kimg": 0.4}) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith(f"gantransfer: workdir: '{workdir}/checkpoints' is not accepted; allowed: a run with a")
    after = rig.files(workdir)
    assert {name for name in before if before[name] != after[name]} == {"config.json"}
