"""Flow maps: from a point of the probability-flow ODE at t to its solution at s (METHOD §8)."""

from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor

from consistune.core.noise import NoiseSchedule
from consistune.core.types import Conditioning, Denoiser, expand, predict, widest


class FlowMap(Protocol):
    """X(x_t, t → s): every sampler asks a model for this and for nothing else."""

    def jump(self, x_t: Tensor, t: Tensor, s: Tensor, condition: Conditioning = None) -> Tensor:
        """x_s on the trajectory through x_t. x_t [B, ...], t > 0 and s ≤ t [B] → [B, ...]."""
        ...


@dataclass(frozen=True)
class Steps:
    """A model that gives x̂_0 as a flow map: one step of the schedule with it.

    X(x_t, t → s) = step(x_t, x̂_0, t, s). For a denoiser D(x_t, t) this is DDIM's step; a consistency model is
    exact at s = 0, a phased one where s is the edge below t, a two-time network D(x_t, t, s) at every s.
    """

    model: Denoiser
    schedule: NoiseSchedule

    def jump(self, x_t: Tensor, t: Tensor, s: Tensor, condition: Conditioning = None) -> Tensor:
        return self.schedule.step(x_t, predict(self.model, x_t, t, condition, s), t, s)


def flow_map(model: Denoiser | FlowMap, schedule: NoiseSchedule) -> FlowMap:
    """The model itself where it has a `jump`, else its x̂_0 with the schedule's step."""
    return cast(FlowMap, model) if hasattr(model, "jump") else Steps(model, schedule)


SHORT = 1e-6
"""Relative gap (t − s)/t below which the mean velocity is taken as the velocity at t."""


def mean_velocity(schedule: NoiseSchedule, x_t: Tensor, x0_hat: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """u = (x_t − X)/(t − s) with X = step(x_t, x̂_0, t, s): a jump's mean velocity  (2505.13447, eq. 3).

    u = a·x_t + b·x̂_0 with a = (1 − σ_s/σ_t)/(t − s), b = −(α_s − α_t·σ_s/σ_t)/(t − s) in float64; at s = t it
    is `schedule.velocity`. x_t, x0_hat [B, ...], t > 0 and s ≤ t [B] → [B, ...].
    """
    wide_t, wide_s = (time.to(widest(time.device)) for time in (t, s))
    d_alpha, d_sigma = schedule.rates(wide_t)
    alpha, sigma = schedule.alpha(wide_t), schedule.sigma(wide_t)
    gap = wide_t - wide_s
    carry = schedule.sigma(wide_s) / sigma
    short = gap <= SHORT * wide_t
    a = torch.where(short, d_sigma / sigma, (1 - carry) / gap)
    b = torch.where(short, d_alpha - alpha * d_sigma / sigma, (alpha * carry - schedule.alpha(wide_s)) / gap)
    return expand(a.to(x_t.dtype), x_t) * x_t + expand(b.to(x_t.dtype), x_t) * x0_hat
