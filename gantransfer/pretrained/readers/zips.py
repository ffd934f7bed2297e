"""Members of zip files as views of the mapped file, checked before they are trusted.

Python's `zipfile` reads the directory; where a member's bytes lie is checked here, since a directory may point several
names at the same bytes, repeat a name, or claim sizes that no file has.
"""

import struct
import zipfile
import zlib
from dataclasses import dataclass

from gantransfer.pretrained.readers.mapped import MappedFile, short

MAGIC = b"PK\x03\x04"
_LOCAL = struct.Struct("<4s22xHH")
# What `zipfile` raises on directories that make no sense.
_BROKEN = (
    zipfile.BadZipFile,
    OSError,
    ValueError,
    EOFError,
    NotImplementedError,
    struct.error,
    LookupError,
    RuntimeError,
)


@dataclass(frozen=True)
class Member:
    """Where a member's bytes lie and what they should be."""

    start: int
    stored: int
    size: int
    crc: int
    compressed: bool


class Archive:
    """A zip file's members by name.

    Args:
      file: the file.

    Raises:
      UserError: the directory is damaged, repeats a name, names a path outside, or its members overlap.
    """

    def __init__(self, file: MappedFile):
        self.file = file
        try:
            with zipfile.ZipFile(file.path) as archive:
                listed = archive.infolist()
        except _BROKEN as error:
            raise file.refuse("a damaged or unfinished zip file") from error
        self.members: dict[str, Member] = {}
        for info in listed:
            if info.is_dir():
                continue
            name = info.filename
            if name in self.members:
                raise file.refuse(f"the zip member {short(name)} twice", "each member once")
            if name.startswith("/") or "\\" in name or ".." in name.split("/"):
                raise file.refuse(f"the zip member {short(name)}", "names without a way out of the archive")
            if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise file.refuse(f"the zip member {short(name)}, encrypted or in an unusual compression")
            self.members[name] = self._located(info)
        self._check_overlaps()

    def _located(self, info: zipfile.ZipInfo) -> Member:
        header = self.file.take(info.header_offset, _LOCAL.size, "a zip member's header")
        magic, name_length, extra_length = _LOCAL.unpack(header)
        if magic != MAGIC:
            raise self.file.refuse(f"the zip member {short(info.filename)} without its header")
        start = info.header_offset + _LOCAL.size + name_length + extra_length
        self.file.take(start, info.compress_size, "a zip member")
        compressed = info.compress_type != zipfile.ZIP_STORED
        if not compressed and info.file_size != info.compress_size:
            raise self.file.refuse(f"the zip member {short(info.filename)} with two sizes")
        return Member(start, info.compress_size, info.file_size, info.CRC, compressed)

    def _check_overlaps(self) -> None:
        end = 0
        for member in sorted(self.members.values(), key=lambda member: member.start):
            if member.start < end:
                raise self.file.refuse("zip members that overlap")
            end = member.start + member.stored
        self.file.check_growth(sum(member.size for member in self.members.values()), "zip members")

    def read(self, name: str, inflate: bool = False) -> memoryview:
        """A member's bytes: a view of the file where it is stored as it is.

        Args:
          name: of the member.
          inflate: whether a compressed member is accepted, and unpacked into memory.
        """
        member = self.members.get(name)
        if member is None:
            raise self.file.refuse(f"no zip member {short(name)}")
        data = self.file.data[member.start : member.start + member.stored]
        if member.compressed:
            if not inflate:
                raise self.file.refuse(f"the compressed zip member {short(name)}", "members as torch.save stores them")
            data = self._inflated(data, member, name)
        if zlib.crc32(data) != member.crc:
            raise self.file.refuse(f"the zip member {short(name)} with a wrong checksum")
        return data

    def _inflated(self, data: memoryview, member: Member, name: str) -> memoryview:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            # One byte more than claimed, so that a member that goes on is noticed.
            unpacked = inflater.decompress(data, member.size + 1)
        except zlib.error as error:
            raise self.file.refuse(f"the damaged zip member {short(name)}") from error
        if len(unpacked) != member.size or not (inflater.eof or not member.size):
            raise self.file.refuse(f"the zip member {short(name)} of another size than it claims")
        return memoryview(unpacked)
