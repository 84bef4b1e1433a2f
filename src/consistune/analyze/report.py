"""An analysis written down: a table and a plot of each measure, in one folder."""

import csv
import math
from collections.abc import Sequence
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from consistune.analyze.measures import (
    METHODS,
    ROUNDING,
    TIMES,
    Exact,
    discretisation,
    effective_sizes,
    measurable,
    named_estimators,
    target_moments,
    variance_in,
)
from consistune.analyze.mixture import GaussianMixture
from consistune.analyze.worlds import Empirical, Mixture, World
from consistune.core.estimators import NoiseEstimator, OneSample, ScoreIdentity, Teacher
from consistune.core.noise import EDM, NoiseSchedule
from consistune.core.posterior.mean import Reference
from consistune.core.types import Batch
from consistune.pages.plots import Axis, lines


def analyze(
    images: Tensor,
    labels: Tensor | None,
    out: Path,
    *,
    name: str = "data",
    estimators: dict[str, NoiseEstimator] | None = None,
    times: Sequence[float] = TIMES,
    batch_size: int = 128,
    queries: int = 512,
    mirrored: bool = False,
    seed: int = 0,
) -> list[Path]:
    """Measure estimators on an image set and write tables and plots into the folder `out`.

    The training set is the data, so the score identity over a class (over all, without labels) is exact.
    Writes variance.csv, moments.csv, sizes.csv, steps.csv and an SVG of each; returns their paths.
    """
    schedule = EDM()
    world = Empirical(images, labels, schedule, mirrored)
    chosen = named_estimators(images, labels, schedule, mirrored) if estimators is None else estimators
    return _write(world, world.reference, chosen, schedule, times, batch_size, queries, seed, name, out)


def analyze_mixture(
    out: Path, *, bank: int = 2048, times: Sequence[float] = TIMES, queries: int = 512, seed: int = 0
) -> list[Path]:
    """The same on eight Gaussians in the plane, whose score is known: "all" is a bank of fresh samples."""
    schedule = EDM()
    angles = torch.arange(8, dtype=torch.float64) * math.pi / 4
    means = 0.7 * torch.stack([angles.cos(), angles.sin()], 1).view(8, 1, 1, 2)
    mixture = GaussianMixture(means, 0.06)
    world = Mixture(mixture, schedule)
    reference = Reference.ungrouped(mixture.sample(bank, torch.Generator().manual_seed(seed + 1))[0])
    estimators: dict[str, NoiseEstimator] = {
        "one-sample": OneSample(),
        "batch": ScoreIdentity(schedule),
        f"{bank} others": ScoreIdentity(schedule, reference),
        "exact": Teacher(Exact(world, Batch(means))),
    }
    return _write(world, reference, estimators, schedule, times, 128, queries, seed, "8 Gaussians", out)


def _write(
    world: World,
    reference: Reference,
    estimators: dict[str, NoiseEstimator],
    schedule: NoiseSchedule,
    times: Sequence[float],
    batch_size: int,
    queries: int,
    seed: int,
    name: str,
    out: Path,
) -> list[Path]:
    out.mkdir(parents=True, exist_ok=True)
    variance = variance_in(world, estimators, times, schedule, batch_size, queries, seed)
    moments = target_moments(world, estimators, times, schedule, batch_size=batch_size, seed=seed)
    sizes = effective_sizes(world, reference, times, schedule, seed=seed)
    steps = discretisation(world, schedule, seed=seed)
    ratio = Axis("t", log=True)
    plots = {
        "variance": lines(
            _by(measurable(variance), "estimator", "t", "relative"),
            ratio,
            Axis("error of the target, over one-sample's"),
            f"{name}: target variance",
        ),
        "moments": lines(
            _by(
                [m for m in moments if m.squared_bias > max(ROUNDING, 3 * m.bias_spread)],
                "estimator",
                "t",
                "squared_bias",
            ),
            ratio,
            Axis("squared bias", log=True),
            f"{name}: squared bias, where it is beyond three standard errors",
        ),
        "sizes": lines(
            {
                key: ([r.t for r in sizes], [getattr(r, key) for r in sizes])
                for key in ("low", "median", "high")
            },
            ratio,
            Axis("references that count", log=True),
            f"{name}: 1/Σw², quartiles",
        ),
        "steps": lines(
            {
                f"{method}, t = {t:g}": (
                    [r.gap for r in steps if r.t == t],
                    [getattr(r, method) for r in steps if r.t == t],
                )
                for method in METHODS
                for t in dict.fromkeys(r.t for r in steps)
            },
            Axis("(t − r)/t", log=True),
            Axis("error of one step", log=True),
            f"{name}: discretisation",
        ),
    }
    written = []
    tables: dict[str, Sequence[Any]] = {
        "variance": variance, "moments": moments, "sizes": sizes, "steps": steps,
    }  # fmt: skip
    for key, rows in tables.items():
        written += [out / f"{key}.csv", out / f"{key}.svg"]
        with written[-2].open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(asdict(rows[0]))
            table.writerows(astuple(row) for row in rows)
        written[-1].write_text(plots[key], encoding="utf-8")
    return written


def _by(rows: Sequence[Any], name: str, x: str, y: str) -> dict[str, tuple[list[float], list[float]]]:
    """Lines for a plot: rows grouped by a field."""
    series: dict[str, tuple[list[float], list[float]]] = {}
    for row in rows:
        xs, ys = series.setdefault(getattr(row, name), ([], []))
        xs.append(getattr(row, x))
        ys.append(getattr(row, y))
    return series
