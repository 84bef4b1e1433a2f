"""Stable Consistency Tuning: from a diffusion model to a one-step generator.

    import consistune
    model = consistune.load("runs/demo/sct/model")
    images = consistune.sample(model, seeds=range(16), steps=1)

`consistune.core` holds the method, a part an equation. Nothing heavy is imported before it is used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from consistune.models import load, sample

__all__ = ["__version__", "load", "sample"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "load":
        from consistune.models import load

        return load
    if name == "sample":
        from consistune.models import sample

        return sample
    raise AttributeError(f"module 'consistune' has no attribute {name!r}")
