"""EDM's ZIP of images with dataset.json (2206.00364), and a ZIP of images without.

Nothing is unpacked to the disk: an image's bytes are read at their place in the archive. Names are names, so
"../" in one leads nowhere. Names may have folders; dataset.json may lie in one, with the images below it.
"""

import json
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sct.data.sources.base import MAX_IMAGE_BYTES, SUFFIXES, Raw, Reader, Source, Unreadable, shown
from sct.data.sources.labels import Labels, read_table
from sct.errors import UserError

MAX_TABLE = 1 << 28
STORED, DEFLATED, ENCRYPTED = 0, 8, 1
MEMBER = np.dtype([("header", "i8"), ("packed", "i8"), ("plain", "i8"), ("crc", "u4"), ("method", "i2")])
"""Where a member's local header stands, its compressed and plain sizes, checksum, and way of compression."""


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
            if method not in (STORED, DEFLATED):
                yield Unreadable("is encrypted, or compressed in an unknown way")
                continue
            file.seek(header)
            local = file.read(30)
            if len(local) < 30 or local[:4] != b"PK\x03\x04":
                yield Unreadable("does not begin where the archive says")
                continue
            file.seek(sum(struct.unpack_from("<HH", local, 26)), 1)
            yield _plain(file.read(packed), plain, crc, method)


def _plain(data: bytes, size: int, crc: int, method: int) -> Raw:
    if method == DEFLATED:
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
    try:
        with zipfile.ZipFile(path) as archive:
            infos = {info.filename: info for info in archive.infolist() if not info.is_dir()}
            prefix, table = _table(archive, infos, where)
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise UserError(f"cannot be read as a ZIP ({error})", where, "give a ZIP of images") from error
    if labels is not None:
        from sct.data.sources.files import read_labels

        table = read_labels(Path(labels))
    images = [name for name in infos if name.lower().endswith(SUFFIXES) and name.startswith(prefix)]
    if not images:
        raise UserError("holds no images", where)
    labelled = table is not None
    if table is None:
        bare = sorted(name[len(prefix) :] for name in images)
        table = Labels(bare, np.zeros(len(bare), np.int64), ("all",), None)
    short, values, groups, skipped = table.matched([name[len(prefix) :] for name in images], [])
    names = [prefix + name for name in short]
    if not names:
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
        names=names,
        members=np.array([_member(infos[name]) for name in names], MEMBER),
    )


def _member(info: zipfile.ZipInfo) -> tuple[int, int, int, int, int]:
    method = -1 if info.flag_bits & ENCRYPTED else info.compress_type
    return info.header_offset, info.compress_size, info.file_size, info.CRC, method


def _table(
    archive: zipfile.ZipFile, infos: dict[str, zipfile.ZipInfo], where: str
) -> tuple[str, Labels | None]:
    """The folder of dataset.json, and its labels (None where it has none)."""
    found = [name for name in infos if name.split("/")[-1] == "dataset.json"]
    if not found:
        return "", None
    name = min(found, key=lambda name: name.count("/"))
    if infos[name].file_size > MAX_TABLE:
        raise UserError(f"dataset.json has more than {MAX_TABLE} bytes", where)
    try:
        table = json.loads(archive.read(name))
    except (ValueError, RecursionError, zlib.error) as error:
        raise UserError(f"dataset.json is not JSON ({str(error)[:80]!a})", where) from error
    prefix = name[: -len("dataset.json")]
    if isinstance(table, dict) and table.get("labels") is None:
        return prefix, None
    return prefix, read_table(table, f"{where}, dataset.json")
