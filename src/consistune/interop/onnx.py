"""A model as an ONNX graph, for ONNX Runtime and other programs that read ONNX."""

import json
import tempfile
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from consistune.errors import UserError
from consistune.nn.autoencoder.space import LatentSpace, from_model, open_space, pictures
from consistune.nn.precond import LOWEST, Preconditioned
from consistune.system.files import atomic_file
from consistune.system.host import package_version

OPSET = 18
MAX_BYTES = 2_000_000_000
"""Of weights: an ONNX file is one protocol buffer, which has at most 2 GiB."""


CALL = {
    "consistency": "x = sigmas[0] * standard normals, sigma = [sigmas[0]] * batch; run: images. For each "
    "further level of sigmas x = x0_hat + level * standard normals, sigma = [level] * batch; run again.",
    "diffusion": "x0_hat is the posterior mean: from x = sigmas[0] * standard normals integrate "
    "dx/dsigma = (x - x0_hat)/sigma down to sigmas[-1]; images of the last run.",
}
CONDITION = " condition: one-hot rows [batch, {}], zeros for no class."


def write_onnx(model: Preconditioned, dest: Path) -> None:
    """Write x̂_0 = D(x; σ) in fp32 and its pictures, for any batch size, as one file.

    Inputs `x` [batch, C, H, W], `sigma` [batch] and, where the model has classes, `condition`
    [batch, num_classes]: one-hot rows, or rows of zeros for no class. Outputs `x0_hat` [batch, C, H, W] and
    `images`, uint8 pictures [batch, C, H, W]; of a model of latents the decoder is in the graph. A two-time
    model jumps to the end of the trajectory. The metadata say how it is called (`metadata`).
    Raises UserError where the extra `onnx` is not installed, or the weights are too large for one file.
    """
    try:
        import onnx
    except ImportError as error:
        raise UserError(
            "the package onnx is missing", "--format onnx", 'pip install "consistune[onnx]"'
        ) from error
    record = from_model(model)
    graph = _Graph(model.float().eval(), None if record is None else open_space(record))
    size = sum(parameter.numel() * 4 for parameter in graph.parameters())
    if size > MAX_BYTES:
        raise UserError(f"{size / 1e9:.1f} GB of weights do not fit in one ONNX file", "--format onnx")
    graph.requires_grad_(False)
    model.precision = "fp32"
    inputs = {"x": torch.randn(2, *model.image_shape), "sigma": torch.tensor([80.0, 0.5])}
    if model.num_classes:
        inputs["condition"] = torch.eye(model.num_classes)[torch.arange(2) % model.num_classes]
    made = onnx.load_from_string(_traced(graph, inputs, ["x0_hat", "images"]))
    onnx.helper.set_model_props(made, metadata(model))
    onnx.checker.check_model(made)
    with atomic_file(dest) as file:
        file.write(made.SerializeToString())


def metadata(model: Preconditioned) -> dict[str, str]:
    """What a program must know of the graph, by key; lists are JSON.

    kind: "consistency" or "diffusion". call: how images are drawn, in words. sigmas: the noise levels of the
    steps, from the first; of a diffusion model the two ends. noise_shape: of one image's normals. classes:
    the names, in the order of the condition's columns. objective, data, licence: from the card, if known.
    """
    card = model.card
    kind = "diffusion" if card.is_diffusion else "consistency"
    known = {
        "objective": card.objective,
        "data": card.data,
        "licence": (card.source or {}).get("licence"),
    }
    last = [LOWEST] if card.is_diffusion else [] if card.edges or card.jumps else list(card.mid_t)
    classes = card.class_names or [str(label) for label in range(model.num_classes)]
    return {
        "producer": f"consistune {package_version()}",
        "kind": kind,
        "call": CALL[kind] + (CONDITION.format(model.num_classes) if model.num_classes else ""),
        "sigmas": json.dumps([model.start, *last]),
        "noise_shape": json.dumps(model.image_shape),
        "classes": json.dumps(classes),
        **{key: str(value) for key, value in known.items() if value is not None},
    }


class _Graph(nn.Module):
    def __init__(self, model: Preconditioned, space: LatentSpace | None) -> None:
        super().__init__()
        self.model, self.space = model, space
        self.autoencoder = None if space is None else space.autoencoder

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        ends = self.model.two_times and not self.model.card.is_diffusion  # else s = sigma
        end = torch.zeros_like(sigma) if ends else None
        x0_hat = self.model(x, sigma, condition, end)
        return x0_hat, pictures(self.space, x0_hat)


def _traced(module: nn.Module, inputs: dict[str, Tensor], outputs: list[str]) -> bytes:
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        path = Path(folder) / "model.onnx"
        warnings.simplefilter("ignore")  # about tracing and the old exporter; the graph is checked later
        torch.onnx.export(
            module,
            tuple(inputs.values()),
            str(path),
            input_names=list(inputs),
            output_names=outputs,
            dynamic_axes={name: {0: "batch"} for name in [*inputs, *outputs]},
            opset_version=OPSET,
            dynamo=False,
        )
        return path.read_bytes()
