"""Writes checkpoint files byte by byte, honest and hostile ones."""

import pickle
import struct
import zipfile

MAGIC = 0x1950A86A20F9469CFC6C
ORDERED = b"ccollections\nOrderedDict\n)R"


def plain(value):
    """Opcodes that push a plain value."""
    return pickle.dumps(value, protocol=2)[2:-1]


def global_(module, name):
    return f"c{module}\n{name}\n".encode()


def call(function, *args):
    """Opcodes that call a global (already opcodes) with arguments (opcodes)."""
    return function + b"(" + b"".join(args) + b"tR"


def persistent(key, count, kind="FloatStorage", view=None, location="cpu"):
    parts = plain("storage") + global_("torch", kind) + plain(key) + plain(location) + plain(count)
    return b"(" + parts + (b"" if view == "none" else plain(view)) + b"tQ"


def tensor(key, count, size, stride=None, offset=0, **options):
    if stride is None:
        stride, step = [], 1
        for n in reversed(size):
            stride.insert(0, step)
            step *= n
    storage = persistent(key, count, **options)
    return call(
        global_("torch._utils", "_rebuild_tensor_v2"),
        storage, plain(offset), plain(tuple(size)), plain(tuple(stride)), plain(False), ORDERED,
    )  # fmt: skip


def mapping(**entries):
    """Opcodes of a dictionary whose values are opcodes."""
    return b"}(" + b"".join(plain(key) + value for key, value in entries.items()) + b"u"


def whole(opcodes):
    return b"\x80\x02" + opcodes + b"."


def write_zip(path, opcodes, storages=(), root="archive", extra=(), compression=zipfile.ZIP_STORED, byteorder="little"):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(f"{root}/data.pkl", whole(opcodes))
        archive.writestr(f"{root}/byteorder", byteorder)
        for key, data in dict(storages).items():
            archive.writestr(f"{root}/data/{key}", data)
        for name, data in extra:
            archive.writestr(name, data)
    return path


def script(module, name, **attributes):
    """Opcodes of an object of a class that a TorchScript program brings itself; attributes are opcodes."""
    return global_(module, name) + b")\x81" + mapping(**attributes) + b"b"


def write_script(path, opcodes, storages=(), constants=b")", constant_storages=(), code="", root="program"):
    """A TorchScript program as `torch.jit.save` lays it out: long source is compressed, arrays never are."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{root}/version", "3\n")
        archive.writestr(f"{root}/code/__torch__/tower.py", code, zipfile.ZIP_DEFLATED)
        archive.writestr(f"{root}/code/__torch__/tower.py.debug_pkl", b"\x80\x02" + b"cposix\nsystem\n" + b".")
        for key, data in dict(storages).items():
            archive.writestr(f"{root}/data/{key}", data)
        archive.writestr(f"{root}/data.pkl", whole(opcodes))
        for key, data in dict(constant_storages).items():
            archive.writestr(f"{root}/constants/{key}", data)
        archive.writestr(f"{root}/constants.pkl", whole(constants))
    return path


def legacy(opcodes, keys=(), storages=(), system=None):
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}} if system is None else system
    order = "<" if system.get("little_endian", True) else ">"
    parts = [whole(plain(value)) for value in (MAGIC, 1001, system)]
    parts += [whole(opcodes), whole(plain(list(keys)))]
    for count, data in storages:
        parts.append(struct.pack(f"{order}q", count) + data)
    return b"".join(parts)
