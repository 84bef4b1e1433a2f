"""A model as an ONNX graph, for ONNX Runtime and other programs that read ONNX."""

import tempfile
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from consistune.errors import UserError
from consistune.nn.autoencoder.space import LatentSpace, from_card, open_space
from consistune.nn.precond import Preconditioned
from consistune.system.files import atomic_file

OPSET = 18
MAX_BYTES = 2_000_000_000
"""Of weights: an ONNX file is one protocol buffer, which has at most 2 GiB."""


def write_onnx(model: Preconditioned, dest: Path) -> None:
    """Write x̂_0 = D(x; σ) in fp32, for any batch size B.

    Inputs `x` [B, C, H, W], `sigma` [B] and, where the model has classes, `condition` [B, num_classes]:
    one-hot rows, or rows of zeros for no class. Output `x0_hat` [B, C, H, W].
    Of a model of latents these are latents; NAME-decoder.onnx makes `pictures` [B, 3, H, W] in [−1, 1] (not
    clamped) of them.
    Raises UserError where the extra `onnx` is not installed, or the weights are too large for one file.
    """
    try:
        import onnx
    except ImportError as error:
        raise UserError(
            "the package onnx is missing", "--format onnx", 'pip install "consistune[onnx]"'
        ) from error
    size = sum(parameter.numel() * 4 for parameter in model.parameters())
    if size > MAX_BYTES:
        raise UserError(f"{size / 1e9:.1f} GB of weights do not fit in one ONNX file", "--format onnx")
    model = model.float().eval().requires_grad_(False)
    model.precision = "fp32"
    inputs = {"x": torch.randn(2, *model.image_shape), "sigma": torch.tensor([80.0, 0.5])}
    if model.num_classes:
        inputs["condition"] = torch.eye(model.num_classes)[torch.arange(2) % model.num_classes]
    graphs = {dest: _graph(model, inputs, "x0_hat")}
    record = from_card(model.card)
    if record is not None:
        latents = {"x": torch.randn(2, *model.image_shape)}
        graphs[decoder_path(dest)] = _graph(_Decoder(open_space(record)), latents, "pictures")
    for graph in graphs.values():
        onnx.checker.check_model(onnx.load_from_string(graph))
    for path, graph in graphs.items():
        with atomic_file(path) as file:
            file.write(graph)


def decoder_path(dest: Path) -> Path:
    """The second file of a model of latents."""
    return dest.with_name(f"{dest.stem}-decoder{dest.suffix}")


class _Decoder(nn.Module):
    def __init__(self, space: LatentSpace) -> None:
        super().__init__()
        self.space, self.autoencoder = space, space.autoencoder

    def forward(self, x: Tensor) -> Tensor:
        return self.autoencoder.decode(self.space.raw(x))


def _graph(module: nn.Module, inputs: dict[str, Tensor], output: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        path = Path(folder) / "model.onnx"
        warnings.simplefilter("ignore")  # about tracing and the old exporter; the graph is checked later
        torch.onnx.export(
            module,
            tuple(inputs.values()),
            str(path),
            input_names=list(inputs),
            output_names=[output],
            dynamic_axes={name: {0: "batch"} for name in [*inputs, output]},
            opset_version=OPSET,
            dynamo=False,
        )
        return path.read_bytes()
