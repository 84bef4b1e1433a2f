"""Files in the official formats, written from our networks by Python's pickler and torch's own writers.

The classes that such files name live in modules that exist only while a file is written.
"""

import copy
import pickle
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from consistune.nn.precond import Preconditioned

SOURCE = "raise RuntimeError('source embedded in a checkpoint must never be executed')\n" * 100
CLASSES = {"edm": "EDMPrecond", "vp": "VPPrecond", "ve": "VEPrecond", "iddpm": "iDDPMPrecond"}
CLASSES |= {"ect": "ECMPrecond", "edm2": "Precond"}
MODELS = {"SongUNet": "SongUNet", "ADMUNet": "DhariwalUNet"}


def _reconstruct_persistent_obj(meta: dict[str, Any]) -> None:
    raise AssertionError("a checkpoint was executed")


class Persistent:
    """Pickles as the originals do: a call of torch_utils.persistence with one dictionary."""

    def __init__(self, class_name: str, state: dict[str, Any]) -> None:
        self.record = {
            "type": "class",
            "version": 6,
            "module_src": SOURCE,
            "class_name": class_name,
            "state": state,
        }

    def __reduce__(self) -> tuple[Any, ...]:
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (self.record,)


@contextmanager
def original_modules() -> Iterator[None]:
    function = types.FunctionType(_reconstruct_persistent_obj.__code__, {})
    function.__module__, function.__qualname__ = "torch_utils.persistence", "_reconstruct_persistent_obj"
    function.__name__ = "_reconstruct_persistent_obj"
    package, module = types.ModuleType("torch_utils"), types.ModuleType("torch_utils.persistence")
    module._reconstruct_persistent_obj = package.persistence = function  # type: ignore[attr-defined]
    sys.modules |= {"torch_utils": package, "torch_utils.persistence": module}
    try:
        yield
    finally:
        del sys.modules["torch_utils"], sys.modules["torch_utils.persistence"]


def state_of(module: nn.Module, **attributes: Any) -> dict[str, Any]:
    names = ("_backward_hooks", "_forward_hooks", "_forward_pre_hooks", "_state_dict_hooks")
    return {
        "training": False,
        "_parameters": OrderedDict((k, frozen(v)) for k, v in module._parameters.items() if v is not None),
        "_buffers": OrderedDict(
            (k, None if v is None else v.detach().clone())
            for k, v in module._buffers.items()
            if k not in module._non_persistent_buffers_set
        ),
        "_non_persistent_buffers_set": set(),
        **{name: OrderedDict() for name in names},
        "_modules": OrderedDict((k, converted(v)) for k, v in module._modules.items() if v is not None),
        "_is_full_backward_hook": None,
        **attributes,
    }


def frozen(parameter: Tensor) -> nn.Parameter:
    return nn.Parameter(parameter.detach().clone(), requires_grad=False)


def converted(module: nn.Module) -> Any:
    state = state_of(module, _init_args=(), _init_kwargs={})
    if isinstance(module, nn.ModuleDict):
        made = nn.ModuleDict.__new__(nn.ModuleDict)
        made.__dict__.update(state)
        return made
    return Persistent(type(module).__name__, state)


def arguments(model: Preconditioned) -> dict[str, Any]:
    """The constructor's arguments under their original names."""
    options = dict(model.network.options)  # type: ignore[call-overload]
    channels, side, _ = options.pop("image_shape")
    for name in ("out_channels", "noise_gain", "fourier_scale"):
        options.pop(name, None)
    name = MODELS.get(type(model.network).__name__)
    named = {"model_type": name} if name else {}
    label_dim = options.pop("num_classes")
    return {**named, "img_resolution": side, "img_channels": channels, "label_dim": label_dim, **options}


def persistent(model: Preconditioned) -> Persistent:
    state = state_of(model, _init_args=(), _init_kwargs=arguments(model))
    return Persistent(CLASSES[model.kind], state)


def write_snapshot(model: Preconditioned, path: Path) -> Path:
    """A network snapshot (.pkl): protocol 4, tensors in nested legacy storages."""
    loss = Persistent("EDMLoss", {"P_mean": -1.2, "_init_args": (), "_init_kwargs": {}})
    with original_modules(), path.open("wb") as file:
        parts = {
            "ema": persistent(model),
            "loss_fn": loss,
            "augment_pipe": None,
            "dataset_kwargs": {"path": "x"},
        }
        pickle.dump(parts, file, protocol=4)
    return path


def write_training_state(model: Preconditioned, path: Path) -> Path:
    """A training state (.pt): a torch archive with the network and the optimizer."""
    trained = copy.deepcopy(model)
    optimizer = torch.optim.Adam(trained.parameters())
    sum(p.square().sum() for p in trained.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()
    with original_modules():
        torch.save({"net": persistent(model), "optimizer_state": optimizer.state_dict()}, path)
    return path
