"""What the score-identity target buys on a data set: variance, bias, reference size, discretisation."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sct.core.estimators import NoiseEstimator, OneSample, ScoreIdentity
from sct.core.mdp import Empirical, target_errors
from sct.core.noise import EDM, NoiseSchedule
from sct.core.posterior import Reference

TIMES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.2, 2.0, 3.0, 5.0, 10.0, 20.0, 80.0)
ROUNDING = 1e-13
"""Squares of fp32's rounding errors of images in [−1, 1]."""


@dataclass(frozen=True)
class VarianceRow:
    """One estimator at one t: E(x̂_0 − E[x_0|x_t])² an element, its standard error, and over one-sample's."""

    t: float
    estimator: str
    error: float
    spread: float
    relative: float


def named_estimators(
    images: Tensor, labels: Tensor | None, schedule: NoiseSchedule, mirrored: bool = False
) -> dict[str, NoiseEstimator]:
    """one-sample, batch, all; and class where there are labels."""
    estimators: dict[str, NoiseEstimator] = {
        "one-sample": OneSample(),
        "batch": ScoreIdentity(schedule, mirrored=mirrored),
    }
    if labels is not None:
        estimators["class"] = ScoreIdentity(schedule, Reference.grouped(images, labels), mirrored)
    estimators["all"] = ScoreIdentity(schedule, Reference.whole(images), mirrored)
    return estimators


def target_variance(
    images: Tensor,
    labels: Tensor | None = None,
    times: Sequence[float] = TIMES,
    estimators: dict[str, NoiseEstimator] | None = None,
    *,
    batch_size: int = 128,
    queries: int = 1024,
    schedule: NoiseSchedule = EDM(),
    mirrored: bool = False,
    seed: int = 0,
) -> list[VarianceRow]:
    """The variance of each estimator's target against t, on the training set as the data.

    E(x̂_0 − E[x_0 | x_t, c])², the mean over images and elements, where the exact posterior mean is over
    every training image of the query's class (every image where `labels` is None). "class" is then exact
    and its row 0; "all" leaves the label out, so on labelled data its error is bias. Where one-sample's own
    variance is below fp32 rounding there is nothing to reduce, and `relative` is 1 for all.

    Args:
        images: uint8 [n, C, H, W] (or floating point in [−1, 1]); labels: integers [n] or None.
        times: noise-to-signal ratios, EDM's t.
        estimators: by name; None for `named_estimators`.
        batch_size: of the mini-batches that `batch` references come from.
        queries: noisy images at each t.
    """
    if estimators is None:
        estimators = named_estimators(images, labels, schedule, mirrored)
    world = Empirical(images, labels, schedule, mirrored)
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for ratio in times:
        t = float(schedule.time_at(torch.tensor(ratio, dtype=torch.float64)))
        measured = {"one-sample": OneSample(), **estimators}
        found = target_errors(world, measured, schedule, t, queries, batch_size, generator)
        base = found["one-sample"].error
        for name in estimators:
            error, spread = found[name]
            relative = error / base if base > ROUNDING else 1.0
            rows.append(VarianceRow(ratio, name, error, spread, relative))
    return rows
