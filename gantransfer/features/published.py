"""Where the published weights of feature networks are, under which licence, and how a file of them is found.

A file is looked for in the folder that `$GANTRANSFER_FEATURES` names, then among the downloads that are kept, then
downloaded. Whatever the way, its size and checksum are compared with what its publisher states.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from gantransfer.errors import UserError
from gantransfer.pretrained.download import PublishedFile, cache_folder, download, to_stderr

FOLDER = "GANTRANSFER_FEATURES"
BSD2 = "BSD 2-clause"
BSD3 = "BSD 3-clause"
APACHE = "Apache 2.0"
MIT = "MIT"
CC_BY_NC = "CC BY-NC 4.0: not for commercial use"
# What a file may be called that a user has converted.
SUFFIXES = (".npz", ".safetensors", ".pth", ".pt", ".th")


@dataclass(frozen=True)
class Weights:
    """One published file of weights.

    Attributes:
      file: its name, address and size.
      licence: of the weights, in words.
      page: where people get it.
      sha256_begins: first digits of its checksum, where the publisher puts them into the file's name.
    """

    file: PublishedFile
    licence: str
    page: str
    sha256_begins: str = ""

    @property
    def digits(self) -> str:
        """The checksum, or as many of its first digits as are known."""
        return self.file.sha256 or self.sha256_begins or _digits_in_name(self.file.name)

    @property
    def described(self) -> str:
        """The file's name and size."""
        size = self.file.bytes / 1e6 if self.file.bytes else self.file.megabytes
        return f"{self.file.name} ({size:{',.0f' if size >= 100 else '.3g'}} MB)" if size else self.file.name


def torchvision(file: str, megabytes: float, licence: str = BSD3) -> Weights:
    """A file of torchvision's."""
    published = PublishedFile(file, f"https://download.pytorch.org/models/{file}", megabytes=megabytes)
    return Weights(published, licence, "https://docs.pytorch.org/vision/stable/models.html")


def _digits_in_name(name: str) -> str:
    # Files of torch.hub end in the first eight digits of their SHA-256: vgg16-397923af.pth.
    last = name.partition(".")[0].rpartition("-")[2]
    return last if len(last) == 8 and set(last) <= set("0123456789abcdef") else ""


def find(name: str, published: tuple[Weights, ...]) -> tuple[Path, Weights | None]:
    """Returns the file of a network's weights, downloaded if need be, and which published one it is.

    Args:
      name: the network.
      published: files that will do, the preferred one first.

    Raises:
      UserError: there is no such file and none can be had; it names the file, its size, its page and where to put it.
    """
    folder = os.environ.get(FOLDER)
    if folder:
        for weights in published:
            if (path := Path(folder).expanduser() / weights.file.name).is_file():
                _check_digits(path, weights)
                return path, weights
        for suffix in SUFFIXES:
            if (path := Path(folder).expanduser() / f"{name}{suffix}").is_file():
                return path, None
    if not published:
        raise UserError(
            f"weights of {name}", None, "a path or a state dict: nobody publishes them as a file of their own"
        )
    for weights in published:
        if (path := _kept(weights)).is_file():
            _check_digits(path, weights)
            return path, weights
    first = published[0]
    try:
        download(first.file, _kept(first), page=first.page, log=to_stderr)
    except UserError as error:
        # A download that fails names the file and its place too: once is enough.
        reason = error.allowed.rpartition(", since ")[2]
        raise UserError(
            f"weights of {name}",
            None,
            f"weights=PATH, or the file {first.described} from {first.page} put into the folder that ${FOLDER} names, "
            f"or at {_kept(first)} ({first.file.url}: {reason})",
        ) from error
    _check_digits(_kept(first), first)
    return _kept(first), first


def _kept(weights: Weights) -> Path:
    return cache_folder() / "features" / weights.file.name


def _check_digits(path: Path, weights: Weights) -> None:
    if not weights.digits:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(weights.digits):
        raise UserError(str(path), f"SHA-256 {found}", f"the published file, SHA-256 {weights.digits}; remove this one")
