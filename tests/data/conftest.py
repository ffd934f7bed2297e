"""Small pictures, folders and zips for the tests of data."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def picture(number: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> bytes:
    """A PNG of noise that differs for every number."""
    bands = len(Image.new(mode, (1, 1)).getbands())
    noise = np.random.default_rng(number).integers(0, 256, (size[1], size[0], bands), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise[..., 0] if bands == 1 else noise, mode).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def make_zip(tmp_path):
    """`make_zip({"cat/0.png": bytes, ...}, "name.zip")` -> its path; a name with a "/" at its end is a folder."""

    def make(entries: dict[str, bytes], name: str = "set.zip") -> str:
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for entry, data in entries.items():
                archive.writestr(entry, data)
        return str(tmp_path / name)

    return make


@pytest.fixture
def make_folder(tmp_path):
    """The same as a folder."""

    def make(entries: dict[str, bytes], name: str = "folder") -> str:
        for entry, data in entries.items():
            place = Path(tmp_path, name, entry)
            if entry.endswith("/"):
                place.mkdir(parents=True, exist_ok=True)
            else:
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(data)
        return str(tmp_path / name)

    return make
