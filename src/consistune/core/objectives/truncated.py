"""Truncated consistency training, stage 2 (TCM, 2410.14895): the upper times alone, above a frozen model."""

from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from consistune.core.objectives.base import Draws
from consistune.core.objectives.consistency import Consistency
from consistune.core.rng import SharedDropout
from consistune.core.times import TruncatedPairs
from consistune.core.types import Batch, Denoiser, Progress, expand, widest


@dataclass(frozen=True, kw_only=True)
class Truncated(Consistency):
    """mean over t > t′ of the consistency loss + boundary_weight · its mean over the samples at t′.

    The target f_θ⁻(x_r, r) is the student's where r ≥ t′ and that of the frozen `below` elsewhere, so that
    the student learns no t below t′ and cannot collapse: the samples at t′ tie it to the frozen model. Costs
    one pass of the frozen model more than `Consistency`.

    Attributes:
        below: the model of stage 1, for the objective's schedule.
        boundary_weight: 0.1 in TCM.
    """

    pairs: TruncatedPairs
    below: Denoiser
    boundary_weight: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.boundary_weight > 0:
            raise ValueError(f"boundary_weight must be positive, got {self.boundary_weight}")

    @property
    def lowest_time(self) -> float:
        return self.pairs.boundary

    def draw(self, batch: Batch, progress: Progress, generator: Generator) -> Draws:
        n = self.pairs.at_boundary(len(batch))
        at_boundary = torch.arange(len(batch), device=batch.x_0.device) < n
        return replace(super().draw(batch, progress, generator), share=self.shares(at_boundary, n))

    def shares(self, at_boundary: Tensor, count: int) -> Tensor:
        """The factors [B] under which the batch's mean is the sum of the two parts' means, float64.

        at_boundary: bool [B], with `count` true. A batch without boundary samples has one part.
        """
        size = len(at_boundary)
        one = torch.ones(size, dtype=widest(at_boundary.device), device=at_boundary.device)
        if count == 0:
            return one
        boundary, others = self.boundary_weight * size / count, size / (size - count)
        return torch.where(at_boundary, boundary * one, others * one)

    def losses(self, model: Denoiser, target: Denoiser, draws: Draws) -> Tensor:
        losses = super().losses(model, target, draws)
        return losses if draws.share is None else draws.share.to(losses) * losses

    def _end(self, target: Denoiser, x_r: Tensor, draws: Draws, mask: SharedDropout) -> Tensor:
        r = draws.times.r
        boundary = self.schedule.time_at(torch.full_like(r, self.pairs.boundary))
        student = super()._end(target, x_r, draws, mask)
        frozen = super()._end(self.below, x_r, draws, mask)
        return torch.where(expand(r >= boundary, x_r), student, frozen)
