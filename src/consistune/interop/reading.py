"""From a checkpoint's bytes to its weights by name and its constructor's arguments. Nothing is built yet.

No torch here: a file that is refused is refused in a fraction of a second.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from consistune.errors import UserError
from consistune.interop import dialects, wrappers
from consistune.interop.files import MAX_NAME, MAX_TENSORS, Checkpoint, CheckpointFile, open_file
from consistune.interop.openai_cm import is_consistency_model, to_adm
from consistune.interop.records import ModuleRecord, PersistentRecord, TensorRecord
from consistune.interop.safetensors import read_safetensors
from consistune.interop.torch_zip import Archive
from consistune.pickles.machine import Machine

MAX_DEPTH = 16
MAX_ENTRIES = 50_000
"""The entries of all modules' dictionaries together, however many modules share one dictionary."""
MAX_VALUES = 10_000
MODULE_PARTS = ("_parameters", "_buffers", "_modules")


def read_checkpoint(path: str | Path, weights: str | None = None) -> Checkpoint:
    """Read a file, or the one in a folder of accelerate or Lightning.

    Weights of openai/consistency_models get ADM's names. Of several networks in a file, the averaged one is
    taken, or the one that `weights` names (`interop.wrappers`).
    Nothing that the file names is imported, called or executed.
    Raises UserError for everything that is not a known checkpoint.
    """
    path = Path(path)
    file = open_file(wrappers.file_in(path) if path.is_dir() else path)
    if file.container == "pickle":
        top = Machine(file.data, dialects.SNAPSHOT, str(file.path)).run()
        checkpoint = _interpret(file, top, "snapshot (.pkl)", weights)
    elif file.container == "zip":
        checkpoint = _interpret(file, _read_archive(file), "torch archive (.pt)", weights)
    else:
        checkpoint = read_safetensors(file)
        found = [] if checkpoint.options else wrappers.groups(checkpoint.tensors)
        if found:
            checkpoint = _grouped(checkpoint, found, weights)
        elif weights is not None:
            raise UserError(f"{weights!a} is not in the file, which holds one model", "--weights")
    if checkpoint.class_name is None and is_consistency_model(checkpoint.tensors):
        return to_adm(checkpoint)
    return checkpoint


def _read_archive(file: CheckpointFile) -> Any:
    where = str(file.path)
    archive = Archive(file.data, where)
    if "byteorder" in archive.records and bytes(archive.read("byteorder", where)) != b"little":
        raise UserError("the archive is not little-endian", where)
    storage = dialects.archive_storage(archive)
    return Machine(archive.read("data.pkl", where), dialects.ARCHIVE, where, storage).run()


def _grouped(checkpoint: Checkpoint, found: list[wrappers.Group], weights: str | None) -> Checkpoint:
    """The checkpoint with the tensors of one of the networks in it."""
    taken = wrappers.chosen(found, weights, checkpoint.where)
    others = tuple(_printable(group.name) for group in found if group is not taken)
    tensors = _collect(taken.tensors.items(), checkpoint.file)
    dropped = list(map(_printable, taken.counters))
    return replace(
        checkpoint, tensors=tensors, weights=_printable(taken.name), others=others, dropped=dropped
    )


def _interpret(file: CheckpointFile, top: Any, format: str, weights: str | None) -> Checkpoint:
    where = str(file.path)
    if type(top) is not dict or not all(type(key) is str for key in top):
        raise UserError("the file holds no dictionary of named parts", where)
    keys = tuple(top)
    for root in ("ema", "net") if weights is None else (weights,):
        model = top.get(root)
        if type(model) is PersistentRecord:
            name, options = _constructor(model, where)
            tensors = _collect(_walk(model, where), file)
            return Checkpoint(file, format, tensors, name, options, _dropped(top, root), keys, "EDM")
    found = wrappers.groups(wrappers.flat(top))
    if found:
        checkpoint = _grouped(Checkpoint(file, format, {}, keys=keys), found, weights)
        if _is_state_dict(top):
            return checkpoint
        return replace(checkpoint, dropped=_dropped(top, checkpoint.weights))
    if weights is not None:
        raise UserError(f"{weights[:80]!a} is no network in the file", where, "leave --weights out")
    if _is_state_dict(top):
        return Checkpoint(file, format, _collect(top.items(), file))
    raise UserError("the file holds neither a network (ema, net) nor a state dict", where)


def _dropped(top: dict[str, Any], root: str) -> list[str]:
    """The names of the parts beside the network, with their class if they have one."""
    names = []
    for key, value in top.items():
        if key != root and not root.startswith(f"{key}.") and value is not None:
            name = value.class_name if type(value) is PersistentRecord else None
            names.append(f"{_printable(key)} ({_printable(name)})" if type(name) is str else _printable(key))
    embedded = root == "ema" and type(top[root]) is PersistentRecord
    return [*names, "embedded source text"] if embedded else names


def _printable(name: str) -> str:
    """A name from the file, without the characters that a terminal would act on."""
    return ascii(name[:80])[1:-1]


def _is_state_dict(values: dict[str, Any]) -> bool:
    return bool(values) and all(type(value) is TensorRecord for value in values.values())


def _constructor(model: PersistentRecord, where: str) -> tuple[str, dict[str, Any]]:
    """The network's class and its constructor's arguments."""
    name, state = model.class_name, model.state
    if model.meta.get("type") != "class" or model.meta.get("version") != 6 or type(name) is not str:
        raise UserError("the network's record is malformed", where)
    if type(state) is not dict or state.get("_init_args", ()) != ():
        raise UserError("the network was constructed with unnamed arguments", where)
    options = plain(state.get("_init_kwargs"), where)
    if type(options) is not dict:
        raise UserError("the network's constructor arguments are missing", where)
    return _printable(name), options


def _collect(named: Iterable[tuple[str, Any]], file: CheckpointFile) -> dict[str, TensorRecord]:
    """Tensors by name. Together they are no larger than the file, so no two of them may share its bytes."""
    where, left = str(file.path), len(file.data)
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


def _walk(root: PersistentRecord, where: str) -> Iterator[tuple[str, Any]]:
    """(name, tensor) in registration order: a module's parameters and buffers, then its children's."""
    seen: set[int] = set()
    left = MAX_ENTRIES
    pending: list[tuple[str, Any, int]] = [("", root, 0)]
    while pending:
        prefix, module, depth = pending.pop()
        state = module.state if type(module) in (PersistentRecord, ModuleRecord) else None
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


def plain(value: Any, where: str) -> Any:
    """Constructor arguments as JSON values. Raises UserError for other types, and for too many values."""
    left = MAX_VALUES

    def convert(item: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or depth > MAX_DEPTH:
            raise UserError("the constructor arguments are too large or nested too deep", where)
        if item is None or type(item) in (bool, int, float, str):
            return item
        if type(item) in (list, tuple):
            return [convert(part, depth + 1) for part in item]
        if type(item) is dict and all(type(key) is str for key in item):
            return {key: convert(part, depth + 1) for key, part in item.items()}
        raise UserError(f"a constructor argument of type {type(item).__name__}", where)

    return convert(value, 0)
