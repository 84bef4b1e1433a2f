"""Noise schedules: x_t = α(t)·x_0 + σ(t)·ε, and the exact one-step map between two times.

Nothing outside this file depends on which schedule is used (METHOD §0).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from consistune.core.types import Conditioning, Denoiser, expand, predict


class NoiseSchedule(ABC):
    """The two functions α and σ of time; everything else follows from them."""

    t_min: float
    t_max: float

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Signal level α(t), same shape as t."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Noise level σ(t), same shape as t."""

    @abstractmethod
    def time_at(self, noise_to_signal: Tensor) -> Tensor:
        """The t at which σ(t)/α(t) has the given value, that is e^{−λ(t)}. Inverse of `noise_to_signal`."""

    def noise_to_signal(self, t: Tensor) -> Tensor:
        """σ(t)/α(t) = e^{−λ(t)}: the noise level of the equivalent variance-exploding process."""
        return self.sigma(t) / self.alpha(t)

    def diffuse(self, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t = α(t)·x_0 + σ(t)·ε. x_0, noise [B, ...], t [B] → [B, ...]."""
        return expand(self.alpha(t), x_0) * x_0 + expand(self.sigma(t), x_0) * noise

    def renoise(self, x_s: Tensor, noise: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """From a lower time s up to t > s: x_t = (α_t/α_s)·x_s + √(σ_t² − (α_t/α_s·σ_s)²)·ε.

        The forward process's own transition, so the marginal at s becomes the marginal at t; `diffuse` is
        s = 0. x_s, noise [B, ...], s, t [B] → [B, ...].
        """
        carry = self.alpha(t) / self.alpha(s)
        fresh = torch.sqrt((self.sigma(t).square() - (carry * self.sigma(s)).square()).clamp(min=0))
        return expand(carry, x_s) * x_s + expand(fresh, x_s) * noise

    def step(self, x_t: Tensor, x0_hat: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """One first-order step of the probability-flow ODE from t to s (DDIM), exact if x̂_0 is constant.

        x_s = α_s·x̂_0 + σ_s·(x_t − α_t·x̂_0)/σ_t, written as one coefficient for each image,

            x_s = (σ_s/σ_t)·x_t + (α_s·σ_t − α_t·σ_s)/σ_t·x̂_0,

        so that s = t is exactly the identity, σ_s = 0 gives exactly x̂_0, and α_t = 0 divides nothing by 0.
        x_t, x0_hat [B, ...], t > 0 and s [B] → [B, ...]. Source: METHOD §0.
        """
        keep = self.sigma(s) / self.sigma(t)
        return expand(keep, x_t) * x_t + expand(self.move(t, s), x_t) * x0_hat

    def move(self, t: Tensor, s: Tensor) -> Tensor:
        """α_s − σ_s·α_t/σ_t: what a step from t > 0 to s makes of a change of x̂_0, [B]; 0 at s = t."""
        sigma_t = self.sigma(t)
        return (self.alpha(s) * sigma_t - self.alpha(t) * self.sigma(s)) / sigma_t

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """α'(t) and σ'(t), by forward differentiation. t > 0 [B] → each [B]."""
        one = (torch.ones_like(t),)
        return torch.func.jvp(self.alpha, (t,), one)[1], torch.func.jvp(self.sigma, (t,), one)[1]

    def velocity(self, x_t: Tensor, x0_hat: Tensor, t: Tensor) -> Tensor:
        """dx_t/dt = α'·x̂_0 + σ'·ε̂ on the flow, with ε̂ = (x_t − α·x̂_0)/σ; nothing is divided by α.

        EDM: (x_t − x̂_0)/t; rectified flow: ε̂ − x̂_0. x_t, x0_hat [B, ...], t > 0 [B] → [B, ...].
        Source: METHOD §8.
        """
        d_alpha, d_sigma = self.rates(t)
        keep = d_sigma / self.sigma(t)
        return expand(keep, x_t) * x_t + expand(d_alpha - keep * self.alpha(t), x_t) * x0_hat

    def estimated_velocity(self, x_0: Tensor, noise: Tensor, x0_hat: Tensor, t: Tensor) -> Tensor:
        """`velocity` at x_t = α·x_0 + σ·ε, without its cancellation at small t where x̂_0 is near x_0.

        α'·x_0 + σ'·ε + (α' − σ'·α/σ)·(x̂_0 − x_0): the velocity of x_0 and ε alone for x̂_0 = x_0.
        """
        d_alpha, d_sigma = self.rates(t)
        own = expand(d_alpha, x_0) * x_0 + expand(d_sigma, x_0) * noise
        carry = d_alpha - d_sigma * self.alpha(t) / self.sigma(t)
        return own + expand(carry, x_0) * (x0_hat - x_0)

    def noise_hat(self, x_t: Tensor, x0_hat: Tensor, t: Tensor) -> Tensor:
        """ε̂ = (x_t − α_t·x̂_0)/σ_t. x_t, x0_hat [B, ...], t > 0 [B] → [B, ...]."""
        return (x_t - expand(self.alpha(t), x_t) * x0_hat) / expand(self.sigma(t), x_t)


@dataclass(frozen=True)
class EDM(NoiseSchedule):
    """Variance exploding: α = 1, σ(t) = t (EDM, 2206.00364, §4)."""

    t_min: float = 0.002
    t_max: float = 80.0

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def time_at(self, noise_to_signal: Tensor) -> Tensor:
        return noise_to_signal


@dataclass(frozen=True)
class VP(NoiseSchedule):
    """Variance preserving with linear β(t) = β_min + t·β_d, t in (0, 1]: α² + σ² = 1.

    σ²/α² = exp(β_d·t²/2 + β_min·t) − 1 (Score SDE, 2011.13456, appendix C; constants of EDM, table 1).
    """

    beta_min: float = 0.1
    beta_d: float = 19.9
    t_min: float = 1e-5
    t_max: float = 1.0

    def _log_variance_growth(self, t: Tensor) -> Tensor:
        return 0.5 * self.beta_d * t.square() + self.beta_min * t

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-0.5 * self._log_variance_growth(t))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(-self._log_variance_growth(t)))

    def time_at(self, noise_to_signal: Tensor) -> Tensor:
        growth = torch.log1p(noise_to_signal.square())
        # The root of β_d·t²/2 + β_min·t = growth, in the form that does not cancel at small t.
        return 2 * growth / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * self.beta_d * growth))


@dataclass(frozen=True)
class RectifiedFlow(NoiseSchedule):
    """Straight lines: α = 1 − t, σ = t, t in (0, 1] (Rectified Flow, 2209.03003)."""

    t_min: float = 0.002 / 1.002
    t_max: float = 80.0 / 81.0

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def time_at(self, noise_to_signal: Tensor) -> Tensor:
        return noise_to_signal / (1 + noise_to_signal)


@dataclass(frozen=True)
class Trigonometric(NoiseSchedule):
    """α = cos t, σ = sin t, t in (0, π/2] (TrigFlow, 2410.11081)."""

    t_min: float = math.atan(0.002)
    t_max: float = math.atan(80.0)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.cos(t)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(t)

    def time_at(self, noise_to_signal: Tensor) -> Tensor:
        return torch.atan(noise_to_signal)


@dataclass(frozen=True)
class TrigFlow(NoiseSchedule):
    """α = cos t, σ = σ_d·sin t, t in (0, π/2]: the process of continuous-time consistency (2410.11081, §3).

    x_t has the data's standard deviation σ_d at every t.
    """

    sigma_data: float = 0.5

    @property
    def t_min(self) -> float:  # type: ignore[override]
        return math.atan(0.002 / self.sigma_data)

    @property
    def t_max(self) -> float:  # type: ignore[override]
        return math.atan(80.0 / self.sigma_data)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.cos(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_data * torch.sin(t)

    def time_at(self, noise_to_signal: Tensor) -> Tensor:
        return torch.atan(noise_to_signal / self.sigma_data)


def convert(x_t: Tensor, t: Tensor, source: NoiseSchedule, target: NoiseSchedule) -> tuple[Tensor, Tensor]:
    """The same noisy image under another schedule: the point at equal signal-to-noise ratio.

    u with σ'(u)/α'(u) = σ(t)/α(t), and x_u = (α'(u)/α(t))·x_t. x_t [B, ...], t [B] → x_u, u.
    Raises ValueError where α(t) = 0: pure noise has no finite ratio. On a card, which would have to be waited
    for, the point is then infinite.
    """
    alpha = source.alpha(t)
    if alpha.device.type == "cpu" and bool((alpha <= 0).any()):
        raise ValueError("cannot convert a point with alpha(t) = 0: its noise-to-signal ratio is infinite")
    u = target.time_at(source.sigma(t) / alpha)
    return expand(target.alpha(u) / alpha, x_t) * x_t, u


@dataclass(frozen=True)
class Rescheduled:
    """A denoiser for `source` as a denoiser for `schedule`: D'(x_t, t) = D(x_t·α(u)/α'(t), u) at equal σ/α.

    So a network that is preconditioned for EDM trains and samples under any schedule. A two-time network's
    second time is converted alike.
    """

    model: Denoiser
    schedule: NoiseSchedule
    source: NoiseSchedule = EDM()

    @property
    def two_times(self) -> bool:
        return getattr(self.model, "two_times", False)

    def exactly(self) -> AbstractContextManager[None]:
        """The context in which derivatives of the model are taken (`core.derivative`)."""
        scope: Callable[[], AbstractContextManager[None]] = getattr(self.model, "exactly", nullcontext)
        return scope()

    def __call__(
        self, x_t: Tensor, t: Tensor, condition: Conditioning = None, s: Tensor | None = None
    ) -> Tensor:
        x_u, u = convert(x_t, t, self.schedule, self.source)
        end = None if s is None else self.source.time_at(self.schedule.noise_to_signal(s))
        return predict(self.model, x_u, u, condition, end)


def rescheduled(model: Denoiser, schedule: NoiseSchedule) -> Denoiser:
    """A denoiser for EDM's schedule as one for `schedule`; the model itself where that is EDM's."""
    return model if isinstance(schedule, EDM) else Rescheduled(model, schedule)
