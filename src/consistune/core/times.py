"""Times: the law of t, the map t → r, whose gap shrinks with training, and phases (METHOD §3, §4, §8).

Laws and maps work on the noise-to-signal ratio σ/α, which for EDM's schedule is t itself; the schedule's
`time_at` turns ratios into times. Everything is a pure function of progress, in images seen.
"""

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Generator, Tensor

from consistune.core.noise import EDM, NoiseSchedule
from consistune.core.types import Progress, Times, moved, widest


class TimePairs(Protocol):
    """The law of the transitions (t, r, s) at a point of training."""

    def sample(self, n: int, progress: Progress, generator: Generator) -> Times:
        """n transitions t > r ≥ s, each [n], fp32, on the generator's device."""
        ...


class Gap(Protocol):
    """The map t → r at a point of training, in noise-to-signal ratios."""

    def lower(self, t: Tensor, progress: Progress) -> Tensor:
        """r in [0, t], same shape and dtype as t."""
        ...


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
        if self.low is not None and self.high is not None and not 0 < self.low < self.high:
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
        low, high = (
            (None if u is None else (math.log(u) - self.mean) / self.std) for u in (self.low, self.high)
        )
        if low is not None and low > 0:
            return 0.0 if high is None else _tail(high), _tail(low), -1
        return 0.0 if low is None else _tail(-low), 1.0 if high is None else _tail(-high), 1


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
LEAST_MASS = 600.0
"""−ln of the least density that float64 integrates."""


@dataclass(frozen=True)
class LogStudent:
    """(ln(σ/α) − mean)/std follows Student's t with `df` degrees of freedom, cut to [low, high] exactly.

    A small df puts much mass into both ends of the range: at the defaults (TCM, 2410.14895, stage 2) the
    quantiles 0.1, 0.5, 0.9 are 1.01, 1.22, 10.8.
    """

    mean: float = 0.0
    std: float = 0.2
    low: float = 1.0
    high: float = 80.0
    df: float = 0.01

    def __post_init__(self) -> None:
        if not (self.std > 0 and self.df > 0):
            raise ValueError(f"std and df must be positive, got {self.std} and {self.df}")
        if not self.df <= NORMAL:
            raise ValueError(f"df must not be above {NORMAL:g}, where the law is normal, got {self.df}")
        if not 0 < self.low < self.high < math.inf:
            raise ValueError(f"need 0 < low < high, got {self.low} and {self.high}")
        start, stop = self._range()
        if self.df * math.log(math.cosh(min(max(start, 0.0), stop))) > LEAST_MASS:
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


@dataclass(frozen=True)
class SigmoidGap:
    """r = ReLU(1 − n(t)·q^{−(1 + ⌊m·k/d⌋/m)})·t, n(t) = 1 + k_sigmoid·sigmoid(−b·t)  (ECT, 2406.14548, §3.2).

    The first k counts training images, d = `every_images`, m = `stages_per_halving`. m = 1 is ECT; a larger
    m shrinks the gap in smaller, more frequent steps with the same total at every d (the paper's smoother
    schedule; the form is our choice); m = ∞ shrinks it continuously. `max_ratio` < 1 ends the shrinking
    there: r/t never exceeds it (our choice; METHOD §3 says why the end of the schedule is delicate).
    """

    q: float = 2.0
    every_images: int = 3_200_000
    stages_per_halving: float = 1
    k: float = 8.0
    b: float = 1.0
    max_ratio: float = 1.0

    def __post_init__(self) -> None:
        if self.q <= 1:
            raise ValueError(f"q must be greater than 1, got {self.q}")
        if self.every_images < 1:
            raise ValueError(f"every_images must be at least 1, got {self.every_images}")
        if not self.stages_per_halving > 0:
            raise ValueError(f"stages_per_halving must be positive, got {self.stages_per_halving}")
        if not 0 < self.max_ratio <= 1:
            raise ValueError(f"max_ratio must lie in (0, 1], got {self.max_ratio}")

    def shrinkage(self, progress: Progress) -> float:
        """q^{−(1 + ⌊m·k/d⌋/m)}: the relative gap (t − r)/t at large t."""
        m = self.stages_per_halving
        halvings = progress / self.every_images
        if math.isfinite(m):
            halvings = math.floor(m * progress / self.every_images) / m
        return float(max(self.q ** -(1 + halvings), 1 - self.max_ratio))

    def lower(self, t: Tensor, progress: Progress) -> Tensor:
        n = 1 + self.k * torch.sigmoid(-self.b * t)
        return torch.relu(1 - n * self.shrinkage(progress)) * t


@dataclass(frozen=True)
class ConstGap(SigmoidGap):
    """r = (1 − q^{−(1 + ⌊m·k/d⌋/m)})·t: the same shrinkage at every t (ECT's "const" map)."""

    k: float = 0.0


@dataclass(frozen=True)
class LogNormalPairs:
    """t from a lognormal law, r from a gap that shrinks with progress; one phase, s = 0."""

    gap: Gap
    mean: float = -1.1
    std: float = 2.0
    low: float | None = None
    high: float | None = None
    schedule: NoiseSchedule = EDM()

    def sample(self, n: int, progress: Progress, generator: Generator) -> Times:
        t = LogNormal(self.mean, self.std, self.low, self.high).sample(n, generator)
        return ordered(self.schedule, t, self.gap.lower(t, progress))


@dataclass(frozen=True)
class TruncatedPairs:
    """t at the boundary t′ for the first ⌊share·n⌋ samples, from a law on [t′, high] for the others.

    r comes from the gap, so at t′ it lies below it. `boundary` is a noise-to-signal ratio, as the law's.
    Source: TCM, 2410.14895, stage 2 (t′ = 1, share 0.25).
    """

    gap: Gap
    law: TimeLaw = LogStudent()
    boundary: float = 1.0
    share: float = 0.25
    schedule: NoiseSchedule = EDM()

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"share must lie in (0, 1), got {self.share}")
        ends = torch.tensor([self.schedule.t_min, self.schedule.t_max], dtype=torch.float64)
        least, greatest = self.schedule.noise_to_signal(ends).tolist()
        if not least < self.boundary < greatest:
            raise ValueError(f"boundary must lie in ({least:g}, {greatest:g}), got {self.boundary}")
        if self.law.low != self.boundary or self.law.high is None:
            raise ValueError(
                f"the law must go from the boundary {self.boundary:g} to a highest ratio, "
                f"got low {self.law.low} and high {self.law.high}"
            )

    def at_boundary(self, n: int) -> int:
        """The number of the first samples of n that sit at the boundary."""
        return int(self.share * n)

    def sample(self, n: int, progress: Progress, generator: Generator) -> Times:
        t = self.law.sample(n, generator)
        t[: self.at_boundary(n)] = self.boundary
        return ordered(self.schedule, t, self.gap.lower(t, progress))


class GridSize(Protocol):
    """How many points the time grid has at a point of training."""

    def points(self, progress: Progress) -> int: ...


@dataclass(frozen=True)
class FixedGrid:
    """A grid of constant size (CM, 2303.01469: 18 to distil on CIFAR-10, 40 on ImageNet-64)."""

    n: int = 18

    def points(self, progress: Progress) -> int:  # noqa: ARG002 - constant by definition
        return self.n


@dataclass(frozen=True)
class GrowingGrid:
    """N(k) = ⌈√(k/K·((s₁ + 1)² − s₀²) + s₀²) − 1⌉ + 1  (CM, 2303.01469, appendix C)."""

    total_images: int
    s0: int = 2
    s1: int = 150

    def points(self, progress: Progress) -> int:
        share = min(progress / self.total_images, 1.0)
        inner = math.sqrt(share * ((self.s1 + 1) ** 2 - self.s0**2) + self.s0**2) - 1
        return max(math.ceil(inner), 1) + 1

    def target_decay(self, progress: Progress, mu_0: float = 0.9) -> float:
        """μ(k) = exp(s₀·ln μ₀/(N(k) − 1)): the decay of the target network's average."""
        return math.exp(self.s0 * math.log(mu_0) / (self.points(progress) - 1))


@dataclass(frozen=True)
class DoublingGrid:
    """N(k) = min(s₀·2^⌊k/K'⌋, s₁) + 1, K' = K/(log₂⌊s₁/s₀⌋ + 1)  (iCT, 2310.14189, §3.4)."""

    total_images: int
    s0: int = 10
    s1: int = 1280

    def points(self, progress: Progress) -> int:
        doublings = math.floor(progress / self.total_images * (math.log2(self.s1 // self.s0) + 1))
        return min(self.s0 * 2 ** min(doublings, 64), self.s1) + 1


def karras_grid(n: int, low: float = 0.002, high: float = 80.0, rho: float = 7.0) -> Tensor:
    """σ_i = (low^{1/ρ} + i/(n − 1)·(high^{1/ρ} − low^{1/ρ}))^ρ, ascending, float64 [n].

    Source: EDM, 2206.00364, eq. 5.
    """
    ramp = torch.linspace(0, 1, n, dtype=torch.float64)
    grid: Tensor = (low ** (1 / rho) + ramp * (high ** (1 / rho) - low ** (1 / rho))) ** rho
    return grid


@dataclass(frozen=True)
class GridPairs:
    """Neighbours on a Karras grid: t = σ_{i+1}, r = σ_i (CM, 2303.01469; iCT, 2310.14189).

    i is uniform where `std` is None (CM), and otherwise follows the lognormal law's mass of each cell,
    p(i) ∝ erf((ln σ_{i+1} − mean)/(√2·std)) − erf((ln σ_i − mean)/(√2·std))  (iCT, eq. 10).
    """

    size: GridSize
    mean: float = -1.1
    std: float | None = None
    low: float = 0.002
    high: float = 80.0
    rho: float = 7.0
    schedule: NoiseSchedule = EDM()

    def probabilities(self, grid: Tensor) -> Tensor:
        """The law of i over the cells of a grid [N], float64 [N − 1]."""
        if self.std is None:
            return torch.full((len(grid) - 1,), 1 / (len(grid) - 1), dtype=torch.float64)
        mass = torch.erf((grid.log() - self.mean) / (math.sqrt(2) * self.std)).diff()
        return mass / mass.sum()

    def sample(self, n: int, progress: Progress, generator: Generator) -> Times:
        grid = karras_grid(self.size.points(progress), self.low, self.high, self.rho)
        weights = self.probabilities(grid).to(widest(generator.device))
        i = torch.multinomial(moved(weights, generator.device), n, replacement=True, generator=generator)
        grid = moved(grid.float(), generator.device)
        return ordered(self.schedule, grid[i + 1], grid[i])


@dataclass(frozen=True)
class Phased:
    """Cut any pairs into phases at edges 0 = s_0 < s_1 < …: s is the edge below t, r is clipped to r ≥ s.

    `edges` are the inner ones, in the schedule's time; none gives the plain model (METHOD §4).
    `karras_edges` spaces them on EDM's grid.
    """

    pairs: TimePairs
    edges: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        bounds = (0.0, *self.edges)
        if any(upper <= lower for lower, upper in itertools.pairwise(bounds)):
            raise ValueError(f"edges must be positive and increasing, got {list(self.edges)}")

    def sample(self, n: int, progress: Progress, generator: Generator) -> Times:
        times = self.pairs.sample(n, progress, generator)
        edges = moved(torch.tensor((0.0, *self.edges), dtype=times.t.dtype), times.t.device)
        s = edges[torch.searchsorted(edges, times.t) - 1]
        return Times(times.t, torch.maximum(times.r, s), s)


def karras_edges(phases: int, schedule: NoiseSchedule = EDM(), rho: float = 7.0) -> tuple[float, ...]:
    """The inner edges of M phases, evenly spaced in (σ/α)^{1/ρ} between 0.002 and 80 as EDM's grid is.

    The lowest point of the grid stands for the edge s_0 = 0 (our choice). In the schedule's time.
    """
    if phases < 1:
        raise ValueError(f"phases must be at least 1, got {phases}")
    inner = karras_grid(phases + 1, rho=rho)[1:-1]
    return tuple(schedule.time_at(inner).tolist())


def ordered(schedule: NoiseSchedule, t: Tensor, r: Tensor) -> Times:
    """Times of the ratios t and r; where rounding made r equal t, r becomes the number just below it."""
    t, r = schedule.time_at(t), schedule.time_at(r)
    return Times(t, torch.minimum(r, torch.nextafter(t, torch.zeros_like(t))), torch.zeros_like(t))
