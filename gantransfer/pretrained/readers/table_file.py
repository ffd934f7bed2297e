"""Reads LevelDB tables, sorted files of keys and values, as TensorFlow writes the index of its checkpoints.

Format: blocks of entries whose keys share prefixes with the key before, each followed by a byte for the compression
and a masked CRC-32C; the last 48 bytes say where the block of the index lies, whose values say where the others do.
Source: LevelDB's `doc/table_format.md`; Snappy's `format_description.txt`.
"""

import struct
from collections.abc import Iterator

from gantransfer.pretrained.readers.crc32c import crc32c, unmasked
from gantransfer.pretrained.readers.mapped import MappedFile

FOOTER_BYTES = 48
MAGIC = bytes.fromhex("57fb808b247547db")
# Blocks are a few kilobytes; the block of the index grows with their number.
MAX_BLOCK_BYTES = 64 << 20
_PLAIN, _SNAPPY = 0, 1


def varint(file: MappedFile, data: memoryview, position: int) -> tuple[int, int]:
    """A number in groups of seven bits, low ones first, and the position behind it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = file.take(position, 1, "a number", data)[0]
        value, position = value | (byte & 0x7F) << shift, position + 1
        if byte < 0x80:
            return value, position
    raise file.refuse("a number of more than ten bytes")


def entries(file: MappedFile) -> Iterator[tuple[bytes, memoryview]]:
    """Keys and values of a table, in the order of the keys.

    Raises:
      UserError: the file is no table, is damaged, or its keys are out of order.
    """
    size = len(file)
    footer = file.take(size - FOOTER_BYTES, FOOTER_BYTES, "the end of a table")
    if bytes(footer[-8:]) != MAGIC:
        raise file.refuse("a file without the magic number of a table", "the .index file of a TensorFlow checkpoint")
    _, position = _handle(file, footer, 0)
    index, _ = _handle(file, footer, position)
    last = None
    for _, handle in _block_entries(file, _block(file, *index)):
        for key, value in _block_entries(file, _block(file, *_handle(file, handle, 0)[0])):
            if last is not None and key <= last:
                raise file.refuse("keys out of order or twice")
            last = key
            yield key, value


def _handle(file: MappedFile, data: memoryview, position: int) -> tuple[tuple[int, int], int]:
    offset, position = varint(file, data, position)
    size, position = varint(file, data, position)
    return (offset, size), position


def _block(file: MappedFile, offset: int, size: int) -> memoryview:
    whole = file.take(offset, size + 5, "a block")
    data, kind = whole[:size], whole[size]
    if size > MAX_BLOCK_BYTES or kind not in (_PLAIN, _SNAPPY):
        raise file.refuse(f"a block of {size} bytes in compression {kind}")
    if crc32c(whole[: size + 1]) != unmasked(struct.unpack("<I", whole[-4:])[0]):
        raise file.refuse(f"a block at byte {offset} with a wrong checksum")
    return data if kind == _PLAIN else unpacked(file, data)


def _block_entries(file: MappedFile, block: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    # Restart points lie behind the entries and only serve searching.
    restarts = struct.unpack("<I", file.take(len(block) - 4, 4, "a block's end", block))[0]
    end = len(block) - 4 - 4 * restarts
    if end < 0:
        raise file.refuse(f"a block of {len(block)} bytes with {restarts} restart points")
    position, key = 0, b""
    while position < end:
        shared, position = varint(file, block, position)
        unshared, position = varint(file, block, position)
        length, position = varint(file, block, position)
        if shared > len(key) or position + unshared + length > end:
            raise file.refuse("an entry of a block that reaches beyond it")
        key = key[:shared] + bytes(block[position : position + unshared])
        position += unshared
        yield key, block[position : position + length]
        position += length


def unpacked(file: MappedFile, data: memoryview) -> memoryview:
    """What Snappy compressed: a length, then pieces of text and copies of what came before."""
    length, position = varint(file, data, 0)
    if length > MAX_BLOCK_BYTES:
        raise file.refuse(f"a block that unfolds to {length} bytes")
    out = bytearray()
    while position < len(data) and len(out) <= length:
        tag, position = data[position], position + 1
        kind, count = tag & 3, tag >> 2
        if kind == 0:
            if count >= 60:
                extra = count - 59
                count = int.from_bytes(file.take(position, extra, "a length", data), "little")
                position += extra
            out += file.take(position, count + 1, "a piece of text", data)
            position += count + 1
            continue
        extra = (0, 1, 2, 4)[kind]
        back = int.from_bytes(file.take(position, extra, "a distance", data), "little")
        position += extra
        if kind == 1:
            back, count = back | (count >> 3) << 8, (count & 7) + 3
        _copy(file, out, back, count + 1)
    if len(out) != length:
        raise file.refuse(f"a block of {len(out)} bytes that claims {length}")
    return memoryview(bytes(out))


def _copy(file: MappedFile, out: bytearray, back: int, count: int) -> None:
    if not 0 < back <= len(out):
        raise file.refuse("a copy of bytes that are not there")
    for _ in range(0, count, back):
        # A copy may reach into itself, which repeats its beginning.
        piece = out[-back:][: min(back, count)]
        out += piece
        count -= len(piece)
