"""The factor of each sample's loss as a function of its times (METHOD §3)."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from consistune.core.noise import EDM, NoiseSchedule
from consistune.core.types import Times, widest


class Weight(Protocol):
    """The factor of each sample's loss, from its times [B] → [B]."""

    def __call__(self, times: Times, schedule: NoiseSchedule) -> Tensor: ...


@dataclass(frozen=True)
class InverseGap:
    """1/(s_t − s_r), s = σ/α: 1/(t − r) under EDM's schedule  (iCT, 2310.14189; ECT on CIFAR-10, 2406.14548).

    In noise-to-signal ratios, so that the same transition weighs the same under every schedule (our choice).
    """

    def __call__(self, times: Times, schedule: NoiseSchedule) -> Tensor:
        gap = schedule.noise_to_signal(times.t) - schedule.noise_to_signal(times.r)
        if isinstance(schedule, EDM):  # s = t, and times differ
            return 1 / gap
        t, r = (time.to(widest(time.device)) for time in (times.t, times.r))
        exact = schedule.noise_to_signal(t) - schedule.noise_to_signal(r)
        return 1 / gap.where(gap > 0, exact.to(gap))  # fp32 may give both the same ratio


@dataclass(frozen=True)
class SNRPlus:
    """SNR + 1/σ_d² = (α/σ)² + 1/σ_d²  (EDM's λ, 2206.00364, table 1; ECT on ImageNet-64)."""

    sigma_data: float = 0.5

    def __call__(self, times: Times, schedule: NoiseSchedule) -> Tensor:
        return schedule.noise_to_signal(times.t) ** -2 + self.sigma_data**-2


@dataclass(frozen=True)
class InverseCOut:
    """1/c_out(t) = √(s² + σ_d²)/(s·σ_d), s = σ/α: unit weight on the raw network's output."""

    sigma_data: float = 0.5

    def __call__(self, times: Times, schedule: NoiseSchedule) -> Tensor:
        s = schedule.noise_to_signal(times.t)
        return torch.sqrt(s.square() + self.sigma_data**2) / (s * self.sigma_data)


@dataclass(frozen=True)
class Uniform:
    """1."""

    def __call__(self, times: Times, schedule: NoiseSchedule) -> Tensor:  # noqa: ARG002 - constant
        return torch.ones_like(times.t)
