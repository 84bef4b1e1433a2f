"""The law of (t, r), the ends of a flow map's jump, in σ/α: MeanFlow, 2505.13447 (METHOD §8)."""

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Generator, Tensor

from consistune.core.types import widest


class Intervals(Protocol):
    """The law of the jumps t → r, where some have r = t."""

    def sample(self, n: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """σ/α at t and at r ≤ t, each [n], fp32, on the generator's device."""
        ...


@dataclass(frozen=True)
class LogitNormal:
    """t = highest·sigmoid(n), r = highest·sigmoid(n') with normal n and n': rectified flow's times.

    There σ/α = t/(1 − t). Under another schedule, the times of the same σ/α. Defaults: CIFAR-10 of
    py-meanflow's v1, with FastGen's highest. MeanFlow's paper has −2, 2, −2, 2 with order swap there, and
    −0.4, 1, −0.4, 1 with equal 0.75 on ImageNet-256.

    Attributes:
        mean, std, r_mean, r_std: of n and n'.
        equal: the share of samples with r = t.
        order: how r ≤ t is reached: swap exchanges the two, clamp puts r = min(r, t).
        exact: the first ⌊equal·n⌋ samples have r = t; else each has with this probability.
        highest: the supremum of t; below 1, where the signal α would vanish.
    """

    mean: float = -0.6
    std: float = 1.6
    r_mean: float = -4.0
    r_std: float = 1.6
    equal: float = 0.25
    order: Literal["swap", "clamp"] = "clamp"
    exact: bool = False
    highest: float = 0.999

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and math.isfinite(self.r_mean)):
            raise ValueError(f"mean and r_mean must be finite, got {self.mean} and {self.r_mean}")
        if self.order not in ("swap", "clamp"):
            raise ValueError(f"order must be swap or clamp, got {self.order!r}")
        if not (self.std > 0 and self.r_std > 0):
            raise ValueError(f"std and r_std must be positive, got {self.std} and {self.r_std}")
        if not 0 <= self.equal <= 1:
            raise ValueError(f"equal must lie in [0, 1], got {self.equal}")
        if not 0 < self.highest < 1:
            raise ValueError(
                f"highest must lie in (0, 1), got {self.highest}: at 1 there is no signal, and neither "
                "networks nor teachers in EDM's preconditioning know such a noise level"
            )

    def sample(self, n: int, generator: Generator) -> tuple[Tensor, Tensor]:
        device, dtype = generator.device, widest(generator.device)
        normals = torch.randn(2, n, generator=generator, device=device, dtype=dtype)
        uniform = torch.rand(n, generator=generator, device=device, dtype=dtype)
        t, r = self.times(normals[0], normals[1], uniform)
        return (t / (1 - t)).float(), (r / (1 - r)).float()

    def times(self, normal_t: Tensor, normal_r: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """(t, r) in rectified flow's time, from standard normals and uniforms [n]."""
        t = self.highest * torch.sigmoid(self.mean + self.std * normal_t)
        r = self.highest * torch.sigmoid(self.r_mean + self.r_std * normal_r)
        if self.order == "swap":
            t, r = torch.maximum(t, r), torch.minimum(t, r)
        if self.exact:
            same = torch.arange(len(t), device=t.device) < math.floor(self.equal * len(t))
        else:
            same = uniform < self.equal
        return t, torch.where(same, t, torch.minimum(r, t))
