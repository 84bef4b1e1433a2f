"""The objects in a checkpoint, as records that hold what the file says.

No class here does anything. `reading` looks through the records for weights. Every length, shape and offset
is checked against the bytes that are there before it is used. No torch here: a file is read, and refused,
before anything heavy is imported.
"""

import math
import re
from dataclasses import dataclass
from typing import Any

from consistune.errors import UserError

MAX_DIMENSIONS = 8


@dataclass(slots=True, eq=False)
class PersistentRecord:
    """An object that the original reader would build by executing `module_src`: its dictionary `meta`."""

    meta: dict[Any, Any]

    @property
    def class_name(self) -> object:
        return self.meta.get("class_name")

    @property
    def state(self) -> object:
        return self.meta.get("state")


@dataclass(slots=True, eq=False)
class ModuleRecord:
    """A torch.nn.ModuleDict: its state."""

    state: object = None


@dataclass(slots=True, eq=False)
class BoundMethod:
    """A bound method of a persistent object. Nothing needs it."""


@dataclass(slots=True, eq=False)
class Storage:
    """`count` elements of `dtype` at `data`: a view of the file, not a copy."""

    dtype: str
    count: int
    data: memoryview


@dataclass(slots=True, eq=False)
class TensorRecord:
    """A strided view of a storage, checked to lie within it; its size never exceeds the storage's."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def dtype(self) -> str:
        return self.storage.dtype

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


STORAGES = {
    "HalfStorage": ("float16", 2),
    "FloatStorage": ("float32", 4),
    "BFloat16Storage": ("bfloat16", 2),
    "DoubleStorage": ("float64", 8),
    "IntStorage": ("int32", 4),
    "LongStorage": ("int64", 8),
    "ShortStorage": ("int16", 2),
    "CharStorage": ("int8", 1),
    "ByteStorage": ("uint8", 1),
    "BoolStorage": ("bool", 1),
}
"""torch's typed storages: dtype and bytes an element."""

LEGACY = re.compile(
    # Five pickles of protocol 2: magic number, version 1001, the writer's type sizes, …
    rb"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19\.\x80\x02M\xe9\x03\."
    rb"\x80\x02}q\x00\(X\x10\0\0\0protocol_versionq\x01M\xe9\x03X\r\0\0\0little_endianq\x02\x88"
    rb"X\n\0\0\0type_sizesq\x03}q\x04\(X\x05\0\0\0shortq\x05K\x02X\x03\0\0\0intq\x06K\x04"
    rb"X\x04\0\0\0longq\x07K\x04uu\."
    # … the storage's record ("storage", type, key, "cpu", count, None), and the list of its key.
    rb"\x80\x02\(X\x07\0\0\0storageq\0ctorch\n(?P<type>Float|Half|BFloat16)Storage\nq\x01"
    rb"X(?P<len>.\0\0\0)(?P<key>[0-9]{1,20})q\x02X(?:\x03\0\0\0cpu|\x06\0\0\0cuda:[0-9])q\x03"
    rb"(?P<count>K.|M..|J....)Ntq\x04Q\."
    rb"\x80\x02]q\0X(?P=len)(?P=key)q\x01a\.",
    re.DOTALL,
)
"""A single storage as torch wrote it before zip archives (edm-pickles §4.2). The bytes are matched, not
interpreted: they can name the three storage types of the pattern and nothing else."""


def legacy_storage(data: memoryview, where: str) -> Storage:
    """The storage in the bytes that `torch.storage._load_from_bytes` would be called with.

    Raises UserError unless they are exactly a storage's header, an element count and that many elements.
    """
    match = LEGACY.match(data[:512])
    if match is None:
        raise UserError("nested bytes are not a plain torch storage", where)
    dtype, itemsize = STORAGES[match["type"].decode() + "Storage"]
    announced = match["count"]
    count = int.from_bytes(announced[1:], "little", signed=announced[:1] == b"J")
    start = match.end() + 8
    elements = data[start:]
    if (
        match["len"][0] != len(match["key"])
        or count < 0
        or int.from_bytes(data[match.end() : start], "little", signed=True) != count
        or len(elements) != count * itemsize
    ):
        raise UserError(f"a nested storage announces {count} elements, {len(elements)} bytes follow", where)
    return Storage(dtype, count, elements)


def tensor(arguments: tuple[Any, ...], where: str) -> TensorRecord:
    """The view that `torch._utils._rebuild_tensor_v2(storage, offset, sizes, strides, …)` would make.

    Raises UserError unless every element lies in the storage, which must have at least as many elements.
    """
    if len(arguments) != 6 or type(arguments[0]) is not Storage:
        raise UserError("a tensor is not built from a storage, an offset, sizes and strides", where)
    storage, offset, shape, stride, requires_grad, hooks = arguments
    numbers = (offset, *shape, *stride) if type(shape) is type(stride) is tuple else (None,)
    if (
        len(numbers) > 2 * MAX_DIMENSIONS + 1
        or any(type(n) is not int or n < 0 for n in numbers)
        or len(shape) != len(stride)
        or type(requires_grad) is not bool
        or type(hooks) is not dict
        or hooks
    ):
        raise UserError("a tensor's offset, sizes or strides are malformed", where)
    numel = math.prod(shape)
    reach = sum((n - 1) * step for n, step in zip(shape, stride, strict=True)) if numel else -1
    if numel > storage.count or offset + reach >= storage.count:
        raise UserError(f"a tensor reaches element {offset + reach} of a storage with {storage.count}", where)
    return TensorRecord(storage, offset, shape, stride)
