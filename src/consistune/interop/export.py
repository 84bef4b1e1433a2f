"""Models out, in formats that other programs load."""

from pathlib import Path

from consistune.errors import UserError
from consistune.system.files import atomic_file

FORMATS = ("safetensors", "onnx")


def export_model(folder: str | Path, dest: str | Path, format: str = "safetensors") -> Path:
    """Write a model folder as one file: "safetensors" is its weights, "onnx" the whole model as a graph.

    safetensors has the official parameter names. The file's metadata hold the model's configuration, so
    `consistune import` reads it again.
    Raises UserError for an unknown format, a destination that exists, and as `nn.store.load` does.
    """
    if format not in FORMATS:
        raise UserError(f"unknown format {format!r}", "--format", f"known are: {', '.join(FORMATS)}")
    dest = Path(dest)
    import json

    from safetensors.torch import save

    from consistune.interop.onnx import decoder_path, write_onnx
    from consistune.interop.safetensors import CONFIG_KEY
    from consistune.nn import store

    for path in (dest, decoder_path(dest)) if format == "onnx" else (dest,):
        if path.exists():
            raise UserError(
                "there is something there already", str(path), "choose another name, or remove it"
            )
    model = store.load(folder)
    if format == "onnx":
        write_onnx(model, dest)
        return dest
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    data = save(weights, {"format": "pt", CONFIG_KEY: json.dumps(store.describe(model))})
    with atomic_file(dest) as file:
        file.write(data)
    return dest
