"""Stable Consistency Tuning: from a diffusion model to a one-step generator.

    import consistune
    model = consistune.load("runs/demo/sct/model")
    images = consistune.sample(model, seeds=range(16), steps=1)

`consistune.core` holds the method, one equation per part. PyTorch is imported when a function is first used.
"""

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from consistune.data.inputs import as_split
    from consistune.front import evaluate, steps, train, tune
    from consistune.models import export, load, sample
    from consistune.nn.module import wrap

__all__ = [
    "__version__",
    "as_split",
    "evaluate",
    "export",
    "load",
    "sample",
    "steps",
    "train",
    "tune",
    "wrap",
]
__version__ = "0.1.0"

if (
    sys.platform == "darwin"
):  # PyTorch reads it when it is loaded: what Apple's device lacks, the CPU computes
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")

WHERE = {
    "as_split": "data.inputs",
    "evaluate": "front",
    "export": "models",
    "load": "models",
    "sample": "models",
    "steps": "front",
    "train": "front",
    "tune": "front",
    "wrap": "nn.module",
}


def __getattr__(name: str) -> Any:
    if name in WHERE:
        value = getattr(import_module(f"consistune.{WHERE[name]}"), name)
        globals()[name] = value
        return value
    if name == "core":
        return import_module("consistune.core")
    raise AttributeError(f"module 'consistune' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
