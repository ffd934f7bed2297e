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
from gantransfer.pretrained.readers.npy_file import MAGIC as NPY_MAGIC
from gantransfer.pretrained.readers.npy_file import read_npz
from gantransfer.pretrained.readers.safetensors_file import is_safetensors, read_safetensors
from gantransfer.pretrained.readers.tensorflow_checkpoint import index_of, is_table, read_tensorflow
from gantransfer.pretrained.readers.theano_file import read_npy, read_npy_folder, read_pickle
from gantransfer.pretrained.readers.torch_file import is_legacy, read_torch
from gantransfer.pretrained.readers.zips import MAGIC as ZIP_MAGIC
from gantransfer.pretrained.readers.zips import Archive

__all__ = ["Contents", "read"]

ALLOWED = (
    "a checkpoint of PyTorch (.pth, .pt, .bin), of StyleGAN (.pkl), of TensorFlow (.index), safetensors, npz, joblib, "
    "or a folder of BigGAN-PyTorch, StudioGAN or Hugging Face"
)


def read(path: str | Path) -> Contents:
    """Reads a checkpoint of any known format into NumPy arrays; nothing in it is run.

    The format is found out from the content. What lies beside a file and belongs to it is read too: `config.json`
    beside `pytorch_model.bin`, `state_dict.pth` beside `G_ema.pth`, npy files that a joblib file names. A TensorFlow
    checkpoint is given by its prefix, one of its files or its folder.

    Args:
      path: a file, a prefix, or a folder whose files make up one checkpoint.

    Raises:
      UserError: the file is damaged, hostile, or of no known format; one line says what was found.
    """
    path = Path(path)
    if path.is_dir():
        found = read_folder(path, _read_file)
        if found is None and (index := index_of(path)):
            found = read_tensorflow(index)
        found = found or read_npy_folder(path)
        if found is None:
            raise UserError(str(path), "a folder without a checkpoint", ALLOWED)
        return found
    if config_beside(path):
        return read_hugging_face(path, _read_file)
    contents = _read_file(path)
    beside = training_state_beside(path)
    return add_training_state(contents, beside) if beside else contents


def _read_file(path: Path) -> Contents:
    index = index_of(path)
    if index is not None:
        return read_tensorflow(index)
    if not path.is_file():
        raise UserError(str(path), "no such file", ALLOWED)
    file = MappedFile(path)
    head = bytes(file.data[:64])
    if head.startswith(ZIP_MAGIC):
        members = Archive(file).members
        return read_npz(path) if members and all(name.endswith(".npy") for name in members) else read_torch(path)
    if is_legacy(head):
        return read_torch(path)
    # Before pickles, since the length of a header may begin with their mark.
    if is_safetensors(head):
        return read_safetensors(path)
    # Protocols 2 and later begin with a mark of their own, 0 and 1 with a list or a dictionary.
    if head[:1] == b"\x80" or head.startswith((b"(lp", b"(dp", b"]q", b"}q")):
        return read_pickle(path)
    if head.startswith(NPY_MAGIC):
        return read_npy(path)
    if is_table(file):
        return read_tensorflow(path)
    raise file.refuse(f"a file that begins with {head[:8].hex(' ') or 'nothing'}", ALLOWED)
