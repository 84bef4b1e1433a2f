"""EDM's ZIP of images with dataset.json (2206.00364), and a ZIP of images without.

Nothing is unpacked to the disk: an image's bytes are read where they stand in the archive, so "../" in a
member's name has no effect. Names may have folders; dataset.json may lie in one, with the images below it.
"""

import mmap
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from consistune.data.sources.base import (
    MAX_IMAGE_BYTES,
    START,
    TOO_LARGE,
    Raw,
    Source,
    SourceOptions,
    Unreadable,
)
from consistune.data.sources.shards import labelled_tree
from consistune.data.sources.tree import archive_files, clean_name
from consistune.errors import UserError, printable
from consistune.system import zipped

UNSUPPORTED = -1
MEMBER = np.dtype([("header", "i8"), ("packed", "i8"), ("plain", "i8"), ("crc", "u4"), ("method", "i2")])
"""A member: offset of its local header, its sizes, checksum, and compression method (or UNSUPPORTED)."""


def read_members(task: tuple[str, np.ndarray[Any, Any]]) -> Iterator[Raw]:
    path, members = task
    with open(path, "rb") as file:
        for member in members:
            header, packed, plain, crc, method = (int(value) for value in member)
            if max(packed, plain) > MAX_IMAGE_BYTES:
                yield TOO_LARGE
                continue
            if method == UNSUPPORTED:
                yield Unreadable("is encrypted, or compressed in an unknown way")
                continue
            file.seek(header)
            try:
                file.seek(zipped.content_start(header, file.read(30)))
                yield _unpack(file.read(packed), plain, crc, method)
            except ValueError as error:
                yield Unreadable(str(error))


def _unpack(data: bytes, size: int, crc: int, method: int) -> bytes:
    """A member's plain bytes. Raises ValueError where they are not as the archive says."""
    if method == zipped.DEFLATED:
        try:
            data = zlib.decompressobj(-15).decompress(data, size + 1)
        except zlib.error as error:
            raise ValueError(f"is damaged ({error})") from error
    if len(data) != size or zlib.crc32(data) != crc:
        raise ValueError("is damaged: its size or checksum differs")
    return data


def _start(path: Path, member: Any) -> bytes:
    """A member's first bytes; none where they cannot be read."""
    header, packed, _, _, method = (int(value) for value in member)
    try:
        with path.open("rb") as file:
            file.seek(header)
            file.seek(zipped.content_start(header, file.read(30)))
            data = file.read(min(packed, 16 * START))
        return zlib.decompressobj(-15).decompress(data, START) if method == zipped.DEFLATED else data[:START]
    except (OSError, ValueError, OverflowError, zlib.error):
        return b""


@dataclass(kw_only=True)
class ZipImages(Source):
    """Images that are members of one ZIP."""

    read = staticmethod(read_members)
    names: list[str]
    members: np.ndarray[Any, Any] = field(repr=False)

    def name(self, item: int) -> str:
        return printable(self.names[item])

    def task(self, first: int, last: int) -> Any:
        return str(self.path), self.members[first:last]


def open_zip(path: Path, options: SourceOptions, _work: Path) -> ZipImages:
    """A ZIP of images; which they are, and their labels, are those of a folder with the same files."""
    names, members = read_directory(path)
    rows: dict[str, int] = {}
    for row, name in enumerate(names):
        rows.setdefault(name, row)

    def content(name: str) -> bytes:
        (raw,) = read_members((str(path), members[rows[name] : rows[name] + 1]))
        if not isinstance(raw, bytes):
            raise UserError(getattr(raw, "reason", "cannot be read"), f"{path}, {printable(name)}")
        return raw

    files, passed = archive_files(rows, lambda name: _start(path, members[rows[name]]), content, str(path))
    again = [name for row, name in enumerate(names) if rows[name] != row]
    files.skipped += [(name, "is in the archive twice; the first is taken") for name in again]
    tree = labelled_tree(files, options)
    return ZipImages(
        kind="ZIP of images with labels" if tree.labelled else "ZIP of images without labels",
        path=path,
        containers=[path],
        names=tree.names,
        members=members[[rows[name] for name in tree.names]],
        **tree.attributes() | {"notes": [*tree.notes, *passed]},
    )


def read_directory(path: Path) -> tuple[list[str], np.ndarray[Any, Any]]:
    """The names of a ZIP's files, and their MEMBER records. Raises UserError for what is not a ZIP."""
    try:
        with path.open("rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        start, size, count = zipped.directory(data)
        members = np.empty(count, MEMBER)
        names: list[str] = []
        for entry in zipped.entries(data, start, size, count):
            if not entry.name.endswith("/"):
                known = entry.method in (zipped.STORED, zipped.DEFLATED)
                method = entry.method if known and not entry.flags & zipped.ENCRYPTED else UNSUPPORTED
                members[len(names)] = entry.header, entry.packed, entry.plain, entry.crc, method
                names.append(clean_name(entry.name))
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(f"cannot be read as a ZIP ({error})", str(path), "give a ZIP of images") from error
    return names, members[: len(names)]
