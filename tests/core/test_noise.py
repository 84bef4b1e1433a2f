"""The four schedules: one set of laws for all of them."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from consistune.core.noise import (
    EDM,
    VP,
    NoiseSchedule,
    RectifiedFlow,
    Rescheduled,
    TrigFlow,
    Trigonometric,
    convert,
)
from tests.support.gaussian import SCHEDULES, Gaussian

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
schedules = st.sampled_from(SCHEDULES)
ratios = st.floats(math.log(0.002), math.log(80)).map(math.exp)


def at(value: float) -> torch.Tensor:
    return torch.tensor([value], dtype=torch.float64)


@given(schedules, ratios)
def test_time_at_inverts_the_noise_to_signal_ratio(schedule: NoiseSchedule, ratio: float) -> None:
    t = schedule.time_at(at(ratio))
    torch.testing.assert_close(schedule.noise_to_signal(t), at(ratio), rtol=1e-9, atol=0)


@every_schedule
def test_no_noise_at_zero_and_signal_drowned_at_the_top(schedule: NoiseSchedule) -> None:
    assert float(schedule.alpha(at(0.0))) == 1.0
    assert float(schedule.sigma(at(0.0))) == 0.0
    assert float(schedule.noise_to_signal(at(schedule.t_max))) > 79


@pytest.mark.parametrize(
    "schedule", [EDM(), RectifiedFlow(), Trigonometric(), TrigFlow(), TrigFlow(0.25)], ids=str
)
def test_all_but_vp_go_from_a_ratio_of_0002_to_80(schedule: NoiseSchedule) -> None:
    ends = schedule.noise_to_signal(torch.tensor([schedule.t_min, schedule.t_max], dtype=torch.float64))
    torch.testing.assert_close(ends, torch.tensor([0.002, 80.0], dtype=torch.float64), rtol=1e-9, atol=0)


@every_schedule
def test_the_ratio_rises_with_time(schedule: NoiseSchedule) -> None:
    t = torch.linspace(0, schedule.t_max, 500, dtype=torch.float64)
    assert bool((schedule.noise_to_signal(t).diff() > 0).all())


def test_vp_keeps_the_variance_and_its_beta_is_linear() -> None:
    schedule, t = VP(), torch.linspace(1e-3, 1, 50, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(
        schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2, torch.ones_like(t), rtol=1e-12, atol=0
    )
    (slope,) = torch.autograd.grad(-2 * schedule.alpha(t).log().sum(), t)
    torch.testing.assert_close(slope, 0.1 + 19.9 * t.detach(), rtol=1e-10, atol=0)


@given(schedules, ratios, ratios)
def test_step_is_exact_where_the_estimate_is_constant(schedule: NoiseSchedule, a: float, b: float) -> None:
    """Data at one point: x̂_0 is that point, and one step lands on the same ε at any s ≤ t."""
    torch.manual_seed(0)
    x_0, noise = torch.randn(2, 1, 2, 3, dtype=torch.float64)[:, None].unbind(0)
    t, s = schedule.time_at(at(max(a, b))), schedule.time_at(at(min(a, b)))
    x_s = schedule.step(schedule.diffuse(x_0, noise, t), x_0, t, s)
    torch.testing.assert_close(x_s, schedule.diffuse(x_0, noise, s), rtol=1e-9, atol=1e-9)


@given(schedules, ratios, st.sampled_from([torch.float32, torch.float64]))
def test_step_to_itself_and_to_zero_are_exact_to_the_bit(
    schedule: NoiseSchedule, ratio: float, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    x_t, x0_hat = torch.randn(2, 3, 2, 4, dtype=dtype)
    t = schedule.time_at(torch.full((3,), ratio, dtype=dtype))
    assert torch.equal(schedule.step(x_t, x0_hat, t, t), x_t)
    assert torch.equal(schedule.step(x_t, x0_hat, t, torch.zeros_like(t)), x0_hat)


def test_step_from_pure_noise_does_not_divide_by_alpha() -> None:
    schedule = RectifiedFlow()
    x_t, x0_hat = torch.randn(2, 1, 3, dtype=torch.float64)
    x_s = schedule.step(x_t, x0_hat, at(1.0), at(0.25))
    torch.testing.assert_close(x_s, 0.75 * x0_hat + 0.25 * x_t)


@given(schedules, ratios)
def test_noise_hat_recovers_the_noise(schedule: NoiseSchedule, ratio: float) -> None:
    torch.manual_seed(1)
    x_0, noise = torch.randn(2, 1, 5, dtype=torch.float64)
    t = schedule.time_at(at(ratio))
    found = schedule.noise_hat(schedule.diffuse(x_0, noise, t), x_0, t)
    torch.testing.assert_close(found, noise, rtol=1e-9, atol=1e-9)


@every_schedule
def test_renoise_carries_one_marginal_to_the_other(schedule: NoiseSchedule) -> None:
    """Variances of x_s and ε add up to those of x_t, for the signal and for the noise."""
    s, t = schedule.time_at(at(0.3)), schedule.time_at(at(2.0))
    one, none = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    signal = schedule.renoise(schedule.alpha(s)[:, None], none, s, t)
    torch.testing.assert_close(signal[0], schedule.alpha(t))
    carried = schedule.renoise(schedule.sigma(s)[:, None], none, s, t)
    fresh = schedule.renoise(none, one, s, t)
    torch.testing.assert_close((carried**2 + fresh**2)[0], schedule.sigma(t) ** 2)


@given(schedules, schedules, ratios)
def test_conversion_keeps_the_ratio_and_goes_back(a: NoiseSchedule, b: NoiseSchedule, ratio: float) -> None:
    torch.manual_seed(2)
    x_t, t = torch.randn(1, 4, dtype=torch.float64), a.time_at(at(ratio))
    x_u, u = convert(x_t, t, a, b)
    torch.testing.assert_close(b.noise_to_signal(u), a.noise_to_signal(t), rtol=1e-8, atol=0)
    back, t_again = convert(x_u, u, b, a)
    torch.testing.assert_close(t_again, t, rtol=1e-7, atol=0)
    torch.testing.assert_close(back, x_t, rtol=1e-7, atol=1e-9)


@every_schedule
def test_conversion_commutes_with_the_flow(schedule: NoiseSchedule) -> None:
    """Following the trajectory and then converting, or the other way round, ends at the same point."""
    torch.manual_seed(3)
    here, there = Gaussian(EDM()), Gaussian(schedule)
    t, r = at(5.0), at(0.4)
    x_t = 5 * torch.randn(1, 6, dtype=torch.float64)
    direct, _ = convert(here.flow(x_t, t, r), r, EDM(), schedule)
    x_u, u = convert(x_t, t, EDM(), schedule)
    torch.testing.assert_close(there.flow(x_u, u, schedule.time_at(r)), direct, rtol=1e-8, atol=1e-10)


def test_pure_noise_cannot_be_converted() -> None:
    with pytest.raises(ValueError, match="alpha"):
        convert(torch.zeros(1, 2), torch.ones(1), RectifiedFlow(), EDM())


@every_schedule
def test_a_denoiser_of_one_process_serves_another(schedule: NoiseSchedule) -> None:
    x_t = torch.randn(5, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = schedule.time_at(torch.tensor([0.01, 0.1, 1.0, 10.0, 80.0], dtype=torch.float64))
    adapted = Rescheduled(Gaussian(EDM()).denoise, schedule)
    torch.testing.assert_close(adapted(x_t, t), Gaussian(schedule).denoise(x_t, t), rtol=1e-8, atol=1e-10)
