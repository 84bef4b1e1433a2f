"""The directory of a ZIP archive, read in place and one entry at a time, for archives of a million members.

Format: PKWARE's APPNOTE 6.3, §4.3. The callers decide which entries they refuse.
"""

import encodings.cp437  # noqa: F401 - loaded here, so that no file's names make Python import it
import lzma
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from typing import NamedTuple

END, END64, LOCATOR64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
DIRECTORY, LOCAL = b"PK\x01\x02", b"PK\x03\x04"
MAX_COMMENT = 1 << 16
FULL32 = 0xFFFFFFFF
STORED, DEFLATED, ENCRYPTED, UTF8 = 0, 8, 1, 1 << 11
DAMAGED = (
    ValueError, OSError, EOFError, zipfile.BadZipFile, NotImplementedError, RuntimeError,
    zlib.error, lzma.LZMAError, struct.error, tokenize.TokenError, MemoryError,
)  # fmt: skip
"""What zipfile, and numpy for an array in it, raise for a damaged, encrypted or unknown member."""


class Entry(NamedTuple):
    """A member: name, flags, compression method, checksum, packed and plain size, offset of its header."""

    name: str
    flags: int
    method: int
    crc: int
    packed: int
    plain: int
    header: int


def directory(data: memoryview) -> tuple[int, int, int]:
    """Start, size and number of entries of the directory. Raises ValueError where there is none."""
    first = max(0, len(data) - MAX_COMMENT - 22)
    at = bytes(data[first:]).rfind(END)
    if at < 0 or at + first + 22 > len(data):
        raise ValueError("it has no end; is the download complete?")
    at += first
    count, size, start = struct.unpack_from("<HII", data, at + 10)
    if FULL32 in (size, start) or count == 0xFFFF:
        if at < 20 or bytes(data[at - 20 : at - 16]) != LOCATOR64:
            raise ValueError("its 64-bit end is missing")
        (at64,) = struct.unpack_from("<Q", data, at - 12)
        if at64 + 56 > len(data) or bytes(data[at64 : at64 + 4]) != END64:
            raise ValueError("its 64-bit end is missing")
        count, size, start = struct.unpack_from("<QQQ", data, at64 + 32)
    if start + size > len(data) or count * 46 > size:
        raise ValueError(f"{count} records in {size} bytes at {start}")
    return start, size, count


def entries(data: memoryview, start: int, size: int, count: int) -> Iterator[Entry]:
    """The entries of that directory, in its order. Raises ValueError where it is malformed."""
    position = start
    for _ in range(count):
        if bytes(data[position : position + 4]) != DIRECTORY or position + 46 > start + size:
            raise ValueError("its directory is malformed")
        flags, method, _, crc, packed, plain, name_size, extra_size, comment_size = struct.unpack_from(
            "<HHIIIIHHH", data, position + 8
        )
        (header,) = struct.unpack_from("<I", data, position + 42)
        name_at = position + 46
        extra_at = name_at + name_size
        position = extra_at + extra_size + comment_size
        if position > start + size:
            raise ValueError("its directory is malformed")
        name = _name(bytes(data[name_at:extra_at]), bool(flags & UTF8))
        if FULL32 in (packed, plain, header):
            packed, plain, header = _wide(
                bytes(data[extra_at : extra_at + extra_size]), packed, plain, header
            )
        yield Entry(name, flags, method, crc, packed, plain, header)


def _name(content: bytes, utf8: bool) -> str:
    """A member's name; without the flag it is UTF-8 too where it can be, as many programs write it."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        if utf8:
            raise
        return content.decode("cp437")


def _wide(extra: bytes, packed: int, plain: int, header: int) -> tuple[int, int, int]:
    """Replace sizes and offset by those of the 64-bit extra field, where they did not fit 32 bits."""
    position = 0
    while position + 4 <= len(extra):
        kind, size = struct.unpack_from("<HH", extra, position)
        if kind == 1:
            size = min(size, len(extra) - position - 4)
            wide = iter(struct.unpack_from(f"<{size // 8}Q", extra, position + 4))
            plain = next(wide, plain) if plain == FULL32 else plain
            packed = next(wide, packed) if packed == FULL32 else packed
            header = next(wide, header) if header == FULL32 else header
        position += 4 + size
    return packed, plain, header


def content_start(header: int, local: bytes) -> int:
    """Where a member's bytes begin, from the first 30 bytes of its local header at `header` (§4.3.7).

    Raises ValueError where there is no such header.
    """
    if len(local) < 30 or local[:4] != LOCAL:
        raise ValueError("does not begin where the archive says")
    return header + 30 + sum(struct.unpack_from("<HH", local, 26))
