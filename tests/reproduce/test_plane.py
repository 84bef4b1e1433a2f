"""Figures 1 and 2: what is exact about them."""

import math

import pytest
import torch

from consistune.core.sampling import PhasedSteps
from consistune.core.types import Batch
from consistune.reproduce import plane, toy
from consistune.reproduce.run import read_experiment


def exact(x_t, t, condition=None):
    """The exact consistency function."""
    return toy.MIXTURE.consistency(x_t, t.double(), toy.SCHEDULE, 1e-6)


def test_the_exact_model_ends_where_the_trajectory_does() -> None:
    row = plane._ends(exact, PhasedSteps(), 300)
    assert row["evaluations"] == 1
    assert row["error"] < 1e-4
    assert abs(row["energy"]) < 0.02
    assert plane._ends(lambda x, t, c=None: 0 * x, PhasedSteps(), 300)["energy"] > 0.1


def test_a_drawn_trajectory_runs_into_the_exact_end() -> None:
    x_t = torch.tensor([[[[0.9, 0.4]]]], dtype=torch.float64)
    t = 0.6
    corners = plane._trajectory(x_t, t)
    end = toy.MIXTURE.consistency(x_t, torch.tensor([t], dtype=torch.float64), toy.SCHEDULE)
    assert corners[0] == pytest.approx([0.9, 0.4])
    assert math.dist(corners[-1], end.flatten().tolist()) < 2e-3


def test_more_references_scatter_less_about_the_exact_mean() -> None:
    experiment = read_experiment("unify")
    assert isinstance(experiment, plane.Unify)
    t, draws = 1.5, 60
    generator = torch.Generator().manual_seed(0)
    x_t = torch.tensor([0.5, -0.8], dtype=torch.float64).expand(draws, 1, 1, 2)
    times = torch.full((draws,), t, dtype=torch.float64)
    own = plane.WORLD.redraws(x_t, times, Batch(x_t))(generator).x_0
    mean = toy.MIXTURE.denoise(x_t[:1], times[:1], toy.SCHEDULE)
    off = [float((own - mean).square().mean())]
    for number in experiment.references:
        x0_hat = plane._by_references(x_t, times, own, number, generator)
        off.append(float((x0_hat - mean).square().mean()))
    assert off[0] > 10 * off[1] > 50 * off[2]
