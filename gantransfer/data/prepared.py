"""TensorFlow Datasets that were prepared as ArrayRecord, read by index and without TensorFlow."""

import os
import re
import zlib
from pathlib import Path
from typing import Any

from gantransfer.data.decode import CorruptImage
from gantransfer.data.layout import Layout, refuse_empty
from gantransfer.errors import UserError

FORM = "tfds:NAME[/CONFIG][:VERSION][:SPLIT][@DIR]"
_PREPARE = "a set prepared there once with file_format='array_record'"


class Records:
    """The records of one split as an archive: names are record numbers, bytes are the images as they were encoded."""

    folders: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __init__(self, path: str, source: Any, image_key: str, split: str):
        self.path, self._source, self._image_key = path, source, image_key
        self.files = tuple(f"{split}/{i:08d}" for i in range(len(source)))
        self._content: dict[str, str] = {}

    def record(self, name: str) -> dict[str, Any]:
        """The whole record; CorruptImage if it cannot be read."""
        try:
            return self._source[int(name.rpartition("/")[2])]
        except Exception as error:  # Whatever the reader's C++ side and protocol buffers make of damage.
            raise CorruptImage(name, f"the record is damaged: {error}") from error

    def read(self, name: str) -> bytes:
        """The encoded image of a record, whose checksum is kept for the fingerprint."""
        data = bytes(self.record(name)[self._image_key])
        self._content[name] = f"{zlib.crc32(data):08x} {len(data)}"
        return data

    def head(self, name: str, count: int) -> bytes:
        """The first bytes of the encoded image."""
        return self.read(name)[:count]

    def content(self, name: str) -> str:
        """CRC-32 and size of the encoded image."""
        if name not in self._content:
            self.read(name)
        return self._content[name]


def open_prepared(path: str) -> tuple[Records, Layout]:
    """Opens `tfds:NAME[/CONFIG][:VERSION][:SPLIT][@DIR]`.

    SPLIT is "train" unless given and may be a slice, such as `train[:50%]`. DIR is where prepared sets lie: by default
    the environment's TFDS_DATA_DIR, else ~/tensorflow_datasets. The set needs one Image feature; classes are its
    ClassLabel feature (the one called "label" if there are several), without one it is unconditional.

    Raises:
      UserError: the reader is missing, the set is not there or not prepared as ArrayRecord, or its features do not fit.
    """
    name, version, split, place = _parse(path)
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        allowed = "a set whose reader is installed; this one needs pip install tensorflow-datasets"
        raise UserError("data", path, allowed) from error
    try:
        builder = tfds.builder(name + (f":{version}" if version else ""), data_dir=place)
    except Exception as error:  # Whatever stops a builder, from an unknown name to a missing import: one cure.
        holds = ", ".join(
            sorted({found.relative_to(place).parts[0] for found in Path(place).glob("*/**/dataset_info.json")})
        )
        allowed = f"{FORM} of {_PREPARE}; {place} holds: {holds or 'nothing'} ({_first_line(error)})"
        raise UserError("data", path, allowed) from error
    image_key, label_key, class_names = _features(path, builder.info.features, tfds)
    try:
        source = builder.as_data_source(split, decoders={image_key: tfds.decode.SkipDecoding()})
    except Exception as error:  # As above: a split that is not there, files in another format, or no files at all.
        splits = ", ".join(builder.info.splits) or "not prepared"
        raise UserError("data", path, f"{_PREPARE}; splits in {place}: {splits} ({_first_line(error)})") from error
    records = Records(path, source, image_key, split)
    labels = _labels(path, records, label_key, len(class_names))
    refuse_empty(path, labels, class_names, f"this split lacks some of the set's {len(class_names)} classes")
    numbering = f"numbered by the set's own {label_key!r}" if label_key else "unconditional (the set has no ClassLabel)"
    return records, Layout(records.files, labels, class_names, numbering, ())


def _parse(path: str) -> tuple[str, str | None, str, str]:
    spec, _, place = path.removeprefix("tfds:").partition("@")
    name, _, rest = spec.partition(":")
    version = None
    if re.match(r"\d+\.\d+\.\d+(:|$)", rest):
        version, _, rest = rest.partition(":")
    if not name:
        raise UserError("data", path, FORM)
    default = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    return name, version, rest or "train", os.path.expanduser(place or default)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _features(path: str, features: Any, tfds: Any) -> tuple[str, str | None, tuple[str, ...]]:
    """The keys of image and label, and the class names."""
    # Sorted, since features read back from their file come in any order.
    items = dict(sorted(features.items())) if isinstance(features, tfds.features.FeaturesDict) else {}
    images = [key for key, feature in items.items() if type(feature) is tfds.features.Image]
    labels = [key for key, feature in items.items() if isinstance(feature, tfds.features.ClassLabel)]
    if len(images) != 1:
        raise UserError("data", f"{path}: {', '.join(items) or features}", "sets with exactly one Image feature")
    if len(labels) > 1 and "label" not in labels:
        allowed = "sets with one ClassLabel feature, or with one called 'label'"
        raise UserError("data", f"{path}: {', '.join(labels)}", allowed)
    if not labels:
        return images[0], None, ("all",)
    key = "label" if "label" in labels else labels[0]
    return images[0], key, tuple(items[key].names)


def _labels(path: str, records: Records, key: str | None, count: int) -> tuple[int, ...]:
    if key is None:
        return (0,) * len(records.files)
    labels = []
    for name in records.files:
        try:
            label = int(records.record(name)[key])
        except CorruptImage as damage:
            raise UserError("data", f"{path}: {name}", f"records that can be read; {damage.why}") from damage
        if not 0 <= label < count:
            raise UserError("data", f"{path}: {name} has label {label}", f"labels 0 to {count - 1} ({count} classes)")
        labels.append(label)
    return tuple(labels)
