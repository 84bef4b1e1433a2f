"""The globals that checkpoints name (edm-pickles §5), and what reading does in the place of each."""

import struct
from collections.abc import Callable
from typing import Any

from sct.interop.inert import (
    STORAGES,
    Blob,
    Global,
    Inert,
    NumpyArray,
    NumpyDtype,
    Persistent,
    Storage,
    TensorRecord,
    legacy_storage,
    tensor,
)
from sct.interop.pickles import Call, Machine

NUMBERS = {"f8": "d", "f4": "f", "f2": "e", "i8": "q", "i4": "i", "i2": "h", "i1": "b", "u1": "B", "b1": "?"}
"""numpy's plain numeric types, and struct's letter for each. Objects ("O8") are not among them."""


def _persistent_object(m: Machine, arguments: tuple[Any, ...]) -> Persistent:
    # Its state may still be filled later (§5.1): keep the reference and look at nothing yet.
    if len(arguments) != 1 or type(arguments[0]) is not dict:
        raise m.refuse("a persistent object without its record")
    return Persistent(arguments[0])


def _ordered_dict(m: Machine, arguments: tuple[Any, ...]) -> dict[Any, Any]:
    if arguments:
        raise m.refuse("an OrderedDict with arguments")
    return {}


def _parameter(m: Machine, arguments: tuple[Any, ...]) -> TensorRecord:
    if len(arguments) != 3 or type(arguments[0]) is not TensorRecord:
        raise m.refuse("a parameter that is not made from a tensor")
    return arguments[0]


def _tensor(m: Machine, arguments: tuple[Any, ...]) -> TensorRecord:
    return tensor(arguments, m.place)


def _nested_storage(m: Machine, arguments: tuple[Any, ...]) -> Storage:
    if len(arguments) != 1 or type(arguments[0]) is not Blob or arguments[0].text:
        raise m.refuse("a storage that is not made from bytes")
    return legacy_storage(m.data[arguments[0].start : arguments[0].stop], m.place)


def _scalar(m: Machine, arguments: tuple[Any, ...]) -> Any:
    if len(arguments) != 2 or type(arguments[0]) is not NumpyDtype:
        raise m.refuse("a numpy scalar without a numeric dtype")
    dtype, content = arguments
    if type(content) is Blob and not content.text:
        content = bytes(m.data[content.start : min(content.stop, content.start + 9)])
    if type(content) is not bytes or len(content) != dtype.itemsize:
        raise m.refuse("a numpy scalar whose bytes do not fit its dtype")
    return struct.unpack("<" + NUMBERS[dtype.code], content)[0]


def _dtype(m: Machine, arguments: tuple[Any, ...]) -> NumpyDtype:
    code = arguments[0] if arguments else None
    if len(arguments) != 3 or type(code) is not str or code not in NUMBERS:
        raise m.refuse("a numpy dtype that is not a plain number")
    return NumpyDtype(code)


def _array(m: Machine, arguments: tuple[Any, ...]) -> NumpyArray:
    cls = arguments[0] if len(arguments) == 3 else None
    if type(cls) is not Global or (cls.module, cls.name) != ("numpy", "ndarray"):
        raise m.refuse("a numpy array that is not a plain ndarray")
    return NumpyArray()


def _bound_method(m: Machine, arguments: tuple[Any, ...]) -> Inert:
    if len(arguments) != 2 or type(arguments[0]) is not Persistent or type(arguments[1]) is not str:
        raise m.refuse("builtins.getattr of something that is not a persistent object")
    return Inert("a bound method")


def _empty_set(m: Machine, arguments: tuple[Any, ...]) -> frozenset[Any]:
    if arguments not in ((), ([],)):
        raise m.refuse("a set that is not empty")
    return frozenset()


def _encode(m: Machine, arguments: tuple[Any, ...]) -> bytes:
    """Bytes as protocol 2 writes them: _codecs.encode(text, "latin1")."""
    if len(arguments) != 2 or type(arguments[0]) is not str or arguments[1] not in ("latin1", "latin-1"):
        raise m.refuse("_codecs.encode of something other than latin-1 text")
    try:
        return arguments[0].encode("latin-1")
    except UnicodeEncodeError:
        raise m.refuse("_codecs.encode of text that is not latin-1") from None


SNAPSHOT: dict[tuple[str, str], Call | None] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent_object,
    ("torch.nn.modules.container", "ModuleDict"): None,
    ("collections", "OrderedDict"): _ordered_dict,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch.storage", "_load_from_bytes"): _nested_storage,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy", "dtype"): _dtype,
    ("numpy.core.multiarray", "_reconstruct"): _array,
    ("numpy._core.multiarray", "_reconstruct"): _array,
    ("numpy", "ndarray"): None,
    ("dnnlib.util", "EasyDict"): None,
    ("builtins", "getattr"): _bound_method,
}
"""What a snapshot (.pkl) may name."""

ARCHIVE: dict[tuple[str, str], Call | None] = {
    **{name: call for name, call in SNAPSHOT.items() if name[1] != "_load_from_bytes"},
    **{("torch", name): None for name in STORAGES},
    ("__builtin__", "set"): _empty_set,
    ("__builtin__", "getattr"): _bound_method,
    ("_codecs", "encode"): _encode,
}
"""What the pickle in a torch archive (.pt) may name: its storages are the archive's records (§7)."""


def archive_storage(records: Callable[[str, str], memoryview]) -> Callable[[Any, str], Storage]:
    """What to do with the persistent id ("storage", type, key, location, count) of a torch archive.

    `records(key, where)` finds the record data/KEY.
    """

    def load(identity: Any, where: str) -> Storage:
        from sct.errors import UserError

        if type(identity) is not tuple or len(identity) != 5 or type(identity[1]) is not Global:
            raise UserError("a persistent id that is not a storage", where)
        tag, kind, key, location, count = identity
        known = kind.module == "torch" and kind.name in STORAGES
        if tag != "storage" or not known or type(key) is not str or type(location) is not str:
            raise UserError("a persistent id that is not a storage", where)
        dtype, itemsize = STORAGES[kind.name]
        data = records(key, where)
        if type(count) is not int or count < 0 or count * itemsize != len(data):
            raise UserError(
                f"a storage's record has {len(data)} bytes, which is not what it announces", where
            )
        return Storage(dtype, count, data)

    return load
