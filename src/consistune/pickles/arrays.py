"""Plain data out of a pickle: dictionaries, lists, text, numbers and numpy arrays. Nothing is called."""

from typing import Any

import numpy as np

from consistune.pickles.machine import ByteRange, Dialect, Machine, plain_key
from consistune.pickles.numeric import NUMPY, NUMPY_BUILD, NumpyArray, encode, from_buffer, short_text
from consistune.pickles.opcodes import TEXT_OPCODES

MAX_DEPTH = 32
MAX_KEY_BYTES = 256
MAX_OPCODES = 500_000
"""CIFAR-100's training set, with 50,000 file names and two labels an image, takes about 210,000."""


def _text_key(m: Machine, key: Any) -> str | int:
    """A key as text: Python 2 wrote it as bytes."""
    text = short_text(m, key, MAX_KEY_BYTES)
    return plain_key(m, key if text is None else text)


ARRAYS = Dialect(
    globals={
        **NUMPY,
        ("_codecs", "encode"): encode,
        ("numpy.core.numeric", "_frombuffer"): from_buffer,
        ("numpy._core.numeric", "_frombuffer"): from_buffer,
    },
    description="a pickle of plain numbers and text",
    max_opcodes=MAX_OPCODES,
    opcodes=TEXT_OPCODES,
    build=NUMPY_BUILD,
    key=_text_key,
    min_protocol=0,
)


def read_arrays(data: bytes | memoryview, where: str) -> Any:
    """The content of a pickle of plain data, protocols 0 to 5, Python 2's too. Nothing in it is executed.

    Args:
        data: the whole file. Of a memory map, only the parts that are needed are read.
        where: how to name the file in errors.

    Returns:
        dict (keys str or int; keys of bytes are decoded as latin-1), list, tuple, str, bytes, int, float,
        bool, None, and numpy.ndarray of a numeric, little-endian dtype. Arrays are read-only; where the file
        holds their bytes unchanged they are views of `data`.

    Raises:
        UserError: for anything else, with its name and byte offset; for a file that is cut off, nested too
            deep, or whose values would be larger than the file.
    """
    machine = Machine(memoryview(data).toreadonly(), ARRAYS, where)
    return _Converter(machine).convert(machine.run(), 0)


class _Converter:
    """The machine's values → plain values. A value with several references is converted once."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.converted: dict[int, tuple[Any, Any]] = {}
        """id of a machine's value → (that value, kept so that its id stays taken; the plain value)"""
        self.in_progress: set[int] = set()

    def convert(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if value is None or kind in (bool, int, float, str, bytes):
            return value
        if id(value) in self.converted:
            return self.converted[id(value)][1]
        if depth > MAX_DEPTH or id(value) in self.in_progress:
            raise self.machine.refuse("values nested too deep, or in themselves, up to the end")
        self.in_progress.add(id(value))
        result: Any
        if kind is list or kind is tuple:
            result = kind([self.convert(part, depth + 1) for part in value])
        elif kind is dict:
            result = {key: self.convert(part, depth + 1) for key, part in value.items()}
        else:
            result = self._leaf(value)
        self.in_progress.discard(id(value))
        self.converted[id(value)] = (value, result)
        return result

    def _leaf(self, value: Any) -> Any:
        machine = self.machine
        if type(value) is ByteRange:
            machine.count_copy(len(value))
            content = machine.bytes_of(value)
            return content.decode("utf-8", "replace") if value.text else content
        if type(value) is NumpyArray and value.content is not None:
            buffer: Any = value.content
            if type(buffer) is ByteRange:
                buffer = machine.data[buffer.start : buffer.stop]
            flat = np.frombuffer(buffer, np.dtype("<" + value.dtype))
            return flat.reshape(value.shape, order="F" if value.fortran else "C")
        raise machine.refuse(f"a value of type {type(value).__name__}, up to the end")
