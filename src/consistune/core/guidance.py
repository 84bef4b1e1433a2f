"""Guidance: extrapolation from a worse model through a better one (METHOD §5)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from consistune.core.types import Conditioning, Denoiser, expand, predict


@dataclass(frozen=True)
class Guided:
    """f_ω = f_bad + ω·(f − f_bad), itself a Denoiser, so it works in every sampler.

    `worse` is an earlier snapshot of the same run (2410.18958, §4.4; autoguidance, 2406.02507), another
    model, or None for the unconditional branch of the model itself (classifier-free guidance). ω = 1 costs
    nothing: the worse model is not called. Guidance acts where low < t ≤ high; elsewhere the result is f.
    """

    model: Denoiser
    worse: Denoiser | None = None
    omega: float = 1.0
    low: float = 0.0
    high: float = math.inf

    @property
    def two_times(self) -> bool:
        return getattr(self.model, "two_times", False)

    def __call__(
        self, x_t: Tensor, t: Tensor, condition: Conditioning = None, s: Tensor | None = None
    ) -> Tensor:
        better = predict(self.model, x_t, t, condition, s)
        if self.omega == 1.0:
            return better
        inside = (t > self.low) & (t <= self.high)
        everywhere = self.low <= 0 and self.high == math.inf  # known without a wait for the device
        if not everywhere and not bool(inside.any()):
            return better
        if self.worse is None:
            worse = predict(self.model, x_t, t, None, s)
        else:
            worse = predict(self.worse, x_t, t, condition, s)
        return torch.where(expand(inside, better), worse + self.omega * (better - worse), better)
