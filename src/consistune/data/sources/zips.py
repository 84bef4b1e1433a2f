"""EDM's ZIP of images with dataset.json (2206.00364), and a ZIP of images without.

Nothing is unpacked to the disk: an image's bytes are read at their place in the archive. Names are names, so
"../" in one leads nowhere. Names may have folders; dataset.json may lie in one, with the images below it.
"""

import json
import mmap
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from consistune.data.sources.base import MAX_IMAGE_BYTES, SUFFIXES, Raw, Reader, Source, Unreadable, shown
from consistune.data.sources.files import read_labels
from consistune.data.sources.labels import Labels, read_table
from consistune.errors import UserError
from consistune.system import zipped

ODD = -1
MEMBER = np.dtype([("header", "i8"), ("packed", "i8"), ("plain", "i8"), ("crc", "u4"), ("method", "i2")])
"""Where a member's local header stands, its sizes, checksum, and way of compression (ODD: unknown)."""


@dataclass(kw_only=True)
class ZipImages(Source):
    """Images that are members of one ZIP."""

    names: list[str]
    members: np.ndarray[Any, Any] = field(repr=False)

    def name(self, item: int) -> str:
        return shown(self.names[item])

    def task(self, first: int, last: int) -> Any:
        return str(self.path), self.members[first:last]

    def reader(self) -> Reader:
        return read_members


def read_members(task: tuple[str, np.ndarray[Any, Any]]) -> Iterator[Raw]:
    path, members = task
    with open(path, "rb") as file:
        for member in members:
            header, packed, plain, crc, method = (int(value) for value in member)
            if max(packed, plain) > MAX_IMAGE_BYTES:
                yield Unreadable(f"has more than {MAX_IMAGE_BYTES} bytes")
                continue
            if method == ODD:
                yield Unreadable("is encrypted, or compressed in an unknown way")
                continue
            file.seek(header)
            local = file.read(30)
            if len(local) < 30 or local[:4] != zipped.LOCAL:
                yield Unreadable("does not begin where the archive says")
                continue
            file.seek(sum(struct.unpack_from("<HH", local, 26)), 1)
            yield _plain(file.read(packed), plain, crc, method)


def _plain(data: bytes, size: int, crc: int, method: int) -> Raw:
    if method == zipped.DEFLATED:
        try:
            data = zlib.decompressobj(-15).decompress(data, size + 1)
        except zlib.error as error:
            return Unreadable(f"is damaged ({error})")
    if len(data) != size or zlib.crc32(data) != crc:
        return Unreadable("is damaged: its size or checksum differs")
    return data


def open_zip(path: Path, labels: str | None) -> ZipImages:
    """A ZIP of images; labels from `labels` (CSV or JSON), from its dataset.json, or none."""
    where = str(path)
    found = read_directory(path)
    prefix, table = _table(path, found, where)
    if labels is not None:
        table = read_labels(Path(labels))
    rows = {
        name[len(prefix) :]: row
        for row, name in enumerate(found.names)
        if name.lower().endswith(SUFFIXES) and name.startswith(prefix)
    }
    if not rows:
        raise UserError("holds no images", where)
    labelled = table is not None
    if table is None:
        bare = sorted(rows)
        table = Labels(bare, np.zeros(len(bare), np.int64), ("all",), None)
    short, values, groups, skipped = table.matched(rows, [])
    if not short:
        raise UserError("its labels name no image in it", where)
    return ZipImages(
        kind="ZIP of images with labels" if labelled else "ZIP of images without labels",
        path=path,
        labels=values,
        class_names=table.class_names,
        labelled=labelled,
        groups=groups,
        containers=[path],
        skipped=skipped,
        names=[prefix + name for name in short] if prefix else short,
        members=found.members[[rows[name] for name in short]],
    )


@dataclass
class Directory:
    """Names of a ZIP's files, and where they are."""

    names: list[str]
    members: np.ndarray[Any, Any]


def read_directory(path: Path) -> Directory:
    """The files in a ZIP; nothing but names and numbers is kept. Raises UserError where it is none."""
    try:
        with path.open("rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        start, size, count = zipped.directory(data)
        members = np.empty(count, MEMBER)
        names: list[str] = []
        for entry in zipped.entries(data, start, size, count):
            if not entry.name.endswith("/"):
                ours = entry.method in (zipped.STORED, zipped.DEFLATED) and not entry.flags & zipped.ENCRYPTED
                method = entry.method if ours else ODD
                members[len(names)] = entry.header, entry.packed, entry.plain, entry.crc, method
                names.append(entry.name)
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(f"cannot be read as a ZIP ({error})", str(path), "give a ZIP of images") from error
    return Directory(names, members[: len(names)])


def _table(path: Path, found: Directory, where: str) -> tuple[str, Labels | None]:
    """The folder of dataset.json, and its labels (None where it has none)."""
    tables = [row for row, name in enumerate(found.names) if name.split("/")[-1] == "dataset.json"]
    if not tables:
        return "", None
    row = min(tables, key=lambda row: found.names[row].count("/"))
    (content,) = read_members((str(path), found.members[row : row + 1]))
    if not isinstance(content, bytes):
        raise UserError(f"dataset.json {getattr(content, 'reason', '')}", where)
    try:
        table = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"dataset.json is not JSON ({str(error)[:80]!a})", where) from error
    prefix = found.names[row][: -len("dataset.json")]
    if isinstance(table, dict) and table.get("labels") is None:
        return prefix, None
    return prefix, read_table(table, f"{where}, dataset.json")
