"""Pickles that attack: whatever they name is refused and nothing is imported, called or changed."""

import base64
import functools
import os
import pickle
import struct
import sys
import tracemalloc

import numpy as np
import pytest

from gantransfer.errors import UserError
from gantransfer.pretrained.readers import pickles, read
from gantransfer.pretrained.readers.mapped import MappedFile
from gantransfer.pretrained.readers.pickles import Reader, Record
from gantransfer.pretrained.readers.stand_ins import KNOWN
from tests.pretrained.readers import files


def load(path, raw):
    path.write_bytes(raw)
    return Reader(MappedFile(path), KNOWN).load()


def refused(path, raw, *words):
    path.write_bytes(raw)
    for attempt in (lambda: read(path), lambda: Reader(MappedFile(path), KNOWN).load()):
        with pytest.raises(UserError) as caught:
            attempt()
        message = str(caught.value)
        assert "\n" not in message and len(message) < len(str(path)) + 600
        for word in words:
            assert word in message, message


class Runs:
    """Pickles as a call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


ATTACKS = {
    "os.system": lambda mark: Runs(os.system, f"touch {mark}"),
    "eval": lambda mark: Runs(eval, f"open({str(mark)!r}, 'w')"),
    "exec": lambda mark: Runs(exec, f"open({str(mark)!r}, 'w')"),
    "getattr": lambda mark: Runs(getattr, np.ndarray, "tofile"),
    "import": lambda mark: Runs(__import__, "antigravity"),
    "partial": lambda mark: Runs(functools.partial, os.system, f"touch {mark}"),
    "open": lambda mark: Runs(open, str(mark), "w"),
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", ATTACKS)
def test_calls_of_python_are_refused_by_name(tmp_path, name, protocol):
    mark, before = tmp_path / "mark", set(sys.modules)
    raw = pickle.dumps({"G": [ATTACKS[name](mark)]}, protocol=protocol)
    refused(tmp_path / "a.pkl", raw, "the global", f".{ATTACKS[name](mark).call[0].__name__}")
    assert not mark.exists() and not {new for new in set(sys.modules) - before if "antigravity" in new}


def short_text(text):
    return b"\x8c" + struct.pack("<B", len(text)) + text.encode()


@pytest.mark.parametrize(
    ("opcodes", "words"),
    [
        (b"\x80\x02cos\nsystem\n(X\x02\x00\x00\x00lstR.", "os.system"),
        (b"\x80\x04" + short_text("os") + short_text("system") + b"\x93.", "os.system"),
        (b"\x80\x02(X\x02\x00\x00\x00lsios\nsystem\n.", "os.system"),
        (b"\x80\x02(cos\nsystem\nX\x02\x00\x00\x00lso.", "os.system"),
        (b"\x80\x02ccopyreg\n_reconstructor\n.", "copyreg._reconstructor"),
        (b"\x80\x02ccopy_reg\n__newobj__\n.", "copy_reg.__newobj__"),
        (b"\x80\x02cfunctools\nreduce\n.", "functools.reduce"),
        (b"\x80\x02coperator\nattrgetter\n.", "operator.attrgetter"),
        (b"\x80\x04" + short_text("collections") + short_text("OrderedDict.fromkeys") + b"\x93.", "fromkeys"),
        (b"\x80\x04" + short_text("numpy") + short_text("load") + b"\x93.", "numpy.load"),
        (b"\x80\x02ctorch.nn.modules.activation\nEvil\n.", "torch.nn.modules.activation.Evil"),
        (b"\x80\x02c__main__\nNet\n.", "__main__.Net"),
        (b"\x80\x02\x82\x01.", "extension registry"),
        (b"\x80\x05\x97.", "out-of-band"),
        (b"\x80\x02P1\n.", "persistent ids"),
        (b"\x80\x02NQ.", "persistent id"),
        # calls of things that are no globals, and state for things that take none
        (b"\x80\x02X\x02\x00\x00\x00ls)R.", "not a listed global"),
        (b"\x80\x02ccollections\nOrderedDict\n]R.", "not a listed global"),
        (b"\x80\x02ccollections\nOrderedDict\n}b.", "takes none"),
        (b"\x80\x02ccollections\nOrderedDict\n(N}X\x08\x00\x00\x00__code__Nst\x85b.", ""),
        (b"\x80\x02]}b.", "takes none"),
        (b"\x80\x02)K\x01a.", "not a list"),
        (b"\x80\x04\x8f(]\x90.", "key of type list"),
        (b"\x80\x02}]K\x01s.", "key of type list"),
        # shapes of pickles
        (b"\x80\x02K\x01", "ends early"),
        (b"\x80\x02.", "makes no sense"),
        (b"\x80\x02K\x01K\x02.", "before everything"),
        (b"\x80\x02(K\x01.", "before everything"),
        (b"\x80\x02t.", "makes no sense"),
        (b"\x80\x02h\x07.", "makes no sense"),
        (b"\x80\x02\xff.", "unknown pickle opcode"),
        (b"\x80\x63N.", "protocol above 5"),
        (b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"N.", "frame"),
        # oversized claims
        (b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"N.", "1152921504606846976 bytes"),
        (b"\x80\x04\x8d" + struct.pack("<Q", 2**60) + b"N.", "1152921504606846976 bytes"),
        (b"\x80\x04X\xff\xff\xff\xffN.", "4294967295 bytes"),
        (b"\x80\x02\x8b\xff\xff\xff\x7f.", "an integer of"),
        (b"\x80\x02\x8a\xff" + bytes(255) + b".", "an integer of"),
        (b"\x80\x02I" + b"9" * 5000 + b"\n.", "an integer of"),
    ],
)  # fmt: skip
def test_opcodes_that_should_not_be_there_are_refused(tmp_path, opcodes, words):
    refused(tmp_path / "a.pkl", opcodes, words)


def test_a_memo_of_any_number_reserves_nothing(tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(b"\x80\x02Nr\xff\xff\xff\xff.")
    tracemalloc.start()
    assert Reader(MappedFile(path), KNOWN).load() is None
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    "opcodes",
    [
        b"(" * 300_000,
        b"]" * 4000,
        b"]" * 100_000 + b"a" * 99_999,
        b"N" + b"\x85" * 100_000,
        b"]" + b"2\x86" * 200,
        b"}q\x00X\x01\x00\x00\x00ah\x00s",
        b"]q\x00h\x00a",
    ],
    ids=["marks", "opcodes", "deep lists", "deep tuples", "doubling", "a dictionary in itself", "a list in itself"],
)
def test_bombs_end_in_one_line(tmp_path, monkeypatch, opcodes):
    if len(opcodes) == 4000:
        monkeypatch.setattr(pickles, "MAX_OPCODES", 3000)
    path = tmp_path / "a.pkl"
    path.write_bytes(b"\x80\x02" + opcodes + b".")
    with pytest.raises(UserError):
        read(path)


def test_doubling_tuples_are_no_keys(tmp_path):
    doubled = b")" + b"2\x86" * 100
    refused(tmp_path / "a.pkl", b"\x80\x02}" + doubled + b"Ns.", "key of type tuple")


@pytest.mark.parametrize(
    "part",
    [
        b"}q\x00X\x08\x00\x00\x00_modules}X\x01\x00\x00\x00ah\x01ss",
        b"}q\x00X\x08\x00\x00\x00_modulesNs",
        b"}q\x00X\x0b\x00\x00\x00_parameters}X\x01\x00\x00\x00ah\x01ss",
        b"N",
        b"]",
    ],
)
def test_modules_that_contain_themselves_are_refused(tmp_path, part):
    array = files.plain(np.zeros(3))
    module = files.global_("torch.nn.modules.linear", "Linear") + b")\x81q\x01" + part + b"b"
    opcodes = files.mapping(G=module, D=files.mapping(w=files.plain(1.5)), H=b"}X\x01\x00\x00\x00w" + array + b"s")
    path = tmp_path / "a.pkl"
    path.write_bytes(files.whole(opcodes))
    try:
        contents = read(path)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert contents.states.keys() == {"H"}


@pytest.mark.parametrize(
    ("dtype", "shape", "data", "words"),
    [
        ("f4", (2**60,), b"1234", "claims 1152921504606846976 elements"),
        ("f4", (2,), b"1234", "claims 2 elements"),
        ("f4", (-1,), b"1234", "shape that is none"),
        ("V8", (1,), b"12345678", "data type V8"),
        ("O", (1,), b"12345678", "array of objects"),
        ("f4,f4", (1,), b"12345678", "data type f4,f4"),
        (7, (1,), b"", "data type 7"),
    ],
)
def test_arrays_that_lie_are_refused(tmp_path, dtype, shape, data, words):
    kind = files.call(files.global_("numpy", "dtype"), files.plain(dtype), files.plain(False), files.plain(True))
    kind += files.plain((3, "<", None, None, None, -1, -1, 0)) + b"b"
    new = (files.global_("numpy", "ndarray"), files.plain((0,)), files.plain(b"b"))
    array = files.call(files.global_("numpy.core.multiarray", "_reconstruct"), *new)
    array += b"(K\x01" + files.plain(shape) + kind + files.plain(False) + files.plain(data) + b"tb"
    refused(tmp_path / "a.pkl", files.whole(files.mapping(w=array)), words)


VALUES = {
    "numbers": [0, 1, -1, 255, 65536, -(2**31), 2**40, -(2**100), 1.5, float("inf"), True, False, None],
    "texts": ["", "a", "é\u20ac", "x" * 300, b"", b"bytes", b"x" * 3000, bytearray(b"abc")],
    "containers": [(), (1,), (1, 2, 3, 4), [], [1, [2]], {}, {"a": {1: (2,)}}, {"a", "b"}, frozenset({1})],
    "numpy": [np.float64(1.5), np.arange(6, dtype=">i2").reshape(2, 3), np.asfortranarray(np.ones((2, 3), "f4"))],
}


def same(found, value):
    if isinstance(value, bytes | bytearray):  # views where they are long
        return bytes(found) == value
    if isinstance(value, np.ndarray | np.generic):
        return found.dtype == value.dtype and np.array_equal(found, value)
    return type(found) is type(value) and found == value


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("kind", VALUES)
def test_plain_values_are_read_as_python_reads_them(tmp_path, kind, protocol):
    # A bytearray is a call of builtins.bytearray before protocol 5, which no checkpoint holds.
    values = [value for value in VALUES[kind] if protocol == 5 or not isinstance(value, bytearray)]
    if protocol < 4:
        values = [value for value in values if not isinstance(value, frozenset)]
    found = load(tmp_path / "a", pickle.dumps(values, protocol=protocol))
    assert len(found) == len(values)
    for value, other in zip(values, found, strict=True):
        assert same(other, value), (other, value)


def test_pickles_of_python_2_are_read(tmp_path):
    # cPickle.dumps([numpy.arange(3, dtype='f4'), 'text'], 0) of Python 2.7, whose strings are bytes.
    raw = base64.b64decode(
        "KGxwMQpjbnVtcHkuY29yZS5tdWx0aWFycmF5Cl9yZWNvbnN0cnVjdApwMgooY251bXB5Cm5kYXJyYXkKcDMKKEkwCnRTJ2InCnRScDQKKEkxCihJ"
        "Mwp0Y251bXB5CmR0eXBlCnA1CihTJ2Y0JwpJMApJMQp0UnA2CihJMwpTJzwnCk5OTkktMQpJLTEKSTAKdGJJMDAKUydceDAwXHgwMFx4MDBceDAw"
        "XHgwMFx4MDBceDgwP1x4MDBceDAwXHgwMEAnCnRiYVMndGV4dCcKYS4="
    )
    array, text = load(tmp_path / "a", raw)
    np.testing.assert_array_equal(array, np.arange(3, dtype=np.float32))
    assert text == "text"


def test_objects_of_listed_classes_are_records(tmp_path):
    raw = files.global_("torch.nn.modules.activation", "ReLU") + b")\x81" + files.plain({"inplace": True}) + b"b"
    record = load(tmp_path / "a", files.whole(raw))
    assert isinstance(record, Record) and record.name == "torch.nn.modules.activation.ReLU"
    assert record.state == {"inplace": True}


def test_long_bytes_are_views(tmp_path):
    data = os.urandom(5000)
    found = load(tmp_path / "a", pickle.dumps(data, protocol=4))
    assert isinstance(found, memoryview) and bytes(found) == data


@pytest.mark.parametrize(
    "name", ["stylegan2ada/network-snapshot-c32-torch2-proto4.pkl", "r3gan/network-snapshot-c16.pkl"]
)
def test_damage_anywhere_ends_in_one_line_or_in_arrays(shared, tmp_path, name):
    """Any bytes may come: the reader says no, or gives arrays; nothing else leaves it."""
    data = (shared / "parity" / name).read_bytes()
    draw, path = np.random.default_rng(0), tmp_path / "a.pkl"
    outcomes = {"read": 0, "refused": 0}
    for _ in range(20):
        damaged = bytearray(data)
        for place in draw.integers(0, len(data), 4):
            # Half of the damage goes where the structure is densest.
            damaged[place if draw.random() < 0.5 else place % 5000] = draw.integers(256)
        path.write_bytes(damaged)
        try:
            contents = read(path)
        except UserError as error:
            outcomes["refused"] += 1
            assert "\n" not in str(error)
        else:
            outcomes["read"] += 1
            assert all(isinstance(array, np.ndarray) for state in contents.states.values() for array in state.values())
    assert outcomes["refused"] > 5
