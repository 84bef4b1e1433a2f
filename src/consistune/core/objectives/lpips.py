"""LPIPS, a distance between images in the features of a trained network (1801.03924)."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import conv2d, max_pool2d

from consistune.core.types import moved

LAYERS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
"""VGG16's convolutions by their place in its feature sequence; a maximum pool stands between two groups."""
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""ImageNet's mean and deviation of a channel, for images in [−1, 1]; published, and used, in fp32."""
SMALLEST = 1e-10
SMALLEST_SIDE = 16


class LPIPS:
    """Σ_l mean over pixels of Σ_c w_lc·(φ̂_lc(a) − φ̂_lc(b))², φ̂ the features of unit length at each pixel.

    φ_l are the outputs of VGG16's five groups of convolutions (version 0.1 of the authors' linear weights).
    Images [B, 1 or 3, H, W] in [−1, 1] of at least 16 pixels a side; one channel counts three times.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        """weights: features.N.weight, features.N.bias (torchvision's names) and lin0.weight … lin4.weight.

        The linear weights may also have their published names, lin0.model.1.weight. Raises ValueError for
        names that are missing and shapes that do not follow one another.
        """
        self.groups: list[list[tuple[Tensor, Tensor]]] = []
        self.linear: list[Tensor] = []
        channels = 3
        for number, places in enumerate(LAYERS):
            group = []
            for place in places:
                kernel, bias = (_named(weights, f"features.{place}.{kind}") for kind in ("weight", "bias"))
                if kernel.shape[1:] != (channels, 3, 3) or bias.shape != kernel.shape[:1]:
                    raise ValueError(f"features.{place}.weight has shape {list(kernel.shape)}")
                channels = len(kernel)
                group.append((kernel, bias))
            linear = _named(weights, f"lin{number}.weight", f"lin{number}.model.1.weight")
            if linear.shape != (1, channels, 1, 1):
                raise ValueError(
                    f"lin{number}.weight has shape {list(linear.shape)}, not {[1, channels, 1, 1]}"
                )
            self.groups.append(group)
            self.linear.append(linear)

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """[B, C, H, W] twice → [B]."""
        return self.by_layer(a, b).sum(0)

    def by_layer(self, a: Tensor, b: Tensor) -> Tensor:
        """Each group's part of the distance, [5, B]."""
        if min(a.shape[-2:]) < SMALLEST_SIDE or a.shape[1] not in (1, 3):
            raise ValueError(
                f"LPIPS needs 1 or 3 channels and {SMALLEST_SIDE} pixels a side, got {list(a.shape[1:])}"
            )
        parts = []
        for weight, x, y in zip(self.linear, self._features(a), self._features(b), strict=True):
            parts.append(conv2d((x - y).square(), weight.to(x)).mean((1, 2, 3)))
        return torch.stack(parts)

    def _features(self, x: Tensor) -> list[Tensor]:
        channels = (torch.tensor(values, dtype=torch.float32).to(x.dtype) for values in (SHIFT, SCALE))
        shift, scale = (moved(values, x.device).view(1, 3, 1, 1) for values in channels)
        x = (x - shift) / scale
        found: list[Tensor] = []
        for group in self.groups:
            x = max_pool2d(x, 2) if found else x
            for kernel, bias in group:
                x = conv2d(x, kernel.to(x), bias.to(x), padding=1).relu()
            # vector_norm has gradient 0 where all features are 0; a square root of a sum would give NaN.
            found.append(x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + SMALLEST))
        return found


def _named(weights: Mapping[str, Tensor], *names: str) -> Tensor:
    found = next((weights[name] for name in names if name in weights), None)
    if found is None:
        raise ValueError(f"there is no {names[0]}")
    return found
