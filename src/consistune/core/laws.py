"""The laws of a time, as a noise-to-signal ratio σ/α, cut to a range exactly (METHOD §3, §8)."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Generator, Tensor

from consistune.core.types import moved, widest


@dataclass(frozen=True)
class LogNormal:
    """ln(σ/α) ~ N(mean, std²), optionally cut to [low, high] (exactly, by the inverse of the normal CDF).

    Defaults: CIFAR-10 of ECT, 2406.14548, and iCT, 2310.14189. EDM pretraining uses −1.2, 1.2.
    """

    mean: float = -1.1
    std: float = 2.0
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if not self.std > 0 or not math.isfinite(self.mean):
            raise ValueError(f"std must be positive and mean finite, got {self.std} and {self.mean}")
        low, high = 0.0 if self.low is None else self.low, math.inf if self.high is None else self.high
        if not low < high or min(low if self.low is not None else 1.0, high) <= 0:
            raise ValueError(f"need 0 < low < high, got {self.low} and {self.high}")
        floor, ceiling, _ = self._masses()
        if not ceiling > floor:
            raise ValueError(f"a law of mean {self.mean} and std {self.std} has no mass from low to high")

    def sample(self, n: int, generator: Generator) -> Tensor:
        """n noise-to-signal ratios, fp32 [n]."""
        if self.low is None and self.high is None:
            normal = torch.randn(n, generator=generator, device=generator.device)
            return torch.exp(self.mean + self.std * normal)
        dtype = widest(generator.device)
        uniform = torch.rand(n, generator=generator, device=generator.device, dtype=dtype)
        return self.quantile(uniform).float()

    def quantile(self, uniform: Tensor) -> Tensor:
        """The ratio below which the law has this mass: its inverse distribution function, float64 [n]."""
        floor, ceiling, sign = self._masses()
        share = uniform if sign > 0 else 1 - uniform
        normal = sign * torch.special.ndtri(floor + (ceiling - floor) * share)
        ratio = torch.exp(self.mean + self.std * normal)
        return ratio if self.low is self.high is None else ratio.clamp(self.low, self.high)

    def _masses(self) -> tuple[float, float, int]:
        """The mass below both bounds, and 1; or, where they lie above the mean, that above both, and −1.

        Far from the mean 1 less a tail would have nothing left of it in float64.
        """
        low = -math.inf if self.low is None else (math.log(self.low) - self.mean) / self.std
        high = math.inf if self.high is None else (math.log(self.high) - self.mean) / self.std
        return (_tail(high), _tail(low), -1) if low > 0 else (_tail(-low), _tail(-high), 1)


def _tail(z: float) -> float:
    """The mass of the standard normal law above z."""
    return 0.5 * math.erfc(z / math.sqrt(2))


class TimeLaw(Protocol):
    """A law of noise-to-signal ratios on [low, high]."""

    @property
    def low(self) -> float | None: ...

    @property
    def high(self) -> float | None: ...

    def sample(self, n: int, generator: Generator) -> Tensor: ...


NORMAL = 1e6
"""Degrees of freedom beyond which Student's law differs from the normal one by less than 1e-6."""


@dataclass(frozen=True)
class LogStudent:
    """(ln(σ/α) − mean)/std follows Student's t with `df` degrees of freedom, cut to [low, high] exactly
    (but for tails so thin that fp64 has no mass there).

    A small df puts much mass into both ends of the range: at the defaults (TCM, 2410.14895, stage 2) the
    quantiles 0.1, 0.5, 0.9 are 1.01, 1.22, 10.4.
    """

    mean: float = 0.0
    std: float = 0.2
    low: float = 1.0
    high: float = 80.0
    df: float = 0.01

    def __post_init__(self) -> None:
        if not (self.std > 0 and 0 < self.df <= NORMAL):
            raise ValueError(f"std must be positive and df in (0, {NORMAL:g}], got {self.std} and {self.df}")
        if not 0 < self.low < self.high < math.inf:
            raise ValueError(f"need 0 < low < high, got {self.low} and {self.high}")
        start, stop = self._range()
        if self.df * math.log(math.cosh(min(max(start, 0.0), stop))) > 600:  # its density underflows there
            raise ValueError(f"a law of mean {self.mean} and std {self.std} has no mass from low to high")

    def _range(self) -> tuple[float, float]:
        """w at the bounds."""
        scale = self.std * math.sqrt(self.df)
        start, stop = (math.asinh((math.log(u) - self.mean) / scale) for u in (self.low, self.high))
        return start, stop

    def sample(self, n: int, generator: Generator) -> Tensor:
        """n noise-to-signal ratios, fp32 [n]."""
        dtype = widest(generator.device)
        uniform = torch.rand(n, generator=generator, device=generator.device, dtype=dtype)
        return self.quantile(uniform).float()

    def quantile(self, share: Tensor) -> Tensor:
        """The inverse of the law's distribution function: shares in [0, 1] [n] → ratios [n].

        In w = arsinh(z/√df) the density is cosh(w)^{−df}, which is smooth and integrated by Gauss's rule on
        panels; Newton's steps from linear interpolation then find w.
        """
        scale = self.std * math.sqrt(self.df)
        start, stop = self._range()
        panels = math.ceil((stop - start) * max(1.0, self.df))
        device = share.device
        edges = torch.linspace(start, stop, panels + 1, dtype=widest(device), device=device)
        mass = torch.cat([edges.new_zeros(1), self._integral(edges[:-1], edges[1:]).cumsum(0)])
        wanted = share.to(mass) * mass[-1]
        i = (torch.searchsorted(mass, wanted) - 1).clamp(0, panels - 1)
        left, right = edges[i], edges[i + 1]
        w = left + (right - left) * (wanted - mass[i]) / (mass[i + 1] - mass[i])
        for _ in range(6):
            error = mass[i] + self._integral(left, w) - wanted
            w = (w - error * torch.cosh(w) ** self.df).clamp(left, right)
        return torch.exp(self.mean + scale * torch.sinh(w)).clamp(self.low, self.high)

    def _integral(self, a: Tensor, b: Tensor) -> Tensor:
        """∫ cosh(w)^{−df} dw from a to b [n], by 20 points of Gauss and Legendre's rule, to 1e-15."""
        points, weights = _gauss_legendre(a.device, a.dtype)
        w = a[:, None] + (b - a)[:, None] * (points + 1) / 2
        return (torch.cosh(w) ** -self.df @ weights) * (b - a)


@lru_cache
def _gauss_legendre(device: torch.device, dtype: torch.dtype, count: int = 20) -> tuple[Tensor, Tensor]:
    """Points in [−1, 1] and half the weights of Gauss and Legendre's rule, [count] (Golub, Welsch 1969)."""
    k = torch.arange(1, count, dtype=torch.float64)
    side = (k / torch.sqrt(4 * k * k - 1)).diag(1)
    points, vectors = torch.linalg.eigh(side + side.T)
    return moved(points.to(dtype), device), moved(vectors[0].square().to(dtype), device)
