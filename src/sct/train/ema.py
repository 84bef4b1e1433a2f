"""Exponential moving averages of a model's weights, and the target networks made of them."""

import copy
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from sct.core.times import GrowingGrid
from sct.core.types import Progress


class EMA:
    """θ̄ ← β·θ̄ + (1 − β)·θ after every optimizer step; buffers are copied (ECT, 2406.14548: β = 0.9999)."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"the decay of an average must lie in [0, 1), got {decay}")
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, decay: float | None = None) -> None:
        """One step of the recursion, with this average's own decay or the given one."""
        weight = 1 - (self.decay if decay is None else decay)
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), weight)
        for average, buffer in zip(self.model.buffers(), model.buffers(), strict=True):
            average.copy_(buffer)


class Target(Protocol):
    """The decay μ of the target network's average at a point of training; None: it is the online network."""

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
    """μ(k) = exp(s₀·ln μ₀/(N(k) − 1)), slower as the grid grows (consistency training; CM, 2303.01469)."""

    total_images: int
    s0: int = 2
    s1: int = 150
    mu_0: float = 0.9

    def decay(self, progress: Progress) -> float | None:
        return GrowingGrid(self.total_images, self.s0, self.s1).target_decay(progress, self.mu_0)
