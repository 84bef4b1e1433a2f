"""npy files whose rows are written in any order, by many processes.

numpy's own maps for writing (`open_memmap`) are not used: on a full disk they kill the process (SIGBUS),
where writing to the file raises an error that can be shown. Headers have a fixed length, so the offset of
a row is known.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np

from consistune.errors import UserError
from consistune.system.files import write_atomically

HEADER_BYTES = 128


def header(shape: tuple[int, ...], dtype: Any) -> bytes:
    """The first 128 bytes of an npy file (format 1.0)."""
    buffer = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
    description = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, description)
    assert buffer.tell() == HEADER_BYTES  # numpy pads to a multiple of 64, and leaves room for longer shapes
    return buffer.getvalue()


def file_size(shape: tuple[int, ...], dtype: Any) -> int:
    return HEADER_BYTES + int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize


def write(path: Path, array: np.ndarray[Any, Any]) -> None:
    """Write an array whole: `np.save` to a file hides a full disk's error number."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    write_atomically(path, buffer.getvalue())


def create(path: Path, shape: tuple[int, ...], dtype: Any) -> None:
    """A file of the full size whose rows are not written yet; on most file systems it takes no space."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(header(shape, dtype))
        file.truncate(file_size(shape, dtype))


def open_mapped(path: Path, shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
    """The array of a file, mapped; changes to it stay in memory.

    Raises UserError for a file that is missing, cut off, or of another shape or dtype.
    """
    size = file_size(shape, dtype)
    try:
        with path.open("rb") as file:
            start = file.read(HEADER_BYTES)
        actual = path.stat().st_size
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", str(path), "prepare the set again") from error
    if start != header(shape, dtype) or actual != size:
        what = f"is not {np.dtype(dtype)} {list(shape)} in {size} bytes, as meta.json says"
        raise UserError(what, str(path), "prepare the set again")
    return np.memmap(path, dtype, "c", HEADER_BYTES, shape) if shape[0] else np.empty(shape, dtype)
