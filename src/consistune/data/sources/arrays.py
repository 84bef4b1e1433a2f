"""Images that are rows of arrays: CIFAR's batches, downsampled ImageNet's, npz and npy.

An array is never loaded: it is a place in a file (`Place`), whose rows are read as they are needed. What is
compressed, or not stored as it is, is first written to the work folder.
"""

import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consistune.data.sources.base import Raw, Reader, Source
from consistune.errors import UserError
from consistune.pickles.arrays import read_arrays


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


def check_labels(labels: Any, count: int, where: str, first: int = 0) -> NDArray[np.int64]:
    """Integer labels from `first` on → int64 [count] from 0. Raises UserError for any other."""
    found = np.asarray(labels)
    if found.shape != (count,) or found.dtype.kind not in "iu":
        raise UserError(f"{count} images need as many integer labels, got {found.dtype} {found.shape}", where)
    found = found.astype(np.int64) - first
    if count and not 0 <= int(found.min()) <= int(found.max()) < 1_000_000:
        raise UserError(f"labels must begin at {first}, got {int(found.min()) + first}", where)
    return found
