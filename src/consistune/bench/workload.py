"""What the benchmarks run: published networks at their image size, on smooth random pictures."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from consistune.core.estimators import NoiseEstimator, OneSample
from consistune.core.noise import EDM
from consistune.core.objectives import Consistency
from consistune.core.posterior.mean import dequantise, quantise
from consistune.core.rng import mix_seed
from consistune.core.times import ConstGap, LogNormalPairs
from consistune.core.types import Times
from consistune.nn import store
from consistune.nn.precond import Preconditioned
from consistune.nn.presets import PRESETS

PAIRS = LogNormalPairs(gap=ConstGap(q=2))
"""ECT's distribution of t with r = t/2: r > 0 for every sample, so that both passes are needed."""


@dataclass(frozen=True)
class Workload:
    """A network with a batch size.

    Attributes:
        preset: the network's name, in `consistune.nn.presets` unless `config` is given.
        dropout: the dropout probability; None keeps the network's own.
        config: the configuration of a network that is no preset, as `nn.store.build` takes it.
    """

    preset: str
    batch: int
    dropout: float | None = None
    config: dict[str, Any] | None = field(default=None, compare=False)

    def model(self, seed: int = 0) -> Preconditioned:
        """The network with weights from `redraw_weights`, a function of the seed."""
        torch.manual_seed(seed)
        options = {} if self.dropout is None else {"dropout": self.dropout}
        model = store.build({**self._config, "network": {**self._config["network"], **options}}, self.preset)
        redraw_weights(model, seed)
        return model

    @property
    def image_shape(self) -> tuple[int, int, int]:
        channels, height, width = self._config["network"]["image_shape"]
        return channels, height, width

    @property
    def _config(self) -> dict[str, Any]:
        return PRESETS[self.preset] if self.config is None else self.config


@torch.no_grad()
def redraw_weights(model: Preconditioned, seed: int) -> None:
    """Draw all weights at the scale of trained ones; in a fresh U-Net many are 0, and so are its branches."""
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
    """ECT's objective; with the score identity as the estimator it is SCT's."""
    return Consistency(EDM(), PAIRS, estimator)


@dataclass(frozen=True)
class StepInputs:
    """Everything random in a step: images [B, C, H, W] in [−1, 1], times, noise, and labels or None."""

    x_0: Tensor
    times: Times
    noise: Tensor
    labels: Tensor | None

    @classmethod
    def of(cls, model: Preconditioned, batch: int, seed: int = 0) -> "StepInputs":
        generator = torch.Generator().manual_seed(mix_seed(seed, 2))
        x_0 = dequantise(pictures(batch, model.image_shape, seed))
        classes = model.num_classes
        labels = torch.randint(classes, (batch,), generator=generator) if classes else None
        noise = torch.randn(x_0.shape, generator=generator)
        return cls(x_0, PAIRS.sample(batch, 0, generator), noise, labels)

    def to(self, device: str) -> "StepInputs":
        t, r, s = (u.to(device) for u in (self.times.t, self.times.r, self.times.s))
        labels = None if self.labels is None else self.labels.to(device)
        return StepInputs(self.x_0.to(device), Times(t, r, s), self.noise.to(device), labels)
