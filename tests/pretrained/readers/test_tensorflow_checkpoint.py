"""TensorFlow's checkpoints, built here byte by byte as its writer lays them out, and broken in every part."""

import struct

import numpy as np
import pytest

from gantransfer.errors import UserError
from gantransfer.pretrained.readers import read
from gantransfer.pretrained.readers import saved_model as graphs
from gantransfer.pretrained.readers.crc32c import LANES, POLYNOMIAL, crc32c
from gantransfer.pretrained.readers.mapped import MappedFile
from gantransfer.pretrained.readers.table_file import unpacked
from tests.pretrained.readers.tensorflow_files import (
    EMPTY,
    STRING,
    constant,
    entry,
    field,
    header,
    node,
    saved_model,
    table,
    varint,
)
from tests.pretrained.readers.tensorflow_files import checkpoint as write_checkpoint
from tests.pretrained.readers.test_torch_file import equal, refused


def slow_crc(data):
    crc = 0xFFFFFFFF
    for byte in bytes(data):
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (POLYNOMIAL if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


VARIABLES = {
    "Generator.Input/Generator.Input.W": np.arange(12, dtype=np.float32).reshape(3, 4),
    "Generator.Input/Generator.Input.b": np.float32([1.5, -2]),
    "Generator.Res1.BN1/scale": np.zeros((0, 3), np.float32),
    "Generator.Res1.Conv1.Filters": np.random.default_rng(0).standard_normal((3, 3, 40, 50)).astype(np.float32),
    "Generator.Res1.Conv1.Filters/Adam": np.float32([[9]]),
    "beta1_power": np.array(0.5, np.float32),
    "global_step": np.array(25009),
}


def checkpoint(folder, name="model.ckpt-25009", variables=VARIABLES, **options):
    return write_checkpoint(folder, variables, name, **options)


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


# Running averages, and tables that only the graph of a SavedModel has.

KERNEL = np.arange(6, dtype=np.float32).reshape(2, 3)
SHARED = {"conv/u0": np.float32([[1, 2]]), "bn/accumulated_mean": np.float32([0, 1])}
TRAINED = SHARED | {"conv/w": KERNEL, "linear/b": np.float32([3])}
AVERAGES = {"conv/w/ema_b999900": KERNEL + 0.5, "linear/b/ema_0.9999": np.float32([4])}


def test_running_averages_are_a_network_of_their_own(tmp_path):
    contents = read(checkpoint(tmp_path, variables=TRAINED | AVERAGES))
    equal(contents.states["G"], TRAINED)
    equal(contents.states["G_ema"], SHARED | {"conv/w": KERNEL + 0.5, "linear/b": np.float32([4])})
    assert "2 variables have a running average" in contents.notes[0]


def test_averages_alone_are_one_network(tmp_path):
    contents = read(checkpoint(tmp_path, variables=SHARED | AVERAGES))
    assert contents.states.keys() == {"G_ema"} and "conv/w" in contents.states["G_ema"]


def test_the_scope_of_a_module_is_taken_off(tmp_path):
    variables = {f"module/{name}": array for name, array in (TRAINED | AVERAGES).items()}
    contents = read(checkpoint(tmp_path, variables=variables))
    equal(contents.states["G"], TRAINED)
    assert "module/" in contents.notes[0]


def test_two_averages_of_one_variable_are_refused(tmp_path):
    variables = {"w": KERNEL, "w/ema_0.9": KERNEL, "w/ema_0.99": KERNEL}
    refused(checkpoint(tmp_path, variables=variables), "two running averages of w")


def saved(folder, graph, variables=TRAINED):
    (folder / "variables").mkdir()
    checkpoint(folder / "variables", "variables", variables=variables)
    (folder / "saved_model.pb").write_bytes(graph)
    return folder


ROWS = np.random.default_rng(0).standard_normal((4, 5)).astype(np.float32)


@pytest.mark.parametrize(
    "nodes",
    [
        [constant("stack_1", ROWS)],
        [constant("stack_1", ROWS, as_numbers=True)],
        [constant("given", ROWS), node("stack_1", "Identity", ["given:0"])],
        [
            *(constant(f"row{i}", row) for i, row in enumerate(ROWS)),
            node("stack_1", "Pack", [f"row{i}" for i in range(4)]),
        ],
        [
            node("v", "VariableV2"),
            node("v/read", "Identity", ["v"]),
            *(constant(f"row{i}", row) for i, row in enumerate(ROWS[1:])),
            node("stack_1", "Pack", ["v/read", "row0", "row1", "row2"], axis=field(3, 0)),
        ],
    ],
    ids=["bytes", "numbers", "handed on", "stacked", "stacked of a variable"],
)
def test_tables_of_a_graph_are_read_to_the_bit(tmp_path, nodes):
    others = [
        constant("other", ROWS),
        constant("stack_2", ROWS[0]),
        node("stack_3", "Pack", ["y"]),
        node("y", "Placeholder"),
    ]
    graph = saved_model(*others, *nodes, before=[constant("other", ROWS)])
    contents = read(saved(tmp_path, graph, TRAINED | {"v": ROWS[0]}))
    equal(contents.states[""], TRAINED | {"v": ROWS[0], "saved_model.pb/stack_1": ROWS})
    assert contents.files[-1].name == "saved_model.pb"


def test_numbers_that_are_left_out_repeat_the_last(tmp_path):
    short = field(1, 1) + field(2, field(2, field(1, 2)) + field(2, field(1, 3)))
    cut = node("stack", "Const", value=field(8, short + field(5, np.float32([1, 2]).tobytes())))
    zeros = node("stack_1", "Const", value=field(8, short))
    states = read(saved(tmp_path, saved_model(cut, zeros))).states[""]
    assert states["saved_model.pb/stack"].tolist() == [[1, 2, 2], [2, 2, 2]]
    assert not states["saved_model.pb/stack_1"].any()


@pytest.mark.parametrize(
    ("graph", "words"),
    [
        (saved_model(constant("stack", ROWS))[:-3], "a field of"),
        (b"\x13", "unknown kind"),
        (
            saved_model(node("stack", "Const", value=field(8, field(1, 1) + field(4, b"abc")))),
            "of 3 bytes for 1 numbers",
        ),
        (
            saved_model(node("stack", "Const", value=field(8, field(1, 1) + field(2, field(2, field(1, 2**25)))))),
            "more constants",
        ),
        (
            saved_model(constant("a", np.zeros(2**13, np.float32)), node("stack", "Pack", ["a"] * 2**12)),
            "more constants",
        ),
    ],
)
def test_graphs_that_lie_are_refused(tmp_path, graph, words):
    refused(saved(tmp_path, graph) / "saved_model.pb", words, at=tmp_path)


def test_graphs_that_go_in_circles_hold_nothing(tmp_path):
    circle = [node("a", "Identity", ["b"]), node("b", "Identity", ["a"]), node("stack", "Pack", ["a", "stack"])]
    states = read(saved(tmp_path, saved_model(*circle))).states[""]
    assert states.keys() == TRAINED.keys() and graphs.MAX_DEPTH < 100


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
