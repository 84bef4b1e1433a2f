"""Write an analysis into a folder: a table and a plot for each measure."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from consistune.analyze.measures import (
    METHODS,
    QUARTILES,
    ROUNDING,
    TIMES,
    VarianceRow,
    discretisation,
    effective_sizes,
    measurable,
    named_estimators,
    target_moments,
    target_variance,
)
from consistune.analyze.mixture import RING
from consistune.analyze.worlds import Empirical, Exact, Mixture, World
from consistune.core.estimators import NoiseEstimator, OneSample, ScoreIdentity
from consistune.core.noise import EDM
from consistune.core.posterior.mean import Reference
from consistune.pages.plots import Axis, Plot
from consistune.pages.table import write_csv

TABLES = ("variance", "moments", "sizes", "steps")
NAMES = tuple(f"{table}.{ending}" for table in TABLES for ending in ("csv", "svg"))
"""The files of an analysis."""
RECORD = ("variance.csv", tuple(field.name for field in fields(VarianceRow)))
"""The one by which a folder is known to hold an analysis, and its columns."""


def analyze(
    images: Tensor,
    labels: Tensor | None,
    out: Path,
    *,
    name: str = "data",
    times: Sequence[float] = TIMES,
    batch_size: int = 128,
    queries: int = 512,
    seed: int = 0,
) -> list[Path]:
    """Measure estimators on an image set and write tables and plots into the folder `out`.

    The training set is the data, so the score identity over a class (over all, without labels) is exact.
    Writes variance.csv, moments.csv, sizes.csv, steps.csv and an SVG of each; returns their paths.
    """
    world, estimators = Empirical(images, labels, EDM()), named_estimators(images, labels, EDM())
    return _write(world, world.reference, estimators, times, batch_size, queries, seed, name, out)


def analyze_mixture(
    out: Path, *, bank: int = 2048, times: Sequence[float] = TIMES, queries: int = 512, seed: int = 0
) -> list[Path]:
    """The same on eight Gaussians in the plane, whose score is known: "all" is a bank of fresh samples."""
    world = Mixture(RING, EDM())
    reference = Reference.ungrouped(RING.sample(bank, torch.Generator().manual_seed(seed + 1))[0])
    estimators: dict[str, NoiseEstimator] = {
        "one-sample": OneSample(),
        "batch": ScoreIdentity(EDM()),
        f"{bank} others": ScoreIdentity(EDM(), reference),
        "exact": Exact(world),
    }
    return _write(world, reference, estimators, times, 128, queries, seed, "8 Gaussians", out)


def _write(
    world: World,
    reference: Reference,
    estimators: dict[str, NoiseEstimator],
    times: Sequence[float],
    batch_size: int,
    queries: int,
    seed: int,
    name: str,
    out: Path,
) -> list[Path]:
    """Measure, and write a CSV and an SVG for each measure."""
    variance = target_variance(world, estimators, times, batch_size=batch_size, queries=queries, seed=seed)
    moments = target_moments(world, estimators, times, batch_size=batch_size, seed=seed)
    sizes = effective_sizes(world, reference, times, seed=seed)
    steps = discretisation(world, seed=seed)
    biased = [row for row in moments if row.squared_bias > max(ROUNDING, 3 * row.bias_spread)]
    ratio = Axis("t", log=True)
    pages: dict[str, tuple[Sequence[Any], Plot]] = {
        "variance": (variance, Plot(
            _lines((row.estimator, row.t, row.relative) for row in measurable(variance)),
            ratio, Axis("error of the target, over one-sample's"), f"{name}: target variance",
        )),
        "moments": (moments, Plot(
            _lines((row.estimator, row.t, row.squared_bias) for row in biased),
            ratio, Axis("squared bias", log=True),
            f"{name}: squared bias, where it exceeds three standard errors",
        )),
        "sizes": (sizes, Plot(
            _lines((key, row.t, getattr(row, key)) for key in QUARTILES for row in sizes),
            ratio, Axis("effective number of references", log=True), f"{name}: 1/Σw², quartiles",
        )),
        "steps": (steps, Plot(
            _lines((f"{m}, t = {row.t:g}", row.gap, getattr(row, m)) for m in METHODS for row in steps),
            Axis("(t − r)/t", log=True), Axis("error of one step", log=True), f"{name}: discretisation",
        )),
    }  # fmt: skip
    written = []
    for key, (rows, plot) in pages.items():
        written += [out / f"{key}.csv", out / f"{key}.svg"]
        write_csv(written[-2], [asdict(row) for row in rows])
        plot.write_svg(written[-1])
    return written


def _lines(points: Iterable[tuple[str, float, float]]) -> dict[str, tuple[list[float], list[float]]]:
    """(name, x, y) → a line for each name."""
    series: dict[str, tuple[list[float], list[float]]] = {}
    for name, x, y in points:
        xs, ys = series.setdefault(name, ([], []))
        xs.append(x)
        ys.append(y)
    return series
