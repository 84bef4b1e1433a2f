"""npy and npz files: their arrays located, never unpickled."""

import io
import math
import os
import shutil
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from consistune.data.sources.arrays import ArrayRows, Block, Place, check_labels
from consistune.errors import UserError

MAX_SMALL = 1 << 27
"""Bytes of an array that is read whole (labels)."""
MAX_NPY_HEADER = 10_000
MAX_START = MAX_NPY_HEADER + 12


def npy_header(start: bytes, where: str) -> tuple[tuple[int, ...], np.dtype[Any], bool, int]:
    """Shape, dtype, Fortran order and length of the header in a file's first `MAX_START` bytes.

    Raises UserError; never unpickles. From the bytes, not the file: numpy would allocate what a header says.
    """
    file = io.BytesIO(start)
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
                content = file.read()
            shape, dtype, fortran, size = npy_header(content[:MAX_START], where)
            return np.frombuffer(content, dtype, offset=size).reshape(shape, order="F" if fortran else "C")
        except (ValueError, OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
            raise UserError(f"cannot be read ({error})", where) from error

    def place(self, name: str) -> Place:
        """Where an array of pixels stands; a compressed one is written out first."""
        where = f"{self.path}, {name}"
        info = self.members[f"{name}.npy"]
        try:
            with zipfile.ZipFile(self.path) as archive, self._open(archive, name) as file:
                shape, dtype, fortran, size = npy_header(file.read(MAX_START), where)
                if dtype != np.uint8 or fortran:
                    raise UserError(f"pixels must be uint8 in C order, got {dtype}", where)
                if size + math.prod(shape) != info.file_size:
                    raise UserError(f"{info.file_size} bytes do not fit the shape {shape}", where)
                if info.compress_type == zipfile.ZIP_STORED:
                    return Place(str(self.path), _member_start(self.path, info) + size, shape)
                path = self.work / f"{self.path.name}.{Path(name).name}"
                partial = path.with_name(path.name + ".partial")
                _check_space(math.prod(shape), self.work)
                with partial.open("wb") as out:
                    file.seek(size)
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
            shape, dtype, fortran, size = npy_header(file.read(MAX_START), str(path))
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
