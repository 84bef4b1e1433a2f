"""Models out, in formats that other programs load."""

from pathlib import Path

from consistune.errors import UserError
from consistune.system.files import atomic_file, check_writable

FORMATS = ("safetensors", "onnx")


def format_of(dest: Path, format: str | None) -> str:
    """The format by the file's ending. Raises UserError for others, or where both differ."""
    ending = dest.suffix[1:].lower()
    if format not in (None, *FORMATS):
        raise UserError(f"unknown format {format!r}", "--format", f"known are: {', '.join(FORMATS)}")
    if ending not in FORMATS or format not in (None, ending):
        what = f"{dest.name!a} is no name for {format or 'a format that is known'}"
        raise UserError(what, "DEST", "use NAME.safetensors or NAME.onnx")
    return ending


def export_model(folder: str | Path, dest: str | Path, format: str | None = None) -> Path:
    """Write a model folder as one file: "safetensors" is its weights, "onnx" the whole model as a graph.

    The format follows the file's ending. safetensors has the official parameter names. The file's metadata
    hold the model's configuration, so `consistune import` reads it again.
    Raises UserError as `format_of` does, for a destination that exists or cannot be written, and as
    `nn.store.load` does.
    """
    dest = Path(dest)
    format = format_of(dest, format)
    check_writable(dest, "DEST")
    import json

    from safetensors.torch import save

    from consistune.interop.onnx import decoder_path, write_onnx
    from consistune.interop.safetensors import CONFIG_KEY, tensors_digest
    from consistune.nn import store

    for path in (dest, decoder_path(dest)) if format == "onnx" else (dest,):
        if path.exists():
            raise UserError(
                "there is something there already", str(path), "choose another name, or remove it"
            )
    model = store.load(folder)
    store.check_finite(model, str(folder), "nothing was written: look whether the model's training diverged")
    if format == "onnx":
        write_onnx(model, dest)
        return dest
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    config = store.describe(model)
    config["meta"] = {**config["meta"], store.DIGEST: tensors_digest(memoryview(save(weights)))}
    data = save(weights, {"format": "pt", CONFIG_KEY: json.dumps(config)})
    with atomic_file(dest) as file:
        file.write(data)
    return dest
