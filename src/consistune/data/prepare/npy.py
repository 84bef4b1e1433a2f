"""npy files by hand: headers of a fixed length, so that a file can be made before its rows are there."""

import io
from pathlib import Path
from typing import Any

import numpy as np

from consistune.errors import UserError

HEADER = 128


def header(shape: tuple[int, ...], dtype: Any) -> bytes:
    """The first 128 bytes of an npy file (format 1.0)."""
    buffer = io.BytesIO()
    description = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
        "fortran_order": False,
        "shape": shape,
    }
    np.lib.format.write_array_header_1_0(buffer, description)
    assert buffer.tell() == HEADER  # numpy pads to a multiple of 64, and leaves room for growing shapes
    return buffer.getvalue()


def create(path: Path, shape: tuple[int, ...], dtype: Any) -> None:
    """A file of that size whose rows are holes yet."""
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(header(shape, dtype))
        file.truncate(HEADER + size)


def mapped(path: Path, shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
    """The array of a file that must have just this shape and dtype, mapped and private.

    Raises UserError for a file that is missing, cut off, or another array.
    """
    size = HEADER + int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    try:
        with path.open("rb") as file:
            start = file.read(HEADER)
        found = path.stat().st_size
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", str(path), "prepare the set again") from error
    if start != header(shape, dtype) or found != size:
        what = f"is not {np.dtype(dtype)} {list(shape)} in {size} bytes, as meta.json says"
        raise UserError(what, str(path), "prepare the set again")
    return np.memmap(path, dtype, "c", HEADER, shape) if shape[0] else np.empty(shape, dtype)
