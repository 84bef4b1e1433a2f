"""Diffusion pretraining: the denoising objective (EDM, 2206.00364; EDM2, 2312.02696)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from consistune.core.laws import LogNormal
from consistune.core.noise import NoiseSchedule
from consistune.core.objectives.base import Draws, Learns, Objective, gaussian_like
from consistune.core.objectives.weights import SNRPlus, Weight
from consistune.core.types import Batch, Denoiser, Progress, Times


@dataclass(frozen=True)
class Denoising(Objective):
    """L = λ(t)·mean over elements of (D(x_t, t) − x_0)²  (EDM, 2206.00364, eq. 2, 8).

    With a learned `log_variance` u(t) [B] → [B] the loss is L/e^u + u (EDM2, 2312.02696, eq. 21): least at
    e^u = E[L | t], where every noise level pulls alike. u's parameters are trained with the model's.
    `augment`, if given, transforms the batch before t and the noise are drawn.
    """

    schedule: NoiseSchedule
    law: LogNormal = LogNormal(mean=-1.2, std=1.2)
    weight: Weight = SNRPlus()
    log_variance: Callable[[Tensor], Tensor] | None = None
    augment: Callable[[Batch, Generator], Batch] | None = None

    learns: ClassVar[Learns] = "denoiser"
    uses_target: ClassVar[bool] = False

    def draw(self, batch: Batch, progress: Progress, generator: Generator) -> Draws:
        del progress
        if self.augment is not None:
            batch = self.augment(batch, generator)
        t = self.schedule.time_at(self.law.sample(len(batch), generator)).to(batch.x_0.device)
        zero = torch.zeros_like(t)
        return Draws(batch, Times(t, zero, zero), gaussian_like(batch.x_0, generator))

    def losses(self, model: Denoiser, target: Denoiser, draws: Draws) -> Tensor:
        del target
        x_0, t = draws.batch.x_0, draws.times.t
        error = model(self.schedule.diffuse(x_0, draws.noise, t), t, draws.batch.network_condition) - x_0
        weight = self.weight(draws.times, self.schedule)
        wide = torch.promote_types(error.dtype, torch.float32)
        loss = weight * error.to(wide).flatten(1).square().mean(1)
        if self.log_variance is None:
            return loss
        u = self.log_variance(t)
        return loss / u.exp() + u
