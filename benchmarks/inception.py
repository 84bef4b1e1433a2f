"""Inception-v3 with random weights, in the interface of the official TorchScript file: for its cost alone.

The layers are those of Szegedy et al., "Rethinking the Inception Architecture" (1512.00567, table 1 and
figures 5 to 7), as the FID's network of 2015-12-05 has them: 299×299 in, 2048 pooled features and 1008
classes out, 5.7 billion multiply-adds an image. Its numbers mean nothing.
"""

from pathlib import Path

import torch
from torch import Tensor, nn


class Conv(nn.Sequential):
    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int], stride: int = 1) -> None:
        same = (kernel[0] // 2, kernel[1] // 2) if stride == 1 else (0, 0)
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, same, bias=False),
            nn.BatchNorm2d(outputs, eps=1e-3),
            nn.ReLU(),
        )


def tower(inputs: int, *layers: tuple[int, tuple[int, int]], stride: int = 1) -> nn.Sequential:
    """Convolutions (outputs, kernel) one after another; the last has the stride."""
    parts: list[nn.Module] = []
    for index, (outputs, kernel) in enumerate(layers):
        parts.append(Conv(inputs, outputs, kernel, stride if index == len(layers) - 1 else 1))
        inputs = outputs
    return nn.Sequential(*parts)


class Branches(nn.Module):
    """Towers on the same input, their outputs concatenated in the channels."""

    def __init__(self, *towers: nn.Module) -> None:
        super().__init__()
        self.towers = nn.ModuleList(towers)

    def forward(self, x: Tensor) -> Tensor:
        parts: list[Tensor] = []
        for tower in self.towers:
            parts.append(tower(x))  # noqa: PERF401 (TorchScript has no comprehension over modules)
        return torch.cat(parts, 1)


ONE, THREE, FIVE, WIDE, HIGH = (1, 1), (3, 3), (5, 5), (1, 7), (7, 1)


def pooled(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.AvgPool2d(3, 1, 1), Conv(inputs, outputs, ONE))


def block_35(inputs: int, pool: int) -> Branches:
    return Branches(
        tower(inputs, (64, ONE)),
        tower(inputs, (48, ONE), (64, FIVE)),
        tower(inputs, (64, ONE), (96, THREE), (96, THREE)),
        pooled(inputs, pool),
    )


def block_17(width: int) -> Branches:
    return Branches(
        tower(768, (192, ONE)),
        tower(768, (width, ONE), (width, WIDE), (192, HIGH)),
        tower(768, (width, ONE), (width, HIGH), (width, WIDE), (width, HIGH), (192, WIDE)),
        pooled(768, 192),
    )


def block_8(inputs: int) -> Branches:
    def fork() -> Branches:
        return Branches(tower(384, (384, (1, 3))), tower(384, (384, (3, 1))))

    return Branches(
        tower(inputs, (320, ONE)),
        nn.Sequential(tower(inputs, (384, ONE)), fork()),
        nn.Sequential(tower(inputs, (448, ONE), (384, THREE)), fork()),
        pooled(inputs, 192),
    )


class Inception(nn.Module):
    """uint8 images of any size → 2048 features or 1008 probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            Conv(3, 32, THREE, 2),
            nn.Sequential(nn.Conv2d(32, 32, 3, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
            Conv(32, 64, THREE),
            nn.MaxPool2d(3, 2),
            Conv(64, 80, ONE),
            nn.Sequential(nn.Conv2d(80, 192, 3, bias=False), nn.BatchNorm2d(192), nn.ReLU()),
            nn.MaxPool2d(3, 2),
            block_35(192, 32),
            block_35(256, 64),
            block_35(288, 64),
            Branches(
                tower(288, (384, THREE), stride=2),
                tower(288, (64, ONE), (96, THREE), (96, THREE), stride=2),
                nn.MaxPool2d(3, 2),
            ),
            block_17(128),
            block_17(160),
            block_17(160),
            block_17(192),
            Branches(
                tower(768, (192, ONE), (320, THREE), stride=2),
                tower(768, (192, ONE), (192, WIDE), (192, HIGH), (192, THREE), stride=2),
                nn.MaxPool2d(3, 2),
            ),
            block_8(1280),
            block_8(2048),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.output = nn.Linear(2048, 1008)

    def forward(self, img: Tensor, return_features: bool = False, no_output_bias: bool = False) -> Tensor:
        x = nn.functional.interpolate(img.float(), size=(299, 299), mode="bilinear")
        features = self.body((x - 128) / 128)
        if return_features:
            return features
        logits = features.matmul(self.output.weight.T) if no_output_bias else self.output(features)
        return logits.softmax(1)


def write_inception(path: Path) -> float:
    """Writes the TorchScript file; returns the billions of multiply-adds an image."""
    torch.manual_seed(0)
    network = Inception().eval().requires_grad_(False)
    counted = [0]

    def count(layer: nn.Module, _: object, output: Tensor) -> None:
        counted[0] += output[0].numel() * layer.weight[0].numel()

    hooks = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, nn.Conv2d)]
    network(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    for hook in hooks:
        hook.remove()
    torch.jit.script(network).save(str(path))
    return counted[0] / 1e9
