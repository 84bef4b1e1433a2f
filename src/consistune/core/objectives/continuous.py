"""Continuous-time consistency: sCT and sCD (sCM, 2410.11081), with any noise estimator (METHOD §8)."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from consistune.core.derivative import derivative, exactly
from consistune.core.estimators import NoiseEstimator
from consistune.core.laws import LogNormal
from consistune.core.noise import NoiseSchedule, TrigFlow
from consistune.core.objectives.base import (
    Draws,
    Objective,
    check_draws,
    check_images,
    check_schedule,
    gaussian_like,
)
from consistune.core.objectives.weights import InverseGap, Weight
from consistune.core.rng import SharedDropout
from consistune.core.types import Batch, Conditioning, Denoiser, Progress, Times, expand, predict

LEAST_DIFFERENCE = 1e-5
"""In fp32 nothing is left of a smaller relative difference of times."""
EDGE = 1e-4
"""Differences are taken below π/2 − EDGE, where the noise has no finite level."""


@dataclass(frozen=True)
class ContinuousConsistency(Objective):
    """L = w(t)·e^{−u(t)}·mean (F_θ − F⁻ − g)² + u(t), g the normalised tangent of f  (2410.11081, §4).

    In TrigFlow's coordinates, whatever the schedule: x̂ = cos t·x_0 + sin t·σ_d·ε, tan t = σ/(α·σ_d), and
    f = D = cos t·x̂ − sin t·σ_d·F. With dx̂/dt from the estimator's x̂_0 and F⁻ = F without gradient,

        g = −cos²t·(σ_d·F⁻ − dx̂/dt) − ρ·cos t·sin t·(x̂ + σ_d·dF⁻/dt),   g ← g/(‖g‖ + c),

    which is cos t·df/dt at ρ = 1. dF⁻/dt is taken along (dx̂/dt, 1), with F's dropout mask. ρ grows from
    0 to 1 over the first images; at ρ = 0 this is diffusion training. A transition's r in `Draws.times` is at
    ρ·(σ/α) of t, which is what a blend of estimators reads.

    Attributes:
        law: of σ/α.
        weight: of each sample, with r = 0: `InverseGap` is the prior weight α/σ.
        log_variance: u(t) [B] → [B], learned; None: 0.
        warmup_images: ρ reaches 1 after so many images.
        c: of the tangent's normalisation.
        per_root_dim: ‖g‖ there is divided by √d, as in FastGen.
        sigma_data: σ_d.
        difference: None: the exact forward derivative. Else dF⁻/dt is the central difference at t·(1 ± this)
            on the circle through x_t, for networks that torch.func.jvp cannot pass.
    """

    schedule: NoiseSchedule
    estimator: NoiseEstimator
    law: LogNormal = LogNormal(-1.0, 1.4, 0.002, 80.0)
    weight: Weight = InverseGap()
    log_variance: Callable[[Tensor], Tensor] | None = None
    warmup_images: int = 5_120_000
    c: float = 0.1
    per_root_dim: bool = True
    sigma_data: float = 0.5
    difference: float | None = None

    uses_target: ClassVar[bool] = False
    differentiates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_schedule(self.schedule, self.estimator)
        if self.warmup_images < 0:
            raise ValueError(f"warmup_images must not be negative, got {self.warmup_images}")
        if not self.c > 0 or not self.sigma_data > 0:
            raise ValueError(f"c and sigma_data must be positive, got {self.c} and {self.sigma_data}")
        if self.difference is not None and not LEAST_DIFFERENCE <= self.difference < 1:
            raise ValueError(f"difference must lie in [{LEAST_DIFFERENCE:g}, 1), got {self.difference}")

    def reference_bytes(self) -> int:
        return self.estimator.reference_bytes()

    def draw(self, batch: Batch, progress: Progress, generator: Generator) -> Draws:
        t = self.schedule.time_at(self.law.sample(len(batch), generator)).to(batch.x_0.device)
        return self._bound(batch, t, progress, gaussian_like(batch.x_0, generator), generator)

    def at(
        self,
        model: Denoiser,
        batch: Batch,
        t: Tensor,
        progress: Progress,
        noise: Tensor,
        generator: Generator | None = None,
    ) -> Tensor:
        """The loss [B] at given times [B] and noise [B, C, H, W]; `generator` draws random references."""
        return self.losses(model, model, self._bound(batch, t, progress, noise, generator))

    def _bound(
        self, batch: Batch, t: Tensor, progress: Progress, noise: Tensor, generator: Generator | None
    ) -> Draws:
        warmed = min(1.0, progress / self.warmup_images) if self.warmup_images else 1.0
        r = self.schedule.time_at(warmed * self.schedule.noise_to_signal(t)) if warmed < 1 else t
        r = torch.minimum(r, t)  # near the end of the warm-up it may round above
        times = Times(t, r, torch.zeros_like(t))
        check_draws(batch, times, noise)
        with torch.no_grad():
            return Draws(batch, times, noise, self.estimator.bind(batch, times, generator))

    def losses(self, model: Denoiser, target: Denoiser, draws: Draws) -> Tensor:
        del target
        batch, t = draws.batch, draws.times.t
        condition = batch.network_condition
        mask = SharedDropout(t.device)
        ratio = self.schedule.noise_to_signal(t)
        trig = TrigFlow(self.sigma_data)
        angle = trig.time_at(ratio)
        x = trig.diffuse(batch.x_0, draws.noise, angle)
        raw = self.raw(model, x, angle, condition)
        with torch.no_grad():
            x_t = self.schedule.diffuse(batch.x_0, draws.noise, t)
            x0_hat = check_images(draws.estimator.clean(x_t, t, batch), x_t, draws.estimator)
            velocity = trig.estimated_velocity(batch.x_0, draws.noise, x0_hat, angle)
            slope = self._slope(model, x, x0_hat, velocity, angle, condition, mask.again)
            warmed = self.schedule.noise_to_signal(draws.times.r) / ratio
            g = self.tangent(x, velocity, raw, slope, angle, warmed)
            target_raw = raw + self.normalised(g)
        weight = self.weight(Times(t, torch.zeros_like(t), torch.zeros_like(t)), self.schedule)
        loss = weight * (raw - target_raw).flatten(1).square().mean(1)
        if self.log_variance is None:
            return loss
        u = self.log_variance(t)
        return loss / u.exp() + u

    def raw(self, model: Denoiser, x: Tensor, angle: Tensor, condition: Conditioning) -> Tensor:
        """F = (cos t·x̂ − D)/(sin t·σ_d) at TrigFlow's (x̂, t), at least fp32; a two-time D jumps to 0."""
        t = self.schedule.time_at(self.sigma_data * torch.tan(angle))
        x_t = expand(self.schedule.alpha(t) / torch.cos(angle), x) * x
        end = predict(model, x_t, t, condition, torch.zeros_like(t))
        above = expand(torch.cos(angle), x) * x - end
        return above / expand(self.sigma_data * torch.sin(angle), x)

    def _slope(
        self,
        model: Denoiser,
        x: Tensor,
        x0_hat: Tensor,
        velocity: Tensor,
        angle: Tensor,
        condition: Conditioning,
        again: Callable[[], AbstractContextManager[None]],
    ) -> Tensor:
        """cos t·sin t·dF⁻/dt along (dx̂/dt, 1), with the dropout mask of the pass before."""

        def raw(x: Tensor, angle: Tensor) -> Tensor:
            with again():
                return self.raw(model, x, angle, condition)

        rate = torch.cos(angle) * torch.sin(angle)
        if self.difference is None:
            return derivative(model, raw, (x, angle), (expand(rate, x) * velocity, rate))[1]
        trig = TrigFlow(self.sigma_data)
        below = angle * (1 - self.difference)
        above = torch.clamp(angle * (1 + self.difference), max=torch.pi / 2 - EDGE)
        with exactly(model):
            ends = [raw(trig.step(x, x0_hat, angle, at), at) for at in (below, above)]
        return expand(rate / (above - below), x) * (ends[1] - ends[0])

    def tangent(
        self, x: Tensor, velocity: Tensor, raw: Tensor, slope: Tensor, angle: Tensor, warmed: Tensor
    ) -> Tensor:
        """g before its normalisation; slope is cos t·sin t·dF⁻/dt."""
        cos, sin, rho = (expand(value, x) for value in (torch.cos(angle), torch.sin(angle), warmed))
        still = cos.square() * (self.sigma_data * raw - velocity)
        return -still - rho * (cos * sin * x + self.sigma_data * slope)

    def normalised(self, g: Tensor) -> Tensor:
        """g/(‖g‖ + c), with ‖g‖/√d under `per_root_dim`."""
        norm = torch.linalg.vector_norm(g.flatten(1), dim=1)
        if self.per_root_dim:
            norm = norm / g[0].numel() ** 0.5
        return g / expand(norm + self.c, g)
