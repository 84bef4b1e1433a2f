"""`sct.load`: a model from wherever it is, a folder of ours or a checkpoint file."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from sct.nn.precond import Preconditioned


def load(path: str | Path, device: "torch.device | str" = "cpu") -> "Preconditioned":
    """The model in a folder (`nn.store`), a run's folder, or an official checkpoint (`interop.checkpoints`).

    In evaluation mode. Raises UserError for anything that is none of them; nothing in it is executed.
    """
    if Path(path).is_file():
        from sct.interop.checkpoints import load_checkpoint

        return load_checkpoint(path).to(device)
    from sct.nn import store

    return store.load(path, device)
