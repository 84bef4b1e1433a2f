"""What is run: published networks at their image size, on smooth random pictures, no weight near zero."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from consistune.core.estimators import NoiseEstimator, OneSample
from consistune.core.noise import EDM
from consistune.core.objectives import Consistency
from consistune.core.posterior.mean import dequantise, quantise
from consistune.core.rng import mix_seed
from consistune.core.times import ConstGap, LogNormalPairs
from consistune.core.types import Times
from consistune.nn.precond import Preconditioned
from consistune.nn.presets import PRESETS, preset

PAIRS = LogNormalPairs(gap=ConstGap(q=2))
"""ECT's law of t with r = t/2: r > 0 for every sample, so both passes are needed."""


@dataclass(frozen=True)
class Workload:
    """A published network with a batch size.

    Attributes:
        preset: its name in `consistune.nn.presets`.
        dropout: None: the preset's own.
    """

    preset: str
    batch: int
    dropout: float | None = None

    def model(self, seed: int = 0) -> Preconditioned:
        """The network with `lively` weights: the same ones for the same seed."""
        torch.manual_seed(seed)
        options = {} if self.dropout is None else {"dropout": self.dropout}
        model = preset(self.preset, **options)
        lively(model, seed)
        return model

    @property
    def image_shape(self) -> tuple[int, int, int]:
        channels, height, width = PRESETS[self.preset]["network"]["image_shape"]
        return channels, height, width

    def without_dropout(self, batch: int) -> "Workload":
        return replace(self, batch=batch, dropout=0.0)


@torch.no_grad()
def lively(model: Preconditioned, seed: int) -> None:
    """Redraw all weights at ordinary scale: a fresh U-Net's branches begin at zero and compute zeros."""
    generator = torch.Generator().manual_seed(mix_seed(seed, 1))
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            parameter.copy_(noise / math.sqrt(parameter[0].numel()))
        elif parameter.ndim == 1:
            parameter.copy_(0.1 * noise + float(name.endswith("weight")))
        else:
            parameter.fill_(0.5)


def pictures(count: int, shape: tuple[int, int, int], seed: int = 0) -> Tensor:
    """Smooth random images with some noise, uint8 [count, C, H, W]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, shape[0], 8, 8, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=shape[1:], mode="bilinear")
    grain = torch.randn(count, *shape, generator=generator)
    return quantise((0.6 * smooth + 0.05 * grain).clamp(-1, 1))


def objective(estimator: NoiseEstimator = OneSample()) -> Consistency:
    """ECT's objective, or with another estimator SCT's: all else equal."""
    return Consistency(EDM(), PAIRS, estimator)


@dataclass(frozen=True)
class Draw:
    """All that is random in a step: images [B, C, H, W] in [−1, 1], times, noise, labels or None."""

    x_0: Tensor
    times: Times
    noise: Tensor
    labels: Tensor | None

    @classmethod
    def of(cls, model: Preconditioned, batch: int, seed: int = 0) -> "Draw":
        generator = torch.Generator().manual_seed(mix_seed(seed, 2))
        x_0 = dequantise(pictures(batch, model.image_shape, seed))
        labels = None
        if model.num_classes:
            labels = torch.randint(model.num_classes, (batch,), generator=generator)
        noise = torch.randn(x_0.shape, generator=generator)
        return cls(x_0, PAIRS.sample(batch, 0, generator), noise, labels)

    def to(self, device: str) -> "Draw":
        t, r, s = (u.to(device) for u in (self.times.t, self.times.r, self.times.s))
        labels = None if self.labels is None else self.labels.to(device)
        return Draw(self.x_0.to(device), Times(t, r, s), self.noise.to(device), labels)
