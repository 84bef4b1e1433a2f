"""Guidance: extrapolation from a worse model through a better one (METHOD §5)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from consistune.core.types import Conditioning, Denoiser, expand


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

    def __call__(self, x_t: Tensor, t: Tensor, condition: Conditioning = None) -> Tensor:
        better = self.model(x_t, t, condition)
        if self.omega == 1.0:
            return better
        inside = (t > self.low) & (t <= self.high)
        everywhere = self.low <= 0 and self.high == math.inf  # known without a wait for the device
        if not everywhere and not bool(inside.any()):
            return better
        worse = self.model(x_t, t, None) if self.worse is None else self.worse(x_t, t, condition)
        return torch.where(expand(inside, better), worse + self.omega * (better - worse), better)
