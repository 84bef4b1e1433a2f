"""Consistency mid-training (CMT, 2509.24526): a teacher's trajectories, each regressed onto its end."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor

from consistune.core.estimators import NoiseEstimator, ScoreIdentity
from consistune.core.noise import NoiseSchedule
from consistune.core.objectives.base import Draws, Objective, check_images, check_schedule, gaussian_like
from consistune.core.objectives.distances import AdaptiveHuber, Distance, Huber
from consistune.core.solve import dpm_solver
from consistune.core.types import Batch, Denoiser, Progress, Times, moved, predict


@dataclass(frozen=True)
class Trajectory(Objective):
    """d( f_θ(x_i, t_i), x_k ): every point of a trajectory x_0' … x_k but the last is taken onto the last.

    The trajectory starts at x_0 + σ_max·ε and follows the flow of the estimator's x̂_0 by DPM-Solver++, over
    k = `steps` steps that are geometric in σ/α from `high` to `low`. A batch of B rows holds ⌈B/k⌉
    trajectories, from the first images of the batch, one after the other; point i of a trajectory is one row.
    A part of a batch that begins within a trajectory computes that again: let the part's size be a multiple
    of k. A two-time network learns the jump to 0.

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
        check_schedule(self.schedule, self.estimator)
        if isinstance(self.distance, AdaptiveHuber):
            raise ValueError("an adaptive radius follows a step from t to r, and a trajectory's end has none")
        if self.estimator.local:
            raise ValueError("a one-sample estimate is valid only at x_t, and a trajectory leaves it")
        if isinstance(self.estimator, ScoreIdentity) and self.estimator.size is not None:
            raise ValueError(
                "random references (size) are drawn for each row: a trajectory needs the same for all"
            )
        if self.steps < 1 or self.order not in (1, 2, 3):
            raise ValueError(f"need steps ≥ 1 and order 1, 2 or 3, got {self.steps} and {self.order}")
        if self.order > self.steps:
            raise ValueError(f"order {self.order} needs as many steps, got {self.steps}")
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
        row = torch.arange(len(batch), device=batch.x_0.device)
        starts = row // self.steps
        t = moved(self.grid.float(), row.device)[row % self.steps]
        zero = torch.zeros_like(t)
        rows, times = batch.rows(starts), Times(t, zero, zero)
        estimator = self.estimator.bind(batch, times, generator).rows(starts)
        return Draws(rows, times, noise[starts], estimator)

    def losses(self, model: Denoiser, target: Denoiser, draws: Draws) -> Tensor:
        del target
        first, stop, k = draws.first, draws.first + len(draws.batch), self.steps
        device = draws.noise.device
        row = torch.arange(first, stop, device=device)
        number = torch.arange(first // k, (stop - 1) // k + 1, device=device)  # of each trajectory
        heads = (number * k).clamp(min=first) - first
        estimator = draws.estimator.rows(heads)
        points = self.trajectories(draws.batch.rows(heads), draws.noise[heads], estimator)
        own = row // k - first // k
        x_t, end, t = points[row % k, own], points[-1][own], draws.times.t
        found = predict(model, x_t, t, draws.batch.network_condition, draws.times.s)
        wide = torch.promote_types(found.dtype, torch.float32)
        return self.distance(found.to(wide), end.to(wide))

    @torch.no_grad()
    def trajectories(self, batch: Batch, noise: Tensor, estimator: NoiseEstimator) -> Tensor:
        """Every point of the trajectories from these images and noises [m, ...]: [k + 1, m, ...]."""
        highest = moved(self.grid[0].to(noise.dtype), noise.device)
        start = self.schedule.diffuse(batch.x_0, noise, highest.expand(len(noise)))

        def clean(x: Tensor, t: Tensor) -> Tensor:
            return check_images(estimator.clean(x, t, batch), x, estimator)

        return dpm_solver(self.schedule, clean, start, self.grid, self.order)
