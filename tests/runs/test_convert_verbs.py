"""The verbs convert and export: what they print, what they leave, and how they end."""

import json

import numpy as np
import pytest

import gantransfer
from gantransfer.__main__ import main

SMALL = "parity/biggan/cifar32/weights/cifar32_small"


def ran(capsys, *words):
    """Exit code, standard output and standard error of a command line."""
    capsys.readouterr()
    code = main([str(word) for word in words])
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.fixture(scope="module")
def converted(shared, tmp_path_factory):
    place = tmp_path_factory.mktemp("verbs")
    assert main(["convert", str(shared / SMALL / "G_ema.pth"), str(place / "g"), "--licence", "MIT"]) == 0
    return place / "g"


def test_convert_prints_a_record_and_tells_people_the_rest(shared, tmp_path, capsys):
    words = ("--class_names", tmp_path / "names.txt", "--option", "out_norm_eps=1e-4", "--origin", "a test")
    (tmp_path / "names.txt").write_text("\n".join(f"kind {i}" for i in range(10)))
    code, out, err = ran(capsys, "convert", shared / SMALL, tmp_path / "out", *words)
    assert code == 0
    record = json.loads(out)
    assert record["layout"] == "biggan-pytorch" and record["entries"]["missing"] == 1
    assert "holds a generator, its average, a discriminator" in err and "projection_scale" in err
    content = json.loads((tmp_path / "out" / "source.json").read_text())
    assert content["class_names"][3] == "kind 3" and content["origin"] == "a test"
    assert content["options"]["out_norm_eps"] == 1e-4


def test_a_converted_folder_stands_wherever_a_source_does(converted, tmp_path, capsys):
    code, out, _ = ran(capsys, "sample", "--source", converted, "--seeds", "0-1", "--output", tmp_path / "a.png")
    assert code == 0 and json.loads(out)["written"] == [str(tmp_path / "a.png")]


def test_export_writes_what_load_takes_back(converted, tmp_path, capsys):
    code, out, _ = ran(capsys, "export", converted, "biggan-pytorch", tmp_path / "out")
    assert code == 0
    assert {path.rpartition("/")[2] for path in json.loads(out)["written"]} == {
        "G_ema.pth", "state_dict.pth", "README.md"
    }  # fmt: skip
    assert gantransfer.load(tmp_path / "out").fingerprint() == gantransfer.load(converted).fingerprint()


def test_the_verbs_are_functions_too(converted, tmp_path):
    written = gantransfer.export(converted, "safetensors", tmp_path / "out")
    assert (tmp_path / "out" / "config.json") in written
    z = np.zeros((1, 16), np.float32)
    np.testing.assert_array_equal(
        gantransfer.load(tmp_path / "out").generate(z), gantransfer.load(converted).generate(z)
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("convert", "nowhere.pth", "OUT"), "nowhere.pth"),
        (("convert", "GOOD", "TAKEN"), "nothing is overwritten"),
        (("convert", "GOOD", "OUT", "--option", "width"), "NAME=VALUE"),
        (("convert", "GOOD", "OUT", "--option", "witdh=3"), "did you mean width"),
        (("convert", "GOOD", "OUT", "--drop", "nothing"), "--drop"),
        (("convert", "GOOD", "OUT", "--layout", "bigan-pytorch"), "did you mean biggan-pytorch"),
        (("convert", "TEXT", "OUT"), "checkpoint"),
        (("export", "GOOD", "biggan", "OUT"), "did you mean biggan-pytorch"),
        (("export", "GOOD", "stylegan2-ada-pytorch", "OUT"), "is for stylegan2"),
        (("export", "GOOD", "safetensors", "TAKEN"), "nothing is overwritten"),
        (("export", "nowhere", "safetensors", "OUT"), "a catalogue name"),
    ],
)
def test_mistakes_end_with_one_line_and_leave_nothing(shared, tmp_path, capsys, words, said):
    (tmp_path / "taken").mkdir()
    (tmp_path / "text.pth").write_text("not a checkpoint")
    places = {
        "GOOD": shared / SMALL / "G_ema.pth",
        "OUT": tmp_path / "out",
        "TAKEN": tmp_path / "taken",
        "TEXT": tmp_path / "text.pth",
    }
    code, out, err = ran(capsys, *(places.get(word, word) for word in words))
    lines = [line for line in err.splitlines() if line.startswith("gantransfer: ")]
    assert code == 2 and not out and len(lines) == 1 and said in lines[0]
    assert {path.name for path in tmp_path.iterdir()} == {"taken", "text.pth"} and not list(places["TAKEN"].iterdir())
