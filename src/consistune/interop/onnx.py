"""A model as an ONNX graph, for ONNX Runtime and other programs that read ONNX."""

import tempfile
import warnings
from pathlib import Path

import torch

from consistune.errors import UserError
from consistune.nn.precond import Preconditioned
from consistune.system.files import atomic_file

OPSET = 18
MAX_BYTES = 2_000_000_000
"""Of weights: an ONNX file is one protocol buffer, which has at most 2 GiB."""


def write_onnx(model: Preconditioned, dest: Path) -> None:
    """Write x̂_0 = D(x; σ) in fp32, for any batch size B.

    Inputs `x` [B, C, H, W], `sigma` [B] and, where the model has classes, `condition` [B, num_classes]:
    one-hot rows, or rows of zeros for no class. Output `x0_hat` [B, C, H, W].
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
    names = [*inputs, "x0_hat"]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        path = Path(folder) / "model.onnx"
        warnings.simplefilter("ignore")  # about tracing and the old exporter; the graph is checked below
        torch.onnx.export(
            model,
            tuple(inputs.values()),
            str(path),
            input_names=list(inputs),
            output_names=["x0_hat"],
            dynamic_axes={name: {0: "batch"} for name in names},
            opset_version=OPSET,
            dynamo=False,
        )
        graph = path.read_bytes()
    onnx.checker.check_model(onnx.load_from_string(graph))
    with atomic_file(dest) as file:
        file.write(graph)
