"""Images that are rows of arrays: CIFAR's batches, downsampled ImageNet's, npz and npy.

An array is never loaded. `StoredArray` says where in a file it is, and rows are read as they are needed. An
array that is compressed, or not stored in C order, is first written to the work folder.
"""

import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consistune.data.sources.base import BlockSource, Raw
from consistune.errors import UserError
from consistune.pickles.arrays import read_arrays
from consistune.system.files import atomic_file


@dataclass(frozen=True)
class StoredArray:
    """uint8 values of this shape, in C order, from byte `offset` of a file."""

    path: str
    offset: int
    shape: tuple[int, ...]

    def rows(self, first: int, last: int) -> NDArray[np.uint8]:
        """A copy of rows first … last − 1."""
        count, size = last - first, math.prod(self.shape[1:])
        offset = self.offset + first * size
        values = np.fromfile(self.path, np.uint8, count=count * size, offset=offset)
        if len(values) != count * size:
            raise UserError(f"is cut off: rows {first} to {last} are not there", self.path)
        return values.reshape(count, *self.shape[1:])


@dataclass(frozen=True)
class ImageArray:
    """An array of images: each row is [H, W, C], or planar [C, H, W]."""

    array: StoredArray
    planar: bool

    def __len__(self) -> int:
        return self.array.shape[0]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)"""
        a, b, c = self.array.shape[1:]
        return (a, b, c) if self.planar else (c, a, b)


def read_rows(task: tuple[ImageArray, int, int]) -> Iterator[Raw]:
    images, first, last = task
    for row in images.array.rows(first, last):
        yield row.transpose(1, 2, 0) if images.planar else row


@dataclass(kw_only=True)
class ArrayRows(BlockSource):
    """Images that are rows of arrays, one array after another."""

    read = staticmethod(read_rows)
    arrays: list[ImageArray]
    piece: int = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        shapes = {images.image_shape for images in self.arrays}
        if len(shapes) != 1:
            raise UserError(f"its arrays hold images of different shapes: {sorted(shapes)}", str(self.path))
        (self.shape,) = shapes

    def name(self, item: int) -> str:
        block, row = self.locate(item)
        return f"{Path(self.arrays[block].array.path).name}, row {row}"

    def task(self, first: int, last: int) -> Any:
        block, row = self.locate(first)
        return self.arrays[block], row, row + last - first


def read_batch(path: Path, work: Path) -> tuple[dict[str, Any], StoredArray]:
    """A pickled batch: its `data` [n, d] (uint8), located, and its other entries.

    Nothing in it is executed. Raises UserError unless it is a dictionary of plain data with such an array.
    """
    where = str(path)
    if path.stat().st_size == 0:
        raise UserError("is empty", where)
    with path.open("rb") as file:
        # The map is not closed here: an error's traceback may still hold arrays that lie in it.
        mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    entries = read_arrays(mapped, where)
    data = entries.pop("data", None) if isinstance(entries, dict) else None
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2:
        raise UserError("has no array of pixels, uint8 [images, values], under 'data'", where)
    base = np.frombuffer(mapped, np.uint8)
    offset = _address(data) - _address(base)
    if 0 <= offset <= len(base) - data.nbytes and data.flags.c_contiguous:
        return entries, StoredArray(where, offset, data.shape)
    copy = work / f"{path.name}.data"
    with atomic_file(copy) as out:
        out.write(np.ascontiguousarray(data).data)
    return entries, StoredArray(str(copy), 0, data.shape)


def _address(array: NDArray[Any]) -> int:
    return int(array.__array_interface__["data"][0])
