"""Distances between the model's output and its target, over whole samples (METHOD §3, §7)."""

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from consistune.core.noise import NoiseSchedule
from consistune.core.types import Times

SMALLEST = 1e-18
"""A smaller c is 0: its square is no number of fp32, and the gradient at equal images would be NaN."""
SMALLEST_RADIUS = 1e-8
"""At radius 0 the gradient of δ²/(√(δ² + c²) + c) would be NaN where δ = 0."""


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
        if not (0 <= self.c < math.inf and 0 <= self.per_root_dim < math.inf):
            raise ValueError(
                f"c and per_root_dim must not be negative or infinite, got {self.c}, {self.per_root_dim}"
            )

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        norm = length(a - b)
        c = self.c + self.per_root_dim * math.sqrt(a[0].numel())
        # √(n² + c²) − c = n²/(√(n² + c²) + c), which does not cancel for n ≪ c.
        return norm.square() / (torch.sqrt(norm.square() + c * c) + c) if c > SMALLEST else norm


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


@dataclass(frozen=True)
class AdaptiveHuber:
    """d_i = δ_i²/(√(δ_i² + c_i²) + c_i): pseudo-Huber with a radius of its own for each sample (METHOD §7).

    δ_i = ‖f_t − f_r‖, and c_i = κ·g·|α_r − σ_r·α_t/σ_t|·s_i is the length that the scatter s_i of the
    estimate has at the network's output: it rounds the norm off as one-sample's noise would, without the
    noise. So c_i is proportional to t − r as r → t, and 0 where the posterior is one image.

    Attributes:
        scatter: own: s_i = ‖x_0 − x̂_0‖. posterior: s_i = √(E‖x_0 − x̂_0‖²), the estimator's own root variance.
            measured: c_i = κ·‖f⁻(x_r made with x_0) − f⁻(x_r)‖, one more pass of the target network.
        scale: κ.
        sigma_data: σ_d in the gain of f between r and its end s, g = G(s)/G(r), G(u) = α_u + σ_u/(4σ_d).
            1 at r = s exactly. The 4 is an assumption on the data. `measured` does not use it.
    """

    scatter: Literal["own", "posterior", "measured"]
    scale: float = 1.0
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        if self.scatter not in ("own", "posterior", "measured"):
            raise ValueError(f"scatter must be own, posterior or measured, got {self.scatter!r}")
        if not (self.scale > 0 and math.isfinite(self.scale)):
            raise ValueError(f"scale must be positive, got {self.scale}")
        if not self.sigma_data > 0:
            raise ValueError(f"sigma_data must be positive, got {self.sigma_data}")
        if self.scatter == "measured" and self.sigma_data != AdaptiveHuber.sigma_data:
            raise ValueError("sigma_data has no effect where the radius is measured: leave it out")

    def radius(self, times: Times, schedule: NoiseSchedule, scatter: Tensor) -> Tensor:
        """c_i [B] from the scatter s_i [B] of x̂_0 at t."""
        gain = self._growth(times.s, schedule) / self._growth(times.r, schedule)
        return self.scale * gain * schedule.move(times.t, times.r).abs() * scatter

    def _growth(self, u: Tensor, schedule: NoiseSchedule) -> Tensor:
        return schedule.alpha(u) + schedule.sigma(u) / (4 * self.sigma_data)

    def __call__(self, a: Tensor, b: Tensor, radius: Tensor) -> Tensor:
        """a, b [B, ...], radius c_i ≥ 0 [B] → [B]."""
        square = length(a - b).square()
        c = radius.clamp(min=SMALLEST_RADIUS)
        return square / (torch.sqrt(square + c.square()) + c)


def length(x: Tensor) -> Tensor:
    """‖x‖ over each sample: [B, ...] → [B]."""
    norm: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return norm
