"""Features that are read by rows from a file, where there are too many for memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol

import numpy as np
import torch
from torch import Tensor


class Rows(Protocol):
    """Features [n, D] that are read by rows: a tensor, or a file."""

    @property
    def shape(self) -> torch.Size: ...
    def __len__(self) -> int: ...
    def __getitem__(self, rows: slice | Tensor) -> Tensor: ...


class FeatureFile:
    """The first `count` rows (None: all) of fp32 features in a .npy file; a row is read when it is indexed.

    The file is not memory-mapped: a map makes 64 kB resident around each row that is read.
    """

    def __init__(self, path: Path, count: int | None = None) -> None:
        self.path = path
        with path.open("rb") as file:
            np.lib.format.read_magic(file)
            (stored, dim), _, dtype = np.lib.format.read_array_header_1_0(file)
            self.offset = file.tell()
        if dtype != np.dtype("<f4"):
            raise ValueError(f"{path} holds {dtype}, not fp32")
        self.shape = torch.Size((stored if count is None else min(stored, count), dim))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        """A run of rows, or rows by index [n]. Raises ValueError where the file ends before them."""
        dim = self.shape[1]
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(len(self))
            runs = [(start, max(stop - start, 0))]
        else:
            runs = [(row, 1) for row in rows.tolist()]
        values = np.empty((sum(length for _, length in runs), dim), dtype="<f4")
        filled = 0
        with self.path.open("rb", buffering=0) as file:
            for start, length in runs:
                part = values[filled : filled + length]
                file.seek(self.offset + start * 4 * dim)
                if file.readinto(part.data) != part.nbytes:
                    raise ValueError(f"{self.path} ends before its last row")
                filled += length
        return torch.from_numpy(values)


class FeatureWriter:
    """Appends fp32 rows to the .npy file that `feature_file` opened."""

    def __init__(self, file: IO[bytes], count: int, dim: int) -> None:
        self.file, self.left, self.dim = file, count, dim
        header = {"descr": "<f4", "fortran_order": False, "shape": (count, dim)}
        np.lib.format.write_array_header_1_0(file, header)

    def append(self, features: Tensor) -> None:
        """Features [n, D] of any float type. Raises ValueError for another D, or for too many rows."""
        self.left -= len(features)
        if self.left < 0 or features.shape[1] != self.dim:
            raise ValueError(f"rows of {self.dim} numbers were expected, got {tuple(features.shape)}")
        self.file.write(features.numpy().astype("<f4").tobytes())


@contextmanager
def feature_file(path: Path, count: int, dim: int) -> Iterator[FeatureWriter]:
    """A .npy file for features [count, dim], written in order and not memory-mapped."""
    with path.open("wb") as file:
        yield FeatureWriter(file, count, dim)
