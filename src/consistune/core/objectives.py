"""What training minimises: distances, weightings, and the two objectives that use them (METHOD §3).

An objective gives one loss for each sample, [B], fp32, never reduced: the training loop reduces it once.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor

from consistune.core.estimators import NoiseEstimator, OneSample
from consistune.core.noise import NoiseSchedule, Rescheduled
from consistune.core.rng import shared_dropout
from consistune.core.solve import Method, solve
from consistune.core.times import LogNormal, TimePairs
from consistune.core.types import Batch, Denoiser, Progress, Times, expand


class Distance(Protocol):
    """d(a, b) over whole samples: a, b [B, ...] → [B]."""

    def __call__(self, a: Tensor, b: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Huber:
    """√(‖a − b‖² + c²) − c over the whole sample (pseudo-Huber; iCT, 2310.14189, §3.3).

    c = 0 is the plain L2 norm, with gradient 0 where a = b. `per_root_dim` is iCT's scale:
    c + per_root_dim·√d (0.00054 there).
    """

    c: float = 0.0
    per_root_dim: float = 0.0

    def __post_init__(self) -> None:
        if self.c < 0 or self.per_root_dim < 0:
            raise ValueError(f"c and per_root_dim must not be negative, got {self.c}, {self.per_root_dim}")

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm((a - b).flatten(1), dim=1)
        c = self.c + self.per_root_dim * math.sqrt(a[0].numel())
        # hypot(n, c) − c = n²/(hypot(n, c) + c), which does not cancel for n ≪ c.
        return norm.square() / (torch.sqrt(norm.square() + c * c) + c) if c > 0 else norm


@dataclass(frozen=True)
class SquaredL2:
    """‖a − b‖², summed over the sample (CM, 2303.01469, up to its mean over elements)."""

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b).flatten(1).square().sum(1)


@dataclass(frozen=True)
class L1:
    """Σ|a − b| over the sample."""

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b).flatten(1).abs().sum(1)


class Weight(Protocol):
    """The factor of each sample's loss, from its times [B] → [B]."""

    def __call__(self, times: Times, schedule: NoiseSchedule) -> Tensor: ...


@dataclass(frozen=True)
class InverseGap:
    """1/(s_t − s_r), s = σ/α: 1/(t − r) under EDM's schedule  (iCT, 2310.14189; ECT on CIFAR-10, 2406.14548).

    In noise-to-signal ratios, so that the same transition weighs the same under every schedule (our choice).
    """

    def __call__(self, times: Times, schedule: NoiseSchedule) -> Tensor:
        return 1 / (schedule.noise_to_signal(times.t) - schedule.noise_to_signal(times.r))


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


@dataclass(frozen=True)
class Draws:
    """All that is random in a training step: for the whole batch, or for some rows of it.

    Drawn for the whole batch wherever a part of it is computed, so that neither the number of processes nor
    the size of their micro-batches changes what a step computes.

    Attributes:
        batch, times, noise: the images [B, C, H, W], t, r, s [B] and ε [B, C, H, W].
        estimator: with its own random choices made for this step (diffusion asks none).
        bootstraps: whether any transition of the whole batch ends above its phase's edge, r > s.
    """

    batch: Batch
    times: Times
    noise: Tensor
    estimator: NoiseEstimator = OneSample()
    bootstraps: bool = False

    def rows(self, part: slice) -> "Draws":
        """These rows of the batch."""
        return Draws(
            self.batch.rows(part),
            self.times.rows(part),
            self.noise[part],
            self.estimator.rows(part),
            self.bootstraps,
        )


class Objective(Protocol):
    """Per-sample loss [B] of a model on a batch at a point of training: first the draws, then the losses."""

    def draw(self, batch: Batch, progress: Progress, generator: Generator) -> Draws: ...

    def losses(self, model: Denoiser, target: Denoiser, draws: Draws) -> Tensor: ...

    def __call__(
        self, model: Denoiser, target: Denoiser, batch: Batch, progress: Progress, generator: Generator
    ) -> Tensor:
        return self.losses(model, target, self.draw(batch, progress, generator))


@dataclass(frozen=True)
class Denoising(Objective):
    """Diffusion pretraining: L = λ(t)·mean over elements of (D(x_t, t) − x_0)²  (EDM, 2206.00364, eq. 2, 8).

    With a learned `log_variance` u(t) [B] → [B] the loss is L/e^u + u (EDM2, 2312.02696, eq. 21): least at
    e^u = E[L | t], where every noise level pulls alike. u's parameters are trained with the model's.
    """

    schedule: NoiseSchedule
    law: LogNormal = LogNormal(mean=-1.2, std=1.2)
    weight: Weight = SNRPlus()
    log_variance: Callable[[Tensor], Tensor] | None = None

    def draw(self, batch: Batch, progress: Progress, generator: Generator) -> Draws:
        del progress
        t = self.schedule.time_at(self.law.sample(len(batch), generator)).to(batch.x_0.device)
        zero = torch.zeros_like(t)
        return Draws(batch, Times(t, zero, zero), gaussian_like(batch.x_0, generator))

    def losses(self, model: Denoiser, target: Denoiser, draws: Draws) -> Tensor:
        del target
        x_0, t = draws.batch.x_0, draws.times.t
        error = model(self.schedule.diffuse(x_0, draws.noise, t), t, draws.batch.condition) - x_0
        weight = self.weight(draws.times, self.schedule)
        wide = torch.promote_types(error.dtype, torch.float32)
        loss = weight * error.to(wide).flatten(1).square().mean(1)
        if self.log_variance is None:
            return loss
        u = self.log_variance(t)
        return loss / u.exp() + u


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
    distance: Distance = Huber()
    weight: Weight = InverseGap()
    steps: int = 1
    method: Method = "euler"

    def draw(self, batch: Batch, progress: Progress, generator: Generator) -> Draws:
        times = self.pairs.sample(len(batch), progress, generator)
        times = Times(*(u.to(batch.x_0.device) for u in (times.t, times.r, times.s)))
        return self._settled(batch, times, gaussian_like(batch.x_0, generator), generator)

    def at(
        self,
        model: Denoiser,
        target: Denoiser,
        batch: Batch,
        times: Times,
        noise: Tensor,
        generator: Generator | None = None,
    ) -> Tensor:
        """The loss at given times and noise ε [B, C, H, W] → [B]; the generator is the estimator's.

        Raises ValueError unless t > r ≥ s ≥ 0 and images and noise are finite.
        """
        return self.losses(model, target, self._settled(batch, times, noise, generator))

    def _settled(self, batch: Batch, times: Times, noise: Tensor, generator: Generator | None) -> Draws:
        bootstraps = _checked(batch, times, noise)
        with torch.no_grad():
            return Draws(batch, times, noise, self.estimator.bind(batch, times, generator), bootstraps)

    def losses(self, model: Denoiser, target: Denoiser, draws: Draws) -> Tensor:
        batch, times = draws.batch, draws.times
        t, r, s = times.t, times.r, times.s
        x_t = self.schedule.diffuse(batch.x_0, draws.noise, t)
        with torch.no_grad():
            x_r = solve(self.schedule, draws.estimator, x_t, t, r, batch, self.steps, self.method)
        with shared_dropout(x_t.device) as mask:
            f_t = self.jump(model, x_t, t, s, batch.condition)
            f_r = x_r
            if draws.bootstraps:
                bootstrap = r > s
                with torch.no_grad(), mask.again():
                    inside = torch.where(bootstrap, r, t)
                    f_r = self.jump(target, x_r, inside, s, batch.condition)
                    f_r = torch.where(expand(bootstrap, x_r), f_r, x_r)
        wide = torch.promote_types(f_t.dtype, torch.float32)
        return self.weight(times, self.schedule) * self.distance(f_t.to(wide), f_r.to(wide))

    def jump(self, model: Denoiser, x_t: Tensor, t: Tensor, s: Tensor, condition: Tensor | None) -> Tensor:
        """f(x_t, t → s): to the lower edge s of the phase, with the model's x̂_0 (METHOD §4)."""
        return self.schedule.step(x_t, model(x_t, t, condition), t, s)


def _checked(batch: Batch, times: Times, noise: Tensor) -> bool:
    """Whether any sample bootstraps. Raises ValueError for impossible times or images; one device sync."""
    t, r, s = times.t, times.r, times.s
    ordered = ((t > r) & (r >= s) & (s >= 0) & torch.isfinite(t)).all()
    whole = torch.isfinite(batch.x_0).all() & torch.isfinite(noise).all()
    finite, in_order, some = torch.stack([whole, ordered, (r > s).any()]).tolist()
    if not in_order:
        raise ValueError("a transition needs finite times t > r >= s >= 0")
    if not finite:
        raise ValueError("the noisy images contain NaN or infinity: look at the data and the noise")
    return bool(some)


@dataclass(frozen=True)
class Adapted(Objective):
    """An objective under another process than its networks': they go through `Rescheduled`."""

    objective: Objective
    schedule: NoiseSchedule

    def draw(self, batch: Batch, progress: Progress, generator: Generator) -> Draws:
        return self.objective.draw(batch, progress, generator)

    def losses(self, model: Denoiser, target: Denoiser, draws: Draws) -> Tensor:
        student, teacher = Rescheduled(model, self.schedule), Rescheduled(target, self.schedule)
        return self.objective.losses(student, teacher, draws)


def gaussian_like(x: Tensor, generator: Generator) -> Tensor:
    """ε ~ N(0, I) in the shape and place of x, fp32 at the least, drawn where the generator lives."""
    noise = torch.randn(x.shape, generator=generator, device=generator.device)
    return noise.to(x.device, torch.promote_types(x.dtype, torch.float32))
