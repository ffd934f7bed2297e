"""TensorFlow's checkpoints, built here byte by byte as its writer lays them out, and broken in every part."""

import struct

import numpy as np
import pytest

from gantransfer.errors import UserError
from gantransfer.pretrained.readers import read
from gantransfer.pretrained.readers.crc32c import LANES, POLYNOMIAL, crc32c
from gantransfer.pretrained.readers.mapped import MappedFile
from gantransfer.pretrained.readers.table_file import unpacked
from tests.pretrained.readers.test_torch_file import equal, refused

FLOAT, INT64, STRING, BFLOAT16 = 1, 9, 7, 14
MAGIC = 0xDB4775248B80FB57


def slow_crc(data):
    crc = 0xFFFFFFFF
    for byte in bytes(data):
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (POLYNOMIAL if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(data):
    crc = crc32c(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def varint(value):
    out = b""
    while value >= 128:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def field(number, value):
    """A field of a protocol buffer: a number, or bytes."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def entry(dtype, shape, offset, data, shard=0, changes=None):
    """What the index says of a variable; zeros are left out."""
    told = {"shape": shape, "offset": offset, "size": len(data), "crc": masked(data), "slices": False} | (changes or {})
    dims = b"".join(field(2, field(1, n) if n else b"") for n in told["shape"])
    out = field(1, dtype) + field(2, dims)
    out += b"".join(field(number, value) for number, value in ((3, shard), (4, told["offset"])) if value)
    out += field(5, told["size"]) + varint(6 << 3 | 5) + told["crc"]
    return out + (field(7, b"\x0a\x00") if told["slices"] else b"")


EMPTY = (FLOAT, (0,), 0, b"")


def block(rows, every=16):
    out, restarts, last = b"", [], b""
    for number, (key, value) in enumerate(rows):
        shared = 0
        if number % every:
            while shared < min(len(key), len(last)) and key[shared] == last[shared]:
                shared += 1
        else:
            restarts.append(len(out))
        out += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        last = key
    restarts = restarts or [0]
    return out + b"".join(struct.pack("<I", place) for place in restarts) + struct.pack("<I", len(restarts))


def snappy(data):
    """Pieces of text of up to 60 bytes, and copies where four bytes were there before."""
    out, position, text = varint(len(data)), 0, b""

    def flush(text):
        return bytes([(len(text) - 1) << 2]) + text if text else b""

    while position < len(data):
        back = data.rfind(data[position : position + 6], 0, position)
        if back >= 0 and position + 6 <= len(data) and position - back < 65536:
            out, text = out + flush(text), b""
            distance = position - back
            out += bytes([5 << 2 | 2]) + struct.pack("<H", distance)
            position += 6
            continue
        text += data[position : position + 1]
        position += 1
        if len(text) == 60:
            out, text = out + flush(text), b""
    return out + flush(text)


def table(rows, compressed=False, per_block=4):
    out, index = b"", []

    def add(raw):
        nonlocal out
        stored = (snappy(raw) + b"\x01") if compressed else raw + b"\x00"
        handle = varint(len(out)) + varint(len(stored) - 1)
        out += stored + masked(stored)
        return handle

    for start in range(0, len(rows), per_block):
        part = rows[start : start + per_block]
        index.append((part[-1][0], add(block(part))))
    meta = add(block([]))
    root = add(block(index, every=1))
    return out + (meta + root).ljust(40, b"\0") + struct.pack("<Q", MAGIC)


def header(shards=1, order=0):
    return field(1, shards) + (field(2, order) if order else b"") + field(3, field(1, 1))


VARIABLES = {
    "Generator.Input/Generator.Input.W": np.arange(12, dtype=np.float32).reshape(3, 4),
    "Generator.Input/Generator.Input.b": np.float32([1.5, -2]),
    "Generator.Res1.BN1/scale": np.zeros((0, 3), np.float32),
    "Generator.Res1.Conv1.Filters": np.random.default_rng(0).standard_normal((3, 3, 40, 50)).astype(np.float32),
    "Generator.Res1.Conv1.Filters/Adam": np.float32([[9]]),
    "beta1_power": np.array(0.5, np.float32),
    "global_step": np.array(25009),
}


def checkpoint(
    folder, name="model.ckpt-25009", compressed=False, shards=1, changes=None, extra=(), variables=VARIABLES
):
    """Writes a checkpoint; `changes` alters the entries of variables by name."""
    data, rows = [b""] * shards, []
    for number, (key, array) in enumerate(sorted(variables.items())):
        shard, raw = number % shards, array.tobytes()
        dtype = {"f": FLOAT, "i": INT64}.get(array.dtype.kind, BFLOAT16)
        change = (changes or {}).get(key, {})
        rows.append((key.encode(), entry(dtype, array.shape, len(data[shard]), raw, shard, change)))
        data[shard] += raw
    rows = sorted([(b"", header(shards)), *rows, *extra])
    (folder / f"{name}.index").write_bytes(table(rows, compressed))
    for shard, raw in enumerate(data):
        (folder / f"{name}.data-{shard:05d}-of-{shards:05d}").write_bytes(raw)
    return folder / f"{name}.index"


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("shards", [1, 3])
def test_variables_are_read_to_the_bit(tmp_path, compressed, shards):
    contents = read(checkpoint(tmp_path, compressed=compressed, shards=shards))
    slots = ("Generator.Res1.Conv1.Filters/Adam", "beta1_power")
    assert contents.format == "tensorflow" and len(contents.files) == 1 + shards
    equal(contents.states[""], {key: array for key, array in VARIABLES.items() if key not in slots})
    assert contents.extras["optimizer"].keys() == set(slots)


def test_a_checkpoint_may_be_given_in_many_ways(tmp_path):
    index = checkpoint(tmp_path)
    expected = read(index).states[""].keys()
    for path in (tmp_path, index.with_suffix(""), tmp_path / "model.ckpt-25009.data-00000-of-00001"):
        assert read(path).states[""].keys() == expected
    checkpoint(tmp_path, "model.ckpt-5")
    refused(tmp_path, "model.ckpt-25009.index, model.ckpt-5.index")
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "/elsewhere/run/model.ckpt-5"\n')
    assert read(tmp_path).files[0].name == "model.ckpt-5.index"


def test_the_variables_of_a_saved_model(tmp_path):
    (tmp_path / "variables").mkdir()
    checkpoint(tmp_path / "variables", "variables")
    assert "global_step" in read(tmp_path).states[""]


def test_texts_are_left_out_and_named(tmp_path):
    graph = entry(STRING, (), 0, b"graph")
    contents = read(checkpoint(tmp_path, extra=[(b"_CHECKPOINTABLE_OBJECT_GRAPH", graph)]))
    assert "_CHECKPOINTABLE_OBJECT_GRAPH" in contents.notes[0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"size": 2**60}, "of 1152921504606846976 bytes"),
        ({"size": 2**60, "shape": (2**58,)}, "bytes at byte"),
        ({"offset": 2**40}, "bytes at byte 1099511627776"),
        ({"offset": 0}, "wrong checksum"),
        ({"shape": (3, 5)}, "for 15 elements"),
        ({"shape": (2**64 - 1,)}, ""),
        ({"shape": (1,) * 40}, "shape that is none"),
        ({"crc": b"\0\0\0\0"}, "wrong checksum"),
        ({"slices": True}, "in slices"),
    ],
)
def test_entries_that_lie_are_refused(tmp_path, changes, words):
    name = "Generator.Input/Generator.Input.b"
    index = checkpoint(tmp_path, changes={name: changes})
    refused(next(tmp_path.glob("*.data*")) if words.startswith(("wrong", "bytes at")) else index, words, at=index)


def test_variables_that_share_bytes_are_refused(tmp_path):
    variables = {"a": np.zeros(4, np.float32), "b": np.zeros(4, np.float32)}
    refused(checkpoint(tmp_path, variables=variables, changes={"b": {"offset": 8}}), "overlap")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([(b"a", b"")], "without a header"),
        ([(b"", header(2))], "without model.ckpt.data-00000-of-00002"),
        ([(b"", header(10**9))], "odd number"),
        ([(b"", header(0))], "odd number"),
        ([(b"", header(1, 1))], "big-endian"),
        ([(b"", field(1, b"meta"))], "version 1"),
        ([(b"", header()), (b"b", entry(*EMPTY)), (b"a", entry(*EMPTY))], "out of order"),
        ([(b"", header()), (b"a", entry(*EMPTY)), (b"a", entry(*EMPTY))], "out of order"),
        ([(b"", header()), (b"a", b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff")], "more than ten bytes"),
        ([(b"", header()), (b"a", b"\x2a\x7f")], "a field of 127 bytes"),
        ([(b"", header()), (b"a", b"\x0b")], "unknown kind"),
    ],
)
def test_indices_that_lie_are_refused(tmp_path, rows, words):
    path = tmp_path / "model.ckpt.index"
    path.write_bytes(table(rows, per_block=8))
    if "data-00000-of" not in words:
        path.with_name("model.ckpt.data-00000-of-00001").write_bytes(b"")
    refused(path, words)


def test_an_index_cut_or_damaged_anywhere_is_refused(tmp_path):
    index = checkpoint(tmp_path, compressed=True)
    data = index.read_bytes()
    for end in (1, 20, len(data) // 2, len(data) - 9, len(data) - 1):
        index.write_bytes(data[:end])
        refused(index)
    # Behind the blocks of variables comes one that is empty and not looked at, then the index of blocks.
    for place in [*range(0, len(data) // 2, 5), *range(len(data) - 8, len(data))]:
        index.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        refused(index)


def test_a_damaged_data_file_is_noticed(tmp_path):
    index = checkpoint(tmp_path)
    shard = next(tmp_path.glob("*.data*"))
    data = bytearray(shard.read_bytes())
    data[5000] ^= 1
    shard.write_bytes(data)
    refused(shard, "Generator.Res1.Conv1.Filters", at=index)
    shard.unlink()
    refused(index, "without")


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (varint(2**40) + b"\0a", "unfolds to"),
        (varint(100) + b"\0a", "of 1 bytes that claims 100"),
        (varint(4) + b"\x01\x05", "not there"),
        (varint(9) + b"\0a\x16\0\0", "not there"),
        (varint(9) + b"\xf4\xff", "a length of 2 bytes"),
        (varint(9) + b"\x20abc", "a piece of text of 9 bytes"),
    ],
)
def test_blocks_that_lie_are_refused(tmp_path, raw, words):
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(UserError, match=words):
        unpacked(MappedFile(tmp_path / "a"), memoryview(raw))


def test_copies_that_reach_into_themselves_repeat(tmp_path):
    (tmp_path / "a").write_bytes(b"")
    raw = varint(13) + b"\x08abc" + bytes([9 << 2 | 2]) + struct.pack("<H", 3)
    assert bytes(unpacked(MappedFile(tmp_path / "a"), memoryview(raw))) == b"abcabcabcabca"


@pytest.mark.parametrize("size", [0, 1, 9, 255, 4096, LANES - 1, LANES, 3 * LANES + 17])
def test_checksums_of_any_length(size):
    data = np.random.default_rng(size).integers(0, 256, size, np.uint8).tobytes()
    assert crc32c(data) == slow_crc(data)


def test_checksums_of_the_standard():
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA and crc32c(b"\xff" * 32) == 0x62A8AB43
