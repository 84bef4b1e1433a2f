"""Models out, in formats that other programs load."""

import copy
from pathlib import Path
from typing import TYPE_CHECKING

from consistune.errors import UserError
from consistune.system.files import atomic_file, check_writable

if TYPE_CHECKING:
    from consistune.nn.precond import Preconditioned

FORMATS = ("safetensors", "onnx", "diffusers")


def format_of(dest: Path, format: str | None) -> str:
    """The format by the file's ending; "diffusers" must be named. Raises UserError where both differ."""
    ending = dest.suffix[1:].lower()
    if format == "diffusers" and ending not in FORMATS:  # a folder's name may have a dot
        ending = format
    if format not in (None, *FORMATS):
        raise UserError(f"unknown format {format!r}", "--format", f"known are: {', '.join(FORMATS)}")
    if ending not in FORMATS or format not in (None, ending):
        what = f"{dest.name!a} is no name for {format or 'a format that is known'}"
        raise UserError(what, "DEST", "use NAME.safetensors, NAME.onnx, or FOLDER --format diffusers")
    return ending


def export_model(source: "str | Path | Preconditioned", dest: str | Path, format: str | None = None) -> Path:
    """Write a model, or the one in a folder, for other programs.

    "safetensors" is its weights, "onnx" the whole model as a graph, "diffusers" a pipeline's folder
    (`interop.to_diffusers`). None: by the file's ending.
    safetensors has the official parameter names. The file's metadata hold the model's configuration, so
    `consistune import` reads it again.
    Raises UserError as `format_of` does, for a destination that exists or cannot be written, and as
    `nn.store.load` does.
    """
    if not isinstance(dest, str | Path):
        raise UserError(f"{dest!r:.60} is no path", "dest", "give the name of a file or folder")
    dest = Path(dest)
    format = format_of(dest, format)
    check_writable(dest, "DEST")
    import json

    from safetensors.torch import save

    from consistune.interop.onnx import write_onnx
    from consistune.interop.pipelines import is_pipeline
    from consistune.interop.safetensors import CONFIG_KEY, tensors_digest
    from consistune.nn import store

    if dest.exists():
        raise UserError("there is something there already", str(dest), "choose another name, or remove it")
    if isinstance(source, str | Path) and (Path(source).is_file() or is_pipeline(Path(source))):
        raise UserError("is no model folder", str(source), f"first: consistune import {source} FOLDER")
    model = store.load(source) if isinstance(source, str | Path) else copy.deepcopy(source)
    name = str(source) if isinstance(source, str | Path) else "the model"
    store.check_finite(model, name, "nothing was written: look whether the model's training diverged")
    if format == "onnx":
        write_onnx(model, dest)
        return dest
    if format == "diffusers":
        from consistune.interop.to_diffusers import write_pipeline

        write_pipeline(model, dest)
        return dest
    weights = store.host_weights(model.state_dict())
    config = store.describe(model)
    config["meta"] = {**config["meta"], store.DIGEST: tensors_digest(memoryview(save(weights)))}
    data = save(weights, {"format": "pt", CONFIG_KEY: json.dumps(config)})
    with atomic_file(dest) as file:
        file.write(data)
    return dest
