"""Figures 1 and 2, on eight Gaussians in the plane."""

import copy
import itertools
import math
from collections.abc import Sequence
from functools import cache
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from consistune.analyze.measures import ROUNDING, target_moments
from consistune.analyze.worlds import Exact, Mixture
from consistune.core.estimators import NoiseEstimator, OneSample, ScoreIdentity, Teacher
from consistune.core.objectives import Consistency
from consistune.core.posterior.mean import Reference, posterior
from consistune.core.sampling import PhasedSteps
from consistune.core.solve import solve
from consistune.core.times import LogNormalPairs, Phased, SigmoidGap, karras_edges
from consistune.core.types import Batch, Conditioning, Denoiser
from consistune.pages.plots import Axis, Panel, PanelGrid, Plot
from consistune.reproduce.experiment import Experiment
from consistune.reproduce.results import Outcome, Row, over_seeds, series
from consistune.reproduce.spec import Positive, Scale, Share, Strict, at_scale
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
"""Number of samples whose end errors and energy distance are measured."""


class PlaneScale(Strict):
    """A training in the plane: steps of the consistency model (its teacher has twice as many), and seeds."""

    steps: Positive
    seeds: Positive


class Unify(Experiment):
    """Figure 1: where each estimate says the next point is; bias and variance of the estimates."""

    tunes: ClassVar[bool] = False
    on_data: ClassVar[bool] = False

    kind: Literal["unify"]
    times: tuple[float, ...]
    gap: Share
    references: tuple[Positive, ...]
    draws: Positive
    scales: dict[Scale, PlaneScale]

    def make(self, study: Study) -> Outcome:
        scale: PlaneScale = at_scale(self.scales, study.scale, "unify")
        rows: list[Row] = []
        panels: list[Panel] = []
        for seed in study.seeds_of(scale.seeds):
            with study.screen.bar(f"unify, seed {seed}", 1) as bar:
                teacher = diffusion_model(bank_of(seed), 2 * scale.steps, seed)
                rows += self._moments(teacher, seed)
                bar.advance(1)
            if not panels:
                panels = [self._targets(teacher, t, seed) for t in self.times]
        summary = over_seeds(rows, ("t", "estimate"), ("squared_bias", "variance"))
        outcome = Outcome(rows, summary, teacher_images=2 * scale.steps * BATCH)
        outcome.plots["targets"] = PanelGrid(panels, len(panels), "The next point x_r, by each estimate")
        outcome.plots["variance"] = Plot(
            series([r for r in summary if r["variance"] > ROUNDING], "estimate", "t", "variance"),
            Axis("t", log=True), Axis("variance of x̂₀ given x_t", log=True), "Scatter",
        )  # fmt: skip
        return outcome

    def _moments(self, teacher: Net, seed: int) -> list[Row]:
        """Bias and variance of each estimate of x̂_0; a batch is as large as the number of references."""
        rows: list[Row] = []
        for number in self.references:
            estimators: dict[str, NoiseEstimator] = {f"score identity, {number}": ScoreIdentity(SCHEDULE)}
            if number == self.references[0]:
                estimators |= {"CD": Teacher(teacher), "one sample": OneSample()}
            moments = target_moments(
                WORLD,
                estimators,
                self.times,
                batch_size=number,
                batches=max(4, 512 // number),
                repeats=24,
                seed=seed,
            )
            rows += [
                {"seed": seed, "t": m.t, "estimate": m.estimator}
                | {"squared_bias": m.squared_bias, "variance": m.variance}
                for m in moments
            ]
        return rows

    def _targets(self, teacher: Net, t: float, seed: int) -> Panel:
        """The draws of x_r from one x_t at time t, and the exact trajectory through it."""
        generator = torch.Generator().manual_seed(seed + 1)
        x_0 = MIXTURE.sample(1, generator)[0]
        noise = torch.randn(x_0.shape, generator=generator, dtype=x_0.dtype)
        x_t = (x_0 + t * noise).expand(self.draws, -1, -1, -1)
        times = torch.full((self.draws,), t, dtype=torch.float64)
        own = WORLD.redraws(x_t, times, Batch(x_t))(generator).x_0
        estimates = {"one sample": own}
        for number in self.references:
            estimates[f"score identity, {number}"] = _by_references(x_t, times, own, number, generator)
        estimates["CD"] = teacher(x_t[:1], times[:1])
        r = times * (1 - self.gap)
        points = {
            name: _xy(SCHEDULE.step(x_t[: len(x0_hat)], x0_hat, times[: len(x0_hat)], r[: len(x0_hat)]))
            for name, x0_hat in estimates.items()
        }
        title = f"t = {t:g}, r = {t * (1 - self.gap):g}"
        return Panel(title, points, {"exact trajectory": [_trajectory(x_t[:1], t)]})


def _by_references(
    x_t: Tensor, times: Tensor, own: Tensor, number: int, generator: torch.Generator
) -> Tensor:
    """x̂_0 [draws, ...]: each is the mean over its own image and number − 1 others, drawn for it alone."""
    means = []
    for i in range(len(x_t)):
        others = MIXTURE.sample(number - 1, generator)[0]
        reference = Reference.ungrouped(torch.cat([own[i : i + 1], others]).float())
        means.append(posterior(x_t[i : i + 1].float(), times[i : i + 1].float(), SCHEDULE, reference).mean)
    return torch.cat(means).double()


def _trajectory(x: Tensor, t: float, steps: int = 16) -> list[list[float]]:
    """The exact flow through x_t, from t down to almost 0."""
    exact, batch = Exact(WORLD), Batch(x)
    corners = _xy(x)
    grid = t * torch.linspace(1, 0.01, steps, dtype=torch.float64) ** 2
    for high, low in itertools.pairwise(grid):
        x = solve(SCHEDULE, exact, x, high[None], low[None], batch, 1, "heun")
        corners += _xy(x)
    return corners


def _xy(x: Tensor) -> list[list[float]]:
    return [[float(value) for value in row] for row in x.flatten(1)]


class Phases(Experiment):
    """Figure 2: the paths that phased models take, and where they end."""

    tunes: ClassVar[bool] = False
    on_data: ClassVar[bool] = False

    kind: Literal["phases"]
    phases: tuple[Positive, ...]
    etas: tuple[Share, ...]
    paths: Positive
    scales: dict[Scale, PlaneScale]

    def make(self, study: Study) -> Outcome:
        scale: PlaneScale = at_scale(self.scales, study.scale, "phases")
        rows: list[Row] = []
        panels: list[Panel] = []
        drawn = (self.etas[0], self.etas[len(self.etas) // 2])
        for seed in study.seeds_of(scale.seeds):
            bank = bank_of(seed)
            teacher = diffusion_model(bank, 2 * scale.steps, seed)
            for number in self.phases:
                with study.screen.bar(f"{number} phases, seed {seed}", 1) as bar:
                    model = _phased_model(teacher, bank, number, scale.steps, seed)
                    for eta in self.etas if number > 1 else (1.0,):
                        sampler = PhasedSteps(_edges(number), eta=eta)
                        rows.append({"seed": seed, "phases": number, "eta": eta} | _ends(model, sampler))
                        if seed == 0 and eta in drawn:
                            title = f"{_phases(number)}, η = {eta:g}"
                            panels.append(_paths(model, sampler, self.paths, title))
                    bar.advance(1)
        summary = over_seeds(rows, ("phases", "eta", "evaluations"), ("error", "energy"))
        images = scale.steps * BATCH
        outcome = Outcome(rows, summary, images=images, teacher_images=2 * images)
        title = "From noise to data, divided by √(1 + t²)"
        outcome.plots["paths"] = PanelGrid(panels, min(len(panels), 3), title)
        labelled = [row | {"label": _phases(row["phases"])} for row in summary]
        for key, word in (("error", "error of the end"), ("energy", "energy distance")):
            lines = series(labelled, "label", "eta", key)
            outcome.plots[key] = Plot(lines, Axis("η"), Axis(word), "Phased models")
        return outcome


def _phases(number: int) -> str:
    return f"{number} phase{'s' * (number > 1)}"


def _edges(number: int) -> tuple[float, ...]:
    return tuple(sorted(karras_edges(number)))


def _phased_model(teacher: Net, bank: Tensor, number: int, steps: int, seed: int) -> Net:
    gap = SigmoidGap(every_images=steps * BATCH // STAGES)
    pairs = Phased(LogNormalPairs(gap), _edges(number))
    objective = Consistency(SCHEDULE, pairs, ScoreIdentity(SCHEDULE, Reference.ungrouped(bank)))
    net = copy.deepcopy(teacher).requires_grad_(True)
    return train(net, objective, bank, steps, 1e-3, seed)[0]


def _follow(
    model: Denoiser, sampler: PhasedSteps, noise: Tensor
) -> tuple[Tensor, list[tuple[Tensor, float]]]:
    """The ends of the paths from the noise, and every (x_t, t) at which the model was evaluated."""
    points = []

    def recorded(x_t: Tensor, t: Tensor, condition: Conditioning = None) -> Tensor:
        points.append((x_t, float(t[0])))
        return model(x_t, t, condition)

    return sampler(recorded, SCHEDULE, lambda *_, **__: noise, noise.shape[1:]), points


def _noise(number: int) -> Tensor:
    return torch.randn(number, 1, 1, 2, generator=torch.Generator().manual_seed(7))


@cache
def _exact(number: int) -> tuple[Tensor, Tensor]:
    """The exact ends of the trajectories through the noise, and fresh samples of the data."""
    high = torch.full((number,), SCHEDULE.t_max, dtype=torch.float64)
    ends = MIXTURE.consistency(SCHEDULE.t_max * _noise(number).double(), high, SCHEDULE, 1e-5)
    return ends, MIXTURE.sample(number, torch.Generator().manual_seed(9))[0]


def _ends(model: Denoiser, sampler: PhasedSteps, number: int = FRESH) -> Row:
    """Evaluations; root mean square error of the ends; energy distance of the ends to fresh data."""
    ends, points = _follow(model, sampler, _noise(number))
    exact, fresh = _exact(number)
    return {
        "evaluations": len(points),
        "error": float((ends - exact).square().sum((1, 2, 3)).mean().sqrt()),
        "energy": energy_distance(ends, fresh),
    }


def _paths(model: Net, sampler: PhasedSteps, number: int, title: str) -> Panel:
    ends, points = _follow(model, sampler, _noise(number))
    stops = [_xy(x / math.sqrt(1 + t * t)) for x, t in [*points, (ends, 0.0)]]
    paths: Sequence[Any] = [[stop[i] for stop in stops] for i in range(number)]
    data = _xy(MIXTURE.sample(300, torch.Generator().manual_seed(3))[0])
    return Panel(title, {"data": data}, {"paths": paths})
