"""Stable Consistency Tuning: from a diffusion model to a one-step generator.

    import sct
    model = sct.load("runs/demo/sct/model")
    images = sct.sample(model, seeds=range(16), steps=1)

`sct.core` holds the method, a part an equation. Nothing heavy is imported before it is used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sct.generate import sample
    from sct.models import load

__all__ = ["__version__", "load", "sample"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "load":
        from sct.models import load

        return load
    if name == "sample":
        from sct.generate import sample

        return sample
    raise AttributeError(f"module 'sct' has no attribute {name!r}")
