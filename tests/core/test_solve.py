"""The reward: solver steps from t to r, their orders of convergence, and where they may be used."""

import math

import pytest
import torch

from consistune.core.estimators import OneSample, Teacher
from consistune.core.solve import solve
from consistune.core.types import Batch
from tests.support.gaussian import SCHEDULES, Gaussian

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)


def start(schedule, high: float = 10.0, low: float = 0.1):
    x_t = 3 * torch.randn(8, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = schedule.time_at(torch.full((8,), high, dtype=torch.float64))
    r = schedule.time_at(torch.full((8,), low, dtype=torch.float64))
    return x_t, t, r, Batch(torch.zeros_like(x_t))


def order(errors: list[float]) -> float:
    return math.log2(errors[-2] / errors[-1])


@every_schedule
@pytest.mark.parametrize(("method", "expected"), [("euler", 1), ("heun", 2)])
def test_solvers_converge_at_their_order(schedule, method, expected) -> None:
    gaussian = Gaussian(schedule)
    x_t, t, r, batch = start(schedule)
    exact = gaussian.flow(x_t, t, r)
    errors = []
    for steps in (16, 32, 64):
        found = solve(schedule, Teacher(gaussian.denoise), x_t, t, r, batch, steps, method)
        errors.append(float((found - exact).abs().max()))
    assert order(errors) == pytest.approx(expected, abs=0.25)
    assert errors[-1] < (0.2 if method == "euler" else 5e-3)


@every_schedule
@pytest.mark.parametrize("method", ["euler", "heun"])
def test_the_same_trajectory_under_every_schedule(schedule, method) -> None:
    """x_r/α_r after three steps is the variance-exploding one: the points are the same ratios."""
    edm = SCHEDULES[0]
    x_t, t, r, batch = start(edm)
    expected = solve(edm, Teacher(Gaussian(edm).denoise), x_t, t, r, batch, 3, method)
    u, v = schedule.time_at(t), schedule.time_at(r)
    alpha_u, alpha_v = schedule.alpha(u)[0], schedule.alpha(v)[0]
    found = solve(schedule, Teacher(Gaussian(schedule).denoise), alpha_u * x_t, u, v, batch, 3, method)
    torch.testing.assert_close(found / alpha_v, expected, rtol=1e-7, atol=1e-9)


@every_schedule
@pytest.mark.parametrize("method", ["euler", "heun"])
def test_down_to_zero_the_last_step_is_eulers_and_nothing_is_nan(schedule, method) -> None:
    gaussian = Gaussian(schedule)
    x_t, t, r, batch = start(schedule)
    r = torch.where(torch.arange(8) % 2 == 0, r, torch.zeros_like(r))  # both kinds in one batch
    one = solve(schedule, Teacher(gaussian.denoise), x_t, t, r, batch, 1, method)
    torch.testing.assert_close(one[1::2], gaussian.denoise(x_t, t)[1::2], rtol=0, atol=0)
    many = solve(schedule, Teacher(gaussian.denoise), x_t, t, r, batch, 200, method)
    torch.testing.assert_close(
        many, gaussian.flow(x_t, t, r), rtol=0, atol=0.1 if method == "euler" else 1e-3
    )


@every_schedule
def test_one_euler_step_with_the_true_image_keeps_the_noise(schedule, generator) -> None:
    x_0 = torch.randn(4, 1, 2, 2, generator=generator, dtype=torch.float64)
    noise = torch.randn(4, 1, 2, 2, generator=generator, dtype=torch.float64)
    _, t, r, _ = start(schedule)
    t, r = t[:4], r[:4]
    x_r = solve(schedule, OneSample(), schedule.diffuse(x_0, noise, t), t, r, Batch(x_0))
    torch.testing.assert_close(x_r, schedule.diffuse(x_0, noise, r))


@pytest.mark.parametrize(("steps", "method"), [(2, "euler"), (1, "heun")])
def test_one_sample_cannot_take_more_than_one_step(steps, method) -> None:
    x_t, t, r, batch = start(SCHEDULES[0])
    with pytest.raises(ValueError, match="one-sample"):
        solve(SCHEDULES[0], OneSample(), x_t, t, r, batch, steps, method)
