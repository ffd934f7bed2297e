"""Files of torch.save: the stored fixtures to the bit, and files that lie."""

import contextlib
import zipfile

import numpy as np
import pytest

from gantransfer.errors import UserError
from gantransfer.pretrained.readers import mapped, read
from tests.pretrained.readers import files

VALUES = np.arange(6, dtype=np.float32)
DATA = VALUES.tobytes()


def refused(path, *words, at=None):
    """Reading `at` (or `path` itself) is refused in one line that begins with `path` and holds the words."""
    with pytest.raises(UserError) as caught:
        read(at or path)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message and len(message) < len(str(path)) + 500
    for word in words:
        assert word in message, message


def equal(arrays, expected):
    assert arrays.keys() == expected.keys()
    for key, array in arrays.items():
        assert array.dtype == expected[key].dtype, key
        np.testing.assert_array_equal(array, expected[key], err_msg=key)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("mnist_lenet/lenet5_epoch12.pth", "torch-legacy"),
        ("mnist_lenet/lenet5_zipformat.pth", "torch-zip"),
    ],
)
def test_a_published_classifier_is_read_to_the_bit(shared, name, kind):
    contents = read(shared / "weights" / name)
    assert contents.format == kind and contents.files == (shared / "weights" / name,)
    equal(contents.states[""], dict(np.load(shared / "weights/mnist_lenet/lenet5.npz")))


@pytest.mark.parametrize("net", ["alex", "vgg", "squeeze"])
def test_published_lpips_heads_saved_on_a_gpu_are_read_to_the_bit(shared, net):
    expected = np.load(shared / "weights/lpips_heads/heads.npz")
    (state,) = read(shared / f"weights/lpips_heads/{net}.pth").states.values()
    assert len(state) == sum(key.startswith(f"{net}/") for key in expected)
    for key, array in state.items():
        number = key.split(".")[0].removeprefix("lin")
        np.testing.assert_array_equal(array.ravel(), expected[f"{net}/lin{number}"])


@pytest.mark.parametrize(
    ("folder", "tables"),
    [
        ("biggan/cifar32/weights/cifar32_small", {"G", "G_ema", "D"}),
        ("biggan/imagenet128/weights/imagenet128_small", {"G", "G_ema", "D"}),
        ("biggan_deep/weights/biggandeep_small", {"G", "G_ema", "D"}),
        ("biggan/cifar32/weights_legacy/cifar32_small", {"G_ema"}),
    ],
)
def test_a_folder_of_the_reference_becomes_one(shared, folder, tables):
    contents = read(shared / "parity" / folder)
    assert contents.states.keys() == tables
    assert contents.config["G_activation"] == "torch.nn.modules.activation.ReLU"
    assert contents.extras["training"]["itr"] == 3
    assert {path.name for path in contents.files} == {path.name for path in (shared / "parity" / folder).iterdir()}
    assert all(np.isfinite(array).all() for state in contents.states.values() for array in state.values())


def test_both_formats_of_a_folder_hold_the_same(shared):
    root = shared / "parity/biggan/cifar32"
    new, old = read(root / "weights/cifar32_small"), read(root / "weights_legacy/cifar32_small")
    assert (new.format, old.format) == ("torch-zip", "torch-legacy")
    equal(old.states["G_ema"], new.states["G_ema"])
    moments = [
        [contents.extras["G_optim"]["state"][i]["exp_avg_sq"] for i in group["params"]]
        for contents in (new, old)
        for group in contents.extras["G_optim"]["param_groups"]
    ]
    assert len(moments[0]) == len(moments[1]) > 20
    assert all(np.array_equal(a, b) for a, b in zip(*moments, strict=True))


def test_arrays_are_read_only_views_of_the_file(shared):
    state = read(shared / "weights/mnist_lenet/lenet5_zipformat.pth").states[""]
    assert not any(array.flags.writeable or array.flags.owndata for array in state.values())


def test_a_file_of_a_folder_takes_the_options_beside_it(shared):
    contents = read(shared / "parity/biggan/cifar32/weights/cifar32_small/G_ema.pth")
    assert contents.config["G_ch"] == 6 and contents.states.keys() == {""} and len(contents.files) == 2


def test_names_with_an_equals_sign_are_found(shared):
    contents = read(shared / "parity/biggan/studiogan32")
    assert contents.states.keys() == {"G", "D", "G_ema"} and contents.config["step"] == 3
    assert contents.extras.keys() == {"G_optim", "D_optim"}
    counters = [key for key in contents.states["G"] if key.endswith("num_batches_tracked")]
    assert counters and all(contents.states["G"][key].dtype == np.int64 for key in counters)


def test_weights_with_a_json_configuration_are_read_together(shared):
    folder = shared / "parity/biggan_deep_hf"
    contents = read(folder)
    assert contents.format == "huggingface" and contents.config["n_stats"] == 51 and len(contents.states[""]) == 506
    assert [path.name for path in contents.files] == ["pytorch_model.bin", "config.json"]
    assert read(folder / "pytorch_model.bin").config == contents.config


@pytest.mark.parametrize("data", ["cifar10", "mnist"])
def test_a_pair_of_files_of_the_dcgan_scripts(shared, data):
    contents = read(shared / "parity/biggan/dcgan" / data)
    assert contents.states.keys() == {"G", "D"} and "main.0.weight" in contents.states["G"]


# Files written here.


def test_strides_offsets_and_shared_storages_are_honoured(tmp_path):
    opcodes = files.mapping(
        a=files.tensor("0", 6, (3, 2), (1, 3)), b=files.tensor("0", 6, (2,), offset=4), c=files.tensor("0", 6, ()),
        d=files.tensor("0", 6, (0, 5)), e=files.tensor("0", 6, (4, 2), (0, 1)),
    )  # fmt: skip
    state = read(files.write_zip(tmp_path / "a.bin", opcodes, {"0": DATA})).states[""]
    np.testing.assert_array_equal(state["a"], VALUES.reshape(2, 3).T)
    np.testing.assert_array_equal(state["b"], VALUES[4:])
    assert state["c"].shape == () and state["d"].shape == (0, 5)
    np.testing.assert_array_equal(state["e"], np.tile(VALUES[:2], (4, 1)))


@pytest.mark.parametrize(
    ("kind", "data", "expected"),
    [
        ("HalfStorage", VALUES.astype("<f2"), VALUES.astype(np.float16)),
        ("LongStorage", np.arange(6), np.arange(6)),
        ("BoolStorage", VALUES > 2, VALUES > 2),
        ("BFloat16Storage", (VALUES.view(np.uint32) >> 16).astype(np.uint16), VALUES),
    ],
)
def test_kinds_of_numbers(tmp_path, kind, data, expected):
    opcodes = files.mapping(a=files.tensor("0", 6, (6,), kind=kind))
    contents = read(files.write_zip(tmp_path / "a.pt", opcodes, {"0": data.tobytes()}))
    equal(contents.states[""], {"a": expected})
    assert bool(contents.notes) == (kind == "BFloat16Storage")


def test_big_endian_numbers_are_turned(tmp_path):
    opcodes = files.mapping(a=files.tensor("0", 6, (6,)))
    path = files.write_zip(tmp_path / "a.pt", opcodes, {"0": VALUES.astype(">f4").tobytes()}, byteorder="big")
    contents = read(path)
    equal(contents.states[""], {"a": VALUES})
    assert contents.states[""]["a"].dtype.isnative and "byte order" in contents.notes[0]
    system = {"little_endian": False}
    raw = files.legacy(opcodes, ["0"], [(6, VALUES.astype(">f4").tobytes())], system)
    (tmp_path / "b.pt").write_bytes(raw)
    equal(read(tmp_path / "b.pt").states[""], {"a": VALUES})


def test_parts_of_storages_in_the_oldest_files(tmp_path):
    opcodes = files.mapping(a=files.tensor("7", 6, (2,), view=("8", 2, 3), offset=1))
    (tmp_path / "a.pth").write_bytes(files.legacy(opcodes, ["7"], [(6, DATA)]))
    np.testing.assert_array_equal(read(tmp_path / "a.pth").states[""]["a"], VALUES[3:5])


def test_numbers_that_are_not_finite_are_kept(tmp_path):
    values = np.array([np.nan, np.inf, -np.inf], np.float32)
    path = files.write_zip(tmp_path / "a", files.mapping(a=files.tensor("0", 3, (3,))), {"0": values.tobytes()})
    np.testing.assert_array_equal(read(path).states[""]["a"], values)


def test_nested_networks_get_the_usual_names(tmp_path):
    one = files.mapping(**{"module.w": files.tensor("0", 6, (6,))})
    opcodes = files.mapping(
        g=one, d=files.mapping(w=files.tensor("0", 6, (2,))), g_ema=files.mapping(state_dict=one), step=files.plain(7),
        opt=files.mapping(param_groups=files.plain([]), state=files.mapping(m=files.tensor("0", 6, (1,)))),
    )  # fmt: skip
    contents = read(files.write_zip(tmp_path / "a.pt", opcodes, {"0": DATA}))
    assert {name: list(state) for name, state in contents.states.items()} == {"G": ["w"], "D": ["w"], "G_ema": ["w"]}
    assert contents.config == {"step": 7} and contents.extras["opt"]["state"]["m"] == [0]
    assert any("module." in note for note in contents.notes) and any("g_ema" in note for note in contents.notes)


def test_of_two_best_snapshots_the_better_one_is_read(tmp_path):
    for number, score in enumerate((31.5, 12.25)):
        opcodes = files.mapping(w=files.tensor("0", 1, (1,)))
        data = {"0": np.float32(number).tobytes()}
        files.write_zip(tmp_path / f"G_ema_best{number}.pth", opcodes, data)
        files.write_zip(tmp_path / f"state_dict_best{number}.pth", files.plain({"best_FID": score, "config": {"n": 1}}))
    contents = read(tmp_path)
    assert contents.states["G_ema"]["w"] == [1] and contents.config == {"n": 1} and "best1" in contents.notes[0]
    (tmp_path / "state_dict_best0.pth").unlink()
    (tmp_path / "state_dict_best1.pth").unlink()
    refused(tmp_path, "best0, best1")


# Files that lie.


@pytest.mark.parametrize(
    ("opcodes", "words"),
    [
        (files.tensor("0", 2**60, (6,)), "storage of 1152921504606846976 elements"),
        (files.tensor("0", 6, (7,)), "reaches element 6"),
        (files.tensor("0", 6, (2, 3), (3, 3)), "reaches element 9"),
        (files.tensor("0", 6, (1,), offset=6), "reaches element 6"),
        (files.tensor("0", 6, (1,), offset=-1), "without a storage"),
        (files.tensor("0", 6, (2,), (-1,)), "shape that is none"),
        (files.tensor("0", 6, (2**40,), (0,)), "over a storage of 6"),
        (files.tensor("0", 6, (1,) * 40), "shape that is none"),
        (files.tensor("0", 6, (2,), (1, 1)), "other strides than sizes"),
        (files.tensor("0", 6, (2**62, 2**62, 2**62), (0, 0, 0)), "elements over a storage"),
        (files.tensor("9", 6, (6,)), "no zip member"),
        (files.tensor("../../0", 6, (6,)), "no zip member"),
        (files.tensor("0", 6, (6,)) + b"0" + files.tensor("0", 3, (3,), kind="DoubleStorage"), "two types"),
        (files.tensor("0", 6, (6,), kind="QInt8Storage"), "torch.QInt8Storage"),
        (files.plain(("storage", 1, "0", "cpu", 6)) + b"Q", "persistent id"),
    ],
)
def test_tensors_beyond_their_storage_are_refused(tmp_path, opcodes, words):
    refused(files.write_zip(tmp_path / "a.pth", files.mapping(a=opcodes), {"0": DATA}), words)


@pytest.mark.parametrize(
    ("keys", "storages", "words"),
    [
        (["0"], [(2**60, DATA)], "claim"),
        (["0"], [(6, DATA[:-1])], "bytes at byte"),
        (["0", "1"], [(6, DATA)] * 2, "does not fit"),
        (["0", "0"], [(6, DATA)] * 2, "does not fit"),
        ([["0"]], [(6, DATA)], "does not fit"),
        ([], [], "does not fit"),
    ],
)
def test_storages_behind_the_pickles_must_be_what_the_tensors_claim(tmp_path, keys, storages, words):
    opcodes = files.mapping(a=files.tensor("0", 6, (6,)))
    (tmp_path / "a.pth").write_bytes(files.legacy(opcodes, keys, storages))
    refused(tmp_path / "a.pth", words)


@pytest.mark.parametrize("name", ["lenet5_epoch12.pth", "lenet5_zipformat.pth"])
def test_a_file_that_was_cut_anywhere_is_refused(shared, tmp_path, name):
    data = (shared / "weights/mnist_lenet" / name).read_bytes()
    for end in (0, 1, 2, 3, 16, 40, 100, 500, 2000, len(data) // 2, len(data) - 300, len(data) - 30, len(data) - 1):
        (tmp_path / name).write_bytes(data[:end])
        refused(tmp_path / name)


def test_a_flipped_bit_in_a_zip_file_is_noticed(shared, tmp_path):
    data = bytearray((shared / "weights/mnist_lenet/lenet5_zipformat.pth").read_bytes())
    data[len(data) // 2] ^= 4
    (tmp_path / "a.pth").write_bytes(data)
    refused(tmp_path / "a.pth", "checksum")


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ([("archive/data/0", DATA)], "twice"),
        ([("archive/data.pkl", b"")], "twice"),
        ([("other/data.pkl", b"")], "one data.pkl"),
        ([("../escape", b"")], "way out"),
        ([("archive/../../escape", b"")], "way out"),
        ([("/etc/escape", b"")], "way out"),
        ([("archive/constants.pkl", b"")], "ends early"),
    ],
)
def test_zip_members_that_should_not_be_there(tmp_path, extra, words):
    opcodes = files.mapping(a=files.tensor("0", 6, (6,)))
    with pytest.warns(UserWarning) if words == "twice" else contextlib.nullcontext():
        path = files.write_zip(tmp_path / "a.pth", opcodes, {"0": DATA}, extra=extra)
    refused(path, words)


def test_compressed_members_and_bombs_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(mapped, "ALWAYS_ALLOWED_BYTES", 1 << 20)
    opcodes = files.mapping(a=files.tensor("0", 6, (6,)))
    path = files.write_zip(tmp_path / "a.pth", opcodes, {"0": DATA}, compression=zipfile.ZIP_DEFLATED)
    refused(path, "compressed")
    with zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", files.whole(opcodes))
        with archive.open("a/data/0", "w", force_zip64=True) as member:
            for _ in range(40):
                member.write(bytes(1 << 18))
    refused(tmp_path / "b.pth", "zip members of 1048")


def test_zip_members_that_overlap_are_refused(tmp_path):
    path = files.write_zip(tmp_path / "a.pth", files.plain(1), {"0": DATA, "1": DATA})
    data = bytearray(path.read_bytes())
    # The directory's entry of the second storage points at the first.
    first, second = (data.index(b"archive/data/" + key) - 30 for key in (b"0", b"1"))
    entry = data.rindex(b"archive/data/1") - 46
    assert int.from_bytes(data[entry + 42 : entry + 46], "little") == second
    data[entry + 42 : entry + 46] = first.to_bytes(4, "little")
    path.write_bytes(data)
    refused(path)


def test_a_zip_of_something_else_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("photo.png", b"x")
    refused(tmp_path / "a.pth", "data.pkl")


@pytest.mark.parametrize(
    "data", [b"", b"hello world", b"\x89PNG\r\n\x1a\n" + bytes(64), b"\x80\x02\x8a\x0a" + bytes(60)]
)
def test_other_files_are_refused_with_their_first_bytes(tmp_path, data):
    (tmp_path / "G.pth").write_bytes(data)
    refused(tmp_path / "G.pth")


def test_missing_and_empty_paths_are_refused(tmp_path):
    refused(tmp_path / "nowhere.pth", "no such file")
    refused(tmp_path, "folder without a checkpoint")


def test_weights_must_be_there(tmp_path):
    refused(files.write_zip(tmp_path / "a.pth", files.plain({"epoch": 3})), "without weights")
