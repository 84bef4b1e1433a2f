"""Models on disk: a folder with config.json (what to build) and model.safetensors (its weights).

The card in config.json holds the SHA-256 of model.safetensors as `weights_sha256`. Nothing in the folder is
executed. `format` in config.json is the version of this layout; every version that was ever written stays
readable.
"""

import errno
import inspect
import json
import os
import re
import shlex
import shutil
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from importlib.metadata import entry_points
from pathlib import Path
from types import NoneType
from typing import Any, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from consistune.errors import UserError, load_entry_point
from consistune.nn.adm import ADMUNet
from consistune.nn.baselines import DDPMPrecond, IDDPMPrecond, VEPrecond, VPPrecond
from consistune.nn.card import ModelCard
from consistune.nn.edm2 import EDM2Precond, EDM2UNet
from consistune.nn.module import UNET, DenoiserPrecond, Factory, ModuleNetwork, note_frozen
from consistune.nn.precond import CMPrecond, ECTPrecond, EDMPrecond, Preconditioned
from consistune.nn.small import PatchUNet, ResidualMLP
from consistune.nn.song import SongUNet
from consistune.nn.transformer import DiT
from consistune.system.files import file_digest, previous, replace_folder, sync
from consistune.system.numbers import is_number

FORMAT = 1
DIGEST = "weights_sha256"
"""The card's key, in config.json alone: a model in memory may be changed."""
ENTRY_POINTS = "consistune.parts"
"""The group of entry points by which other packages add parts: "part:kind" = "module:class"."""
CONFIG, WEIGHTS = "config.json", "model.safetensors"
COMPILED = "_orig_mod."
"""What torch.compile puts before the names of a network's weights."""
Network = nn.Module
"""A raw network, as `Preconditioned` describes it."""
NETWORKS: dict[str, type[Network]] = {
    "mlp": ResidualMLP,
    "patch-unet": PatchUNet,
    "dit": DiT,
    "song": SongUNet,
    "adm": ADMUNet,
    "edm2": EDM2UNet,
    "module": ModuleNetwork,
}
PRECONDITIONERS: dict[str, type[Preconditioned]] = {
    part.kind: part
    for part in (
        EDMPrecond,
        VPPrecond,
        VEPrecond,
        IDDPMPrecond,
        DDPMPrecond,
        CMPrecond,
        ECTPrecond,
        EDM2Precond,
        DenoiserPrecond,
    )
}


def build(
    config: dict[str, Any], where: str = "model configuration", network: Factory | None = None
) -> Preconditioned:
    """A model with fresh weights from {"network": {"kind", …}, "precond": {"kind", …}, "meta": a card}.

    network: makes the module of a network that is not ours (`nn.module`).
    Raises UserError, beginning with `where`, for unknown kinds and arguments.
    """
    part = config.get("network")
    if network is not None:
        if not isinstance(part, dict) or part.get("kind") != "module":
            raise UserError("the network is one of ours", where, "leave network= out")
        part = {**part, "module": network()}
    made = _make(NETWORKS, part, f"{where}: network")
    model = _make(PRECONDITIONERS, config.get("precond"), f"{where}: precond", made)
    note_frozen(model)
    try:
        model.card = ModelCard.from_json(config.get("meta", {}))
    except ValueError as error:
        raise UserError(str(error), where) from error
    return model


def _make(table: dict[str, Any], part: Any, where: str, *args: Any) -> Any:
    options = dict(part) if isinstance(part, dict) else {}
    kind = options.pop("kind", None)
    if isinstance(kind, str) and kind not in table:
        _load_entry_point(table, kind)
    if kind not in table:
        raise UserError(f"unknown kind {kind!r}", where, f"known are: {', '.join(sorted(table))}")
    _check_numbers(table[kind], options, where)
    try:
        return table[kind](*args, **options)
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise UserError(str(error), where) from error


def _check_numbers(made: Any, options: dict[str, Any], where: str) -> None:
    """Raises UserError for an argument of another type where its default is a number.

    null is one where the parameter's annotation allows it.
    """
    for name, parameter in inspect.signature(made).parameters.items():
        value = options.get(name, parameter.default)
        if value is None and NoneType in get_args(parameter.annotation):
            continue
        if type(parameter.default) in (int, float) and not is_number(value):
            raise UserError(f"{name} is {str(value)[:40]!a}, not a number", where)


def _load_entry_point(table: dict[str, Any], kind: str) -> None:
    """Take in a network or preconditioning that an installed package declares as "network:KIND"."""
    part = "network" if table is NETWORKS else "precond"
    for entry in entry_points(group=ENTRY_POINTS, name=f"{part}:{kind}"):
        table[kind] = load_entry_point(entry)


def shapes(
    config: dict[str, Any], where: str = "model configuration", network: Factory | None = None
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the parameters and buffers of a configuration's model, without allocating them.

    They are compared with the weights in a file before the model is built. A network that is not ours is
    built for real where its constructor asks for values, which those tensors do not have: the program itself
    has imported its class. Raises UserError where no model can be built.
    """
    part = config.get("network")
    own = isinstance(part, dict) and part.get("kind") == "module" and part.get("target") != UNET
    try:
        with suppress(Exception) if own else nullcontext():
            return _shapes(config, where, network, "meta")
        return _shapes(config, where, network, "cpu")
    except UserError:
        raise
    except Exception as error:  # a constructor may raise anything for absurd arguments
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise UserError(f"no network can be built from its arguments ({reason})", where) from error


def _shapes(
    config: dict[str, Any], where: str, network: Factory | None, device: str
) -> dict[str, tuple[int, ...]]:
    with torch.device(device):
        weights = build(config, where, network).state_dict()
    return {name: tuple(value.shape) for name, value in weights.items()}


def describe(model: Preconditioned) -> dict[str, Any]:
    """The configuration from which `build` makes the same model again."""
    # By name: where a class was defined again, older models are of its old self.
    kinds = {(cls.__module__, cls.__qualname__): kind for kind, cls in NETWORKS.items()}
    network: Any = model.network
    own = type(network)
    return {
        "format": FORMAT,
        "network": {"kind": kinds[own.__module__, own.__qualname__], **network.options},
        "precond": {"kind": model.kind, **model.options},
        "meta": model.card.to_json(),
    }


def is_model_folder(folder: Path) -> bool:
    """Whether this program made the folder, and only its own files lie in it."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    if not {path.name for path in folder.iterdir()} <= {CONFIG, WEIGHTS}:
        return False
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and {"format", "network", "precond"} <= config.keys()


def check_destination(folder: str | Path) -> bool:
    """Whether `save` would replace a model in this folder; False where the folder is new or empty.

    Raises UserError for anything else: `save` removes nothing but model folders that this program made, and
    none of those where another file lies in it.
    """
    folder = Path(folder)
    for path in (folder, previous(folder)):
        if os.path.lexists(path) and not _is_empty(path) and not is_model_folder(path):
            raise UserError(
                f"is already there, and is no folder with {CONFIG} and {WEIGHTS} alone",
                str(path),
                "choose another folder, or move it away yourself: only a model is replaced",
            )
    return is_model_folder(folder)


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir())


def check_finite(model: nn.Module, where: str, remedy: str) -> None:
    """Raises UserError, naming the first, where weights of a model are not finite."""
    for name, value in model.state_dict().items():
        if not bool(value.isfinite().all()):
            raise UserError(f"the weights are not finite, beginning with {name!a}", where, remedy)


def host_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights on the CPU, each in memory of its own: safetensors refuses tied ones."""
    own: dict[str, Tensor] = {}
    known = set()
    for name, tensor in weights.items():
        value = tensor.detach().cpu().contiguous()
        if value.untyped_storage().data_ptr() in known:
            value = value.clone()
        known.add(value.untyped_storage().data_ptr())
        own[name] = value
    return own


def write_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file, on the disk when this returns, with the mode that other new files get.

    Raises OSError, with its number, where the disk is full. safetensors itself raises an error of its own
    kind, and gives its file the mode 0600.
    """
    path.touch()
    mode = path.stat().st_mode & 0o777
    try:
        save_file(host_weights(weights), path)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        code = int(number[1]) if number else errno.EIO
        raise OSError(code, os.strerror(code), str(path)) from error
    path.chmod(mode)
    sync(path)


def save(model: Preconditioned, folder: str | Path) -> Path:
    """Write a model folder, whole or not at all: beside the old one, then in its place → its path.

    Raises UserError as `check_destination` does, and for weights that are not finite; OSError as
    `write_weights` does.
    """
    folder = Path(folder)
    check_destination(folder)
    check_finite(model, str(folder), "nothing was written: look whether the model's training diverged")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        write_weights(model.state_dict(), partial / WEIGHTS)
        config = describe(model)
        config["meta"] = {**config["meta"], DIGEST: file_digest(partial / WEIGHTS)}
        (partial / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        sync(partial / CONFIG)
        replace_folder(partial, folder)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise OSError(error.errno, error.strerror, str(folder)) from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def load(
    folder: str | Path,
    device: torch.device | str = "cpu",
    network: Factory | None = None,
    verify: bool = True,
) -> Preconditioned:
    """The model in a folder, or in a run's folder, in evaluation mode. network: as for `build`.

    verify: compare the weights with the SHA-256 in the card, where it has one.

    Raises UserError for anything that is not one, and for weights that are not those that were written.
    """
    folder = _located(Path(folder))
    config, digest = _read_config(folder)
    path = folder / WEIGHTS
    if verify and digest is not None and file_digest(path) != digest:
        raise UserError(
            f"the weights are damaged: their SHA-256 is not that in {CONFIG}",
            str(path),
            "copy or download the folder again; verify=False loads them as they are",
        )
    expected = shapes(config, str(folder / CONFIG), network)
    own = {name.replace(COMPILED, ""): name for name in expected}

    def named(name: str) -> str:
        """The model's name for a stored weight, whether or not either was compiled."""
        return own.get(name.replace(COMPILED, ""), name)

    try:
        with safe_open(path, framework="pt") as file:
            stored = {named(key): tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        if stored != expected:
            odd = min(name for name in stored | expected if stored.get(name) != expected.get(name))
            raise UserError(f"the weights do not fit {CONFIG}, beginning with {odd!a}", str(path))
        model = build(config, str(folder / CONFIG), network)
        weights = {named(key): value for key, value in load_file(path).items()}
        model.load_state_dict(weights, strict=True)
    except (SafetensorError, RuntimeError, OSError) as error:
        raise UserError(f"the weights cannot be read: {error}", str(path)) from error
    return model.eval().to(device)


def _located(folder: Path) -> Path:
    """The folder of a model or of a run's model; that which waits while another takes its place, if need be.

    Raises UserError where there is no model.
    """
    places = [folder, folder / "model"]
    places += [previous(place) for place in places if place.name]
    folder = next((place for place in places if (place / CONFIG).exists()), folder)
    if not folder.is_dir():
        raise UserError("no such model folder", str(folder), f"give a folder with {CONFIG} and {WEIGHTS}")
    if not (folder / CONFIG).is_file() and (folder / "checkpoints").is_dir():
        remedy = (
            f"finish it: consistune train {shlex.quote(str(folder))} --resume; or sample with --at latest"
        )
        left = f"model/{CONFIG} is missing" if (folder / "model").is_dir() else "it has no model"
        raise UserError(f"the run is not finished, {left}", str(folder), remedy)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(f"not a model folder: {name} is missing", str(folder))
    return folder


def _read_config(folder: Path) -> tuple[dict[str, Any], str | None]:
    """What config.json says, and the digest of the weights if it has one."""
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"not valid JSON: {error}", str(path)) from error
    version = config.get("format") if isinstance(config, dict) else None
    if version != FORMAT:
        raise UserError(f"format {version!r} is not known", str(path), f"this version reads format {FORMAT}")
    meta = config.get("meta")
    digest = meta.pop(DIGEST, None) if isinstance(meta, dict) else None
    return config, digest
