"""One isotropic Gaussian N(mean, std²) as data: denoiser and consistency function in closed form."""

from dataclasses import dataclass

import torch
from torch import Tensor

from consistune.core.noise import EDM, VP, NoiseSchedule, RectifiedFlow, Trigonometric
from consistune.core.types import expand

SCHEDULES: tuple[NoiseSchedule, ...] = (EDM(), VP(), RectifiedFlow(), Trigonometric())


@dataclass(frozen=True)
class Gaussian:
    schedule: NoiseSchedule
    mean: float = 0.3
    std: float = 0.5

    def denoise(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """E[x_0 | x_t] = m + α·std²/(α²·std² + σ²)·(x_t − α·m)."""
        del condition
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        gain = alpha * self.std**2 / (alpha.square() * self.std**2 + sigma.square())
        return self.mean + expand(gain, x_t) * (x_t - expand(alpha, x_t) * self.mean)

    def flow(self, x_t: Tensor, t: Tensor, r: Tensor) -> Tensor:
        """x_r on the trajectory through x_t: the deviation from α·m scales with the marginal's deviation."""
        alpha_t, alpha_r = self.schedule.alpha(t), self.schedule.alpha(r)
        spread_t = torch.sqrt((alpha_t * self.std).square() + self.schedule.sigma(t).square())
        spread_r = torch.sqrt((alpha_r * self.std).square() + self.schedule.sigma(r).square())
        deviation = x_t - expand(alpha_t, x_t) * self.mean
        return expand(alpha_r, x_t) * self.mean + expand(spread_r / spread_t, x_t) * deviation

    def consistency(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """f(x_t, t): the trajectory's end."""
        del condition
        return self.flow(x_t, t, torch.zeros_like(t))


@dataclass(frozen=True)
class Anisotropic:
    """N(mean, diag(std²)) as data, another std for each element [C, H, W], float64."""

    schedule: NoiseSchedule
    std: Tensor
    mean: float = 0.3

    two_times = True

    def spread(self, t: Tensor) -> Tensor:
        alpha, sigma = (expand(f(t), self.std[None]) for f in (self.schedule.alpha, self.schedule.sigma))
        return torch.sqrt((alpha * self.std).square() + sigma.square())

    def denoise(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """E[x_0 | x_t]."""
        alpha = expand(self.schedule.alpha(t), x_t)
        return self.mean + alpha * (self.std / self.spread(t)).square() * (x_t - alpha * self.mean)

    def flow(self, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """x_s on the trajectory through x_t."""
        alpha_t, alpha_s = (expand(self.schedule.alpha(u), x_t) for u in (t, s))
        return alpha_s * self.mean + self.spread(s) / self.spread(t) * (x_t - alpha_t * self.mean)

    def __call__(
        self, x_t: Tensor, t: Tensor, condition: Tensor | None = None, s: Tensor | None = None
    ) -> Tensor:
        """The x̂_0 whose step from t to s ends at the solution; the denoiser where s is t."""
        if s is None:
            return self.denoise(x_t, t)
        same = s >= t
        end = self.flow(x_t, t, s)
        sigma_t, sigma_s = self.schedule.sigma(t), self.schedule.sigma(s)
        move = (self.schedule.alpha(s) * sigma_t - self.schedule.alpha(t) * sigma_s) / sigma_t
        move = torch.where(same, 1.0, move)
        jumped = (end - expand(sigma_s / sigma_t, x_t) * x_t) / expand(move, x_t)
        return torch.where(expand(same, x_t), self.denoise(x_t, t), jumped)
