"""Consistency mid-training (CMT, 2509.24526): a teacher's trajectories, each regressed onto its end."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor

from consistune.core.estimators import NoiseEstimator, ScoreIdentity
from consistune.core.noise import NoiseSchedule
from consistune.core.objectives.base import Draws, Objective, gaussian_like
from consistune.core.objectives.distances import Distance, Huber
from consistune.core.solve import dpm_solver
from consistune.core.types import Batch, Denoiser, Progress, Times


@dataclass(frozen=True)
class Trajectory(Objective):
    """d( f_θ(x_i, t_i), x_k ): every point of a trajectory x_0' … x_k but the last is taken onto the last.

    The trajectory starts at x_0 + σ_max·ε and follows the flow of the estimator's x̂_0 by DPM-Solver++, over
    k = `steps` steps that are geometric in σ/α from `high` to `low`. A batch of B rows holds ⌈B/k⌉
    trajectories, from the first images of the batch, one after the other; point i of a trajectory is one row.
    A part of a batch that begins within a trajectory computes that again: let the part's size be a multiple
    of k.

    Attributes:
        estimator: the teacher, or any estimate that is valid away from x_t: not a one-sample one.
        order: of the solver, 1 to 3.
    """

    schedule: NoiseSchedule
    estimator: NoiseEstimator
    distance: Distance = Huber()
    steps: int = 16
    order: Literal[1, 2, 3] = 3
    low: float = 0.002
    high: float = 80.0

    uses_target: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.estimator.local:
            raise ValueError("a one-sample estimate is valid only at x_t, and a trajectory leaves it")
        if isinstance(self.estimator, ScoreIdentity) and self.estimator.size is not None:
            raise ValueError("random references are drawn for each row: a trajectory needs the same for all")
        if self.steps < 1 or self.order not in (1, 2, 3):
            raise ValueError(f"need steps ≥ 1 and order 1, 2 or 3, got {self.steps} and {self.order}")
        if not 0 < self.low < self.high:
            raise ValueError(f"need 0 < low < high, got {self.low} and {self.high}")

    def reference_bytes(self) -> int:
        return self.estimator.reference_bytes()

    @property
    def grid(self) -> Tensor:
        """The times of a trajectory's points, decreasing, float64 [k + 1]."""
        share = torch.linspace(0, 1, self.steps + 1, dtype=torch.float64)
        return self.schedule.time_at(self.high * (self.low / self.high) ** share)

    def draw(self, batch: Batch, progress: Progress, generator: Generator) -> Draws:
        del progress
        noise = gaussian_like(batch.x_0, generator)
        return self.at(batch, noise, generator)

    def at(self, batch: Batch, noise: Tensor, generator: Generator | None = None) -> Draws:
        """The rows of a batch [B] that starts from the first ⌈B/k⌉ of these images and noises."""
        size = len(batch)
        starts = [row // self.steps for row in range(size)]
        t = self.grid[torch.arange(size) % self.steps].to(batch.x_0.device, torch.float32)
        zero = torch.zeros_like(t)
        rows, times = batch.rows(starts), Times(t, zero, zero)
        return Draws(rows, times, noise[starts], self.estimator.bind(batch, times, generator))

    def losses(self, model: Denoiser, target: Denoiser, draws: Draws) -> Tensor:
        del target
        rows = range(draws.first, draws.first + len(draws.batch))
        before = rows[0] // self.steps
        heads = [
            max(number * self.steps, rows[0]) - rows[0]
            for number in range(before, rows[-1] // self.steps + 1)
        ]
        points = self.trajectories(draws.batch.rows(heads), draws.noise[heads], draws.estimator)
        step, own = [row % self.steps for row in rows], [row // self.steps - before for row in rows]
        x_t, end, t = points[step, own], points[-1][own], draws.times.t
        found = model(x_t, t, draws.batch.network_condition)
        wide = torch.promote_types(found.dtype, torch.float32)
        return self.distance(found.to(wide), end.to(wide))

    @torch.no_grad()
    def trajectories(self, batch: Batch, noise: Tensor, estimator: NoiseEstimator) -> Tensor:
        """Every point of the trajectories from these images and noises [m, ...]: [k + 1, m, ...]."""
        times = self.grid.to(noise.device)
        start = self.schedule.diffuse(batch.x_0, noise, times[0].to(noise).expand(len(noise)))
        return dpm_solver(self.schedule, lambda x, t: estimator.clean(x, t, batch), start, times, self.order)
