"""From noise to images with any flow map: one step, stochastic multistep, phased, Heun (METHOD §4, §5).

Samplers keep their state in float64, or fp32 on devices without it (the network sees its own dtype), and ask
a model for nothing but `FlowMap.jump`. `noise(*shape, dtype=…)` gives the next block of standard normals; see
`rng.ImageNoise`.
"""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import torch
from torch import Tensor

from consistune.core.flow import FlowMap, flow_map
from consistune.core.noise import NoiseSchedule
from consistune.core.times import karras_grid
from consistune.core.types import Denoiser, predict, widest

Noise = Callable[..., Tensor]
Jump = Callable[[Tensor, Tensor, float], Tensor]


class Sampler(ABC):
    """From noise to images with one model. A sampler implements `draw` and `evaluations`."""

    def __call__(
        self,
        model: Denoiser | FlowMap,
        schedule: NoiseSchedule,
        noise: Noise,
        shape: Sequence[int],
        condition: Tensor | None = None,
    ) -> Tensor:
        """Images in about [−1, 1], float64 [B, C, H, W]. shape: (C, H, W)."""
        flow = self.flow(model, schedule)

        def jump(x: Tensor, t: Tensor, s: float) -> Tensor:
            return flow.jump(x, t, _times(s, x), condition).to(widest(x.device))

        def normals() -> Tensor:
            block = noise(*shape)
            return block.to(widest(block.device))

        return self.draw(jump, schedule, normals)

    def flow(self, model: Denoiser | FlowMap, schedule: NoiseSchedule) -> FlowMap:
        """The model as the flow map that `draw` asks."""
        return flow_map(model, schedule)

    @property
    @abstractmethod
    def evaluations(self) -> int:
        """Network evaluations for an image."""

    def times(self, schedule: NoiseSchedule) -> list[float]:
        """The times at which the model is asked, falling; empty where the sampler does not say."""
        del schedule
        return []

    def under(self, schedule: NoiseSchedule) -> "Sampler":
        """The same sampler with its noise levels as times of a schedule."""
        del schedule
        return self

    @abstractmethod
    def draw(self, jump: Jump, schedule: NoiseSchedule, normals: Callable[[], Tensor]) -> Tensor:
        """jump(x, t [B], s) gives x_s in float64 where there is one, `normals` the next [B, C, H, W] ones."""


def prior(schedule: NoiseSchedule, z: Tensor, t_max: float) -> Tensor:
    """x_T = σ(T)·ε for normals z, float64: at T the signal is negligible."""
    return schedule.sigma(torch.tensor(t_max, dtype=widest(z.device), device=z.device)) * z


def _under(schedule: NoiseSchedule, levels: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(schedule.time_at(torch.tensor(levels, dtype=torch.float64)).tolist())


def _top_under(schedule: NoiseSchedule, level: float | None) -> float | None:
    """None stays: the schedule's own end."""
    return None if level is None else _under(schedule, (level,))[0]


def _times(t: float, x: Tensor) -> Tensor:
    return torch.full((x.shape[0],), t, dtype=widest(x.device), device=x.device)


@dataclass(frozen=True)
class Multistep(Sampler):
    """f from T; then for each t' of `mid`: re-noise to t', f again  (CM, 2303.01469, algorithm 1).

    x ← f(x_T, T);  x ← f(α_{t'} x + σ_{t'} ε, t') for t' in `mid`. No `mid` is one-step sampling. The
    published second times are 0.821 (CIFAR-10) and 1.526 (ImageNet-64). `boundary` is the time at which
    f is the identity: 0, or CM's 0.002, from which its own samplers re-noise with √(t'² − 0.002²).
    """

    mid: tuple[float, ...] = ()
    t_max: float | None = None
    boundary: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.boundary < min((*self.mid, math.inf)):
            raise ValueError(f"boundary must lie in [0, the last time), got {self.boundary}")
        if any(b >= a for a, b in itertools.pairwise(self.mid)) or any(t <= 0 for t in self.mid):
            raise ValueError(
                f"the times of multistep sampling must fall and be positive, got {list(self.mid)}"
            )

    @property
    def evaluations(self) -> int:
        return 1 + len(self.mid)

    def times(self, schedule: NoiseSchedule) -> list[float]:
        return [schedule.t_max if self.t_max is None else self.t_max, *self.mid]

    def under(self, schedule: NoiseSchedule) -> "Multistep":
        return replace(
            self,
            mid=_under(schedule, self.mid),
            t_max=_top_under(schedule, self.t_max),
            boundary=_under(schedule, (self.boundary,))[0],
        )

    def draw(self, jump: Jump, schedule: NoiseSchedule, normals: Callable[[], Tensor]) -> Tensor:
        top, *_ = self.times(schedule)
        x = prior(schedule, normals(), top)
        x = jump(x, _times(top, x), 0.0)
        for t in self.mid:
            x = schedule.renoise(x, normals(), _times(self.boundary, x), _times(t, x))
            x = jump(x, _times(t, x), 0.0)
        return x


@dataclass(frozen=True)
class PhasedSteps(Sampler):
    """Deterministic sampling of a phased model, with edge-skipping  (SCT, 2410.18958, §4.3, §4.4).

    Any flow map is sampled so through given times; a two-time network (MeanFlow) in this way alone.
    From T jump to η·s_m, s_m the largest edge below T; then from there towards the next edge, and so on
    to 0. η = 1 stops at each edge, 0 < η < 1 steps past it to where the next phase is well learned,
    η = 0 is one step. `eta` is one number for all edges or one per edge, in the order of `edges`.
    """

    edges: tuple[float, ...] = ()
    eta: float | tuple[float, ...] = 1.0
    t_max: float | None = None

    def __post_init__(self) -> None:
        etas = self.etas
        if len(etas) != len(self.edges):
            raise ValueError(f"eta has {len(etas)} values for {len(self.edges)} edges")
        if any(not 0 <= eta <= 1 for eta in etas):
            raise ValueError(f"eta must lie in [0, 1], got {self.eta}")
        bounds = (0.0, *self.edges)
        if any(b <= a for a, b in itertools.pairwise(bounds)):
            raise ValueError(f"edges must be positive and increasing, got {list(self.edges)}")

    @property
    def etas(self) -> tuple[float, ...]:
        return tuple(self.eta) if isinstance(self.eta, Sequence) else (self.eta,) * len(self.edges)

    @property
    def evaluations(self) -> int:
        return len(self.stops(math.inf if self.t_max is None else self.t_max)) - 1

    def stops(self, t_max: float) -> list[float]:
        """The times at which the model is evaluated, falling, and the final 0."""
        stops = [t_max]
        while stops[-1] > 0:
            below = [(s, eta) for s, eta in zip(self.edges, self.etas, strict=True) if s < stops[-1]]
            s, eta = below[-1] if below else (0.0, 0.0)
            stops.append(eta * s)
        return stops

    def times(self, schedule: NoiseSchedule) -> list[float]:
        return self.stops(schedule.t_max if self.t_max is None else self.t_max)[:-1]

    def under(self, schedule: NoiseSchedule) -> "PhasedSteps":
        return replace(self, edges=_under(schedule, self.edges), t_max=_top_under(schedule, self.t_max))

    def draw(self, jump: Jump, schedule: NoiseSchedule, normals: Callable[[], Tensor]) -> Tensor:
        stops = [*self.times(schedule), 0.0]
        x = prior(schedule, normals(), stops[0])
        for t, s in itertools.pairwise(stops):
            x = jump(x, _times(t, x), s)
        return x


@dataclass(frozen=True)
class ODE(Sampler):
    """Heun's (order 2) or Euler's (order 1) method for a diffusion model  (EDM, 2206.00364, algorithms 1, 2).

    On a Karras grid of `steps` noise-to-signal ratios from `high` to `low` and then 0; works in
    y = x/α, s = σ/α, where dy/ds = (y − D)/s for every schedule. Evaluations: 2·steps − 1 for Heun.
    `churn` > 0 is algorithm 2 (from Python: `sample(…, sampler=ODE(churn=…))`): s is raised by
    γ = min(churn/steps, √2 − 1) with fresh noise of scale `churn_noise` before each step in
    [churn_low, churn_high]. A two-time model is asked for its posterior mean, s = t.
    """

    steps: int = 18
    order: int = 2
    low: float = 0.002
    high: float = 80.0
    rho: float = 7.0
    churn: float = 0.0
    churn_low: float = 0.0
    churn_high: float = math.inf
    churn_noise: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.order not in (1, 2):
            raise ValueError(f"need steps >= 1 and order 1 or 2, got {self.steps} and {self.order}")

    @property
    def evaluations(self) -> int:
        return 2 * self.steps - 1 if self.order == 2 else self.steps

    def flow(self, model: Denoiser | FlowMap, schedule: NoiseSchedule) -> FlowMap:
        two_times = getattr(model, "two_times", False)
        return super().flow(partial(predict, cast(Denoiser, model)) if two_times else model, schedule)

    def times(self, schedule: NoiseSchedule) -> list[float]:
        ratios = torch.tensor(self._grid()[:-1], dtype=torch.float64)
        return [float(time) for time in schedule.time_at(ratios)]

    def draw(self, jump: Jump, schedule: NoiseSchedule, normals: Callable[[], Tensor]) -> Tensor:
        grid = self._grid()
        y = normals() * grid[0]

        def slope(y: Tensor, s: float) -> Tensor:
            t = schedule.time_at(_times(s, y))
            return (y - jump(y * float(schedule.alpha(t[:1])), t, 0.0)) / s

        for s, s_next in itertools.pairwise(grid):
            if self.churn > 0 and self.churn_low <= s <= self.churn_high:
                raised = s * (1 + min(self.churn / self.steps, math.sqrt(2) - 1))
                y = y + math.sqrt(raised**2 - s**2) * self.churn_noise * normals()
                s = raised
            d = slope(y, s)
            y_next = y + (s_next - s) * d
            if self.order == 2 and s_next > 0:
                y_next = y + (s_next - s) * 0.5 * (d + slope(y_next, s_next))
            y = y_next
        return y

    def _grid(self) -> list[float]:
        if self.steps == 1:
            return [self.high, 0.0]
        return [*karras_grid(self.steps, self.low, self.high, self.rho).flip(0).tolist(), 0.0]
