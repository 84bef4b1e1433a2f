"""From a checkpoint's bytes to its weights by name and its constructor's arguments; nothing is built yet.

No torch here: whatever is refused is refused in a fraction of a second.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from consistune.errors import UserError
from consistune.interop import dialects as tables
from consistune.interop.contents import MAX_NAME, MAX_TENSORS, Snapshot
from consistune.interop.mapped import Source, open_source
from consistune.interop.records import ModuleDict, Persistent, TensorRecord
from consistune.interop.safetensors import read_safetensors
from consistune.interop.torch_zip import Archive
from consistune.pickles.machine import Machine

MAX_DEPTH = 16
MAX_ENTRIES = 50_000
"""Of all modules' dictionaries together, however many modules share one."""
MAX_VALUES = 10_000


def read_snapshot(path: str | Path) -> Snapshot:
    """Read a file. Raises UserError, one line, for everything that is not a known checkpoint.

    Nothing that the file names is imported, called or executed.
    """
    source = open_source(Path(path))
    where = str(source.path)
    if source.container == "pickle":
        return _interpret(source, Machine(source.data, tables.SNAPSHOT, where).run(), "snapshot (.pkl)")
    if source.container == "zip":
        return _interpret(source, _read_archive(source), "torch archive (.pt)")
    return read_safetensors(source)


def _read_archive(source: Source) -> Any:
    where = str(source.path)
    archive = Archive(source.data, where)
    order = archive.records.get("byteorder")
    if order is not None and bytes(archive.read("byteorder", where)) != b"little":
        raise UserError("the archive is not little-endian", where)
    storage = tables.archive_storage(lambda key, place: archive.read(f"data/{key}", place))
    return Machine(archive.read("data.pkl", where), tables.ARCHIVE, where, storage).run()


def _interpret(source: Source, top: Any, kind: str) -> Snapshot:
    where = str(source.path)
    if type(top) is not dict or not all(type(key) is str for key in top):
        raise UserError("the file holds no dictionary of named parts", where)
    keys = tuple(top)
    for root in ("ema", "net"):
        model = top.get(root)
        if type(model) is Persistent:
            class_name, options, tensors = _persistent_model(model, source)
            return Snapshot(source, kind, class_name, options, tensors, _dropped(top, root), keys)
        if type(model) is dict and root == "net" and _is_state(model):
            return Snapshot(source, kind, None, {}, _state(model, source), _dropped(top, root), keys)
    if _is_state(top):
        return Snapshot(source, kind, None, {}, _state(top, source))
    raise UserError("the file holds neither a network (ema, net) nor a state dict", where)


def _dropped(top: dict[str, Any], root: str) -> list[str]:
    """What stands beside the network, with the class where there is one."""
    found = []
    for key, value in top.items():
        if key != root and value is not None:
            name = value.class_name if type(value) is Persistent else None
            found.append(f"{_shown(key)} ({_shown(name)})" if type(name) is str else _shown(key))
    return [*found, "embedded source text"] if root == "ema" else found


def _shown(name: str) -> str:
    """A name from the file, without what a terminal would act on."""
    return ascii(name[:80])[1:-1]


def _is_state(values: dict[str, Any]) -> bool:
    return bool(values) and all(type(value) is TensorRecord for value in values.values())


def _state(values: dict[str, Any], source: Source) -> dict[str, TensorRecord]:
    return _collect(iter(values.items()), source)


def _persistent_model(
    model: Persistent, source: Source
) -> tuple[str, dict[str, Any], dict[str, TensorRecord]]:
    where = str(source.path)
    name, state = model.class_name, model.state
    if model.meta.get("type") != "class" or model.meta.get("version") != 6 or type(name) is not str:
        raise UserError("the network's record is malformed", where)
    if type(state) is not dict or state.get("_init_args", ()) != ():
        raise UserError("the network was constructed with unnamed arguments", where)
    options = plain(state.get("_init_kwargs"), where)
    if type(options) is not dict:
        raise UserError("the network's constructor arguments are missing", where)
    return _shown(name), options, _collect(_walk(model, where), source)


def _collect(named: Iterator[tuple[str, Any]], source: Source) -> dict[str, TensorRecord]:
    """Names and tensors; all of them together are no larger than the file, whatever they share in it."""
    where, left = str(source.path), len(source.data)
    tensors: dict[str, TensorRecord] = {}
    storages: set[int] = set()
    for name, value in named:
        if type(value) is not TensorRecord or len(tensors) >= MAX_TENSORS or len(name) > MAX_NAME:
            raise UserError(f"{name[:80]!a} is not a tensor, or there are too many", where)
        if name in tensors or id(value.storage) in storages:
            raise UserError(f"{name[:80]!a} appears twice or shares its bytes", where)
        left -= len(value.storage.data)
        if left < 0:
            raise UserError("the tensors are larger than the file: they share its bytes", where)
        tensors[name] = value
        storages.add(id(value.storage))
    if not tensors:
        raise UserError("the network has no weights", where)
    return tensors


def _walk(root: Persistent, where: str) -> Iterator[tuple[str, Any]]:
    """(name, tensor) in registration order: a module's parameters and buffers, then its children's."""
    seen: set[int] = set()
    left = MAX_ENTRIES
    pending: list[tuple[str, Any, int]] = [("", root, 0)]
    while pending:
        prefix, module, depth = pending.pop()
        state = module.state if type(module) in (Persistent, ModuleDict) else None
        parts: list[Any] = [state.get(key) for key in MODULE_PARTS] if type(state) is dict else [None]
        if any(type(part) is not dict for part in parts) or depth > MAX_DEPTH or id(state) in seen:
            raise UserError(f"module {prefix[:80]!a} is malformed, nested too deep, or used twice", where)
        seen.add(id(state))
        parameters, buffers, children = parts
        left -= len(parameters) + len(buffers) + len(children)
        if left < 0:
            raise UserError(f"the network has more than {MAX_ENTRIES} parameters, buffers and modules", where)
        for name, value in [*parameters.items(), *buffers.items()]:
            if type(name) is not str or (value is None and name not in buffers):
                raise UserError(f"module {prefix[:80]!a} has a parameter without a value", where)
            if value is not None:
                yield prefix + name, value
        for name, child in reversed(children.items()):
            if type(name) is not str or len(prefix) + len(name) > MAX_NAME:
                raise UserError(f"module {prefix[:80]!a} has a child with an impossible name", where)
            pending.append((f"{prefix}{name}.", child, depth + 1))


MODULE_PARTS = ("_parameters", "_buffers", "_modules")


def plain(value: Any, where: str) -> Any:
    """Constructor arguments as JSON has them. Raises UserError for anything else, or for too much of it."""
    left = [MAX_VALUES]

    def convert(item: Any, depth: int) -> Any:
        left[0] -= 1
        if left[0] < 0 or depth > MAX_DEPTH:
            raise UserError("the constructor arguments are too large or nested too deep", where)
        if item is None or type(item) in (bool, int, float, str):
            return item
        if type(item) in (list, tuple):
            return [convert(part, depth + 1) for part in item]
        if type(item) is dict and all(type(key) is str for key in item):
            return {key: convert(part, depth + 1) for key, part in item.items()}
        raise UserError(f"a constructor argument of type {type(item).__name__}", where)

    return convert(value, 0)
