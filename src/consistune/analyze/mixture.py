"""Isotropic Gaussian mixtures: data whose score, posterior mean and consistency function are known exactly.

An estimator, a solver or a trained model can be compared here with exact numbers instead of another model.
"""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from consistune.core.noise import NoiseSchedule
from consistune.core.types import expand


@dataclass(frozen=True, eq=False)
class GaussianMixture:
    """p(x_0) = Σ_k π_k N(x_0; m_k, std²·I).

    With y = x_t/α_t and s = σ_t/α_t the noisy density is again a mixture, of variance v = std² + s²:

        score     ∇ log p_s(y) = (Σ_k γ_k m_k − y)/v,   γ = softmax_k(ln π_k − ‖y − m_k‖²/2v)
        mean      E[x_0 | y]   = y + s²·score            (Tweedie)
        flow      dy/ds        = −s·score

    Attributes:
        means: m_k, [K, ...], [K, *sample shape]; computations run in their dtype.
        std: standard deviation of every component, positive.
        weights: π_k [K], or None for equal ones.
    """

    means: Tensor
    std: float
    weights: Tensor | None = None

    def __post_init__(self) -> None:
        if self.std <= 0:
            raise ValueError(f"std must be positive, got {self.std}")
        if self.weights is not None and self.weights.shape != self.means.shape[:1]:
            raise ValueError(f"{len(self.means)} means, but weights of shape {list(self.weights.shape)}")

    def sample(self, n: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """n samples [n, ...] and the component each came from [n]."""
        pi = torch.ones(len(self.means)) if self.weights is None else self.weights
        component = torch.multinomial(pi, n, replacement=True, generator=generator)
        noise = torch.randn(n, *self.means.shape[1:], generator=generator, dtype=self.means.dtype)
        return self.means[component] + self.std * noise, component

    def posterior_sample(
        self, x_t: Tensor, t: Tensor, schedule: NoiseSchedule, generator: Generator
    ) -> Tensor:
        """x_0 ~ p(x_0 | x_t): a component by its γ, then N(m + g·(y − m), g·s²), g = std²/v."""
        y, s = self._scaled(x_t, t, schedule)
        component = torch.multinomial(self._shares(y, s), 1, generator=generator)[:, 0]
        gain = self.std**2 / (self.std**2 + s.square())
        centre = self.means[component] + expand(gain, y) * (y - self.means[component])
        noise = torch.randn(y.shape, generator=generator, dtype=y.dtype)
        return centre + expand(gain.sqrt() * s, y) * noise

    def _scaled(self, x_t: Tensor, t: Tensor, schedule: NoiseSchedule) -> tuple[Tensor, Tensor]:
        """y = x_t/α_t and s = σ_t/α_t."""
        t = t.to(self.means)
        return x_t.to(self.means) / expand(schedule.alpha(t), x_t), schedule.noise_to_signal(t)

    def score(self, y: Tensor, s: Tensor) -> Tensor:
        """∇ log p_s(y). y [B, ...], noise-to-signal ratios s [B] → [B, ...]."""
        y = y.to(self.means)
        centre = torch.einsum("bk,k...->b...", self._shares(y, s), self.means)
        return (centre - y) / expand(self.std**2 + s.to(self.means).square(), y)

    def _shares(self, y: Tensor, s: Tensor) -> Tensor:
        """γ_k [B, K]: how probable each component is at y."""
        variance = self.std**2 + s.to(self.means).square()
        squares = (y[:, None] - self.means[None]).flatten(2).square().sum(2)
        logits = -squares / (2 * variance)[:, None]
        if self.weights is not None:
            logits = logits + self.weights.to(self.means).log()
        return torch.softmax(logits, dim=1)

    def denoise(self, x_t: Tensor, t: Tensor, schedule: NoiseSchedule) -> Tensor:
        """E[x_0 | x_t]: what a perfect diffusion model gives. x_t [B, ...], t [B] → [B, ...]."""
        y, s = self._scaled(x_t, t, schedule)
        return y + expand(s.square(), y) * self.score(y, s)

    def consistency(
        self,
        x_t: Tensor,
        t: Tensor,
        schedule: NoiseSchedule,
        tolerance: float = 1e-9,
        max_steps: int = 1 << 14,
    ) -> Tensor:
        """f(x_t, t): the end of the trajectory through x_t, what a perfect consistency model gives.

        Runge–Kutta of order 4 in u, s = std·sinh(u), in which the flow is smooth from the prior to s = 0;
        the number of steps doubles until nothing moves by more than `tolerance`, and the last two are
        extrapolated. Use float64 means. x_t [B, ...], t [B] → [B, ...]. Raises ValueError where
        `max_steps` do not reach the tolerance.
        """
        y, s = self._scaled(x_t, t, schedule)
        steps = 32
        coarse = self._flow_to_data(y, s, steps)
        while steps < max_steps:
            steps *= 2
            fine = self._flow_to_data(y, s, steps)
            change = fine - coarse
            if float(change.abs().max()) <= tolerance:
                return fine + change / 15
            coarse = fine
        raise ValueError(f"the trajectory is not within {tolerance} after {max_steps} steps")

    def _flow_to_data(self, y: Tensor, s: Tensor, steps: int) -> Tensor:
        top = torch.asinh(s / self.std)
        h = -top / steps

        def slope(y: Tensor, u: Tensor) -> Tensor:
            s = self.std * torch.sinh(u)
            return expand(-s * self.std * torch.cosh(u), y) * self.score(y, s)

        for i in range(steps):
            u = top * (1 - i / steps)
            k1 = slope(y, u)
            k2 = slope(y + expand(h / 2, y) * k1, u + h / 2)
            k3 = slope(y + expand(h / 2, y) * k2, u + h / 2)
            k4 = slope(y + expand(h, y) * k3, u + h)
            y = y + expand(h / 6, y) * (k1 + 2 * k2 + 2 * k3 + k4)
        return y


_ANGLES = torch.arange(8, dtype=torch.float64) * math.pi / 4
RING = GaussianMixture(0.7 * torch.stack([_ANGLES.cos(), _ANGLES.sin()], 1).view(8, 1, 1, 2), 0.06)
"""Eight Gaussians on a ring in the plane, images [1, 1, 2]."""
