"""A source folder holds a source exactly, and nothing else is taken for one."""

import json
import struct

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gantransfer.errors import UserError
from gantransfer.pretrained import folder as folders
from gantransfer.pretrained.folder import read_source, write_source
from gantransfer.pretrained.source import Source, with_info


@pytest.fixture
def written(plain_source, tmp_path):
    write_source(tmp_path / "fruit", plain_source, card="# Fruit\n")
    return tmp_path / "fruit"


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def test_a_source_comes_back_bit_for_bit(plain_source, written, tiny):
    back = read_source(written)
    assert back.info == plain_source.info
    assert back.networks.generator == plain_source.networks.generator
    for mine, theirs in ((plain_source.ema, back.ema), (plain_source.generator, back.generator)):
        assert tiny.leaves(mine).keys() == tiny.leaves(theirs).keys()
        for path, leaf in tiny.leaves(mine).items():
            np.testing.assert_array_equal(leaf, tiny.leaves(theirs)[path], err_msg=path)
    assert back.fingerprint() == plain_source.fingerprint()
    assert (written / "README.md").read_text() == "# Fruit\n"


def test_the_folder_holds_the_documented_files_and_leaf_names(written):
    names = {file.name for file in written.iterdir()}
    assert names == {
        "config.json", "README.md", "generator.safetensors", "generator_raw.safetensors", "discriminator.safetensors"
    }  # fmt: skip
    assert {"params/shared/embedding", "batch_stats/block_0/bn1/mean"} <= set(
        load_file(written / "generator.safetensors")
    )
    config = json.loads((written / "config.json").read_text())
    assert config["has"] == {"generator": True, "ema": True, "discriminator": True}
    assert config["class_names"] == ["apple", "banana", "cherry"]


def test_transposed_arrays_are_written_as_they_read(plain_source, tiny, tmp_path):
    table = tiny.leaves(plain_source.ema)["params/linear/kernel"]
    turned = tiny.replace_leaves(plain_source.ema, params__linear__kernel=np.asfortranarray(table))
    write_source(tmp_path / "t", Source(plain_source.info, plain_source.networks, turned, turned), card="")
    np.testing.assert_array_equal(tiny.leaves(read_source(tmp_path / "t").ema)["params/linear/kernel"], table)


def test_one_generator_and_no_discriminator_make_one_file(plain_source, tiny, tmp_path):
    alone = tiny.without_discriminator(plain_source)
    alone = Source(alone.info, alone.networks, alone.ema, alone.ema)
    write_source(tmp_path / "g", alone, card="")
    assert sorted(file.name for file in (tmp_path / "g").glob("*.safetensors")) == ["generator.safetensors"]
    back = read_source(tmp_path / "g")
    assert back.generator is back.ema and back.discriminator is None and not back.info.has_discriminator


def test_writing_again_replaces_the_folder(plain_source, written):
    write_source(written, with_info(plain_source, images_seen=1280), card="# New\n")
    assert read_source(written).info.images_seen == 1280
    assert [path.name for path in written.parent.iterdir()] == ["fruit"]


def test_a_write_that_fails_leaves_the_old_folder(plain_source, written, monkeypatch):
    def full(file, variables):
        raise OSError("no space left on device")

    monkeypatch.setattr(folders, "_write_variables", full)
    with pytest.raises(OSError, match="no space"):
        write_source(written, with_info(plain_source, images_seen=1280), card="")
    assert [path.name for path in written.parent.iterdir()] == ["fruit"]
    assert read_source(written).info.images_seen == 640


def test_a_folder_of_other_things_is_never_replaced(plain_source, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("Call me Ishmael.")
    with pytest.raises(UserError, match="thesis"):
        write_source(tmp_path / "thesis", plain_source, card="")
    assert (tmp_path / "thesis" / "chapter1.txt").read_text() == "Call me Ishmael."


def test_all_differences_from_the_architecture_are_reported_at_once(written):
    file = written / "discriminator.safetensors"
    flat = load_file(file)
    flat["params/extra/kernel"] = np.zeros((2, 2), np.float32)
    flat["params/head/bias"] = flat["params/head/bias"].astype(np.float16)
    flat["params/embed/embedding"] = np.zeros((4, 16), np.float32)
    del flat["params/head/kernel"]
    save_file(flat, file)
    with pytest.raises(UserError) as caught:
        read_source(written)
    message = str(caught.value)
    assert caught.value.field == str(file)
    assert "1 missing: params/head/kernel F32[16, 1]" in message
    assert "1 unexpected: params/extra/kernel F32[2, 2]" in message
    assert "params/head/bias F16[1] instead of F32[1]" in message
    assert "params/embed/embedding F32[4, 16] instead of F32[3, 16]" in message


def header(text, size=None):
    return struct.pack("<Q", len(text) if size is None else size) + text.encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 8,
        b"\xff" * 64,
        header("{}", size=2**62),
        header('{"params/head/bias": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4000000000]}}'),
        header('{"params/head/bias": {"dtype": "F32", "shape": [4294967296, 4294967296], "data_offsets": [0, 0]}}'),
        header("[" * 5000),
        b"\x80\x04\x95pickle",
    ],
)
def test_hostile_weight_files_are_refused_by_name(written, content):
    (written / "generator.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="generator.safetensors"):
        read_source(written)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
def test_truncated_weight_files_are_refused_by_name(written, share):
    file = written / "generator.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UserError, match="generator.safetensors"):
        read_source(written)


def test_a_missing_weight_file_is_refused_by_name(written):
    (written / "discriminator.safetensors").unlink()
    with pytest.raises(UserError, match="discriminator.safetensors"):
        read_source(written)


def test_a_changed_weight_is_found_by_the_fingerprint(written):
    file = written / "generator.safetensors"
    flat = load_file(file)
    flat["params/out_conv/bias"] = flat["params/out_conv/bias"] + np.float32(1e-3)
    save_file(flat, file)
    with pytest.raises(UserError, match="fingerprint"):
        read_source(written)
    edit_config(written, fingerprint=None)
    read_source(written)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "[" * 100_000, '{"format_version": 2}', "\udcff"])
def test_broken_configs_are_refused_by_name(written, content):
    (written / "config.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match="config.json"):
        read_source(written)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"family": "bigan"}, "did you mean biggan"),
        ({"options": {"resolution": 16, "widht": 4}}, "did you mean width"),
        ({"options": {"resolution": 17}}, "resolution"),
        ({"options": []}, "options"),
        ({"class_names": ["a", "b"]}, "3 names"),
        ({"options": {"resolution": 16, "channels": 1, "width": 8}}, "instead of"),
        ({"options": {"width": 10**12}}, "numbers up to"),
        ({"options": {"spectral_eps": float("nan")}}, "numbers up to"),
        ({"class_names": "abc"}, "class_names"),
        ({"images_seen": -1}, "images_seen"),
        ({"has": {"generator": True}}, "has"),
        ({"has": {"generator": True, "ema": True, "discriminator": False}}, "discriminator.safetensors"),
        ({"code": "import os"}, "code"),
        ({"licence": None}, "licence"),
    ],
)
def test_wrong_fields_of_a_config_are_named(written, changes, words):
    edit_config(written, **changes)
    with pytest.raises(UserError, match=words):
        read_source(written)
