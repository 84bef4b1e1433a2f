"""From noise to images: identities between samplers, orders of convergence, the parity fixtures."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from consistune.core.guidance import Guided
from consistune.core.noise import EDM, RectifiedFlow, Rescheduled
from consistune.core.rng import ImageNoise
from consistune.core.sampling import ODE, Multistep, PhasedSteps
from consistune.core.times import karras_grid
from tests.support.gaussian import SCHEDULES, Gaussian
from tests.support.noise import Stored

SHAPE = (1, 2, 2)


class TwoTimes:
    """The exact flow map of a Gaussian as a two-time network: the x̂_0 whose step ends at the solution."""

    two_times = True

    def __init__(self, schedule) -> None:
        self.gaussian, self.schedule = Gaussian(schedule), schedule

    def __call__(self, x_t, t, condition=None, s=None):
        end = self.gaussian.flow(x_t, t, s)
        keep = self.schedule.sigma(s) / self.schedule.sigma(t)
        move = self.schedule.alpha(s) - self.schedule.alpha(t) * keep
        return (end - keep.view(-1, 1, 1, 1) * x_t) / move.view(-1, 1, 1, 1)

    def jump(self, x_t, t, s, condition=None):
        return self.gaussian.flow(x_t, t, s)


every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)


def toy(x, t, condition=None):
    return x / (1 + t.view(-1, 1, 1, 1) ** 2)


class Counted:
    def __init__(self, model) -> None:
        self.model, self.times = model, []

    def __call__(self, x_t, t, condition=None):
        self.times.append(float(t[0]))
        return self.model(x_t, t, condition)


def test_multistep_is_cms_sampler(parity) -> None:
    """D(x, s) = x/(1 + s²), the published index list up to the grid's last point, re-noising from there."""
    fixture = parity("openai_cm/openai_cm")
    grid = karras_grid(int(fixture["multistep_ts"][-1]) + 1).flip(0)
    top, *mid, lowest = grid[fixture["multistep_ts"]].tolist()
    noise = Stored(fixture["multistep_x"] / top, *fixture["multistep_noise"])
    sampler = Multistep(tuple(mid), t_max=top, boundary=lowest)
    out = sampler(toy, EDM(), noise, fixture["multistep_x"].shape[1:])
    torch.testing.assert_close(out.float(), fixture["multistep_out"], rtol=0, atol=6e-7)


@every_schedule
def test_one_step_of_the_exact_consistency_function_samples_the_data(schedule) -> None:
    gaussian = Gaussian(schedule)
    x = Multistep()(gaussian.consistency, schedule, ImageNoise(range(4000)), SHAPE)
    assert float(x.mean()) == pytest.approx(0.3, abs=0.02)
    assert float(x.std()) == pytest.approx(0.5, abs=0.02)


@every_schedule
def test_more_steps_of_the_exact_consistency_function_keep_the_distribution(schedule) -> None:
    gaussian = Gaussian(schedule)
    mid = tuple(float(schedule.time_at(torch.tensor(s))) for s in (5.0, 0.8, 0.1))
    sampler = Multistep(mid)
    model = Counted(gaussian.consistency)
    x = sampler(model, schedule, ImageNoise(range(4000)), SHAPE)
    assert len(model.times) == sampler.evaluations == 4
    assert float(x.mean()) == pytest.approx(0.3, abs=0.02)
    assert float(x.std()) == pytest.approx(0.5, abs=0.02)


@every_schedule
def test_every_kind_of_model_serves_a_sampler_by_its_jump(schedule) -> None:
    """A two-time network, one with a `jump` of its own, and one guided by itself take the exact jumps."""
    edges = tuple(float(schedule.time_at(torch.tensor(s))) for s in (0.1, 2.0))
    sampler, exact = PhasedSteps(edges), TwoTimes(schedule)
    noise = ImageNoise(range(8))
    start = schedule.sigma(torch.tensor(schedule.t_max, dtype=torch.float64)) * noise(*SHAPE).double()
    expected = exact.gaussian.consistency(start, torch.full((8,), schedule.t_max, dtype=torch.float64))

    class OwnJump:
        jump = exact.jump

    models = (exact, OwnJump(), Guided(exact, exact, 1.5), Rescheduled(TwoTimes(EDM()), schedule))
    for model in models:
        x = sampler(model, schedule, ImageNoise(range(8)), SHAPE)
        torch.testing.assert_close(x, expected, rtol=0, atol=1e-9)
    one_step = Multistep()(exact, schedule, ImageNoise(range(8)), SHAPE)
    torch.testing.assert_close(one_step, expected, rtol=0, atol=1e-9)


@every_schedule
def test_an_ode_asks_a_two_time_model_for_its_posterior_mean(schedule) -> None:
    asked = []

    class Denoiser:
        two_times = True

        def __call__(self, x_t, t, condition=None, s=None):
            asked.append(s)
            return x_t / 2

    found = ODE(4)(Denoiser(), schedule, ImageNoise([0]), SHAPE)
    assert asked == [None] * 7
    assert torch.equal(found, ODE(4)(lambda x, t, c=None: x / 2, schedule, ImageNoise([0]), SHAPE))


@every_schedule
def test_no_edges_is_one_step_to_the_bit(schedule) -> None:
    gaussian = Gaussian(schedule)
    a = Multistep()(gaussian.consistency, schedule, ImageNoise(range(8)), SHAPE)
    b = PhasedSteps()(gaussian.consistency, schedule, ImageNoise(range(8)), SHAPE)
    assert torch.equal(a, b)


@given(st.lists(st.floats(0.01, 79), min_size=1, max_size=5, unique=True), st.floats(0.01, 1))
def test_phased_sampling_stops_where_it_says(edges: list[float], eta: float) -> None:
    edges = sorted(edges)

    def times(eta) -> list[float]:
        model = Counted(toy)
        PhasedSteps(tuple(edges), eta)(model, EDM(), ImageNoise([0]), SHAPE)
        return model.times

    assert times(1.0) == times([1.0] * len(edges)) == [80.0, *reversed(edges)]
    assert times(0.0) == [80.0]
    skipped = times(eta)
    assert skipped[0] == 80.0
    for earlier, later in itertools.pairwise(skipped):
        edge = max(s for s in edges if s < earlier)
        assert later == pytest.approx(eta * edge)


def test_eta_zero_is_one_step() -> None:
    gaussian = Gaussian(EDM())
    a = PhasedSteps((0.5, 5.0), 0.0)(gaussian.consistency, EDM(), ImageNoise(range(8)), SHAPE)
    assert torch.equal(a, Multistep()(gaussian.consistency, EDM(), ImageNoise(range(8)), SHAPE))


def test_each_edge_may_have_its_own_eta() -> None:
    model = Counted(toy)
    PhasedSteps((1.0, 10.0), (1.0, 0.5))(model, EDM(), ImageNoise([0]), SHAPE)
    assert model.times == [80.0, 5.0, 1.0]


@every_schedule
@pytest.mark.parametrize(("order", "rate"), [(1, 1), (2, 2)])
def test_ode_converges_at_its_order(schedule, order, rate) -> None:
    gaussian = Gaussian(schedule)
    errors = []
    for steps in (16, 32, 64):
        noise = ImageNoise(range(8))
        top = torch.full((8,), 80.0, dtype=torch.float64)
        t = schedule.time_at(top)
        start = noise(*SHAPE).double() * (80 * schedule.alpha(t)).view(-1, 1, 1, 1)
        out = ODE(steps, order)(gaussian.denoise, schedule, ImageNoise(range(8)), SHAPE)
        errors.append(float((out - gaussian.consistency(start, t)).abs().max()))
    assert math.log2(errors[-2] / errors[-1]) == pytest.approx(rate, abs=0.3)


@every_schedule
def test_ode_is_the_same_sampler_under_every_schedule(schedule) -> None:
    expected = ODE(9)(Gaussian(EDM()).denoise, EDM(), ImageNoise(range(4)), SHAPE)
    found = ODE(9)(Gaussian(schedule).denoise, schedule, ImageNoise(range(4)), SHAPE)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


def test_evaluations_are_counted_right() -> None:
    for sampler in (ODE(7), ODE(7, order=1), ODE(1), Multistep((3.0, 0.5))):
        model = Counted(toy)
        sampler(model, EDM(), ImageNoise([0]), SHAPE)
        assert len(model.times) == sampler.evaluations


def test_churn_within_its_band_adds_the_noise_it_says() -> None:
    """A model that answers 0 makes every step a scaling by s'/s, so the sum of noises can be written out."""
    g = torch.Generator().manual_seed(0)
    blocks = [torch.randn(1, *SHAPE, generator=g, dtype=torch.float64) for _ in range(3)]
    sampler = ODE(
        3, order=1, low=1.0, high=4.0, rho=1.0, churn=0.6, churn_low=2.0, churn_high=3.0, churn_noise=1.5
    )
    zero = lambda x, t, c=None: torch.zeros_like(x)
    # grid 4, 2.5, 1, 0: only the step at 2.5 churns, to 2.5·1.2 = 3.
    captured = []

    def spy(x, t, c=None):
        captured.append(x.clone())
        return torch.zeros_like(x)

    out = sampler(spy, EDM(), Stored(*blocks), SHAPE)
    expected = blocks[0] * 2.5 + math.sqrt(3.0**2 - 2.5**2) * 1.5 * blocks[1]
    torch.testing.assert_close(captured[1], expected)
    assert torch.equal(out, torch.zeros_like(out))
    assert torch.equal(sampler(zero, EDM(), Stored(*blocks), SHAPE), out)


def test_churn_raises_no_step_by_more_than_a_factor_of_root_two() -> None:
    model = Counted(toy)
    ODE(4, churn=100.0)(model, EDM(), ImageNoise([0]), SHAPE)
    grid = karras_grid(4).flip(0).tolist()
    assert model.times[0] == pytest.approx(grid[0] * math.sqrt(2))


@pytest.mark.parametrize(
    "sampler", [Multistep((0.8,), t_max=40.0, boundary=0.002), PhasedSteps((0.8,), t_max=40.0)]
)
def test_every_level_of_a_sampler_becomes_a_time(sampler: Multistep | PhasedSteps) -> None:
    """Under rectified flow a noise level σ is the time σ/(1 + σ)."""
    made = sampler.under(RectifiedFlow())
    assert made.t_max == pytest.approx(40 / 41)
    assert made.times(RectifiedFlow()) == pytest.approx([40 / 41, 0.8 / 1.8])
    if isinstance(made, Multistep):
        assert made.boundary == pytest.approx(0.002 / 1.002)
