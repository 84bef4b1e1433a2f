"""torch's zip archives, read in place: the records are stored, so they are views of the file.

A small reader, and no more than torch writes: no compression (so nothing can swell), no encryption, a bounded
directory, every record inside the file and with the right checksum. Format: PKWARE's APPNOTE 6.3, §4.3.
"""

import struct
import zlib
from dataclasses import dataclass

from sct.errors import UserError

MAX_RECORDS = 20_000
END, END64, LOCATOR64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
DIRECTORY, LOCAL = b"PK\x01\x02", b"PK\x03\x04"
MAX_COMMENT = 1 << 16
FULL32 = 0xFFFFFFFF


@dataclass(frozen=True)
class Record:
    """Where a record's local header stands, its size, and its checksum."""

    header: int
    size: int
    crc: int


class Archive:
    """The records of a torch archive by name, without the folder that torch puts them in."""

    def __init__(self, data: memoryview, where: str) -> None:
        """Read the directory. Raises UserError for anything that torch would not have written."""
        self.data, self.where = data, where
        self._checked: set[str] = set()
        try:
            self.records = self._directory(*self._end())
        except (struct.error, UnicodeDecodeError) as error:
            raise self._refuse(f"its directory is malformed ({error})") from error

    def _refuse(self, what: str) -> UserError:
        return UserError(f"not a torch archive: {what}", self.where)

    def _end(self) -> tuple[int, int, int]:
        """Start, size and number of entries of the directory."""
        first = max(0, len(self.data) - MAX_COMMENT - 22)
        at = bytes(self.data[first:]).rfind(END)
        if at < 0:
            raise self._refuse("it has no end; is the download complete?")
        at += first
        count, size, start = struct.unpack_from("<HII", self.data, at + 10)
        if FULL32 in (size, start) or count == 0xFFFF:
            if bytes(self.data[at - 20 : at - 16]) != LOCATOR64:
                raise self._refuse("its 64-bit end is missing")
            (at64,) = struct.unpack_from("<Q", self.data, at - 12)
            if at64 > len(self.data) or bytes(self.data[at64 : at64 + 4]) != END64:
                raise self._refuse("its 64-bit end is missing")
            count, size, start = struct.unpack_from("<QQQ", self.data, at64 + 32)
        if count > MAX_RECORDS or start + size > len(self.data):
            raise self._refuse(f"{count} records in {size} bytes at {start}")
        return start, size, count

    def _directory(self, start: int, size: int, count: int) -> dict[str, Record]:
        records: dict[str, Record] = {}
        position, left = start, len(self.data)
        for _ in range(count):
            if bytes(self.data[position : position + 4]) != DIRECTORY:
                raise self._refuse("its directory is malformed")
            flags, method, _, crc, packed, plain, name_size, extra_size, comment_size = struct.unpack_from(
                "<HHIIIIHHH", self.data, position + 8
            )
            (header,) = struct.unpack_from("<I", self.data, position + 42)
            name_at = position + 46
            name = str(self.data[name_at : name_at + name_size], "utf-8")
            extra = bytes(self.data[name_at + name_size : name_at + name_size + extra_size])
            packed, plain, header = _wide(extra, packed, plain, header)
            folder, _, key = name.partition("/")
            if method != 0 or packed != plain or flags & 1:
                raise self._refuse(f"record {name[:80]!a} is compressed or encrypted")
            if not folder or not key or key in records:
                raise self._refuse(f"record {name[:80]!a} appears twice or has no name")
            records[key] = Record(header, plain, crc)
            position = name_at + name_size + extra_size + comment_size
            left -= plain
            if left < 0:  # one stretch of bytes under many names: reading them all would take for ever
                raise self._refuse("its records overlap")
            if position > start + size:
                raise self._refuse("its directory is malformed")
        return records

    def read(self, key: str, where: str) -> memoryview:
        """A record's bytes, in place. Raises UserError where it is missing, cut off or damaged."""
        record = self.records.get(key)
        if record is None:
            raise UserError(f"record {key[:80]!a} is missing from the archive", where)
        at = record.header
        if at + 30 > len(self.data) or bytes(self.data[at : at + 4]) != LOCAL:
            raise UserError(f"record {key[:80]!a} does not begin where the archive says", where)
        name_size, extra_size = struct.unpack_from("<HH", self.data, at + 26)
        start = at + 30 + name_size + extra_size
        data = self.data[start : start + record.size]
        if len(data) != record.size:
            raise UserError(f"record {key[:80]!a} is cut off", where)
        if key not in self._checked and zlib.crc32(data) != record.crc:
            raise UserError(f"record {key[:80]!a} is damaged: its checksum differs", where)
        self._checked.add(key)
        return data


def _wide(extra: bytes, packed: int, plain: int, header: int) -> tuple[int, int, int]:
    """Replace sizes and offset by those of the 64-bit extra field, where they did not fit 32 bits."""
    position = 0
    while position + 4 <= len(extra):
        kind, size = struct.unpack_from("<HH", extra, position)
        if kind == 1:
            wide = iter(struct.unpack_from(f"<{size // 8}Q", extra, position + 4))
            plain = next(wide, plain) if plain == FULL32 else plain
            packed = next(wide, packed) if packed == FULL32 else packed
            header = next(wide, header) if header == FULL32 else header
        position += 4 + size
    return packed, plain, header
