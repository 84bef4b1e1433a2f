"""EDM's ZIP of images with dataset.json (2206.00364), and a ZIP of images without.

Nothing is unpacked to the disk: an image's bytes are read where they stand in the archive, so "../" in a
member's name has no effect. Names may have folders; dataset.json may lie in one, with the images below it.
"""

import json
import mmap
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from consistune.data.sources.base import (
    MAX_IMAGE_BYTES,
    SUFFIXES,
    TOO_LARGE,
    Raw,
    Source,
    SourceOptions,
    Unreadable,
    printable,
)
from consistune.data.sources.labels import LabelTable, parse_table, read_label_file
from consistune.errors import UserError
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
    """A ZIP of images; labels from `options.labels` (CSV or JSON), from its dataset.json, or none."""
    where = str(path)
    names, members = read_directory(path)
    prefix, table = _read_table(path, names, members)
    if options.labels is not None:
        table = read_label_file(Path(options.labels))
    rows = {
        name[len(prefix) :]: row
        for row, name in enumerate(names)
        if name.lower().endswith(SUFFIXES) and name.startswith(prefix)
    }
    if not rows:
        raise UserError("holds no images", where)
    labelled = table is not None
    labels, skipped = (table or LabelTable.unlabelled(sorted(rows))).match(rows, [])
    if not labels.names:
        raise UserError("its labels name no image in it", where)
    return ZipImages(
        kind="ZIP of images with labels" if labelled else "ZIP of images without labels",
        path=path,
        labels=labels.values,
        class_names=labels.class_names,
        labelled=labelled,
        groups=labels.groups,
        containers=[path],
        skipped=skipped,
        names=[prefix + name for name in labels.names],
        members=members[[rows[name] for name in labels.names]],
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
                names.append(entry.name)
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(f"cannot be read as a ZIP ({error})", str(path), "give a ZIP of images") from error
    return names, members[: len(names)]


def _read_table(path: Path, names: list[str], members: np.ndarray[Any, Any]) -> tuple[str, LabelTable | None]:
    """The folder of dataset.json, and its labels; "" and None where there is no such file."""
    tables = [row for row, name in enumerate(names) if name.split("/")[-1] == "dataset.json"]
    if not tables:
        return "", None
    row = min(tables, key=lambda row: names[row].count("/"))
    where, prefix = f"{path}, dataset.json", names[row].removesuffix("dataset.json")
    (content,) = read_members((str(path), members[row : row + 1]))
    if not isinstance(content, bytes):
        raise UserError(getattr(content, "reason", "cannot be read"), where)
    try:
        table = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"is not JSON ({str(error)[:80]!a})", where) from error
    if isinstance(table, dict) and table.get("labels") is None:
        return prefix, None
    return prefix, parse_table(table, where)
