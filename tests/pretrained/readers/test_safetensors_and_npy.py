"""safetensors, npz and npy files, honest ones by their own libraries and hostile ones by hand."""

import io
import json
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from gantransfer.errors import UserError
from gantransfer.pretrained.readers import mapped, read
from tests.pretrained.readers.test_torch_file import equal, refused

STATE = {
    "w": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array(7), "h": np.ones(3, np.float16),
    "b": np.array([True, False]), "e": np.zeros((0, 4), np.float32),
}  # fmt: skip


def write(path, header, data=b"", length=None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def entry(first, last, shape, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


def test_what_the_library_wrote_is_read(tmp_path):
    save_file(STATE, tmp_path / "a.bin", metadata={"config": json.dumps({"width": 4}), "by": "someone"})
    contents = read(tmp_path / "a.bin")
    assert contents.format == "safetensors" and contents.config == {"config": {"width": 4}, "by": "someone"}
    equal(contents.states[""], STATE)


def test_brain_floats_become_floats(tmp_path):
    values = np.array([1.5, -2, 1e30], ml_dtypes.bfloat16)
    save_file({"w": values}, tmp_path / "a.safetensors")
    contents = read(tmp_path / "a.safetensors")
    equal(contents.states[""], {"w": values.astype(np.float32)})
    assert "bfloat16" in contents.notes[0]


def test_weights_of_hugging_face_may_be_safetensors(tmp_path):
    save_file(STATE, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"z_dim": 3}')
    contents = read(tmp_path)
    assert contents.format == "huggingface" and contents.config == {"z_dim": 3}
    for text in ("[1]", "{", "[" * 100_000):
        (tmp_path / "config.json").write_text(text)
        refused(tmp_path / "config.json", "JSON", at=tmp_path)


@pytest.mark.parametrize(
    ("header", "data", "length", "words"),
    [
        ({"w": entry(0, 4, [1])}, bytes(3), None, "of 4 bytes"),
        ({"w": entry(0, 8, [1])}, bytes(8), None, "of 8 bytes for 1 elements"),
        ({"w": entry(0, 2**60, [2**58])}, bytes(8), None, "bytes at byte"),
        ({"w": entry(0, 4, [1]), "v": entry(0, 4, [1])}, bytes(4), None, "overlap"),
        ({"w": entry(4, 8, [1])}, bytes(8), None, "gap"),
        ({"w": entry(0, 4, [1])}, bytes(8), None, "behind the last array"),
        ({"w": entry(8, 4, [-1])}, bytes(8), None, "shape that is none"),
        ({"w": entry(0, 4, [1], "F8_E4M3")}, bytes(4), None, "type F8_E4M3"),
        ({"w": {"dtype": "F32"}}, bytes(4), None, "without type, shape and place"),
        ({"w": 7}, bytes(4), None, "without type, shape and place"),
        (b'{"w": 1, "w": 2}', b"", None, "twice"),
        (b'{"w": ', b"", None, "not JSON"),
        (b'{"w": ' + b"[" * 100_000, b"", None, "not JSON"),
        ({"w": entry(0, 4, [1])}, bytes(4), 2**20, "a header of 1048576 bytes"),
        ({}, b"", None, ""),
    ],
)
def test_headers_that_lie_are_refused(tmp_path, header, data, length, words):
    refused(write(tmp_path / "a.safetensors", header, data, length), words)


def test_stored_arrays_of_npz_files_are_read(shared):
    path = shared / "weights/mnist_lenet/lenet5.npz"
    contents = read(path)
    assert contents.format == "npz"
    equal(contents.states[""], dict(np.load(path)))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_orders_and_byte_orders_of_npz_files(tmp_path, save):
    arrays = {"f": np.asfortranarray(STATE["w"]), "s": STATE["w"].astype(">f8"), **STATE}
    save(tmp_path / "a.npz", **arrays)
    state = read(tmp_path / "a.npz").states[""]
    for name, array in arrays.items():
        np.testing.assert_array_equal(state[name], array)
        assert state[name].dtype == array.dtype.newbyteorder("=")
    stored = [array for array in state.values() if array.size and array.dtype != np.float64]
    assert not any(array.flags.owndata for array in stored)


OBJECTS = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"


def npy(array=None, header=None, body=b""):
    if header is None:
        out = io.BytesIO()
        np.save(out, array)
        return out.getvalue()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + body


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("w.npy", npy(header=b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999,), }"), "left"),
        ("w.npy", npy(header=b"{'descr': 'V8', 'fortran_order': False, 'shape': (1,), }", body=bytes(8)), "type V8"),
        ("w.npy", npy(header=b"__import__('os').system('true')"), "damaged npy header"),
        ("w.npy", npy(header=b"(" * 60000), "damaged npy header"),
        ("w.npy", npy(header=OBJECTS.replace(b"|O", b"<f4").replace(b"1", b"9" * 900)), "18 digits"),
        ("w.npy", npy(np.ones(3))[:-1], "left"),
        ("w.npy", npy(np.array(["text"])), "not an array of numbers"),
        ("w.npy", npy(header=OBJECTS, body=b"\x80\x02cos\nsystem\n."), "os.system"),
        ("w.txt", b"hello", ""),
    ],
)  # fmt: skip
def test_members_that_lie_are_refused(tmp_path, name, data, words):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr(name, data)
    refused(tmp_path / "a.npz", words)


def test_an_npz_that_unfolds_without_end_is_refused(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "a.npz", w=np.zeros(1 << 20, np.float64))
    assert read(tmp_path / "a.npz").states[""]["w"].size == 1 << 20
    monkeypatch.setattr(mapped, "ALWAYS_ALLOWED_BYTES", 1 << 20)
    refused(tmp_path / "a.npz", "zip members of 83887")


def test_a_member_larger_than_its_claim_is_refused(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", w=np.zeros(1000))
    data = bytearray((tmp_path / "a.npz").read_bytes())
    directory = data.rindex(b"PK\x01\x02")
    data[directory + 24 : directory + 28] = struct.pack("<I", 500)
    (tmp_path / "a.npz").write_bytes(data)
    refused(tmp_path / "a.npz")


def test_a_file_of_one_array_or_of_objects(tmp_path):
    np.save(tmp_path / "a.npy", STATE["w"])
    equal(read(tmp_path / "a.npy").states[""], {"00": STATE["w"]})
    parts = np.empty(2, object)
    parts[:] = [STATE["w"], STATE["h"]]
    np.save(tmp_path / "b.npy", parts, allow_pickle=True)
    contents = read(tmp_path / "b.npy")
    assert contents.format == "theano"
    equal(contents.states[""], {"00": STATE["w"], "01": STATE["h"]})
    with pytest.raises(UserError):
        read(write(tmp_path / "c.npy", b"\x93NUMPY"))
