"""consistune import and consistune export"""

from pathlib import Path


def import_(checkpoint: Path, dest: Path) -> None:
    """Write a checkpoint as a model folder and say what it was."""
    from consistune.interop.checkpoints import import_checkpoint

    print(import_checkpoint(checkpoint, dest))


def export(model: Path, dest: Path, format: str) -> None:
    """Write a model folder's weights for others."""
    from consistune.interop.export import export_model

    print(export_model(model, dest, format))
