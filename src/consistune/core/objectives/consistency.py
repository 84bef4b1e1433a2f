"""Consistency learning in discrete time: CD, CT, iCT, ECT, SCT and phased models (METHOD §1, §3, §4)."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from consistune.core.estimators import NoiseEstimator, OneSample
from consistune.core.flow import Steps
from consistune.core.noise import NoiseSchedule
from consistune.core.objectives.base import (
    Draws,
    Objective,
    check_draws,
    check_images,
    check_schedule,
    check_shape,
    gaussian_like,
)
from consistune.core.objectives.distances import AdaptiveHuber, Distance, Huber, length
from consistune.core.objectives.weights import InverseGap, Weight
from consistune.core.rng import SharedDropout
from consistune.core.solve import Method, solve
from consistune.core.times import TimePairs
from consistune.core.types import Batch, Conditioning, Denoiser, Progress, Times, expand


@dataclass(frozen=True)
class Consistency(Objective):
    """Consistency learning: w(t, r)·d( f_θ(x_t, t → s), f_θ⁻(x_r, r → s) )  (METHOD §1, §3, §4).

    Draw (t, r, s); x_t = α_t x_0 + σ_t ε; x_r by the solver with the estimator's x̂_0 (the reward);
    f(x, t → s) = step(x, D(x, t), t, s). The target is taken without gradient and with the student's
    dropout mask; where r = s it is x_s itself, and the network never sees σ = 0.
    """

    schedule: NoiseSchedule
    pairs: TimePairs
    estimator: NoiseEstimator
    distance: Distance | AdaptiveHuber = Huber()
    weight: Weight = InverseGap()
    steps: int = 1
    method: Method = "euler"

    def __post_init__(self) -> None:
        check_schedule(self.schedule, self.estimator)
        if self.estimator.local and (self.steps > 1 or self.method == "heun"):
            raise ValueError(
                "a one-sample estimate, alone or in a blend, is valid only at x_t: take one Euler step"
            )
        scatter = self.distance.scatter if isinstance(self.distance, AdaptiveHuber) else None
        if scatter == "posterior" and not self.estimator.knows_posterior:
            raise ValueError(f"{type(self.estimator).__name__} knows no posterior, so no scatter of it")
        if scatter is not None and isinstance(self.estimator, OneSample):
            raise ValueError("the radius is always 0 where the estimate is the sample: use Huber")

    @property
    def edges(self) -> tuple[float, ...]:
        return tuple(getattr(self.pairs, "edges", ()))

    def reference_bytes(self) -> int:
        return self.estimator.reference_bytes()

    def draw(self, batch: Batch, progress: Progress, generator: Generator) -> Draws:
        check_schedule(self.schedule, self.pairs, getattr(self.pairs, "pairs", None))
        times = self.pairs.sample(len(batch), progress, generator)
        times = Times(*(u.to(batch.x_0.device) for u in (times.t, times.r, times.s)))
        return self._bound(batch, times, gaussian_like(batch.x_0, generator), generator)

    def at(
        self,
        model: Denoiser,
        target: Denoiser,
        batch: Batch,
        times: Times,
        noise: Tensor,
        generator: Generator | None = None,
    ) -> Tensor:
        """The loss at given times and noise ε [B, C, H, W] → [B]; `generator` draws random references.

        Raises ValueError unless t > r ≥ s ≥ 0 and images and noise are finite.
        """
        return self.losses(model, target, self._bound(batch, times, noise, generator))

    def _bound(self, batch: Batch, times: Times, noise: Tensor, generator: Generator | None) -> Draws:
        bootstraps = check_draws(batch, times, noise, apart=True)
        with torch.no_grad():
            return Draws(batch, times, noise, self.estimator.bind(batch, times, generator), bootstraps)

    def losses(self, model: Denoiser, target: Denoiser, draws: Draws) -> Tensor:
        batch, times = draws.batch, draws.times
        t, r, s = times.t, times.r, times.s
        x_t = self.schedule.diffuse(batch.x_0, draws.noise, t)
        with torch.no_grad():
            x0_hat, scatter = self._estimate(x_t, draws)
            check_images(x0_hat, x_t, draws.estimator)
            x_r = solve(self.schedule, draws.estimator, x_t, t, r, batch, self.steps, self.method, x0_hat)
        mask = SharedDropout(x_t.device)
        f_t = self.jump(model, x_t, t, s, batch.network_condition)
        f_r = self._end(target, x_r, draws, mask)
        wide = torch.promote_types(f_t.dtype, torch.float32)
        f_t, f_r = f_t.to(wide), f_r.to(wide)
        weight, distance = self.weight(times, self.schedule), self.distance
        if not isinstance(distance, AdaptiveHuber):
            return weight * check_shape(distance(f_t, f_r), t.shape, distance, "distances")
        if scatter is None:
            f_own = self._end(target, self.schedule.step(x_t, batch.x_0, t, r), draws, mask)
            radius = distance.scale * length(f_own.to(wide) - f_r)
        else:
            radius = distance.radius(times, self.schedule, scatter)
        return weight * distance(f_t, f_r, radius)

    def _estimate(self, x_t: Tensor, draws: Draws) -> tuple[Tensor, Tensor | None]:
        """x̂_0 at x_t and its scatter [B], where the distance reads one that needs no pass of the network."""
        batch, t = draws.batch, draws.times.t
        kind = self.distance.scatter if isinstance(self.distance, AdaptiveHuber) else None
        if kind == "posterior":
            return draws.estimator.clean_and_scatter(x_t, t, batch)
        x0_hat = draws.estimator.clean(x_t, t, batch)
        return x0_hat, length(batch.x_0 - x0_hat) if kind == "own" else None

    def _end(self, target: Denoiser, x_r: Tensor, draws: Draws, mask: SharedDropout) -> Tensor:
        """The target f_θ⁻(x_r, r → s), without gradient; x_r itself where r = s."""
        if not draws.bootstraps:
            return x_r
        t, r, s = draws.times.t, draws.times.r, draws.times.s
        bootstrap = r > s
        with torch.no_grad(), mask.again():
            f_r = self.jump(target, x_r, torch.where(bootstrap, r, t), s, draws.batch.network_condition)
        return torch.where(expand(bootstrap, x_r), f_r, x_r)

    def jump(self, model: Denoiser, x_t: Tensor, t: Tensor, s: Tensor, condition: Conditioning) -> Tensor:
        """f(x_t, t → s): to the lower edge s of the phase, with the model's x̂_0 (METHOD §4)."""
        return Steps(model, self.schedule).jump(x_t, t, s, condition)
