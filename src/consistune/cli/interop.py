"""`consistune import` and `consistune export`: read the files of other programs, and write for them."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from consistune.cli.options import ModelFolder


def import_(
    checkpoint: Annotated[
        Path,
        Argument(
            help="EDM, EDM2 or ECT snapshot (.pkl), state dict or consistency model (.pt, .ckpt), "
            ".safetensors, or a folder of accelerate, Lightning or diffusers (UNet2DModel)."
        ),
    ],
    dest: Annotated[Path, Argument(help="The model folder to write.")],
    weights: Annotated[
        str | None, Option(help="Which of several networks in the file; default: the averaged one.")
    ] = None,
) -> None:
    """Convert an official checkpoint to a model folder; no code in the file is executed."""
    from consistune.interop.checkpoints import import_checkpoint

    print(import_checkpoint(checkpoint, dest, weights))


def export(
    model: ModelFolder,
    dest: Annotated[Path, Argument(help="The file, or with --format diffusers the folder, to write.")],
    format: Annotated[
        str | None, Option(help="safetensors, onnx or diffusers; default: by DEST's ending.")
    ] = None,
) -> None:
    """Write a model for other programs: weights under the official names, an ONNX graph, or a pipeline."""
    from consistune.models import export as export_model

    print(export_model(model, dest, format))
