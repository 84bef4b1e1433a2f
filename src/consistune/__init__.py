"""Stable Consistency Tuning: from a diffusion model to a one-step generator.

    import consistune
    model = consistune.load("runs/demo/sct/model")
    images = consistune.sample(model, seeds=range(16), steps=1)

`consistune.core` holds the method, one equation per part. PyTorch is imported when a function is first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from consistune.models import load, sample

__all__ = ["__version__", "load", "sample"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in {"load", "sample"}:
        from consistune import models

        return getattr(models, name)
    raise AttributeError(f"module 'consistune' has no attribute {name!r}")
