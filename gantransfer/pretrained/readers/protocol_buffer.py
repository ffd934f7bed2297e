"""Takes protocol buffers apart, as TensorFlow's indices and graphs are written in them: fields by number, no schema.

Source: the encoding guide of Protocol Buffers.
"""

from collections.abc import Iterator

from gantransfer.pretrained.readers.mapped import MappedFile
from gantransfer.pretrained.readers.rebuild_numpy import checked_shape
from gantransfer.pretrained.readers.table_file import varint


def fields(file: MappedFile, message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Numbers and values of a message's fields, in their order: whole numbers as such, anything else as its bytes."""
    position = 0
    while position < len(message):
        tag, position = varint(file, message, position)
        kind = tag & 7
        if kind == 0:
            value, position = varint(file, message, position)
        else:
            size = {1: 8, 5: 4}.get(kind)
            if kind == 2:
                size, position = varint(file, message, position)
            if size is None:
                raise file.refuse("a protocol buffer with an unknown kind of field")
            value = file.take(position, size, "a field", message)
            position += size
        yield tag >> 3, value


def shape_of(file: MappedFile, message: memoryview) -> tuple[int, ...]:
    """The shape that a message of TensorFlow's kind for shapes says."""
    sizes = []
    for number, value in fields(file, message):
        if number == 2 and isinstance(value, memoryview):
            size = dict(fields(file, value)).get(1, 0)
            sizes.append(size if isinstance(size, int) else -1)
        elif number == 3 and value:
            raise file.refuse("a variable of unknown shape")
    return checked_shape(file, sizes)
