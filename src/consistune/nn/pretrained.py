"""Models in folders of the package diffusers; the extra is `diffusers`. Nothing is downloaded."""

import copy
import math
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from consistune.errors import UserError
from consistune.system.files import read_json

Module = TypeVar("Module", bound=nn.Module)
CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"


def need_diffusers(where: str) -> Any:
    """The package diffusers. Raises UserError where it is not installed."""
    try:
        return import_module("diffusers")
    except ImportError as error:
        what = "the package diffusers is missing"
        raise UserError(what, where, 'pip install "consistune[diffusers]"') from error


def without_memory(module: Module) -> Module:
    """A copy on the device "meta": it computes shapes alone."""
    tensors = (*module.parameters(), *module.buffers())
    memo = {id(t): nn.Parameter(t.to("meta"), requires_grad=False) for t in tensors}
    return copy.deepcopy(module, memo)


def check_call(call: Callable[[], Tensor], shape: tuple[int, ...], where: str) -> None:
    """Raises UserError where a call fails, as wrong values in a config.json make it, or has another shape."""
    try:
        with torch.no_grad():
            found = tuple(call().shape)
    except Exception as error:  # whatever a wrong value leads to
        said = f"cannot be called as its {CONFIG} says ({' '.join(str(error).split())[:120]})"
        raise UserError(said, where) from error
    if found != shape:
        raise UserError(f"makes {list(found[1:])}, not {list(shape[1:])}, as its {CONFIG} stands", where)


def _check_size(kind: Any, folder: Path) -> None:
    """Raises UserError where config.json describes a network that is larger than the file of its weights.

    The network is built without allocating its weights.
    """
    config, where = read_json(folder / CONFIG), str(folder)
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            sizes = [math.prod(file.get_slice(name).get_shape()) for name in file.keys()]  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"its weights cannot be read ({error})", where) from error
    for key, value in config.items():
        numbers = value if isinstance(value, list) else [value]
        if ("layers" in key or "blocks" in key) and any(
            n > len(sizes) for n in numbers if isinstance(n, int)
        ):
            raise UserError(f"{key} is {str(value)[:40]}, its weights are {len(sizes)} arrays", where)
    try:
        with torch.device("meta"):
            needed = sum(p.numel() for p in kind.from_config(config).parameters())
    except Exception as error:  # diffusers raises errors of many kinds for wrong values
        said = f"no network is built from {CONFIG} ({' '.join(str(error).split())[:120]})"
        raise UserError(said, where) from error
    if needed > 2 * sum(sizes):
        raise UserError(f"{CONFIG} needs {needed:,} weights, there are {sum(sizes):,}", where)


def pretrained(folder: Path, classes: tuple[str, ...], what: str) -> Any:
    """The model in a folder of diffusers, in fp32, of one of these classes; only safetensors are read.

    what: "an autoencoder", for the message. Raises UserError for another class, missing or damaged weights,
    and without the package diffusers.
    """
    where = str(folder)
    name = read_json(folder / CONFIG).get("_class_name")
    if name not in classes:
        raise UserError(f"holds {name!r}, not {what}", where, f"known are: {', '.join(classes)}")
    kind = getattr(need_diffusers(where), name)
    _check_size(kind, folder)
    try:
        model, report = kind.from_pretrained(
            where,
            torch_dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            low_cpu_mem_usage=False,
            output_loading_info=True,
        )
    except Exception as error:  # diffusers raises errors of many kinds for a damaged folder
        said = f"its weights cannot be read ({' '.join(str(error).split())[:120]})"
        raise UserError(said, where) from error
    wrong = [*report["missing_keys"], *report["unexpected_keys"], *report["mismatched_keys"]]
    if wrong:
        raise UserError(f"its weights do not fit {CONFIG}, beginning with {wrong[0]!r}", where)
    return model
