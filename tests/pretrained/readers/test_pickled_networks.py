"""Pickles of whole networks: StyleGAN2-ADA, StyleGAN3, R3GAN and TensorFlow's StyleGAN2."""

import json

import numpy as np
import pytest

from gantransfer.errors import UserError
from gantransfer.pretrained.readers import read
from tests.pretrained.readers import files
from tests.pretrained.readers.test_torch_file import equal

ADA = (
    "network-snapshot-u32-torch1.7-proto3",
    "network-snapshot-c32-torch1.7-proto3",
    "network-snapshot-c32-torch2-proto4",
)


@pytest.mark.parametrize("name", ADA)
def test_stylegan2_ada_equals_the_tensors_beside_it(shared, name):
    folder, tag = shared / "parity/stylegan2ada", name.split("-")[2]
    contents = read(folder / f"{name}.pkl")
    assert contents.format == "stylegan-pickle" and contents.states.keys() == {"G", "D", "G_ema"}
    for network, state in contents.states.items():
        equal(state, read(folder / f"{tag}_{network}.safetensors").states[""])
    config = json.loads((folder / f"{tag}_config.json").read_text())
    arguments = next(value for key, value in config.items() if key.startswith("G") and isinstance(value, dict))
    assert contents.config["G"]["z_dim"] == arguments["z_dim"] and contents.config["G"]["synthesis_kwargs"]
    classes = {"G": "Generator", "D": "Discriminator", "G_ema": "Generator", "augment_pipe": "AugmentPipe"}
    assert contents.config["classes"] == classes
    assert contents.config["training_set_kwargs"]["resolution"] == 32
    assert contents.config["attributes"]["G"]["synthesis.b8.conv1.up"] == 1
    np.testing.assert_allclose(contents.extras["augment_pipe"]["p"], 0.28)


def test_tensorflow_networks_keep_their_names(shared):
    folder = shared / "parity/stylegan2ada"
    contents = read(folder / "legacy-tf-c32.pkl")
    assert contents.states.keys() == {"G", "D", "G_ema"}
    # What the official converter makes of it: matrices are transposed, kernels are turned, biases of styles grow by 1.
    converted = read(folder / "legacy-tf-c32_G_ema.safetensors").states[""]
    state = contents.states["G_ema"]
    np.testing.assert_array_equal(state["dlatent_avg"], converted["mapping.w_avg"])
    np.testing.assert_array_equal(state["mapping/Dense0/weight"].T, converted["mapping.fc0.weight"])
    np.testing.assert_array_equal(state["synthesis/4x4/Const/const"][0], converted["synthesis.b4.const"])
    np.testing.assert_array_equal(
        state["synthesis/8x8/Conv1/weight"].transpose(3, 2, 0, 1), converted["synthesis.b8.conv1.weight"]
    )
    assert state["synthesis/8x8/Conv1/noise_strength"].shape == ()
    assert contents.config["G"]["fmap_base"] == 128 and contents.config["D"]["label_size"] == 5
    assert contents.config["attributes"]["G"]["version"] == 4


@pytest.mark.parametrize(("tag", "file"), [("t", "network-t"), ("r", "network-r")])
def test_stylegan3_equals_the_tensors_beside_it(shared, tag, file):
    contents = read(shared / f"parity/stylegan3/{file}.pkl")
    expected = read(shared / f"parity/stylegan3/{tag}.safetensors").states[""]
    assert contents.states.keys() == {"G", "G_ema"} and contents.config["D"] is None
    equal(contents.states["G_ema"], expected)
    assert contents.config["G_ema"]["z_dim"] == 10


@pytest.mark.parametrize("name", ["u16", "c16", "c16-oldnames"])
def test_r3gan_equals_the_tensors_beside_it(shared, name):
    folder, tag = shared / "parity/r3gan", name.split("-")[0]
    contents = read(folder / f"network-snapshot-{name}.pkl")
    assert contents.format == "stylegan-pickle" and contents.states.keys() == {"G", "D", "G_ema"}
    for network, state in contents.states.items():
        equal(state, read(folder / f"{tag}_{network}.safetensors").states[""])
    assert contents.config["attributes"]["G"]["z_dim"] == 6 and "cur_nimg" in contents.config
    kinds = {v for k, v in contents.config["attributes"]["G"].items() if k.endswith("DataType")}
    assert kinds == {"torch.float32", "torch.bfloat16"} or kinds == {"torch.bfloat16"} or kinds == {"torch.float32"}


def test_optimizers_inside_r3gan_files_are_kept(shared):
    folder = shared / "parity/r3gan"
    contents = read(folder / "network-snapshot-c16-oldnames.pkl")
    expected = np.load(folder / "c16_optimizer_in_pkl.npz")
    for role in "GD":
        state = contents.extras[f"{role}_opt_state"]["state"]
        for key in expected:
            letter, index, what = key.split("/")
            if letter == role:
                np.testing.assert_array_equal(state[int(index)][what], expected[key])
    assert len(expected) > 20


@pytest.mark.parametrize("name", [*(f"stylegan2ada/{name}" for name in ADA), "stylegan2ada/legacy-tf-c32"])
def test_a_pickle_that_was_cut_is_refused(shared, tmp_path, name):
    data = (shared / f"parity/{name}.pkl").read_bytes()
    for end in (0, 1, 2, 12, 100, 3000, len(data) // 3, len(data) - 1):
        (tmp_path / "a.pkl").write_bytes(data[:end])
        with pytest.raises(UserError):
            read(tmp_path / "a.pkl")
    (tmp_path / "a.pkl").write_bytes(data + b"more")
    with pytest.raises(UserError, match="4 bytes behind"):
        read(tmp_path / "a.pkl")


def storage(count, data, claimed=None):
    inner = files.legacy(files.persistent("0", claimed or count, view="none")[:-1] + b"Q", ["0"], [(count, data)])
    return files.call(
        files.global_("torch.storage", "_load_from_bytes"), b"B" + len(inner).to_bytes(4, "little") + inner
    )


def nested(count=3, data=bytes(12), claimed=None, size=(3,)):
    return files.mapping(
        w=files.call(
            files.global_("torch._utils", "_rebuild_tensor_v2"),
            storage(count, data, claimed), files.plain(0), files.plain(size), files.plain((1,)), files.plain(False),
            files.ORDERED,
        )
    )  # fmt: skip


def test_storages_inside_pickles(tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(files.whole(nested(data=np.float32([1, 2, 3]).tobytes())))
    contents = read(path)
    assert contents.format == "pickle" and contents.states[""]["w"].tolist() == [1, 2, 3]
    for bad in (nested(claimed=2**60), nested(count=2**60), nested(data=bytes(8)), nested(size=(4,))):
        path.write_bytes(files.whole(bad))
        with pytest.raises(UserError):
            read(path)


def test_a_storage_in_a_storage_is_refused(tmp_path):
    inner = files.legacy(storage(3, bytes(12)), [], [])
    opcodes = files.call(
        files.global_("torch.storage", "_load_from_bytes"),
        files.plain(None)[:0] + b"B" + len(inner).to_bytes(4, "little") + inner,
    )
    (tmp_path / "a.pkl").write_bytes(files.whole(files.mapping(w=opcodes)))
    with pytest.raises(UserError, match="pickle inside a pickle"):
        read(tmp_path / "a.pkl")


def test_the_source_text_inside_a_file_is_never_run(tmp_path):
    mark = tmp_path / "mark"
    meta = {
        "type": "class", "version": 6, "class_name": "Generator", "module_src": f"open({str(mark)!r}, 'w')",
        "state": {"_parameters": {"w": np.ones(2)}, "_buffers": {}, "_modules": {}, "_init_kwargs": {"z_dim": 2}},
    }  # fmt: skip
    call = files.call(files.global_("torch_utils.persistence", "_reconstruct_persistent_obj"), files.plain(meta))
    (tmp_path / "a.pkl").write_bytes(files.whole(files.mapping(G=call)))
    contents = read(tmp_path / "a.pkl")
    assert contents.states["G"]["w"].tolist() == [1, 1] and contents.config["G"] == {"z_dim": 2}
    assert not mark.exists()


def test_older_tensorflow_networks_are_refused(tmp_path):
    network = files.global_("dnnlib.tflib.network", "Network") + b")\x81"
    network += files.plain({"version": 3, "variables": [("w", np.ones(2))]}) + b"b"
    (tmp_path / "a.pkl").write_bytes(files.whole(network * 3 + b"\x87"))
    with pytest.raises(UserError, match="version 3"):
        read(tmp_path / "a.pkl")
