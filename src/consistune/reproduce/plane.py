"""Figures 1 and 2, on eight Gaussians in the plane."""

import copy
import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from consistune.analyze import target_moments
from consistune.analyze.measures import ROUNDING, Exact
from consistune.analyze.worlds import Mixture
from consistune.core.estimators import NoiseEstimator, OneSample, ScoreIdentity, Teacher
from consistune.core.objectives import Consistency
from consistune.core.posterior.mean import Reference, posterior
from consistune.core.sampling import PhasedSteps
from consistune.core.solve import solve
from consistune.core.times import LogNormalPairs, Phased, SigmoidGap, karras_edges
from consistune.core.types import Batch, Conditioning, Denoiser
from consistune.pages.plots import Axis, Panel, Planes, Plot
from consistune.reproduce.results import Outcome, Row, over_seeds, series
from consistune.reproduce.spec import Phases, Unify, at_scale
from consistune.reproduce.study import Study
from consistune.reproduce.toy import (
    BATCH,
    MIXTURE,
    SCHEDULE,
    Net,
    bank_of,
    diffusion_model,
    energy_distance,
    train,
)

STAGES = 6
WORLD = Mixture(MIXTURE, SCHEDULE)
FRESH = 2000
"""Samples that end errors and energy distances are over."""


def unify(study: Study, spec: Unify) -> Outcome:
    """Where each estimate says the next point is: pictures of the first seed, bias and variance of all."""
    budget = at_scale(spec.scales, study.scale, "unify")
    rows: list[Row] = []
    panels: list[Panel] = []
    for seed in study.seeds_of(budget.seeds):
        with study.screen.bar(f"unify, seed {seed}", 1) as bar:
            teacher = diffusion_model(bank_of(seed), 2 * budget.steps, seed)
            rows += _moments(spec, teacher, seed)
            bar.advance(1)
        if not panels:
            panels = [_targets(spec, teacher, t, seed) for t in spec.times]
    summary = over_seeds(rows, ("t", "estimate"), ("squared_bias", "variance"))
    found = Outcome(rows, summary, teacher_images=2 * budget.steps * BATCH)
    found.plots["targets"] = Planes(panels, len(panels), "The next point x_r, by each estimate")
    found.plots["variance"] = Plot(
        series([r for r in summary if r["variance"] > ROUNDING], "estimate", "t", "variance"),
        Axis("t", log=True), Axis("variance of x̂₀ given x_t", log=True), "Scatter",
    )  # fmt: skip
    return found


def _moments(spec: Unify, teacher: Net, seed: int) -> list[Row]:
    """Bias and variance of each estimate of x̂_0; as many references as the batch is large."""
    found = []
    for number in spec.references:
        estimators: dict[str, NoiseEstimator] = {f"score identity, {number}": ScoreIdentity(SCHEDULE)}
        if number == spec.references[0]:
            estimators |= {"CD": Teacher(teacher), "one sample": OneSample()}
        batches = max(4, 512 // number)
        found += target_moments(
            WORLD, estimators, spec.times, SCHEDULE, batch_size=number, batches=batches, repeats=24, seed=seed
        )
    return [
        {
            "seed": seed,
            "t": m.t,
            "estimate": m.estimator,
            "squared_bias": m.squared_bias,
            "variance": m.variance,
        }
        for m in found
    ]


def _targets(spec: Unify, teacher: Net, t: float, seed: int) -> Panel:
    """The draws of x_r from one x_t at time t, and the exact trajectory through it."""
    generator = torch.Generator().manual_seed(seed + 1)
    x_0 = MIXTURE.sample(1, generator)[0]
    noise = torch.randn(x_0.shape, generator=generator, dtype=x_0.dtype)
    x_t = (x_0 + t * noise).expand(spec.draws, -1, -1, -1)
    times = torch.full((spec.draws,), t, dtype=torch.float64)
    own = WORLD.redraws(x_t, times, Batch(x_t))(generator).x_0
    estimates = {
        "one sample": own,
        **{f"score identity, {n}": _by_references(x_t, times, own, n, generator) for n in spec.references},
        "CD": teacher(x_t[:1], times[:1]),
    }
    r = t * (1 - spec.gap)
    points = {
        name: _xy(SCHEDULE.step(x_t[: len(x)], x, times[: len(x)], r + 0 * times[: len(x)]))
        for name, x in estimates.items()
    }
    return Panel(f"t = {t:g}, r = {r:g}", points, {"exact trajectory": [_trajectory(x_t[:1], t)]})


def _by_references(
    x_t: Tensor, times: Tensor, own: Tensor, number: int, generator: torch.Generator
) -> Tensor:
    """x̂_0 [draws, ...], each over its own image and number − 1 others, drawn for it alone."""
    means = []
    for i in range(len(x_t)):
        others = MIXTURE.sample(number - 1, generator)[0]
        reference = Reference.ungrouped(torch.cat([own[i : i + 1], others]).float())
        means.append(posterior(x_t[i : i + 1].float(), times[i : i + 1].float(), SCHEDULE, reference).mean)
    return torch.cat(means).double()


def _trajectory(x: Tensor, t: float, steps: int = 16) -> list[list[float]]:
    """The exact flow through x_t, from t down to almost 0."""
    exact, batch = Teacher(Exact(WORLD, Batch(x))), Batch(x)
    corners = _xy(x)
    grid = t * torch.linspace(1, 0.01, steps, dtype=torch.float64) ** 2
    for high, low in itertools.pairwise(grid):
        x = solve(SCHEDULE, exact, x, high[None], low[None], batch, 1, "heun")
        corners += _xy(x)
    return corners


def _xy(x: Tensor) -> list[list[float]]:
    return [[float(value) for value in row] for row in x.flatten(1)]


def phases(study: Study, spec: Phases) -> Outcome:
    """The paths that phased models take, and where they end."""
    budget = at_scale(spec.scales, study.scale, "phases")
    rows: list[Row] = []
    panels: list[Panel] = []
    truth: dict[str, Tensor] = {}
    for seed in study.seeds_of(budget.seeds):
        bank = bank_of(seed)
        teacher = diffusion_model(bank, 2 * budget.steps, seed)
        for number in spec.phases:
            with study.screen.bar(f"{number} phases, seed {seed}", 1) as bar:
                model = _phased_model(teacher, bank, number, budget.steps, seed)
                for eta in spec.etas if number > 1 else (1.0,):
                    sampler = PhasedSteps(_edges(number), eta=eta)
                    rows.append({"seed": seed, "phases": number, "eta": eta} | _judged(model, sampler, truth))
                    if seed == 0 and eta in (spec.etas[0], spec.etas[len(spec.etas) // 2]):
                        panels.append(_paths(model, sampler, spec.paths, f"{_word(number)}, η = {eta:g}"))
                bar.advance(1)
    summary = over_seeds(rows, ("phases", "eta", "evaluations"), ("error", "energy"))
    found = Outcome(rows, summary, images=budget.steps * BATCH, teacher_images=2 * budget.steps * BATCH)
    found.plots["paths"] = Planes(panels, min(len(panels), 3), "From noise to data, divided by √(1 + t²)")
    for key, word in (("error", "error of the end"), ("energy", "energy distance")):
        lines = series([r | {"name": _word(r["phases"])} for r in summary], "name", "eta", key)
        found.plots[key] = Plot(lines, Axis("η"), Axis(word), "Phased models")
    return found


def _word(number: int) -> str:
    return f"{number} phase{'s' * (number > 1)}"


def _edges(number: int) -> tuple[float, ...]:
    return tuple(sorted(karras_edges(number)))


def _phased_model(teacher: Net, bank: Tensor, number: int, steps: int, seed: int) -> Net:
    gap = SigmoidGap(every_images=steps * BATCH // STAGES)
    pairs = Phased(LogNormalPairs(gap), _edges(number))
    objective = Consistency(SCHEDULE, pairs, ScoreIdentity(SCHEDULE, Reference.ungrouped(bank)))
    net = copy.deepcopy(teacher).requires_grad_(True)
    return train(net, objective, bank, steps, 1e-3, seed)[0]


class Recorder:
    """A denoiser that keeps the points at which it is asked."""

    def __init__(self, model: Denoiser) -> None:
        self.model = model
        self.asked: list[tuple[Tensor, float]] = []

    def __call__(self, x_t: Tensor, t: Tensor, condition: Conditioning = None) -> Tensor:
        self.asked.append((x_t, float(t[0])))
        return self.model(x_t, t, condition)


def _noise(number: int) -> Tensor:
    return torch.randn(number, 1, 1, 2, generator=torch.Generator().manual_seed(7))


def _judged(model: Net, sampler: PhasedSteps, truth: dict[str, Tensor]) -> Row:
    """End error and energy distance; the exact ends are found once and kept in `truth`."""
    noise = _noise(FRESH)
    if not truth:
        high = torch.full((FRESH,), SCHEDULE.t_max, dtype=torch.float64)
        truth["ends"] = MIXTURE.consistency(SCHEDULE.t_max * noise.double(), high, SCHEDULE, 1e-5)
        truth["fresh"] = MIXTURE.sample(FRESH, torch.Generator().manual_seed(9))[0]
    asked = Recorder(model)
    ends = sampler(asked, SCHEDULE, lambda *_, **__: noise, noise.shape[1:])
    return {
        "evaluations": len(asked.asked),
        "error": float((ends - truth["ends"]).square().sum((1, 2, 3)).mean().sqrt()),
        "energy": energy_distance(ends, truth["fresh"]),
    }


def _paths(model: Net, sampler: PhasedSteps, number: int, title: str) -> Panel:
    noise, asked = _noise(number), Recorder(model)
    ends = sampler(asked, SCHEDULE, lambda *_, **__: noise, noise.shape[1:])
    stops = [_xy(x / math.sqrt(1 + t * t)) for x, t in [*asked.asked, (ends, 0.0)]]
    paths: Sequence[Any] = [[stop[i] for stop in stops] for i in range(number)]
    data = _xy(MIXTURE.sample(300, torch.Generator().manual_seed(3))[0])
    return Panel(title, {"data": data}, {"paths": paths})
