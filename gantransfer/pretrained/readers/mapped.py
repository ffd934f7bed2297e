"""A file mapped into memory, with bounds, and the words for what is wrong with it."""

import mmap
from pathlib import Path

from gantransfer.errors import UserError

WHOLE = "a complete, undamaged checkpoint"

# Honest weights hardly compress, and share little memory; what unfolds to far more than the file is an attack.
LARGEST_GROWTH = 20
ALWAYS_ALLOWED_BYTES = 256 << 20


class MappedFile:
    """The bytes of a file, read by the operating system when they are touched.

    Arrays that are views of `data` keep the mapping alive. A message never quotes more than a few characters of the
    file.

    Args:
      path: the file.

    Raises:
      UserError: it is not a file that can be read.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            with path.open("rb") as file:
                size = path.stat().st_size
                # A mapping of no bytes does not exist.
                self.data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b"")
        except (OSError, ValueError) as error:
            # Messages of the system may quote the path, which stands in front anyway.
            raise self.refuse(getattr(error, "strerror", None) or "unreadable", "a file that can be read") from error

    def __len__(self) -> int:
        return len(self.data)

    def refuse(self, what: str, allowed: str = WHOLE) -> UserError:
        """The error for something wrong in this file, to be raised: what was found, what would be accepted."""
        return UserError(str(self.path), short(what, 200), allowed)

    def take(self, start: int, count: int, what: str, data: memoryview | None = None) -> memoryview:
        """`count` bytes from `start` on, of `data` or the whole file; refuses what goes beyond the end."""
        data = self.data if data is None else data
        if start < 0 or count < 0 or start + count > len(data):
            raise self.refuse(f"{what} of {count} bytes at byte {start} of {len(data)}")
        return data[start : start + count]

    def check_growth(self, claimed: int, what: str) -> None:
        """Refuses contents that claim to be far larger than the file that holds them."""
        allowed = max(ALWAYS_ALLOWED_BYTES, LARGEST_GROWTH * len(self))
        if claimed > allowed:
            raise self.refuse(
                f"{what} of {claimed} bytes in a file of {len(self)}", f"contents of at most {allowed} bytes"
            )


def short(text: object, longest: int = 80) -> str:
    """Text of a stranger for a message: cut, so that a message stays one readable line."""
    # The text of a nested value could be as long, or as deep, as the stranger likes.
    text = str(text) if isinstance(text, str | int | float) else type(text).__name__
    return text if len(text) <= longest else text[: longest - 3] + "..."
