"""Published state dicts: what is taken as it is, what is left out, what is refused and in which words."""

import io
import os
import zipfile

import numpy as np
import pytest

from gantransfer import features
from gantransfer.errors import UserError
from gantransfer.features import published, state_dicts
from gantransfer.pretrained.torch_writer import write_torch

NAME = "cifar_resnet20"
FEW = "mnist_lenet5"


@pytest.fixture(scope="module")
def state():
    return state_dicts.random_state(features.architectures()[FEW].blueprint.shapes, seed=2)


@pytest.fixture(scope="module")
def sha256(state):
    return features.load(FEW, weights=state).sha256


def test_one_set_of_numbers_has_one_hash_from_every_format(state, sha256, tmp_path):
    np.savez(tmp_path / "weights.npz", **state)
    write_torch(tmp_path / "weights.pth", state)
    write_torch(tmp_path / "wrapped.pth", {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}})
    for file in ("weights.npz", "weights.pth", "wrapped.pth"):
        network = features.load(FEW, weights=tmp_path / file)
        assert network.sha256 == sha256, file
        assert network.info["file"].endswith(file) and not network.info["random"]
    changed = {key: value + (1e-6 if key == "fc.f7.bias" else 0) for key, value in state.items()}
    assert features.load(FEW, weights=changed).sha256 != sha256


def test_prefixes_counters_and_half_precision_are_harmless(state, sha256):
    counters = {"module.bn1.num_batches_tracked": np.array(7), "module.c.num_batches_tracked": np.array(7)}
    prefixed = {f"module.{key}": value for key, value in state.items()} | counters
    assert features.load(FEW, weights=prefixed).sha256 == sha256
    assert features.load(FEW, weights={"state_dict": prefixed, "epoch": 3}).sha256 == sha256
    half = {key: value.astype(np.float16) for key, value in state.items()}
    rounded = {key: value.astype(np.float32) for key, value in half.items()}
    assert features.load(FEW, weights=half).sha256 == features.load(FEW, weights=rounded).sha256
    assert features.load(FEW, weights=half).params["convnet.c1"]["weight"].dtype == np.float32


def test_missing_and_unknown_keys_are_counted_and_the_first_five_named(state):
    fewer = {key: value for key, value in state.items() if not key.startswith("convnet.")}
    more = fewer | {f"extra.{i}": np.zeros(1, np.float32) for i in range(9)}
    with pytest.raises(UserError) as caught:
        features.load(FEW, weights=more)
    words = str(caught.value)
    assert (
        "6 missing: convnet.c1.bias" in words and "9 unknown: extra.0, extra.1, extra.2, extra.3, extra.4, ..." in words
    )
    assert "extra.5" not in words


def test_arrays_of_another_shape_are_named_and_transposed_ones_called_so(state):
    with pytest.raises(UserError, match=r"fc.f6.weight \(120, 84\), not \(84, 120\) \(transposed\)"):
        features.load(FEW, weights=state | {"fc.f6.weight": state["fc.f6.weight"].T})
    with pytest.raises(UserError, match=r"2 of another shape: .*fc.f7.bias \(3,\), not \(10,\)"):
        features.load(FEW, weights=state | {"fc.f7.bias": np.zeros(3, "f4"), "fc.f6.bias": np.zeros(3, "f4")})


def test_weights_that_are_no_finite_numbers_are_refused(state):
    with pytest.raises(UserError, match="fc.f7.bias with 1 NaN"):
        features.load(FEW, weights=state | {"fc.f7.bias": np.r_[np.nan, np.zeros(9)].astype("f4")})
    with pytest.raises(UserError, match="fc.f7.bias of type int64"):
        features.load(FEW, weights=state | {"fc.f7.bias": np.zeros(10, np.int64)})


def test_a_web_page_instead_of_a_file_is_called_one(tmp_path):
    page = tmp_path / "weights.pth"
    page.write_text("\n<!DOCTYPE html><html><body>Sign in</body></html>")
    with pytest.raises(UserError, match="web page"):
        features.load(FEW, weights=page)
    with pytest.raises(UserError, match="no such file"):
        features.load(FEW, weights=tmp_path / "other.pth")


def test_shortcuts_without_parameters_are_recognised():
    option_a = state_dicts.random_state(features.architectures()[f"{NAME}_optionA"].blueprint.shapes, seed=0)
    plain, named = features.load(NAME, weights=option_a), features.load(f"{NAME}_optionA", weights=option_a)
    assert plain.name == named.name and plain.sha256 == named.sha256
    assert "option A" in " ".join(plain.info["notes"])
    assert plain.info["preprocessing"] == named.info["preprocessing"]
    hundred = option_a | {"linear.weight": np.zeros((100, 64), "f4"), "linear.bias": np.zeros(100, "f4")}
    assert features.load(NAME, weights=hundred)(np.zeros((1, 32, 32, 3), np.uint8))["logits"].shape == (1, 100)


def test_a_trunk_without_linear_layers_is_a_network_of_its_own():
    shapes = features.architectures()["alexnet"].blueprint.shapes
    trunk = state_dicts.random_state({k: s for k, s in shapes.items() if k.startswith("features.")}, seed=0)
    network = features.load("alexnet", weights=trunk)
    assert network.outputs == ("pool",) and "features.11" in network.stages and "classifier.1" not in network.stages
    assert "trunk" in " ".join(network.info["notes"])


def test_the_mobile_network_takes_both_spellings_of_its_keys():
    torchvision = state_dicts.random_state(features.architectures()["mobilenet_v2"].blueprint.shapes, seed=0)
    flat = {}
    for key, value in torchvision.items():
        head, _, leaf = key.rpartition(".")
        parts = head.split(".")
        if parts[2:3] == ["conv"]:
            expanded = f"features.{parts[1]}.conv.3.weight" in torchvision
            inner = parts[3:]
            number = int(inner[0]) * 3 + int(inner[1]) if len(inner) == 2 else int(inner[0]) + (4 if expanded else 2)
            head = f"features.{parts[1]}.conv.{number}"
        elif parts[1] == "18":
            head = f"conv.{parts[2]}"
        elif parts[0] == "classifier":
            head = "classifier"
        flat[f"{head}.{leaf}"] = value
    assert len(flat) == len(torchvision) and set(flat) != set(torchvision)
    one, other = (features.load("mobilenet_v2", weights=weights) for weights in (flat, torchvision))
    assert one.sha256 == other.sha256


# -------------------------------------------------------------------------------------------- finding published files


def test_the_folder_of_the_environment_is_looked_into_first(state, sha256, tmp_path, monkeypatch):
    np.savez(tmp_path / f"{FEW}.npz", **state)
    monkeypatch.setenv(published.FOLDER, str(tmp_path))
    network = features.load(FEW)
    assert network.sha256 == sha256 and network.info["file"] == str(tmp_path / f"{FEW}.npz")


def test_a_file_with_a_published_name_must_be_the_published_file(tmp_path, monkeypatch):
    (tmp_path / "vgg16-397923af.pth").write_bytes(b"something else")
    monkeypatch.setenv(published.FOLDER, str(tmp_path))
    with pytest.raises(UserError, match="SHA-256 397923af; remove this one"):
        features.load("vgg16")


def test_offline_one_line_names_file_size_page_and_place(tmp_path, monkeypatch):
    monkeypatch.setenv("GANTRANSFER_OFFLINE", "1")
    monkeypatch.setenv("GANTRANSFER_CACHE", str(tmp_path))
    monkeypatch.delenv(published.FOLDER, raising=False)
    with pytest.raises(UserError) as caught:
        features.load("vgg16")
    words = str(caught.value)
    for part in ("vgg16-397923af.pth (553 MB)", "pytorch.org", "$GANTRANSFER_FEATURES", str(tmp_path), "weights=PATH"):
        assert part in words, part
    assert "\n" not in words and not os.listdir(tmp_path / "features") == ["vgg16-397923af.pth"]


def test_checksums_are_taken_from_the_names_of_files():
    files = {weights.file.name: weights.digits for a in features.architectures().values() for weights in a.weights}
    assert files["vgg16-397923af.pth"] == "397923af"
    assert files["pt_inception-2015-12-05-6726825d.pth"] == "6726825d"
    assert files["swav_800ep_pretrain.pth.tar"] == ""


def test_an_archive_that_is_no_checkpoint_is_refused(tmp_path):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("readme.txt", "nothing")
    (tmp_path / "weights.pth").write_bytes(packed.getvalue())
    with pytest.raises(UserError):
        features.load(FEW, weights=tmp_path / "weights.pth")
