"""Conversion: published files become the same networks, and whatever is strange about them is said or refused."""

import hashlib
import json
import os
import resource
import shutil

import numpy as np
import pytest

from gantransfer.errors import UserError
from gantransfer.pretrained import converted
from gantransfer.pretrained.convert import Request, convert, open_checkpoint
from gantransfer.pretrained.export import published_states
from gantransfer.pretrained.layouts import get_layout
from gantransfer.pretrained.load import load
from gantransfer.pretrained.torch_writer import write_torch

LAYOUT = "biggan-pytorch"
KERNEL = "blocks.0.0.conv2.weight"


@pytest.fixture(scope="module")
def published(tiny):
    """A source of three classes whose leaves all have a place in the published layout."""
    return tiny.make_source(spectral=True, class_head=False, width_d=4)


@pytest.fixture(scope="module")
def states(published):
    return published_states(published, get_layout(LAYOUT))


@pytest.fixture
def write(tmp_path, states, published):
    """Writes a folder of BigGAN-PyTorch; `changes` are entries to replace (None: to leave out) by state."""

    def folder(config=None, only=("G", "G_ema", "D"), **changes):
        place = tmp_path / "published"
        place.mkdir()
        for name in only:
            arrays = {**states[name], **changes.get(name, {})}
            write_torch(place / f"{name}.pth", {key: array for key, array in arrays.items() if array is not None})
        stated = dict(get_layout(LAYOUT).to_config(published.info.options)) | (config or {})
        write_torch(place / "state_dict.pth", {"itr": 7, "config": stated})
        return place

    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory, states, published):
    """A converted folder, and the report about it."""
    place = tmp_path_factory.mktemp("whole")
    (place / "names.txt").write_text("apple\nbanana\n\ncherry\n")
    (place / "published").mkdir()
    for name, arrays in states.items():
        write_torch(place / "published" / f"{name}.pth", arrays)
    write_torch(
        place / "published" / "state_dict.pth", {"config": get_layout(LAYOUT).to_config(published.info.options)}
    )
    report = convert(
        place / "published",
        place / "fruit",
        licence="CC0-1.0",
        origin="a test",
        class_names=place / "names.txt",
    )
    return place, report


def same_leaves(tiny, one, other):
    for mine, theirs in (
        (one.ema, other.ema),
        (one.generator, other.generator),
        (one.discriminator, other.discriminator),
    ):
        a, b = tiny.leaves(mine), tiny.leaves(theirs)
        assert a.keys() == b.keys()
        for path in a:
            np.testing.assert_array_equal(a[path], b[path], err_msg=path)


def test_published_networks_come_out_as_they_were(whole, published, tiny):
    place, _ = whole
    source = load(place / "fruit", check=True)
    same_leaves(tiny, source, published)
    assert source.info.options == dict(published.info.options)
    assert source.info.class_names == ("apple", "banana", "cherry")
    assert (source.info.licence, source.info.origin, source.info.name) == ("CC0-1.0", "a test", "fruit")


@pytest.mark.parametrize(
    ("folder", "whats"),
    [
        ("cifar32/weights/cifar32_small", (True, True, True)),
        ("cifar32/weights_legacy/cifar32_small/G_ema.pth", (False, True, False)),
        ("cifar32/weights/cifar32_small/G.pth", (True, False, False)),
    ],
)
def test_files_of_the_reference_make_the_references_images(shared, tmp_path, folder, whats):
    root = shared / "parity" / "biggan"
    convert(root / folder, tmp_path / "out")
    source = load(tmp_path / "out")
    info = source.info
    assert (info.has_generator, info.has_ema, info.has_discriminator) == whats
    assert info.options["spectral_eps"] == 1e-8 and info.class_names[3] == "class 3"
    stored = np.load(root / "cifar32" / "forward.npz")
    expected = stored["G_ema_eval" if info.has_ema else "G_eval"].transpose(0, 2, 3, 1)
    images = source.generate(stored["z"], stored["y"])
    assert np.abs(images[: len(expected)] - expected).max() < 1e-5


def test_the_report_accounts_for_every_entry_and_every_leaf_once(whole, states, tiny, published):
    _, report = whole
    read = [(entry.state, entry.name) for entry in report.entries if entry.name]
    assert sorted(read) == sorted((name, key) for name, arrays in states.items() for key in arrays)
    ours = {entry.leaf for entry in report.entries if entry.leaf}
    assert {leaf.removeprefix("ema/") for leaf in ours if leaf.startswith("ema/")} == set(tiny.leaves(published.ema))
    fates = {entry.name: entry.fate for entry in report.entries if entry.state == "G_ema"}
    assert fates[KERNEL] == "transposed" and fates["shared.weight"] == "mapped"
    assert fates["linear.weight"] == "reshaped and transposed"
    (missing,) = report.of("missing")
    assert missing.leaf == "discriminator/constants/projection_scale" and "no file of" in missing.why


def test_the_folder_holds_what_it_says(whole, published):
    place, report = whole
    content = json.loads((place / "fruit" / "source.json").read_text())
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (place / "published").iterdir()}
    assert content["sha256"] == files == dict(report.files)
    assert content["architecture"] == "biggan" and content["resolution"] == 16 and content["num_classes"] == 3
    assert content["has"] == {"generator": True, "ema": True, "discriminator": True}
    assert content["fingerprint"]["mean"] == pytest.approx((published.sample(16, seed=0) / 255).mean(), abs=1e-4)
    stored = json.loads((place / "fruit" / "report.json").read_text())
    assert len(stored["entries"]) == len(report.entries) and stored["counts"] == report.counts
    assert (place / "fruit" / "report.md").read_text().count("\n| G_ema |") == sum(
        entry.state == "G_ema" for entry in report.entries
    )


def test_options_say_who_decided_them(whole):
    _, report = whole
    assert report.decided_by("weights")["width"] == 4
    assert report.decided_by("config")["norm_eps"] == 1e-5
    assert "out_norm_eps=1e-05" in report.summary() and "assumed" in report.summary()


def test_loading_a_published_file_converts_it_in_memory_and_says_so(write, published, tiny, capsys):
    source = load(write())
    same_leaves(tiny, source, published)
    said = capsys.readouterr()
    assert "biggan-pytorch" in said.err and "entries:" in said.err and not said.out


def test_an_unknown_entry_is_refused_unless_it_is_dropped_by_name(write):
    place = write(G_ema={"extra.weight": np.ones(3, np.float32)})
    with pytest.raises(UserError, match=r"1 unknown: G_ema/extra.weight"):
        open_checkpoint(place)
    _, report = open_checkpoint(place, Request(drop=("extra.*",)))
    (dropped,) = report.of("dropped")
    assert dropped.name == "extra.weight" and "--drop extra.*" in dropped.why


def test_a_missing_entry_is_refused_unless_it_is_named(write, tiny):
    place = write(G={KERNEL: None}, G_ema={KERNEL: None})
    with pytest.raises(UserError, match=rf"2 missing: G/{KERNEL}, G_ema/{KERNEL}"):
        open_checkpoint(place)
    source, report = open_checkpoint(place, Request(missing=("*.0.0.conv2.weight",), seed=3))
    fresh = [entry for entry in report.of("missing") if "--missing" in entry.why]
    assert [(entry.state, entry.name) for entry in fresh] == [("G", KERNEL), ("G_ema", KERNEL)]
    assert "initialised fresh with seed 3" in fresh[0].why
    kernel = tiny.leaves(source.ema)["params/block_0/conv2/kernel"]
    assert kernel.std() > 0.01


def test_entries_that_are_not_finite_are_named(write, states):
    bad = np.array(states["D"]["linear.bias"])
    bad[0] = np.nan
    place = write(D={"linear.bias": bad})
    with pytest.raises(UserError, match="1 with NaN or infinity: D/linear.bias"):
        open_checkpoint(place)
    _, report = open_checkpoint(place, Request(missing=("D/linear.bias",)))
    assert any("with NaN or infinity in the file" in entry.why for entry in report.of("missing"))


def test_entries_of_other_shapes_and_types_are_named_together(write, states):
    table = states["G_ema"]["output_layer.0.gain"]
    place = write(G_ema={"output_layer.0.gain": np.ones(len(table) + 1, np.float32), "linear.bias": np.arange(256)})
    with pytest.raises(UserError, match=r"2 of other shape or type: .*gain float32\[5\] for float32\[4\]") as caught:
        open_checkpoint(place)
    assert "linear.bias int64" in str(caught.value)


def test_half_precision_is_widened_and_said(write, states):
    half = states["G_ema"]["shared.weight"].astype(np.float16)
    source, report = open_checkpoint(write(G_ema={"shared.weight": half}))
    np.testing.assert_array_equal(np.asarray(source.ema["params"]["shared"]["embedding"]), half.astype(np.float32))
    (entry,) = [entry for entry in report.entries if entry.state == "G_ema" and entry.name == "shared.weight"]
    assert entry.dtype == "float16" and entry.why == "float16 in the file, float32 here"
    assert "other type in the file: shared.weight" in report.summary()


def test_a_configuration_that_contradicts_the_weights_is_refused_with_both_values(write):
    place = write(config={"n_classes": 5})
    with pytest.raises(UserError, match="num_classes of its configuration: 5 .* 3, as the weights say"):
        open_checkpoint(place)


def test_networks_that_do_not_belong_together_are_refused(write, states):
    wide = np.zeros((5, states["D"]["embed.weight"].shape[1]), np.float32)
    place = write(D={"embed.weight": wide, "embed.u0": np.ones((1, 5), np.float32)}, config={"n_classes": 3})
    with pytest.raises(UserError, match="num_classes: '5 in D, 3 in G'"):
        open_checkpoint(place)


def test_options_are_given_by_name_and_cannot_contradict_the_weights(write):
    place = write(only=("G_ema",))
    (place / "state_dict.pth").unlink()
    source, report = open_checkpoint(place / "G_ema.pth", Request(options={"norm_eps": "1e-4"}))
    assert source.info.options["norm_eps"] == 1e-4 and report.decided_by("given") == {"norm_eps": 1e-4}
    with pytest.raises(UserError, match="--option width: 8 .* 4, as the weights say"):
        open_checkpoint(place / "G_ema.pth", Request(options={"width": "8"}))
    with pytest.raises(UserError, match="did you mean norm_eps"):
        open_checkpoint(place / "G_ema.pth", Request(options={"norm_esp": 1.0}))


@pytest.mark.parametrize(
    ("flag", "request_"), [("--drop", {"drop": ("nothing*",)}), ("--missing", {"missing": ("no",)})]
)
def test_a_pattern_that_names_nothing_is_refused(write, flag, request_):
    with pytest.raises(UserError, match=flag):
        open_checkpoint(write(), Request(**request_))


def test_class_names_must_fit(write, tmp_path):
    place = write(only=("G_ema",))
    with pytest.raises(UserError, match="3 names, one per class"):
        convert(place, tmp_path / "out", class_names=["a", "b"])
    with pytest.raises(UserError, match="a text file"):
        convert(place, tmp_path / "out", class_names=tmp_path / "nowhere.txt")
    assert not (tmp_path / "out").exists()


def test_a_discriminator_alone_and_foreign_weights_are_refused(write, tmp_path):
    place = write(G={"blocks.0.0.conv1.weight": None}, only=("G", "D"))
    with pytest.raises(UserError, match="only a discriminator"):
        open_checkpoint(place / "D.pth")
    with pytest.raises(UserError, match="only a discriminator; G with other names or shapes"):
        open_checkpoint(place)
    write_torch(tmp_path / "net.pth", {"fc.weight": np.ones((2, 3), np.float32)})
    with pytest.raises(UserError, match=r"1 arrays: fc.weight \[2, 3\].*biggan-pytorch"):
        open_checkpoint(tmp_path / "net.pth")


def test_nothing_is_overwritten_and_nothing_is_left_of_a_failure(write, tmp_path, monkeypatch):
    place = write(only=("G_ema",))
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="nothing is overwritten"):
        convert(place, tmp_path / "out")
    (tmp_path / "out").rmdir()
    before = sorted(path.name for path in tmp_path.iterdir())

    def broken(path, trees):
        path.mkdir()
        raise OSError(28, "No space left on device", "somewhere")

    monkeypatch.setattr(converted, "_save", broken)
    with pytest.raises(OSError, match="No space"):
        convert(place, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_full_disk_is_one_error_of_the_system_and_leaves_nothing(write, tmp_path):
    place = write(only=("G_ema",))
    before = sorted(path.name for path in tmp_path.iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError, match="(?i)full|large"):
            convert(place, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def copy_of(whole, tmp_path):
    return shutil.copytree(whole[0] / "fruit", tmp_path / "copy")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fingerprint": {"sha256": "0" * 64, "mean": 0.5, "std": 0.1, "image_means": []}}, "weights of SHA-256"),
        ({"fingerprint": {"mean": 1}}, "sha256, mean, std"),
        ({"num_classes": 4}, "num_classes"),
        ({"num_classes": 10**12}, "num_classes"),
        ({"architecture": "bigan"}, "did you mean biggan"),
        ({"options": {"width": 8}}, "of other shape"),
        ({"has": {"generator": False, "ema": False, "discriminator": False}}, "a generator"),
        ({"surprise": 1}, "no others"),
        ({"format_version": 9}, "format_version"),
    ],
)
def test_a_changed_description_is_refused_by_name(whole, tmp_path, changes, words):
    place = copy_of(whole, tmp_path)
    content = json.loads((place / "source.json").read_text())
    (place / "source.json").write_text(json.dumps(content | changes))
    with pytest.raises(UserError, match=words):
        load(place)


def test_samples_are_compared_where_that_is_asked_for(whole, tmp_path):
    place = copy_of(whole, tmp_path)
    content = json.loads((place / "source.json").read_text())
    content["fingerprint"]["image_means"][5] += 0.1
    (place / "source.json").write_text(json.dumps(content))
    load(place)
    with pytest.raises(UserError, match="fingerprint.image_means"):
        load(place, check=True)


@pytest.mark.parametrize("victim", ["largest", "metadata"])
def test_damaged_weights_are_refused_by_name(whole, tmp_path, victim):
    place = copy_of(whole, tmp_path)
    files = [path for path in (place / "weights").rglob("*") if path.is_file()]
    if victim == "largest":
        file = max(files, key=lambda path: path.stat().st_size)
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 0xFF
        file.write_bytes(content)
    else:
        for file in files:
            if "METADATA" in file.name.upper():
                file.write_bytes(b"{}")
    with pytest.raises(UserError, match="weights"):
        load(place)


def test_a_source_without_names_keeps_null(write, tmp_path):
    convert(write(only=("G_ema",)), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "source.json").read_text())["class_names"] is None
    source = load(tmp_path / "out")
    assert source.info.class_names == ("class 0", "class 1", "class 2")
    assert source.generator is source.ema and source.discriminator is None


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="needs a system that lists a process's mappings")
def test_nothing_of_the_file_stays_in_memory(write):
    folder = write()
    source, _ = open_checkpoint(folder)
    with open("/proc/self/maps") as maps:
        assert not [line for line in maps if str(folder) in line]
    assert source.discriminator is not None
