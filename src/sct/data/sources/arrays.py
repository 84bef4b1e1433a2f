"""Images that are rows of arrays: CIFAR's batches, downsampled ImageNet's, npz and npy.

An array is never loaded: it is a place in a file (`Place`), whose rows are read as they are needed. What is
compressed, or not stored as it is, is first written to the work folder.
"""

import math
import mmap
import os
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from sct.data.sources.base import Raw, Reader, Source
from sct.errors import UserError
from sct.unpickle.arrays import read_arrays

MAX_SMALL = 1 << 27
"""Bytes of an array that is read whole (labels)."""
MAX_NPY_HEADER = 10_000


@dataclass(frozen=True)
class Place:
    """uint8 values of this shape, in C order, from byte `offset` of a file."""

    path: str
    offset: int
    shape: tuple[int, ...]

    def rows(self, first: int, last: int) -> NDArray[np.uint8]:
        """A copy of some rows; the map is closed again."""
        size = math.prod(self.shape[1:])
        with open(self.path, "rb") as file:
            found = np.fromfile(
                file, np.uint8, count=(last - first) * size, offset=self.offset + first * size
            )
        if len(found) != (last - first) * size:
            raise UserError(f"is cut off: rows {first} to {last} are not there", self.path)
        return found.reshape(last - first, *self.shape[1:])


@dataclass(frozen=True)
class Block:
    """Images in one place: each row is [H, W, C], or planar [C, H, W]."""

    place: Place
    planar: bool

    def __len__(self) -> int:
        return self.place.shape[0]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)"""
        a, b, c = self.place.shape[1:]
        return (a, b, c) if self.planar else (c, a, b)


@dataclass(kw_only=True)
class ArrayRows(Source):
    """Images that are rows of blocks, one block after another."""

    blocks: list[Block]
    piece: int = 1024

    def __post_init__(self) -> None:
        shapes = {block.image_shape for block in self.blocks}
        if len(shapes) != 1:
            raise UserError(f"its arrays hold images of different shapes: {sorted(shapes)}", str(self.path))
        (self.shape,) = shapes
        self._edges = np.cumsum([0, *(len(block) for block in self.blocks)])

    def pieces(self) -> list[tuple[int, int]]:
        return [
            (first, min(first + self.piece, int(stop)))
            for start, stop in zip(self._edges, self._edges[1:], strict=False)
            for first in range(int(start), int(stop), self.piece)
        ]

    def _where(self, item: int) -> tuple[Block, int]:
        index = int(np.searchsorted(self._edges, item, side="right")) - 1
        return self.blocks[index], item - int(self._edges[index])

    def name(self, item: int) -> str:
        block, row = self._where(item)
        return f"{Path(block.place.path).name}, row {row}"

    def task(self, first: int, last: int) -> Any:
        block, row = self._where(first)
        return block, row, row + last - first

    def reader(self) -> Reader:
        return read_rows


def read_rows(task: tuple[Block, int, int]) -> Iterator[Raw]:
    block, first, last = task
    for row in block.place.rows(first, last):
        yield row.transpose(1, 2, 0) if block.planar else row


# --- pickles ---------------------------------------------------------------------------------------------


def read_batch(path: Path, work: Path) -> tuple[dict[str, Any], Place]:
    """A pickled batch: all its entries but `data`, and the place of `data` [n, d] (uint8).

    Nothing in it is executed. Raises UserError for what is not a dictionary of plain data with such an array.
    """
    where = str(path)
    if path.stat().st_size == 0:
        raise UserError("is empty", where)
    with path.open("rb") as file:
        # Not closed here: arrays that an error's traceback still holds would forbid it.
        mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    found = read_arrays(mapped, where)
    data = found.pop("data", None) if isinstance(found, dict) else None
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2:
        raise UserError("has no array of pixels, uint8 [images, values], under 'data'", where)
    base = np.frombuffer(mapped, np.uint8)
    offset = _address(data) - _address(base)
    inside = 0 <= offset <= len(base) - data.nbytes and data.flags.c_contiguous
    place = Place(where, offset, data.shape) if inside else _spill(data, work / f"{path.name}.data")
    return found, place


def _address(array: NDArray[Any]) -> int:
    return int(array.__array_interface__["data"][0])


def _spill(data: NDArray[np.uint8], path: Path) -> Place:
    partial = path.with_name(path.name + ".partial")
    np.ascontiguousarray(data).tofile(partial)
    partial.replace(path)
    return Place(str(path), 0, data.shape)


# --- npy and npz -----------------------------------------------------------------------------------------


def npy_header(file: IO[bytes], where: str) -> tuple[tuple[int, ...], np.dtype[Any], bool, int]:
    """Shape, dtype, Fortran order and the bytes of the header. Raises UserError; never unpickles."""
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, fortran, dtype = read[version](file, max_header_size=MAX_NPY_HEADER)
    except (ValueError, KeyError, EOFError, SyntaxError) as error:
        raise UserError(f"not a readable npy array ({str(error)[:80]!a})", where) from error
    if dtype.hasobject:
        raise UserError("an array of Python objects, which is never unpickled", where)
    return shape, dtype, fortran, file.tell()


class Npz:
    """The arrays of an npz: small ones are read, large ones located."""

    def __init__(self, path: Path, work: Path) -> None:
        self.path, self.work = path, work
        try:
            with zipfile.ZipFile(path) as archive:
                self.members = {info.filename: info for info in archive.infolist()}
        except (OSError, zipfile.BadZipFile, NotImplementedError) as error:
            raise UserError(f"cannot be read as an npz ({error})", str(path)) from error

    def __contains__(self, name: str) -> bool:
        return f"{name}.npy" in self.members

    @property
    def names(self) -> list[str]:
        return [name.removesuffix(".npy") for name in self.members]

    def _open(self, archive: zipfile.ZipFile, name: str) -> IO[bytes]:
        return archive.open(self.members[f"{name}.npy"])

    def read(self, name: str) -> NDArray[Any]:
        """A small array, whole."""
        where = f"{self.path}, {name}"
        if self.members[f"{name}.npy"].file_size > MAX_SMALL:
            raise UserError(f"more than {MAX_SMALL} bytes", where)
        try:
            with zipfile.ZipFile(self.path) as archive, self._open(archive, name) as file:
                shape, dtype, fortran, _ = npy_header(file, where)
                data = np.frombuffer(file.read(), dtype)
                return data.reshape(shape, order="F" if fortran else "C")
        except (ValueError, OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
            raise UserError(f"cannot be read ({error})", where) from error

    def place(self, name: str) -> Place:
        """Where an array of pixels stands; a compressed one is written out first."""
        where = f"{self.path}, {name}"
        info = self.members[f"{name}.npy"]
        try:
            with zipfile.ZipFile(self.path) as archive, self._open(archive, name) as file:
                shape, dtype, fortran, size = npy_header(file, where)
                if dtype != np.uint8 or fortran:
                    raise UserError(f"pixels must be uint8 in C order, got {dtype}", where)
                if size + math.prod(shape) != info.file_size:
                    raise UserError(f"{info.file_size} bytes do not fit the shape {shape}", where)
                if info.compress_type == zipfile.ZIP_STORED:
                    return Place(str(self.path), _member_start(self.path, info) + size, shape)
                path = self.work / f"{self.path.name}.{Path(name).name}"
                partial = path.with_name(path.name + ".partial")
                with partial.open("wb") as out:
                    _check_space(math.prod(shape), self.work)
                    shutil.copyfileobj(file, out, 1 << 20)
                partial.replace(path)
                return Place(str(path), 0, shape)
        except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
            raise UserError(f"cannot be read ({error})", where) from error


def _check_space(size: int, folder: Path) -> None:
    if size > shutil.disk_usage(folder).free:
        raise UserError(f"{size} bytes are needed to unpack it, and are not free", str(folder))


def _member_start(path: Path, info: zipfile.ZipInfo) -> int:
    """Where a stored member's bytes begin: after its local header (APPNOTE §4.3.7)."""
    with path.open("rb") as file:
        file.seek(info.header_offset + 26)
        lengths = file.read(4)
    return (
        info.header_offset
        + 30
        + int.from_bytes(lengths[:2], "little")
        + int.from_bytes(lengths[2:], "little")
    )


def open_npz(path: Path, work: Path, layout: str | None) -> ArrayRows:
    """An npz with `images` (or `arr_0`) and perhaps `labels` (`arr_1`), or an npy of images.

    images uint8 [n, H, W, C], [n, C, H, W] or [n, H, W]. Which of the first two it is, is read off where only
    one of the axes has 1, 3 or 4 entries; otherwise `layout` ("nhwc" or "nchw") must say.
    """
    labels: NDArray[Any] | None = None
    if path.suffix == ".npy":
        with path.open("rb") as file:
            shape, dtype, fortran, size = npy_header(file, str(path))
        if dtype != np.uint8 or fortran or size + math.prod(shape) != os.path.getsize(path):
            raise UserError(f"must hold uint8 in C order, whole; it says {dtype} {shape}", str(path))
        place = Place(str(path), size, shape)
    else:
        archive = Npz(path, work)
        name = next((name for name in ("images", "arr_0") if name in archive), None)
        if name is None:
            raise UserError(
                f"has no images or arr_0, but {', '.join(archive.names)[:200]!a}",
                str(path),
                "name the array images",
            )
        place = archive.place(name)
        beside = {"images": "labels", "arr_0": "arr_1"}[name]
        labels = archive.read(beside) if beside in archive else None
    block = _with_layout(place, layout, str(path))
    if labels is None:
        labels = np.zeros(len(block), np.int64)
        names: tuple[str, ...] = ("all",)
        labelled = False
    else:
        labels = check_labels(labels, len(block), f"{path}, labels")
        names = tuple(str(k) for k in range(int(labels.max(initial=0)) + 1))
        labelled = True
    return ArrayRows(
        kind="npz" if path.suffix != ".npy" else "npy",
        path=path,
        labels=labels,
        class_names=names,
        labelled=labelled,
        containers=[path],
        blocks=[block],
    )


def _with_layout(place: Place, layout: str | None, where: str) -> Block:
    if len(place.shape) == 3:
        place = Place(place.path, place.offset, (*place.shape, 1))
        return Block(place, planar=False)
    if len(place.shape) != 4:
        raise UserError(f"images must have three or four axes, got {place.shape}", where)
    found = [word for word, axis in (("nchw", 1), ("nhwc", 3)) if place.shape[axis] in (1, 3, 4)]
    if layout is None and len(found) != 1:
        raise UserError(
            f"which axis of {place.shape} holds the channels cannot be told", where, "say --layout"
        )
    if layout is not None and layout not in found:
        raise UserError(f"{place.shape} is not {layout} with 1, 3 or 4 channels", where)
    return Block(place, planar=(layout or found[0]) == "nchw")


def check_labels(labels: Any, count: int, where: str, first: int = 0) -> NDArray[np.int64]:
    """Integer labels from `first` on → int64 [count] from 0. Raises UserError for any other."""
    found = np.asarray(labels)
    if found.shape != (count,) or found.dtype.kind not in "iu":
        raise UserError(f"{count} images need as many integer labels, got {found.dtype} {found.shape}", where)
    found = found.astype(np.int64) - first
    if count and not 0 <= int(found.min()) <= int(found.max()) < 1_000_000:
        raise UserError(f"labels must begin at {first}, got {int(found.min()) + first}", where)
    return found
