"""The globals that checkpoints name (edm-pickles §5), and what reading does in the place of each."""

from collections.abc import Callable
from typing import Any

from consistune.errors import UserError
from consistune.interop.records import (
    STORAGES,
    Inert,
    ModuleDict,
    Persistent,
    Storage,
    TensorRecord,
    legacy_storage,
    tensor,
)
from consistune.pickles.machine import Build, Call, Dialect, Machine
from consistune.pickles.markers import Blob, Global
from consistune.pickles.numeric import NUMPY, NUMPY_BUILD, encode

WHAT = "a checkpoint that consistune reads"
MAX_OPCODES = 250_000
"""CIFAR-10's DDPM++ takes 37 000; ImageNet-64's ADM, the longest that is published, about 60 000."""


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


def _bound_method(m: Machine, arguments: tuple[Any, ...]) -> Inert:
    if len(arguments) != 2 or type(arguments[0]) is not Persistent or type(arguments[1]) is not str:
        raise m.refuse("builtins.getattr of something that is not a persistent object")
    return Inert("a bound method")


def _empty_set(m: Machine, arguments: tuple[Any, ...]) -> frozenset[Any]:
    if arguments not in ((), ([],)):
        raise m.refuse("a set that is not empty")
    return frozenset()


def _build_module(m: Machine, target: ModuleDict, state: Any) -> None:
    if type(state) is not dict or target.state is not None:
        raise m.refuse("a module's state is malformed")
    target.state = state


def _build_dict(m: Machine, target: dict[Any, Any], state: Any) -> None:  # noqa: ARG001 - left as it is
    """torch hangs its layers' versions on a state dict as an attribute; they are read over."""
    if type(state) is not dict or list(state) != ["_metadata"]:
        raise m.refuse("a state for a dict")


_NAMES: dict[tuple[str, str], Call | None] = {
    **NUMPY,
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent_object,
    ("torch.nn.modules.container", "ModuleDict"): None,
    ("collections", "OrderedDict"): _ordered_dict,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("dnnlib.util", "EasyDict"): None,
    ("builtins", "getattr"): _bound_method,
}
_NEW: dict[tuple[str, str], Callable[[], Any]] = {
    ("torch.nn.modules.container", "ModuleDict"): ModuleDict,
    ("dnnlib.util", "EasyDict"): dict,
}
_BUILD: dict[type, Build] = {**NUMPY_BUILD, dict: _build_dict, ModuleDict: _build_module}

SNAPSHOT = Dialect(
    globals={**_NAMES, ("torch.storage", "_load_from_bytes"): _nested_storage},
    what=WHAT,
    max_opcodes=MAX_OPCODES,
    new=_NEW,
    build=_BUILD,
)
"""A snapshot (.pkl)."""

ARCHIVE = Dialect(
    globals={
        **_NAMES,
        **{("torch", name): None for name in STORAGES},
        ("__builtin__", "set"): _empty_set,
        ("__builtin__", "getattr"): _bound_method,
        ("_codecs", "encode"): encode,
    },
    what=WHAT,
    max_opcodes=MAX_OPCODES,
    new=_NEW,
    build=_BUILD,
)
"""The pickle in a torch archive (.pt): its storages are the archive's records (§7)."""


def archive_storage(records: Callable[[str, str], memoryview]) -> Callable[[Any, str], Storage]:
    """What to do with the persistent id ("storage", type, key, location, count) of a torch archive.

    `records(key, where)` finds the record data/KEY.
    """

    def load(identity: Any, where: str) -> Storage:
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
