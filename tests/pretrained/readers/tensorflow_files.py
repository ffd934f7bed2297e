"""TensorFlow's checkpoints and graphs, written byte by byte as its writer lays them out."""

import struct

from gantransfer.pretrained.readers.crc32c import crc32c

FLOAT, INT64, STRING, BFLOAT16 = 1, 9, 7, 14
MAGIC = 0xDB4775248B80FB57


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
    out = field(1, dtype) + field(2, shape_of(told["shape"]))
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


def checkpoint(folder, variables, name="model.ckpt-25009", compressed=False, shards=1, changes=None, extra=()):
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


def shape_of(sizes):
    """A shape, as in an index and in a constant of a graph."""
    return b"".join(field(2, field(1, n) if n else b"") for n in sizes)


def tensor(array, as_numbers=False):
    """A constant of float32: as bytes, or as a packed list of numbers."""
    raw = array.astype("<f4").tobytes()
    return field(1, FLOAT) + field(2, shape_of(array.shape)) + field(5 if as_numbers else 4, raw)


def node(name, operation, inputs=(), **attributes):
    """A node of a graph; attributes are opcodes of what their message holds."""
    out = field(1, name.encode()) + field(2, operation.encode())
    out += b"".join(field(3, given.encode()) for given in inputs)
    return out + b"".join(field(5, field(1, key.encode()) + field(2, value)) for key, value in attributes.items())


def constant(name, array, as_numbers=False):
    return node(name, "Const", dtype=field(6, FLOAT), value=field(8, tensor(array, as_numbers)))


def saved_model(*nodes, before=()):
    """A SavedModel of one graph with these nodes; `before` are the nodes of a graph that stands in front of it."""
    graphs = [graph for graph in (before, nodes) if graph]
    metas = [field(1, field(4, b"serve")) + field(2, b"".join(field(1, node) for node in graph)) for graph in graphs]
    return field(1, 1) + b"".join(field(2, meta) for meta in metas)
