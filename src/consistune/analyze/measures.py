"""Measures of an estimator: variance, bias, effective number of references; the error of a solver step."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from consistune.analyze.worlds import Exact, Moments, World, bias_and_variance, noisy, target_errors
from consistune.core.estimators import NoiseEstimator, OneSample, ScoreIdentity
from consistune.core.noise import NoiseSchedule
from consistune.core.posterior.mean import Reference, posterior
from consistune.core.solve import Method, solve
from consistune.core.types import Batch, Times

TIMES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.2, 2.0, 3.0, 5.0, 10.0, 20.0, 80.0)
METHODS: tuple[Method, ...] = ("euler", "heun")
QUARTILES = ("low", "median", "high")
ROUNDING = 1e-13
"""The square of fp32's rounding error for images in [−1, 1]."""


@dataclass(frozen=True)
class VarianceRow:
    """One estimator at one t: E(x̂_0 − E[x_0|x_t])² per element, standard error, ratio to one-sample's."""

    t: float
    estimator: str
    error: float
    spread: float
    relative: float


def named_estimators(
    images: Tensor, labels: Tensor | None, schedule: NoiseSchedule
) -> dict[str, NoiseEstimator]:
    """The estimators one-sample, batch and all; with labels also class."""
    estimators: dict[str, NoiseEstimator] = {"one-sample": OneSample(), "batch": ScoreIdentity(schedule)}
    if labels is not None:
        estimators["class"] = ScoreIdentity(schedule, Reference.grouped(images, labels))
    estimators["all"] = ScoreIdentity(schedule, Reference.ungrouped(images))
    return estimators


def target_variance(
    world: World,
    estimators: dict[str, NoiseEstimator],
    times: Sequence[float] = TIMES,
    *,
    batch_size: int = 128,
    queries: int = 1024,
    seed: int = 0,
) -> list[VarianceRow]:
    """E(x̂_0 − E[x_0 | x_t, c])² of each estimator against t, the mean over images and elements.

    Where the world is a training set (`Empirical`), the score identity over every image of a class is exact:
    its error is 0. One that ignores the label has a bias on labelled data. At times where one-sample's own
    variance is below fp32 rounding, `relative` is 1 for every estimator.

    Args:
        times: noise-to-signal ratios, EDM's t.
        batch_size: of the mini-batches that `batch` references come from.
        queries: noisy images at each t.
    """
    generator = torch.Generator().manual_seed(seed)
    measured = {"one-sample": OneSample(), **estimators}
    rows = []
    for ratio in times:
        found = target_errors(world, measured, _time(world, ratio), queries, batch_size, generator)
        base = found["one-sample"][0]
        for name in estimators:
            error, spread = found[name]
            relative = error / base if base > ROUNDING else 1.0
            rows.append(VarianceRow(ratio, name, error, spread, relative))
    return rows


def measurable(rows: Sequence[VarianceRow]) -> list[VarianceRow]:
    """The rows at times where the one-sample target's own error exceeds rounding."""
    shown = {row.t for row in rows if row.estimator == "one-sample" and row.error > ROUNDING}
    return [row for row in rows if row.t in shown]


@dataclass(frozen=True)
class MomentsRow:
    """One estimator at one t: squared bias and variance given x_t, means over queries and elements.

    `bias_spread` is the squared bias's standard error; an unbiased estimator is within a few of them of 0.
    """

    t: float
    estimator: str
    squared_bias: float
    bias_spread: float
    variance: float


def target_moments(
    world: World,
    estimators: dict[str, NoiseEstimator],
    times: Sequence[float],
    *,
    batch_size: int = 128,
    batches: int = 4,
    repeats: int = 24,
    seed: int = 0,
) -> list[MomentsRow]:
    """Bias and variance of each estimator at fixed noisy images, from repeated draws of everything else.

    The first 1/32 of a batch keeps its x_t; its images are redrawn from p(x_0 | x_t). The rest of the batch,
    from which `batch` references come, is new at each repeat.
    """
    fixed = max(batch_size // 32, 1)
    generator = torch.Generator().manual_seed(seed)
    sums: dict[tuple[float, str], list[Moments]] = {}
    for ratio in times:
        t = _time(world, ratio)
        for _ in range(batches):
            x_t, times_t, query = noisy(world, fixed, t, generator)
            exact = world.mean(x_t, times_t, query).double()
            redraw = world.redraws(x_t, times_t, query)
            for name, estimator in estimators.items():

                def estimate(_: int, x_t=x_t, u=times_t, redraw=redraw, estimator=estimator) -> Tensor:  # type: ignore[no-untyped-def]
                    own = redraw(generator)
                    x_rest, u_rest, rest = noisy(world, batch_size - fixed, float(u[0]), generator)
                    batch = _joined(own, rest)
                    u = torch.cat([u, u_rest])
                    bound = estimator.bind(batch, Times(u, 0 * u, 0 * u), generator)
                    return bound.clean(torch.cat([x_t, x_rest]), u, batch)[:fixed]

                sums.setdefault((ratio, name), []).append(bias_and_variance(estimate, exact, repeats))
    rows = []
    for (ratio, name), moments in sums.items():
        bias = torch.cat([m.squared_bias for m in moments])
        variance = torch.cat([m.variance for m in moments])
        spread = float(bias.std() / len(bias) ** 0.5)
        rows.append(MomentsRow(ratio, name, float(bias.mean()), spread, float(variance.mean())))
    return rows


def _time(world: World, ratio: float) -> float:
    """The schedule's t at a noise-to-signal ratio."""
    return float(world.schedule.time_at(torch.tensor(ratio, dtype=torch.float64)))


def _joined(a: Batch, b: Batch) -> Batch:
    def both(x: Tensor | None, y: Tensor | None) -> Tensor | None:
        return None if x is None or y is None else torch.cat([x, y])

    return Batch(torch.cat([a.x_0, b.x_0]), both(a.condition, b.condition), both(a.index, b.index))


@dataclass(frozen=True)
class SizeRow:
    """The effective number of references at t, 1/Σw²: quartiles over queries."""

    t: float
    low: float
    median: float
    high: float


def effective_sizes(
    world: World,
    reference: Reference,
    times: Sequence[float],
    queries: int = 256,
    seed: int = 0,
) -> list[SizeRow]:
    """1/Σw² of the score identity over `reference` (of the query's class, where it is grouped)."""
    generator = torch.Generator().manual_seed(seed)
    quartiles = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    rows = []
    for ratio in times:
        x_t, times_t, batch = noisy(world, queries, _time(world, ratio), generator)
        found = posterior(x_t, times_t, world.schedule, reference, batch.condition)
        rows.append(SizeRow(ratio, *torch.quantile(found.effective_size.double(), quartiles).tolist()))
    return rows


@dataclass(frozen=True)
class StepRow:
    """One step from t to r = (1 − gap)·t with the exact score: r.m.s. error of x_r/α_r, an element."""

    t: float
    gap: float
    euler: float
    heun: float


def discretisation(
    world: World,
    times: Sequence[float] = (0.5, 2.0, 10.0),
    gaps: Sequence[float] = (1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64),
    queries: int = 128,
    fine_steps: int = 16,
    seed: int = 0,
) -> list[StepRow]:
    """The error of one solver step against its size, with the exact score.

    The truth is `fine_steps` Heun steps over the same interval.
    """
    schedule, exact = world.schedule, Exact(world)
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for ratio in times:
        x_t, times_t, batch = noisy(world, queries, _time(world, ratio), generator)
        x_t, times_t = x_t.double(), times_t.double()
        for gap in gaps:
            r = schedule.time_at(torch.full_like(times_t, ratio * (1 - gap)))
            truth = solve(schedule, exact, x_t, times_t, r, batch, fine_steps, "heun")
            alpha = float(schedule.alpha(r[:1]))
            off = {}
            for method in METHODS:
                x_r = solve(schedule, exact, x_t, times_t, r, batch, 1, method)
                off[method] = float((x_r - truth).square().mean().sqrt()) / alpha
            rows.append(StepRow(ratio, gap, off["euler"], off["heun"]))
    return rows
