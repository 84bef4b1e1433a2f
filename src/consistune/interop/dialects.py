"""The globals that checkpoints name (edm-pickles §5), and what the reader does for each of them."""

from collections.abc import Callable
from typing import Any

from consistune.errors import UserError
from consistune.interop.records import (
    STORAGES,
    BoundMethod,
    ModuleRecord,
    PersistentRecord,
    Storage,
    TensorRecord,
    legacy_storage,
    tensor,
)
from consistune.interop.torch_zip import Archive
from consistune.pickles.machine import Build, ByteRange, Call, Dialect, Global, Machine
from consistune.pickles.numeric import NUMPY, NUMPY_BUILD, encode
from consistune.pickles.opcodes import OPCODES

MAX_OPCODES = 250_000
"""CIFAR-10's DDPM++ takes 37,000; ImageNet-64's ADM, the longest that is published, about 60,000."""


def _persistent_object(m: Machine, arguments: tuple[Any, ...]) -> PersistentRecord:
    # The file may fill the dictionary later (§5.1), so it is kept here and looked at after the reading.
    if len(arguments) != 1 or type(arguments[0]) is not dict:
        raise m.refuse("a persistent object without its record")
    return PersistentRecord(arguments[0])


def _ordered_dict(m: Machine, arguments: tuple[Any, ...]) -> dict[Any, Any]:
    if arguments:
        raise m.refuse("an OrderedDict with arguments")
    return {}


def _parameter(m: Machine, arguments: tuple[Any, ...]) -> TensorRecord:
    if len(arguments) != 3 or type(arguments[0]) is not TensorRecord:
        raise m.refuse("a parameter that is not made from a tensor")
    return arguments[0]


def _tensor(m: Machine, arguments: tuple[Any, ...]) -> TensorRecord:
    return tensor(arguments, m.location)


def _nested_storage(m: Machine, arguments: tuple[Any, ...]) -> Storage:
    if len(arguments) != 1 or type(arguments[0]) is not ByteRange or arguments[0].text:
        raise m.refuse("a storage that is not made from bytes")
    return legacy_storage(m.data[arguments[0].start : arguments[0].stop], m.location)


def _bound_method(m: Machine, arguments: tuple[Any, ...]) -> BoundMethod:
    if len(arguments) != 2 or type(arguments[0]) is not PersistentRecord or type(arguments[1]) is not str:
        raise m.refuse("builtins.getattr of something that is not a persistent object")
    return BoundMethod()


def _empty_set(m: Machine, arguments: tuple[Any, ...]) -> frozenset[Any]:
    if arguments not in ((), ([],)):
        raise m.refuse("a set that is not empty")
    return frozenset()


def _build_module(m: Machine, target: ModuleRecord, state: Any) -> None:
    if type(state) is not dict or target.state is not None:
        raise m.refuse("a module's state is malformed")
    target.state = state


def _build_dict(m: Machine, target: dict[Any, Any], state: Any) -> None:  # noqa: ARG001 - it does not change
    """torch sets the versions of a network's layers as an attribute of its state dict. They are ignored."""
    if type(state) is not dict or list(state) != ["_metadata"]:
        raise m.refuse("a state for a dict")


def _dialect(more: dict[tuple[str, str], Call | None]) -> Dialect:
    """What both kinds of file name, and `more`."""
    return Dialect(
        globals={
            **NUMPY,
            ("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent_object,
            ("torch.nn.modules.container", "ModuleDict"): None,
            ("collections", "OrderedDict"): _ordered_dict,
            ("torch._utils", "_rebuild_parameter"): _parameter,
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("dnnlib.util", "EasyDict"): None,
            ("builtins", "getattr"): _bound_method,
            **more,
        },
        description="a checkpoint that consistune reads",
        max_opcodes=MAX_OPCODES,
        opcodes=OPCODES,
        new={("torch.nn.modules.container", "ModuleDict"): ModuleRecord, ("dnnlib.util", "EasyDict"): dict},
        build=BUILD,
    )


BUILD: dict[type, Build] = {**NUMPY_BUILD, dict: _build_dict, ModuleRecord: _build_module}

SNAPSHOT = _dialect({("torch.storage", "_load_from_bytes"): _nested_storage})
"""A snapshot (.pkl)."""

ARCHIVE = _dialect(
    {
        **{("torch", name): None for name in STORAGES},
        ("__builtin__", "set"): _empty_set,
        ("__builtin__", "getattr"): _bound_method,
        ("_codecs", "encode"): encode,
    }
)
"""The pickle in a torch archive (.pt). Its storages are records of the archive (§7)."""


def archive_storage(archive: Archive) -> Callable[[Any, str], Storage]:
    """What to do with a persistent id ("storage", type, key, location, count): read the record data/KEY."""

    def load(identity: Any, where: str) -> Storage:
        if type(identity) is not tuple or len(identity) != 5 or type(identity[1]) is not Global:
            raise UserError("a persistent id that is not a storage", where)
        tag, kind, key, location, count = identity
        known = kind.module == "torch" and kind.name in STORAGES
        if tag != "storage" or not known or type(key) is not str or type(location) is not str:
            raise UserError("a persistent id that is not a storage", where)
        dtype, itemsize = STORAGES[kind.name]
        data = archive.read(f"data/{key}", where)
        if type(count) is not int or count < 0 or count * itemsize != len(data):
            what = f"a storage's record has {len(data)} bytes, which is not what it announces"
            raise UserError(what, where)
        return Storage(dtype, count, data)

    return load
