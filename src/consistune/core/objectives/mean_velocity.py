"""Mean velocities of jumps: MeanFlow (2505.13447) under any schedule, with any estimator (METHOD §8)."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, TypeAlias

import torch
from torch import Generator, Tensor

from consistune.core.derivative import derivative
from consistune.core.estimators import NoiseEstimator
from consistune.core.flow import Steps, mean_velocity
from consistune.core.intervals import Intervals, LogitNormal
from consistune.core.noise import NoiseSchedule
from consistune.core.objectives.base import (
    Draws,
    Learns,
    Objective,
    check_draws,
    check_images,
    check_schedule,
    gaussian_like,
)
from consistune.core.rng import SharedDropout
from consistune.core.types import Batch, Condition, Conditioning, Denoiser, Progress, Times, expand, predict

Again: TypeAlias = Callable[[], AbstractContextManager[None]]
"""The context in which a pass draws the dropout mask of the first one (`rng.SharedDropout`)."""


class Scale(Protocol):
    """From a sample's squared errors [B], summed over the sample, to its loss [B].

    The first is of the estimator's target. `own` gives, without gradient, that of the sample's own velocity.
    """

    def __call__(self, squared_error: Tensor, own: Callable[[], Tensor]) -> Tensor: ...


@dataclass(frozen=True)
class AdaptivePower:
    """s/sg(e + c)^p of the squared error s  (MeanFlow, 2505.13447, eq. 22). p = 0: s itself.

    Attributes:
        p, c: of the factor.
        scatter: "none": e = s. "own": e is the squared error against the sample's own velocity. The factor is
            then that of one-sample noise, and the direction the estimator's (METHOD §8; ours).
    """

    p: float = 0.75
    c: float = 1e-3
    scatter: Literal["none", "own"] = "none"

    def __post_init__(self) -> None:
        if not (0 <= self.p < math.inf and self.c > 0):
            raise ValueError(
                f"p must not be negative or infinite and c must be positive, got {self.p} and {self.c}"
            )
        if self.p == 0 and self.scatter == "own":
            raise ValueError("scatter: own has no effect with p = 0, which divides by nothing")

    def __call__(self, squared_error: Tensor, own: Callable[[], Tensor]) -> Tensor:
        error = own() if self.scatter == "own" else squared_error.detach()
        return squared_error / (error + self.c) ** self.p


@dataclass(frozen=True)
class Mixture:
    """Guidance in training: v ← ω·v + (1 − ω − κ)·u(∅) + κ·u(c), u at r = t  (2505.13447, §4.2).

    Where low ≤ t ≤ high in the schedule's time; elsewhere, and for samples whose label is hidden, v stays.
    The guidance of a trained model is ω/(1 − κ); at κ = 0 this is u(∅) + ω·(v − u(∅)).
    """

    omega: float = 1.0
    kappa: float = 0.0
    low: float = 0.0
    high: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.kappa < 1:
            raise ValueError(f"kappa must lie in [0, 1), got {self.kappa}")
        if not math.isfinite(self.omega) or not self.low >= 0:
            raise ValueError(f"omega must be finite and low not negative, got {self.omega} and {self.low}")
        if self.high is not None and not self.low <= self.high:
            raise ValueError(f"low must not be above high, got {self.low} and {self.high}")

    @property
    def idle(self) -> bool:
        return self.omega == 1 and self.kappa == 0

    def __call__(
        self, ask: Callable[[Conditioning], Tensor], t: Tensor, batch: Batch, x0_hat: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The mixed x̂_0, in which velocities are affine, and the given x̂_0's share in it, [B, 1, …].

        `ask` gives the model's x̂_0 at r = t.
        """
        if self.idle:
            return x0_hat, expand(torch.ones_like(t), x0_hat)
        inside = (t >= self.low) & (t <= (math.inf if self.high is None else self.high))
        if batch.hidden is not None:
            inside = inside & ~batch.hidden
        mixed = self.omega * x0_hat + (1 - self.omega - self.kappa) * ask(unlabelled(batch))
        if self.kappa:
            mixed = mixed + self.kappa * ask(batch.network_condition)
        inside = expand(inside, x0_hat)
        return torch.where(inside, mixed, x0_hat), torch.where(inside, self.omega, 1.0)


def summed_square(error: Tensor) -> Tensor:
    """The squared error of each sample, summed over the sample: [B]."""
    return error.flatten(1).square().sum(1)


def unlabelled(batch: Batch) -> Conditioning:
    """What the network is given of a batch without its labels."""
    return None if batch.augment is None else Condition(augment=batch.augment)


@dataclass(frozen=True)
class MeanVelocity(Objective):
    """L = scale(‖u_θ(x_t, r, t) − sg(v − (t − r)·du/dt)‖²)  (MeanFlow, 2505.13447, eq. 9 to 11, 22).

    u = (x_t − X)/(t − r) is the mean velocity of the jump X = step(x_t, D(x_t, t, r), t, r) of a two-time
    network; v the velocity dx_t/dt with the estimator's x̂_0; du/dt the derivative along (v, 0, 1), with u's
    dropout mask. The product is taken as (t − r)·du/dt = v − u − dX/dt, so that nothing is divided by t − r
    and dX/dt = 0 is the exact solution. At r = t this is flow matching.

    Attributes:
        intervals: the law of t and r.
        scale: of each sample's squared error, summed over the sample.
        guidance: mixed into v.
    """

    schedule: NoiseSchedule
    estimator: NoiseEstimator
    intervals: Intervals = LogitNormal()
    scale: Scale = AdaptivePower()
    guidance: Mixture = Mixture()

    learns: ClassVar[Learns] = "jumps"
    needs_two_times: ClassVar[bool] = True
    uses_target: ClassVar[bool] = False
    differentiates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_schedule(self.schedule, self.estimator)
        if not self.guidance.idle and not self.guidance.low < self.schedule.t_max:
            what = f"guidance above t = {self.guidance.low:g} has no effect"
            raise ValueError(f"{what}: the schedule ends at {self.schedule.t_max:.3g}")

    @property
    def needs_unlabelled(self) -> bool:
        return not self.guidance.idle

    def reference_bytes(self) -> int:
        return self.estimator.reference_bytes()

    def draw(self, batch: Batch, progress: Progress, generator: Generator) -> Draws:
        del progress
        ratios = self.intervals.sample(len(batch), generator)
        t, r = (self.schedule.time_at(ratio.to(batch.x_0.device)) for ratio in ratios)
        times = Times(t, torch.minimum(r, t), torch.zeros_like(t))
        return self.bound(batch, times, gaussian_like(batch.x_0, generator), generator)

    def at(
        self, model: Denoiser, batch: Batch, times: Times, noise: Tensor, generator: Generator | None = None
    ) -> Tensor:
        """The loss [B] at given t ≥ r and noise [B, C, H, W]; `generator` draws random references."""
        return self.losses(model, model, self.bound(batch, times, noise, generator))

    def bound(self, batch: Batch, times: Times, noise: Tensor, generator: Generator | None) -> Draws:
        """The draws of given times and noise. Raises ValueError unless t ≥ r ≥ 0 and all is finite."""
        check_draws(batch, times, noise)
        with torch.no_grad():
            return Draws(batch, times, noise, self.estimator.bind(batch, times, generator))

    def losses(self, model: Denoiser, target: Denoiser, draws: Draws) -> Tensor:
        del target
        batch, times = draws.batch, draws.times
        mask = SharedDropout(times.t.device)
        x_t = self.schedule.diffuse(batch.x_0, draws.noise, times.t)
        u = self.mean_velocity(model, x_t, times, batch.network_condition)
        with torch.no_grad():
            v, own = self.velocities(model, x_t, draws, mask.again)
            along = self.along(model, x_t, draws, v, mask.again)
        change = self.change(model, x_t, times, batch.network_condition, along, u.detach(), mask.again)
        error = u - (v - change)
        return self.scale(summed_square(error), lambda: summed_square(error.detach() + (v - own())))

    def velocities(
        self, model: Denoiser, x_t: Tensor, draws: Draws, again: Again
    ) -> tuple[Tensor, Callable[[], Tensor]]:
        """v, the estimator's velocity, and what gives the sample's own, with the guidance mixed into both."""
        batch, t = draws.batch, draws.times.t

        def ask(condition: Conditioning) -> Tensor:
            with again():
                return model(x_t, t, condition)

        def of(clean: Tensor) -> Tensor:
            return self.schedule.estimated_velocity(batch.x_0, draws.noise, clean, t)

        x0_hat = check_images(draws.estimator.clean(x_t, t, batch), x_t, draws.estimator)
        mixed, share = self.guidance(ask, t, batch, x0_hat)
        return of(mixed), lambda: of(mixed + share * (batch.x_0 - x0_hat))

    def along(self, model: Denoiser, x_t: Tensor, draws: Draws, v: Tensor, again: Again) -> Tensor:
        """dx_t/dt along which du/dt is taken: v."""
        del model, x_t, draws, again
        return v

    def mean_velocity(self, model: Denoiser, x_t: Tensor, times: Times, condition: Conditioning) -> Tensor:
        """u(x_t, r, t)."""
        x0_hat = predict(model, x_t, times.t, condition, times.r)
        return mean_velocity(self.schedule, x_t, x0_hat, times.t, times.r)

    def change(
        self,
        model: Denoiser,
        x_t: Tensor,
        times: Times,
        condition: Conditioning,
        along: Tensor,
        u: Tensor,
        again: Again,
    ) -> Tensor:
        """(t − r)·du/dt along dx_t/dt = `along`: along − u − dX/dt, without gradient."""

        def jump(x: Tensor, t: Tensor) -> Tensor:
            with again():
                return Steps(model, self.schedule).jump(x, t, times.r, condition)

        _, slope = derivative(model, jump, (x_t, times.t), (along, torch.ones_like(times.t)))
        return along - u - slope


@dataclass(frozen=True)
class ImprovedMeanVelocity(MeanVelocity):
    """iMF: MeanFlow whose du/dt is taken along the network's own velocity, u at r = t  (2512.02012).

    L = scale(‖V − v‖²) with V = u_θ + sg((t − r)·du/dt): the estimate v is a regression target alone, and
    does not enter the prediction V. The own velocity sees every label, also those that are hidden from u. Of
    the published method, an auxiliary head for it and guidance scales as an input of the network are left
    out; a fixed guidance ω is `Mixture(omega=1, kappa=1 − 1/ω)`.
    """

    def along(self, model: Denoiser, x_t: Tensor, draws: Draws, v: Tensor, again: Again) -> Tensor:
        """The network's velocity dx_t/dt = u(x_t, t, t)."""
        del v
        batch, t = draws.batch, draws.times.t
        seen = batch.condition if batch.augment is None else Condition(batch.condition, None, batch.augment)
        with again():
            x0_hat = model(x_t, t, seen)
        return self.schedule.velocity(x_t, x0_hat, t)
