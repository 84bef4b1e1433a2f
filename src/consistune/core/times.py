"""Times: pairs (t, r), the map t → r, whose gap shrinks with training, and phases (METHOD §3, §4, §8).

Laws (`core.laws`) and maps work on the noise-to-signal ratio σ/α, which for EDM's schedule is t itself; the
schedule's `time_at` turns ratios into times. Everything is a pure function of progress, in images seen.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor

from consistune.core.laws import LogNormal, LogStudent, TimeLaw
from consistune.core.noise import EDM, NoiseSchedule
from consistune.core.types import Progress, Times, moved, widest

ROUNDING = 1e-5
"""An fp32 gap's r may lie above t by so much of it."""


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
    """r = (1 − q^{−(1 + ⌊m·k/d⌋/m)})·t: the same shrinkage at every t (ECT's "const" map).

    k and b keep their values here: another would be the sigmoid map, or have no effect.
    """

    k: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k != 0 or self.b != SigmoidGap.b:
            raise ValueError("the const gap has neither k nor b: take the sigmoid one")


@dataclass(frozen=True)
class LogNormalPairs:
    """t from a lognormal law, r from a gap that shrinks with progress; one phase, s = 0."""

    gap: Gap
    mean: float = -1.1
    std: float = 2.0
    low: float | None = None
    high: float | None = None
    schedule: NoiseSchedule = EDM()

    def __post_init__(self) -> None:
        LogNormal(self.mean, self.std, self.low, self.high)  # refuses what cannot be

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

    def __post_init__(self) -> None:
        if self.n < 2:
            raise ValueError(f"a grid needs n ≥ 2 points, got {self.n}")

    def points(self, progress: Progress) -> int:  # noqa: ARG002 - constant by definition
        return self.n


def _check_growth(total_images: int, s0: int, s1: int) -> None:
    if total_images < 1 or not 1 <= s0 <= s1:
        raise ValueError(f"need total_images ≥ 1 and 1 ≤ s0 ≤ s1, got {total_images}, {s0} and {s1}")


@dataclass(frozen=True)
class GrowingGrid:
    """N(k) = ⌈√(k/K·((s₁ + 1)² − s₀²) + s₀²) − 1⌉ + 1  (CM, 2303.01469, appendix C)."""

    total_images: int
    s0: int = 2
    s1: int = 150

    def __post_init__(self) -> None:
        _check_growth(self.total_images, self.s0, self.s1)

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

    def __post_init__(self) -> None:
        _check_growth(self.total_images, self.s0, self.s1)

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

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high < math.inf:
            raise ValueError(f"need 0 < low < high, got {self.low} and {self.high}")
        if not self.rho > 0 or (self.std is not None and not self.std > 0):
            raise ValueError(f"rho and std must be positive, got {self.rho} and {self.std}")
        if self.std is None and self.mean != GridPairs.mean:
            raise ValueError("mean has no effect without std: give both, or neither")

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
    """Times of the ratios t and r; where rounding made r equal t, r becomes the number just below it.

    An r that lies above t by more than rounding stays there: an objective refuses it, as it does r < 0.
    Raises ValueError where r has another shape than t.
    """
    if r.shape != t.shape:
        raise ValueError(f"a gap gives r {list(r.shape)}, expected {list(t.shape)}")
    above = r > t * (1 + ROUNDING)
    t, r = schedule.time_at(t), schedule.time_at(r)
    below = torch.minimum(r, torch.nextafter(t, torch.zeros_like(t)))
    return Times(t, torch.where(above, r, below), torch.zeros_like(t))
