"""A small network in the interface of the official TorchScript Inception."""

from pathlib import Path

import torch
from torch import Tensor, nn


class SmallInception(nn.Module):
    """Called with uint8 images of any size; features, or class probabilities without the output's bias."""

    def __init__(self, features: int = 2048, classes: int = 12) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.body = nn.Parameter(torch.randn(features, 3 * 64, generator=generator) / 14)
        self.output = nn.Parameter(torch.randn(classes, features, generator=generator) / 20)
        self.bias = nn.Parameter(torch.full((classes,), 5.0).mul(torch.arange(classes)))

    def forward(
        self, img: Tensor, return_features: bool = False, use_fp16: bool = False, no_output_bias: bool = False
    ) -> Tensor:
        if img.dtype != torch.uint8:
            raise ValueError("the caller must not scale the images")
        x = nn.functional.interpolate(img.float(), size=(8, 8), mode="bilinear")
        features = ((x - 128) / 128).flatten(1).matmul(self.body.T).relu()
        if return_features:
            return features
        logits = features.matmul(self.output.T)
        if not no_output_bias:
            logits = logits + self.bias
        return logits.softmax(1)


def write_inception(
    folder: Path, name: str = "inception-2015-12-05.pt", features: int = 2048
) -> tuple[Path, SmallInception]:
    network = SmallInception(features).eval().requires_grad_(False)
    torch.jit.script(network).save(str(folder / name))
    return folder / name, network
