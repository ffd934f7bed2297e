"""Readers of published checkpoints, one file per on-disk format, without PyTorch, TensorFlow or Python's pickle."""

from pathlib import Path

from gantransfer.errors import UserError
from gantransfer.pretrained.readers.contents import Contents
from gantransfer.pretrained.readers.folders import (
    add_training_state,
    config_beside,
    read_folder,
    read_hugging_face,
    training_state_beside,
)
from gantransfer.pretrained.readers.mapped import MappedFile
from gantransfer.pretrained.readers.torch_file import is_legacy, read_torch
from gantransfer.pretrained.readers.zips import MAGIC as ZIP_MAGIC

__all__ = ["Contents", "read"]

ALLOWED = (
    "a checkpoint of torch.save (.pth, .pt, .bin), a folder of BigGAN-PyTorch or StudioGAN, or a Hugging Face folder"
)


def read(path: str | Path) -> Contents:
    """Reads a checkpoint of any known format into NumPy arrays; nothing in it is run.

    The format is found out from the content. What lies beside a file and belongs to it is read too: `config.json`
    beside `pytorch_model.bin`, `state_dict.pth` beside `G_ema.pth`.

    Args:
      path: a file, or a folder whose files make up one checkpoint.

    Raises:
      UserError: the file is damaged, hostile, or of no known format; one line says what was found.
    """
    path = Path(path)
    if path.is_dir():
        found = read_folder(path, _read_file)
        if found is None:
            raise UserError(str(path), "a folder without a checkpoint", ALLOWED)
        return found
    if config_beside(path):
        return read_hugging_face(path, _read_file)
    contents = _read_file(path)
    beside = training_state_beside(path)
    return add_training_state(contents, beside) if beside else contents


def _read_file(path: Path) -> Contents:
    if not path.is_file():
        raise UserError(str(path), "no such file", ALLOWED)
    file = MappedFile(path)
    head = bytes(file.data[:64])
    if head.startswith(ZIP_MAGIC) or is_legacy(head):
        return read_torch(path)
    raise file.refuse(f"a file that begins with {head[:8].hex(' ') or 'nothing'}", ALLOWED)
