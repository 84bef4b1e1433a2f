"""Distances between the model's output and its target, over whole samples (METHOD §3)."""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


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
