"""Exponential moving averages of a model's weights, and the target networks made of them."""

import copy
import math
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import nn

from consistune.core.times import GrowingGrid
from consistune.core.types import Progress
from consistune.training.sharding import local

SnapshotPrecision = Literal["fp32", "fp16"]
"""fp16 halves the file, as in EDM2; `posthoc` multiplies its rounding error, 2⁻¹¹ of a weight, by Σ|X_i|."""


class Average(Protocol):
    """The decay β of a step of `batch` images before which `images` images have been seen."""

    def decay(self, images: int, batch: int) -> float: ...


@dataclass(frozen=True)
class PerStep:
    """A constant β for any batch (ECT on CIFAR-10, 2406.14548: 0.9999 at 128 images a step)."""

    beta: float

    def __post_init__(self) -> None:
        if not 0 <= self.beta < 1:
            raise ValueError(f"ema: a decay per step must lie in [0, 1), got {self.beta}")

    def decay(self, images: int, batch: int) -> float:  # noqa: ARG002 - constant
        return self.beta


@dataclass(frozen=True)
class HalfLife:
    """β = 0.5^(batch/h), h = min(images, ramp_up·images seen before the step)  (EDM, 2206.00364, app. F.3).

    Attributes:
        images: the half-life in images.
        ramp_up: the half-life is at most this share of the images seen; None: no bound. EDM: 0.05, EDM2:
            0.09. With a bound the first step copies the weights, β = 0.
    """

    images: int
    ramp_up: float | None = None

    def __post_init__(self) -> None:
        if self.images < 1:
            raise ValueError(f"images, an average's half-life, must be at least 1, got {self.images}")
        if self.ramp_up is not None and not self.ramp_up > 0:
            raise ValueError(f"ramp_up must be positive, got {self.ramp_up}")

    @staticmethod
    def of_decay(decay: float, batch: int) -> float:
        """h in images of a constant decay β in (0, 1) at `batch` images a step: β = 0.5^(batch/h)."""
        return math.log(0.5) / math.log(decay) * batch

    def decay(self, images: int, batch: int) -> float:
        half = self.images if self.ramp_up is None else min(self.images, self.ramp_up * images)
        return 0.5 ** (batch / half) if half > 0 else 0.0


@dataclass(frozen=True)
class PowerFunction:
    """β = (1 − batch/n)^(γ+1), n the images seen after the step  (EDM2, 2312.02696, eq. 127).

    The average at n images is ∫ p(τ) θ(τ) dτ with p(τ) = (γ+1)·τ^γ/n^(γ+1). Its length is always the same
    share of training. From snapshots of two such averages `posthoc` reconstructs others.

    Attributes:
        std: p's standard deviation as a share of n, in (0, 0.289).
    """

    std: float

    def __post_init__(self) -> None:
        exponent_of(self.std)

    def decay(self, images: int, batch: int) -> float:
        return float((1 - batch / (images + batch)) ** (exponent_of(self.std) + 1))


def std_of(exponent: float) -> float:
    """s = √((γ+1)/((γ+2)²(γ+3)))  (EDM2, 2312.02696, eq. 123)."""
    return math.sqrt((exponent + 1) / ((exponent + 2) ** 2 * (exponent + 3)))


LONGEST_STD = std_of(0.0)
"""s = √(1/12) at γ = 0, the plain mean of all weights, which is the longest average."""


def exponent_of(std: float) -> float:
    """γ with std_of(γ) = std: the largest root of γ³ + 7γ² + (16 − s⁻²)γ + (12 − s⁻²)  (EDM2, eq. 126).

    Raises ValueError unless 0 < std < √(1/12).
    """
    if not 0 < std < LONGEST_STD:
        raise ValueError(f"std, an average's relative length, must lie in (0, {LONGEST_STD:.3f}), got {std}")
    k = std**-2
    # γ = y − 7/3 leaves y³ + py + q with three real roots here; the largest is Viète's with angle φ/3.
    p, q = 16 - k - 49 / 3, 2 * 343 / 27 - 7 * (16 - k) / 3 + 12 - k
    radius = 2 * math.sqrt(-p / 3)
    root = radius * math.cos(math.acos(min(1.0, 3 * q / (p * radius))) / 3) - 7 / 3
    for _ in range(2):  # Newton's steps remove the rounding error of the cosine
        value = ((root + 7) * root + 16 - k) * root + 12 - k
        root -= value / ((3 * root + 14) * root + 16 - k)
    return root


def as_average(average: Average | float) -> Average:
    """A number becomes a constant decay. Raises ValueError outside [0, 1)."""
    return PerStep(average) if isinstance(average, float | int) else average


class EMA:
    """θ̄ ← β·θ̄ + (1 − β)·θ after every optimizer step; buffers are copied.

    Attributes:
        average: gives β at each step; a number is a constant β.
        model: the averaged model, in evaluation mode.
    """

    def __init__(self, model: nn.Module, average: Average | float) -> None:
        self.average = as_average(average)
        self.model: Any = copy.deepcopy(model).eval().requires_grad_(False)

    def step(self, model: nn.Module, images: int, batch: int) -> None:
        """Update after a step of `batch` images before which `images` images had been seen."""
        self.update(model, self.average.decay(images, batch))

    @torch.no_grad()
    def update(self, model: nn.Module, decay: float) -> None:
        """One step of the recursion with β = decay."""
        own, other = ([local(p) for p in m.parameters()] for m in (self.model, model))
        torch._foreach_lerp_(own, other, 1 - decay)
        for average, buffer in zip(self.model.buffers(), model.buffers(), strict=True):
            average.copy_(buffer)


class Target(Protocol):
    """The decay μ of the target network's average at a point of training; None: no average, θ⁻ = θ."""

    def decay(self, progress: Progress) -> float | None: ...


@dataclass(frozen=True)
class Online:
    """θ⁻ = θ under stop-gradient (iCT, 2310.14189, §3.2; ECT; SCT)."""

    def decay(self, progress: Progress) -> float | None:  # noqa: ARG002 - constant
        return None


@dataclass(frozen=True)
class FixedAverage:
    """θ⁻ ← μ·θ⁻ + (1 − μ)·θ with a constant μ (consistency distillation; CM, 2303.01469: 0.95)."""

    mu: float = 0.95

    def __post_init__(self) -> None:
        if not 0 <= self.mu < 1:
            raise ValueError(f"mu must lie in [0, 1), got {self.mu}")

    def decay(self, progress: Progress) -> float | None:  # noqa: ARG002 - constant
        return self.mu


@dataclass(frozen=True)
class GrowingAverage:
    """μ(k) = exp(s₀·ln μ₀/(N(k) − 1)), which grows with the grid (consistency training; CM, 2303.01469)."""

    total_images: int
    s0: int = 2
    s1: int = 150
    mu_0: float = 0.9

    def __post_init__(self) -> None:
        if not 0 < self.mu_0 < 1:
            raise ValueError(f"mu_0 must lie in (0, 1), got {self.mu_0}")

    def decay(self, progress: Progress) -> float | None:
        return GrowingGrid(self.total_images, self.s0, self.s1).target_decay(progress, self.mu_0)
