"""Plain data out of a pickle: dictionaries, lists, text, numbers, numpy arrays; nothing in it is called."""

from typing import Any

import numpy as np

from consistune.pickles.machine import Dialect, Machine
from consistune.pickles.markers import Blob, Global
from consistune.pickles.numeric import NUMPY, NUMPY_BUILD, NumpyArray, NumpyDtype, encode, from_buffer
from consistune.pickles.opcodes import TEXT_OPCODES, plain_key

MAX_DEPTH = 32
MAX_KEY = 256
MAX_OPCODES = 500_000
"""CIFAR-100's training set, with 50 000 file names and two labels an image, takes about 210 000."""


def _text_key(m: Machine, key: Any) -> str | int:
    """Python 2 wrote its keys as bytes."""
    if type(key) is Blob and not key.text and len(key) <= MAX_KEY:
        key = bytes(m.data[key.start : key.stop])
    return plain_key(m, key.decode("latin-1") if type(key) is bytes else key)


ARRAYS = Dialect(
    globals={
        **NUMPY,
        ("_codecs", "encode"): encode,
        ("numpy.core.numeric", "_frombuffer"): from_buffer,
        ("numpy._core.numeric", "_frombuffer"): from_buffer,
    },
    what="a pickle of plain numbers and text",
    max_opcodes=MAX_OPCODES,
    opcodes=TEXT_OPCODES,
    build=NUMPY_BUILD,
    key=_text_key,
    oldest=0,
)


def read_arrays(data: bytes | memoryview, where: str) -> Any:
    """What a pickle of plain data holds, protocols 0 to 5, Python 2's too; nothing in it is executed.

    Args:
        data: the whole file; a memory map will do, and is then read where it is needed.
        where: how to name the file in errors.

    Returns:
        dict (keys str or int; bytes keys are decoded as latin-1), list, tuple, str, bytes, int, float, bool,
        None, and numpy.ndarray of a numeric, little-endian dtype. Arrays are read-only views of `data` where
        the format has their bytes as they are.

    Raises:
        UserError: anything else, by name and byte offset; what is cut off, too deep, or larger than the file.
    """
    machine = Machine(memoryview(data).toreadonly(), ARRAYS, where)
    return _Plain(machine).convert(machine.run(), 0)


class _Plain:
    """Markers → values. A part that stands in several places is converted once, and stays one object."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.done: dict[int, tuple[Any, Any]] = {}  # id → (the marker, kept so that its id is its own; value)
        self.open: set[int] = set()

    def convert(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if value is None or kind in (bool, int, float, str, bytes):
            return value
        if id(value) in self.done:
            return self.done[id(value)][1]
        if depth > MAX_DEPTH or id(value) in self.open:
            raise self.machine.refuse("values nested too deep, or in themselves, up to the end")
        self.open.add(id(value))
        if kind is list:
            found: Any = [self.convert(part, depth + 1) for part in value]
        elif kind is tuple:
            found = tuple([self.convert(part, depth + 1) for part in value])
        elif kind is dict:
            found = {key: self.convert(part, depth + 1) for key, part in value.items()}
        else:
            found = self.leaf(value)
        self.open.discard(id(value))
        self.done[id(value)] = (value, found)
        return found

    def leaf(self, value: Any) -> Any:
        machine = self.machine
        if type(value) is Blob:
            machine.copying(len(value))
            text = bytes(machine.data[value.start : value.stop])
            return text.decode("utf-8", "replace") if value.text else text
        if type(value) is NumpyArray and value.content is not None:
            content: Any = value.content
            if type(content) is Blob:
                content = machine.data[content.start : content.stop]
            flat = np.frombuffer(content, np.dtype("<" + value.dtype))
            return flat.reshape(value.shape[::-1]).T if value.fortran else flat.reshape(value.shape)
        if isinstance(value, NumpyDtype | NumpyArray | Global):
            raise machine.refuse(f"an unfinished {type(value).__name__} as a value, up to the end")
        raise machine.refuse(f"a value of type {type(value).__name__}, up to the end")
