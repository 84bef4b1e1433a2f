"""numpy's part of a pickle: numeric dtypes, scalars and arrays.

The layouts are those of numpy's own pickling (`ndarray.__reduce__`; protocol 5 names `_frombuffer`), under
the module paths of numpy 1 and 2. They become records, which hold what the file says and do nothing.
"""

import math
import struct
from dataclasses import dataclass
from typing import Any

from consistune.pickles.machine import Build, ByteRange, Call, Global, Machine

NUMBERS = {
    **{"f8": "d", "f4": "f", "f2": "e", "b1": "?"},
    **{"i8": "q", "i4": "i", "i2": "h", "i1": "b", "u8": "Q", "u4": "I", "u2": "H", "u1": "B"},
}
"""numpy's numeric types, and struct's letter for each. Objects ("O8") are not among them."""
MAX_DIMENSIONS = 8


@dataclass(slots=True, eq=False)
class NumpyDtype:
    """A little-endian numeric dtype such as "f8"; `built` is true once its byte order has been read."""

    code: str
    built: bool = False

    @property
    def itemsize(self) -> int:
        return int(self.code[1:])


@dataclass(slots=True, eq=False)
class NumpyArray:
    """An array. Its content, None until BUILD, has exactly the bytes that shape and dtype need."""

    dtype: str = ""
    shape: tuple[int, ...] = ()
    fortran: bool = False
    content: ByteRange | bytes | None = None


def short_text(m: Machine, value: Any, limit: int = 16) -> str | None:
    """Text of at most `limit` bytes, or such bytes (Python 2 wrote text so) as latin-1; None for the rest."""
    if type(value) is ByteRange and not value.text and len(value) <= limit:
        value = m.bytes_of(value)
    if type(value) is bytes:
        return value.decode("latin-1")
    return value if type(value) is str else None


def _scalar(m: Machine, arguments: tuple[Any, ...]) -> Any:
    if len(arguments) != 2 or type(arguments[0]) is not NumpyDtype:
        raise m.refuse("a numpy scalar without a numeric dtype")
    dtype, content = arguments
    if type(content) is ByteRange and not content.text:
        content = m.bytes_of(content, limit=9)
    if type(content) is not bytes or len(content) != dtype.itemsize:
        raise m.refuse("a numpy scalar whose bytes do not fit its dtype")
    return struct.unpack("<" + NUMBERS[dtype.code], content)[0]


def _dtype(m: Machine, arguments: tuple[Any, ...]) -> NumpyDtype:
    code = short_text(m, arguments[0]) if arguments else None
    if len(arguments) != 3 or code is None or code not in NUMBERS:
        raise m.refuse("a numpy dtype that is not a plain number")
    return NumpyDtype(code)


def _array(m: Machine, arguments: tuple[Any, ...]) -> NumpyArray:
    cls = arguments[0] if len(arguments) == 3 else None
    if type(cls) is not Global or (cls.module, cls.name) != ("numpy", "ndarray"):
        raise m.refuse("a numpy array that is not a plain ndarray")
    return NumpyArray()


def from_buffer(m: Machine, arguments: tuple[Any, ...]) -> NumpyArray:
    """numpy's `_frombuffer(content, dtype, shape, order)`: how protocol 5 writes an array."""
    if len(arguments) != 4 or arguments[3] not in ("C", "F"):
        raise m.refuse("a numpy array's buffer is malformed")
    content, dtype, shape, order = arguments
    array = NumpyArray()
    _fill(m, array, shape, dtype, order == "F", content)
    return array


def encode(m: Machine, arguments: tuple[Any, ...]) -> bytes:
    """`_codecs.encode(text, "latin1")`: how protocol 2 writes bytes."""
    text: Any = arguments[0] if len(arguments) == 2 and arguments[1] in ("latin1", "latin-1") else None
    if type(text) is not str and (type(text) is not ByteRange or not text.text):
        raise m.refuse("_codecs.encode of something other than latin-1 text")
    m.count_copy(len(text))
    try:
        if type(text) is ByteRange:
            text = m.bytes_of(text).decode()
        return str(text).encode("latin-1")
    except UnicodeDecodeError:
        raise m.refuse("text that is not UTF-8") from None
    except UnicodeEncodeError:
        raise m.refuse("_codecs.encode of text that is not latin-1") from None


def _build_dtype(m: Machine, target: NumpyDtype, state: Any) -> None:
    order = short_text(m, state[1]) if type(state) is tuple and len(state) == 8 else None
    if target.built or order not in ("<", "|") or state[2:5] != (None,) * 3:
        raise m.refuse("a numpy dtype that is not plain and little-endian")
    target.built = True


def _build_array(m: Machine, target: NumpyArray, state: Any) -> None:
    if target.content is not None or type(state) is not tuple or len(state) != 5:
        raise m.refuse("a numpy array's state is malformed")
    _, shape, dtype, fortran, content = state
    _fill(m, target, shape, dtype, fortran, content)


def _fill(m: Machine, target: NumpyArray, shape: Any, dtype: Any, fortran: Any, content: Any) -> None:
    if (
        type(shape) is not tuple
        or len(shape) > MAX_DIMENSIONS
        or any(type(n) is not int or n < 0 for n in shape)
    ):
        raise m.refuse("a numpy array's shape is malformed")
    size = (dtype.itemsize if type(dtype) is NumpyDtype else 0) * math.prod(shape)
    fits = type(content) in (ByteRange, bytes) and len(content) == size > 0
    if type(fortran) is not bool or not fits:
        raise m.refuse("a numpy array's content does not have the size of its shape")
    target.dtype, target.shape, target.fortran, target.content = dtype.code, shape, fortran, content


MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
NUMPY: dict[tuple[str, str], Call | None] = {
    **{(module, "scalar"): _scalar for module in MODULES},
    **{(module, "_reconstruct"): _array for module in MODULES},
    ("numpy", "dtype"): _dtype,
    ("numpy", "ndarray"): None,
}
NUMPY_BUILD: dict[type, Build] = {NumpyDtype: _build_dtype, NumpyArray: _build_array}
