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

from consistune.data.sources.arrays import ArrayRows, ImageArray, StoredArray
from consistune.data.sources.base import SourceOptions
from consistune.data.sources.labels import UNLABELLED, Numbered, brief, number_array
from consistune.errors import UserError
from consistune.system import zipped
from consistune.system.files import atomic_file, check_room
from consistune.system.zipped import DAMAGED

LABELS = ("labels", "label", "arr_1")
"""An array of labels has one of these names."""
MAX_LABELS_BYTES = 1 << 27
MAX_NPY_HEADER = 10_000
MAX_START = MAX_NPY_HEADER + 12


def npy_header(start: bytes, where: str) -> tuple[tuple[int, ...], np.dtype[Any], bool, int]:
    """Shape, dtype, Fortran order and length of the header in a file's first `MAX_START` bytes.

    The header is parsed from a copy of its bytes: given the file, numpy would allocate what a header asks
    for. Nothing is unpickled. Raises UserError for a malformed header, and for an array of objects.
    """
    file = io.BytesIO(start)
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, fortran, dtype = read[version](file, max_header_size=MAX_NPY_HEADER)
    except (*DAMAGED, KeyError, SyntaxError) as error:
        raise UserError(f"not a readable npy array ({str(error)[:80]!a})", where) from error
    if min(shape, default=0) < 0:
        raise UserError(f"an array cannot have the shape {shape}", where)
    if dtype.hasobject:
        raise UserError("an array of Python objects, which is never unpickled", where)
    return shape, dtype, fortran, file.tell()


class Npz:
    """The arrays of an npz: small ones are read, large ones located."""

    def __init__(self, path: Path, work: Path) -> None:
        self.path, self.work = path, work
        try:
            with zipfile.ZipFile(path) as archive:
                self.members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        except DAMAGED as error:
            raise UserError(f"cannot be read as an npz ({error})", str(path)) from error

    def read(self, name: str) -> NDArray[Any]:
        """A small array. Raises UserError for one of more than `MAX_LABELS_BYTES`."""
        where = f"{self.path}, {name}"
        if self.members[name].file_size > MAX_LABELS_BYTES:
            raise UserError(f"more than {MAX_LABELS_BYTES} bytes", where)
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(self.members[name]) as file:
                content = file.read()
            shape, dtype, fortran, size = npy_header(content[:MAX_START], where)
            return np.frombuffer(content, dtype, offset=size).reshape(shape, order="F" if fortran else "C")
        except DAMAGED as error:
            raise UserError(f"cannot be read ({error})", where) from error

    def locate(self, name: str) -> StoredArray:
        """An array of pixels. A compressed one is first written to the work folder."""
        where, info = f"{self.path}, {name}", self.members[name]
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(info) as file:
                shape, dtype, fortran, size = npy_header(file.read(MAX_START), where)
                if dtype != np.uint8 or fortran:
                    raise UserError(f"pixels must be uint8 in C order, got {_said(dtype, fortran)}", where)
                if size + math.prod(shape) != info.file_size:
                    raise UserError(f"{info.file_size} bytes do not fit the shape {shape}", where)
                if info.compress_type == zipfile.ZIP_STORED:
                    return StoredArray(str(self.path), self._start(info) + size, shape)
                file.seek(size)
                return StoredArray(str(self._unpack(file, name, math.prod(shape))), 0, shape)
        except DAMAGED as error:
            raise UserError(f"cannot be read ({error})", where) from error

    def _start(self, info: zipfile.ZipInfo) -> int:
        with self.path.open("rb") as file:
            file.seek(info.header_offset)
            return zipped.content_start(info.header_offset, file.read(30))

    def _unpack(self, file: IO[bytes], name: str, size: int) -> Path:
        check_room(self.work, size)
        path = self.work / f"{self.path.name}.{Path(name).name}"
        with atomic_file(path) as out:
            shutil.copyfileobj(file, out, 1 << 20)
        return path


def open_npz(path: Path, options: SourceOptions, work: Path) -> ArrayRows:
    """An npz with `images` (or `arr_0`) and perhaps `labels` (`label`, `arr_1`), or an npy of images.

    images: uint8 [n, H, W, C], [n, C, H, W] or [n, H, W]. The layout is clear where exactly one of axes 1 and
    3 has 1, 3 or 4 entries; otherwise `options.layout` ("nhwc" or "nchw") must say it.
    """
    labels: Numbered | None = None
    notes: list[str] = []
    kind = path.suffix[1:].lower()
    if kind == "npy":
        images = _with_layout(_locate_npy(path), options.layout, str(path))
    else:
        archive = Npz(path, work)
        name = next((name for name in ("images", "arr_0") if name in archive.members), None)
        if name is None:
            what = f"has no images or arr_0, but {', '.join(archive.members)[:200]!a}"
            raise UserError(what, str(path), "name the array images")
        images = _with_layout(archive.locate(name), options.layout, str(path))
        beside = next((name for name in LABELS if name in archive.members), None)
        if beside is not None:
            labels = number_array(archive.read(beside), len(images), f"{path}, {beside}")
            notes += labels.notes
        unused = [member for member in archive.members if member not in (name, beside)]
        if unused:
            notes.append(f"arrays that were not used: {brief(unused)}")
    return ArrayRows(
        kind="npy" if kind == "npy" else "npz",
        path=path,
        labels=np.zeros(len(images), np.int64) if labels is None else labels.values,
        class_names=UNLABELLED if labels is None else labels.class_names,
        labelled=labels is not None,
        notes=notes,
        containers=[path],
        sizes=[len(images)],
        arrays=[images],
    )


def _locate_npy(path: Path) -> StoredArray:
    with path.open("rb") as file:
        shape, dtype, fortran, size = npy_header(file.read(MAX_START), str(path))
    if dtype != np.uint8 or fortran or size + math.prod(shape) != os.path.getsize(path):
        said = f"{_said(dtype, fortran)} {shape}"
        raise UserError(f"must hold uint8 in C order, complete; it says {said}", str(path))
    return StoredArray(str(path), size, shape)


def _said(dtype: np.dtype[Any], fortran: bool) -> str:
    return f"{dtype} in Fortran order" if fortran else str(dtype)


def _with_layout(array: StoredArray, layout: str | None, where: str) -> ImageArray:
    shape = array.shape
    if len(shape) == 3:
        return ImageArray(StoredArray(array.path, array.offset, (*shape, 1)), planar=False)
    if len(shape) != 4:
        raise UserError(f"images must have three or four axes, got {shape}", where)
    possible = [word for word, axis in (("nchw", 1), ("nhwc", 3)) if shape[axis] in (1, 3, 4)]
    if layout is None and len(possible) != 1:
        raise UserError(
            f"the shape {shape} does not show which axis holds the channels", where, "say --layout"
        )
    if layout is not None and layout not in possible:
        raise UserError(f"{shape} is not {layout} with 1, 3 or 4 channels", where)
    return ImageArray(array, planar=(layout or possible[0]) == "nchw")
