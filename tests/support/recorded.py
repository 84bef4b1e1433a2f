"""The numbers of the published networks: `spec/check-values.json` and its rule for filling parameters."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from consistune.nn import store
from consistune.nn.precond import Preconditioned

NETWORKS = {"SongUNet": "song", "DhariwalUNet": "adm"}
PRECONDITIONERS = {
    "EDMPrecond": "edm",
    "VPPrecond": "vp",
    "VEPrecond": "ve",
    "iDDPMPrecond": "iddpm",
    "ECMPrecond": "ect",
    "Precond": "edm2",
}


def check_values(shared: Path) -> dict[str, Any]:
    return json.loads((shared / "spec" / "check-values.json").read_text())["cases"]


def pattern(shape: Any, phase: float, scale: float = 1.0, offset: float = 0.0) -> Tensor:
    """offset + scale·sin(phase + 0.37 i) over the row-major index i, in fp64, rounded once to fp32."""
    values = offset + scale * np.sin(phase + 0.37 * np.arange(math.prod(shape)))
    return torch.from_numpy(values.astype(np.float32)).reshape(tuple(shape))


def build(class_name: str, config: dict[str, Any]) -> Preconditioned:
    """The model that official constructor arguments describe."""
    options = dict(config)
    size, channels = options.pop("img_resolution"), options.pop("img_channels")
    kind = PRECONDITIONERS[class_name.split(".")[-1].split(" ")[0]]
    network = {
        "kind": NETWORKS[options.pop("model_type")] if "model_type" in options else "edm2",
        "image_shape": [channels, size, size],
        "num_classes": options.pop("label_dim", 0),
    }
    options.pop("use_fp16", None)
    precond = {"kind": kind}
    if kind == "edm2":
        precond["logvar_channels"] = options.pop("logvar_channels", 128)
    if kind == "iddpm":
        network["out_channels"] = 2 * channels
    return store.build({"network": network | options, "precond": precond})


def fill(model: Preconditioned, names: list[str]) -> None:
    """Fill every parameter and random buffer by its index in the published order."""
    edm2 = model.kind == "edm2"
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for j, name in enumerate(names):
            shape, phase = parameters[name].shape, 1.0 + 0.7 * j
            if edm2:
                value = pattern(shape, phase, 1.0) if shape else pattern(shape, phase, 0.25, 0.75)
            elif len(shape) > 1:
                value = pattern(shape, phase, math.sqrt(2 / math.prod(shape[1:])))
            else:
                value = pattern(shape, phase, 0.1, float(name.endswith("weight")))
            parameters[name].copy_(value)
        for name, buffer in model.named_buffers():
            if name.endswith("freqs"):
                buffer.copy_(pattern(buffer.shape, 0.3, 2.0))
            elif name.endswith("phases"):
                buffer.copy_(pattern(buffer.shape, 0.9, 3.0))


def filled(case: dict[str, Any]) -> Preconditioned:
    """A case's model in evaluation mode."""
    model = build(case["class_name"], case["config"])
    fill(model, [name for name, _ in case["params"]])
    return model.eval()


def inputs() -> dict[str, Tensor]:
    return {
        "x": pattern((3, 3, 8, 8), 0.5),
        "sigma": torch.tensor([0.01, 1.0, 50.0]),
        "condition": torch.tensor([0, 3, 4]),
        "augment_labels": pattern((3, 9), 0.2),
    }


def assert_recorded(value: Tensor, record: dict[str, Any], tolerance: float = 1e-5) -> None:
    """The recorded elements, mean and spread, within `tolerance` of the output's largest magnitude."""
    assert list(value.shape) == record["shape"]
    value = value.detach().double()
    room = tolerance * float(value.abs().max())
    given = value.flatten()[record["idx"]]
    torch.testing.assert_close(given, torch.tensor(record["val"]).double(), rtol=0, atol=room)
    assert abs(float(value.mean()) - record["mean"]) <= room
    assert abs(float(value.std(correction=0)) - record["std"]) <= room
