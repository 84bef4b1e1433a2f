"""tar archives of images, packed or not, and WebDataset's shards: tars of `KEY.jpg` and `KEY.cls`.

A packed archive (gz, xz, bz2) is unpacked to one plain tar in the work folder. Nothing else is written:
images are read where they stand, so "../" in a member's name has no effect, and links are listed.
"""

import bz2
import gzip
import io
import lzma
import re
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from consistune.data.sources.base import (
    MAX_IMAGE_BYTES,
    START,
    SUFFIXES,
    TOO_LARGE,
    Raw,
    Source,
    SourceOptions,
    Unreadable,
)
from consistune.data.sources.beside import is_junk, passed_over
from consistune.data.sources.labels import MAX_FILE_BYTES, brief
from consistune.data.sources.shards import is_label, labelled_tree
from consistune.data.sources.tree import archive_files, clean_name
from consistune.errors import UserError, printable
from consistune.system.files import atomic_file

OPENERS: dict[bytes, Callable[[Path], AbstractContextManager[Any]]] = {
    b"\x1f\x8b": gzip.GzipFile,
    b"\xfd7zXZ": lzma.LZMAFile,
    b"BZh": bz2.BZ2File,
}
"""How a packed tar begins, and what unpacks it."""
ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2")
MAX_RATIO, ALWAYS = 100, 1 << 30
"""A packed tar may become so many times larger, or so many bytes."""
MAX_HEADER = 1 << 20
"""Bytes of a header, such as a long name."""
DAMAGED = (tarfile.TarError, OSError, EOFError, ValueError, lzma.LZMAError, zlib.error, OverflowError)
MEMBER = np.dtype([("tar", "i4"), ("offset", "i8"), ("size", "i8")])
"""A member: the number of its tar, and where its bytes are."""


def read_spans(task: tuple[list[str], np.ndarray[Any, Any]]) -> Iterator[Raw]:
    paths, members = task
    for number, group in groupby(members, key=lambda member: int(member["tar"])):
        with open(paths[number], "rb") as file:
            for _, offset, size in group:
                if size > MAX_IMAGE_BYTES:
                    yield TOO_LARGE
                    continue
                file.seek(int(offset))
                data = file.read(int(size))
                yield data if len(data) == size else Unreadable("is cut off")


@dataclass(kw_only=True)
class TarImages(Source):
    """Images that are members of tars; `tars` are the plain ones that are read."""

    read = staticmethod(read_spans)
    names: list[str]
    tars: list[str]
    members: np.ndarray[Any, Any] = field(repr=False)

    def name(self, item: int) -> str:
        return printable(self.names[item])

    def task(self, first: int, last: int) -> Any:
        return self.tars, self.members[first:last]


def is_tar(path: Path) -> bool:
    """Whether a file is a tar, packed or not, or a folder has tars, and neither images nor folders."""
    if path.is_dir():
        entries = [entry for entry in path.iterdir() if not is_junk(entry.name)]
        others = any(entry.is_dir() or entry.suffix.lower() in SUFFIXES for entry in entries)
        return not others and any(stem_of(entry.name) for entry in entries)
    try:
        return tarfile.is_tarfile(path)
    except DAMAGED:
        return False


def stem_of(name: str) -> str:
    """A tar's name without its ending; empty where it has none."""
    return next((name[: -len(ending)] for ending in ENDINGS if name.lower().endswith(ending)), "")


def open_tar(path: Path, options: SourceOptions, work: Path) -> TarImages:
    """A tar, or a folder of them.

    With members `KEY.cls` they are WebDataset's shards, and a shard's name says its split. Other tars are
    read as folders with the same files: of several, each is a folder of its name, unless the names differ in
    a last number alone (shards). A tar within a tar is a folder, too.
    """
    files, beside = ([path], []) if path.is_file() else _tars_in(path)
    tars = [_plain(file, work) for file in files]
    skipped: list[tuple[str, str]] = []
    inside = [list(_members(tar, str(file), skipped)) for file, tar in zip(files, tars, strict=True)]
    web = options.labels is None and any(is_label(name) for tar in inside for name, _, _ in tar)
    shards = len({re.sub(r"(?<=[-_.])[0-9]+$", "#", stem_of(file.name)) for file in files}) == 1
    apart = len(files) > 1 and (web or not shards)
    rows: list[tuple[int, int, int]] = []
    where: dict[str, int] = {}
    for number, (file, found_in) in enumerate(zip(files, inside, strict=True)):
        for name, offset, size in found_in:
            full = f"{stem_of(file.name)}/{name}" if apart else name
            if full in where:
                other = files[rows[where[full]][0]]
                if other != file:
                    raise UserError(f"has a member {printable(name)}, as {other.name} has", str(file))
                skipped.append((full, "has the name of another; the last is taken"))
            where[full] = len(rows)
            rows.append((number, offset, size))
    members = np.array(rows, MEMBER)

    def content(name: str, most: int = MAX_FILE_BYTES) -> bytes:
        number, offset, size = rows[where[name]]
        with tars[number].open("rb") as opened:
            opened.seek(offset)
            return opened.read(min(size, most))

    found, passed = archive_files(where, lambda name: content(name, START), content, str(path))
    found.skipped += skipped
    tree = labelled_tree(found, options, web)
    return TarImages(
        kind="WebDataset shards" if web else f"tar of images {'with' if tree.labelled else 'without'} labels",
        path=path,
        containers=files,
        names=tree.names,
        tars=[str(tar) for tar in tars],
        members=members[[where[name] for name in tree.names]],
        **tree.attributes() | {"notes": [*tree.notes, *passed, *beside]},
    )


def _tars_in(folder: Path) -> tuple[list[Path], list[str]]:
    """The tars of a folder, and notes on what lies beside them."""
    entries = sorted(folder.iterdir())
    hidden = [entry.name for entry in entries if is_junk(entry.name)]
    files = [p for p in entries if stem_of(p.name) and p.is_file() and p.name not in hidden]
    stray = [entry.name for entry in entries if entry not in files and entry.name not in hidden]
    notes = [f"files beside the tars were not read: {brief(stray, 4)}"] if stray else []
    return files, passed_over(hidden) + notes


def _plain(path: Path, work: Path) -> Path:
    """The tar itself, or an unpacked copy in the work folder."""
    with path.open("rb") as file:
        start = file.read(6)
    opener = next((known for magic, known in OPENERS.items() if start.startswith(magic)), None)
    copy = work / f"{path.name}.plain"
    if opener is None or copy.exists():
        return path if opener is None else copy
    most = max(ALWAYS, MAX_RATIO * path.stat().st_size)
    try:
        with opener(path) as packed, atomic_file(copy) as out:
            while block := packed.read(1 << 20):
                most -= len(block)
                if most < 0 or len(block) > shutil.disk_usage(work).free:
                    what = "grows too large" if most < 0 else "needs more room than is free"
                    raise UserError(f"{what} when it is unpacked", str(path), "unpack it yourself")
                out.write(block)
    except DAMAGED as error:
        raise UserError(f"cannot be unpacked ({error})", str(path), "is the download complete?") from error
    return copy


class _Headers(io.FileIO):
    """A tar of which headers are read, none of them long."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= MAX_HEADER:
            raise tarfile.ReadError("a header is too long")
        return super().read(size)


def _members(tar: Path, where: str, skipped: list[tuple[str, str]]) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of each plain file of a tar; those of a tar in it are below its name."""
    try:
        with _Headers(tar) as file:
            yield from _walk(file, file.seek(0, io.SEEK_END), "", skipped)
    except DAMAGED as error:
        raise UserError(f"cannot be read as a tar ({error})", where, "is the download complete?") from error


def _walk(
    file: _Headers, end: int, prefix: str, skipped: list[tuple[str, str]]
) -> Iterator[tuple[str, int, int]]:
    """The members of the tar from the file's beginning, or, below a prefix, from its position to `end`."""
    if not prefix:
        file.seek(0)
    with tarfile.open(fileobj=file, mode="r:") as archive:
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # it would keep them all
            name = prefix + clean_name(member.name)
            if member.offset_data + member.size > end:
                raise tarfile.ReadError("it is cut off")
            if not member.isreg() or member.issparse():
                if not member.isdir():
                    skipped.append((name, "is no plain file of the archive"))
            elif stem_of(name) and name.lower().endswith(".tar") and not prefix:
                back = file.tell()
                file.seek(member.offset_data)
                yield from _walk(file, member.offset_data + member.size, f"{stem_of(name)}/", skipped)
                file.seek(back)
            else:
                yield name, member.offset_data, member.size
