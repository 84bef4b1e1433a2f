"""The value view: Bellman's equation, TD as consistency, and estimators' bias and variance against theory.

State (t, x_t), action "follow the flow to r", reward of it, value h of what remains (METHOD §1):

    R(t → r) = ∫_{λ_t}^{λ_r} e^{−λ} ε* dλ,   h(x_t, t) = x_t/α_t − x_0,   h(x_t, t) = R(t → r) + h(x_r, r)

With e^{−λ} = σ/α = s the integral is ∫_{s_r}^{s_t} ε* ds, so in y = x/α a reward is just y_t − y_r.
"""

from functools import cache

import pytest
import torch
from torch import Tensor

from consistune.analyze.mixture import GaussianMixture
from consistune.analyze.worlds import (
    Empirical,
    bias_and_variance,
    target_errors,
)
from consistune.core.estimators import NoiseEstimator, OneSample, ScoreIdentity, Teacher
from consistune.core.noise import EDM, NoiseSchedule
from consistune.core.objectives import Consistency, Huber, Uniform
from consistune.core.posterior.mean import Reference, dequantise, posterior
from consistune.core.solve import Method, solve
from consistune.core.times import LogNormalPairs, SigmoidGap
from consistune.core.types import Batch, Times, expand
from tests.core.posterior.test_mean import pixels
from tests.support.gaussian import SCHEDULES, Gaussian


def reward_hat(schedule: NoiseSchedule, x_t: Tensor, x0_hat: Tensor, t: Tensor, r: Tensor) -> Tensor:
    """R̂(t → r) = (σ_t/α_t − σ_r/α_r)·ε̂: the reward if the estimate held all the way (one Euler step).

    x_t, x0_hat [B, ...], t > r [B] → [B, ...].
    """
    gap = schedule.noise_to_signal(t) - schedule.noise_to_signal(r)
    return expand(gap, x_t) * schedule.noise_hat(x_t, x0_hat, t)


def reward_between(schedule: NoiseSchedule, x_t: Tensor, x_r: Tensor, t: Tensor, r: Tensor) -> Tensor:
    """R(t → r) = x_t/α_t − x_r/α_r: the reward of a transition that was made. [B, ...], [B] → [B, ...]."""
    return x_t / expand(schedule.alpha(t), x_t) - x_r / expand(schedule.alpha(r), x_r)


def value(schedule: NoiseSchedule, x_t: Tensor, x_0: Tensor, t: Tensor) -> Tensor:
    """h(x_t, t) = x_t/α_t − x_0, x_0 = f(x_t, t) the trajectory's end. [B, ...], t [B] → [B, ...]."""
    return x_t / expand(schedule.alpha(t), x_t) - x_0


def td_error(reward: Tensor, value_r: Tensor, value_t: Tensor) -> Tensor:
    """δ = R + h⁻(x_r, r) − h(x_t, t), which is f(x_t, t) − f⁻(x_r, r): TD(0) is consistency learning."""
    return reward + value_r - value_t


def path_rewards(
    schedule: NoiseSchedule,
    estimator: NoiseEstimator,
    x_t: Tensor,
    points: list[Tensor],
    batch: Batch,
    method: Method = "euler",
) -> tuple[Tensor, Tensor]:
    """The rewards of one solver step between each two of `points` (falling times [B], the first is t).

    Returns the rewards [steps, B, ...] and the end point x_r. Their sum and h(x_r, r) are the n-step target
    of h(x_t, t); down to r = 0 their sum alone is x_t/α_t − x_0.
    """
    rewards, x = [], x_t
    for i in range(len(points) - 1):
        t, r = points[i], points[i + 1]
        x_r = solve(schedule, estimator, x, t, r, batch, 1, method)
        rewards.append(reward_between(schedule, x, x_r, t, r))
        x = x_r
    return torch.stack(rewards), x


every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)


def start(schedule, ratio: float = 20.0):
    x_t = 3 * torch.randn(6, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x_t, schedule.time_at(torch.full((6,), ratio, dtype=torch.float64))


@every_schedule
def test_the_rewards_of_a_fine_path_add_up_to_the_value(schedule) -> None:
    """Σ R = x_t/α_t − x_0 with x_0 the exact end of the trajectory; the error falls with the step squared."""
    gaussian = Gaussian(schedule)
    x_t, t = start(schedule)
    h = value(schedule, x_t, gaussian.consistency(x_t, t), t)
    errors = []
    for steps in (50, 100):
        ramp = torch.linspace(1, 0, steps + 1, dtype=torch.float64) ** 3
        points = [schedule.time_at(20.0 * u.expand(6)) for u in ramp]
        rewards, x_0 = path_rewards(schedule, Teacher(gaussian.denoise), x_t, points, Batch(x_t), "heun")
        errors.append(float((rewards.sum(0) - h).abs().max()))
        torch.testing.assert_close(rewards.sum(0), value(schedule, x_t, x_0, t), rtol=1e-9, atol=1e-9)
    assert errors[1] < 5e-3  # of values up to 60
    assert errors[0] / errors[1] > 3


@every_schedule
def test_bellmans_equation_holds_for_the_exact_value(schedule) -> None:
    gaussian = Gaussian(schedule)
    x_t, t = start(schedule)
    r = schedule.time_at(torch.full((6,), 0.7, dtype=torch.float64))
    x_r = gaussian.flow(x_t, t, r)
    h_t = value(schedule, x_t, gaussian.consistency(x_t, t), t)
    h_r = value(schedule, x_r, gaussian.consistency(x_r, r), r)
    torch.testing.assert_close(reward_between(schedule, x_t, x_r, t, r) + h_r, h_t, rtol=1e-9, atol=1e-9)


@every_schedule
def test_the_reward_of_an_euler_step_is_the_gap_times_the_noise(schedule) -> None:
    gaussian = Gaussian(schedule)
    x_t, t = start(schedule)
    r = schedule.time_at(torch.full((6,), 0.7, dtype=torch.float64))
    x0_hat = gaussian.denoise(x_t, t)
    x_r = solve(schedule, Teacher(gaussian.denoise), x_t, t, r, Batch(x_t))
    torch.testing.assert_close(
        reward_hat(schedule, x_t, x0_hat, t, r),
        reward_between(schedule, x_t, x_r, t, r),
        rtol=1e-7,
        atol=1e-8,
    )


@every_schedule
def test_td_and_consistency_losses_are_the_same_number(schedule) -> None:
    """The distance of the TD error from 0, built from rewards and values, is the consistency loss."""
    gaussian = Gaussian(schedule)
    f = lambda x, t, c=None: 0.9 * gaussian.denoise(x, t) + 0.05  # any model will do
    pairs = LogNormalPairs(SigmoidGap(), low=0.01, high=80.0, schedule=schedule)
    times = pairs.sample(32, 6_400_000, torch.Generator().manual_seed(0))
    times = Times(times.t.double(), times.r.double(), times.s.double())
    g = torch.Generator().manual_seed(1)
    x_0, noise = torch.randn(2, 32, 1, 2, 2, generator=g, dtype=torch.float64)
    objective = Consistency(schedule, pairs, OneSample(), Huber(0.06), Uniform())
    loss = objective.at(f, f, Batch(x_0), times, noise)
    t, r = times.t, times.r
    x_t = schedule.diffuse(x_0, noise, t)
    reward = reward_hat(schedule, x_t, x_0, t, r)
    x_r = schedule.step(x_t, x_0, t, r)
    inside = torch.where(r > 0, r, t)
    end_r = torch.where((r > 0).view(-1, 1, 1, 1), f(x_r, inside), x_r)
    delta = td_error(reward, value(schedule, x_r, end_r, r), value(schedule, x_t, f(x_t, t), t))
    torch.testing.assert_close(Huber(0.06)(delta, torch.zeros_like(delta)), loss, rtol=1e-6, atol=1e-9)


def test_n_step_targets_are_rewards_and_a_bootstrap() -> None:
    """Three rewards and h(x_r, r) give the target of the three-step solver."""
    schedule = EDM()
    gaussian = Gaussian(schedule)
    x_t, t = start(schedule)
    r = torch.full_like(t, 0.5)
    rho = torch.linspace(0, 1, 4, dtype=torch.float64)
    points = [
        (20.0 ** (1 / 7) + u * (0.5 ** (1 / 7) - 20.0 ** (1 / 7))) ** 7 * torch.ones_like(t) for u in rho
    ]
    rewards, x_r = path_rewards(schedule, Teacher(gaussian.denoise), x_t, points, Batch(x_t))
    x_3 = solve(schedule, Teacher(gaussian.denoise), x_t, t, r, Batch(x_t), steps=3)
    torch.testing.assert_close(x_r, x_3, rtol=1e-9, atol=1e-9)
    target = rewards.sum(0) + value(schedule, x_r, gaussian.consistency(x_r, r), r)
    expected = value(schedule, x_t, gaussian.consistency(x_3, r), t)
    torch.testing.assert_close(target, expected, rtol=1e-9, atol=1e-9)


# Bias and variance ----------------------------------------------------------------------------------------

MIXTURE = GaussianMixture(torch.tensor([[0.8, 0.0], [-0.4, 0.7], [-0.4, -0.7]], dtype=torch.float64), 0.15)


def conditional_sample(y, s, n, generator):
    """n draws of x_0 ~ p(x_0 | y)."""
    return MIXTURE.posterior_sample(y.expand(n, 2), torch.full((n,), s), EDM(), generator)


REPEATS = 1500


@cache
def moments(n: int, s: float):
    """Bias and variance of the estimate from n references, the own image among them, at one y."""
    g = torch.Generator().manual_seed(n)
    y = torch.tensor([0.1, 0.2], dtype=torch.float64)
    own = conditional_sample(y, s, REPEATS, g)
    exact = MIXTURE.denoise(y[None], torch.tensor([s]).double(), EDM())

    def estimate(k):
        others = MIXTURE.sample(n, g)[0][1:]
        images = torch.cat([own[k : k + 1], others]).view(n, 1, 1, 2)
        t = torch.tensor([s], dtype=torch.float64)
        return posterior(y.view(1, 1, 1, 2), t, EDM(), Reference.ungrouped(images)).mean.view(1, 2)

    return bias_and_variance(estimate, exact, REPEATS)


def test_the_variance_falls_as_one_over_n_and_matches_theory() -> None:
    """In the mid-t range: n·variance → E[w²‖x − x̂‖²]/E[w]², the delta-method value for weighted means."""
    s = 0.6
    y = torch.tensor([0.1, 0.2], dtype=torch.float64)
    x, _ = MIXTURE.sample(400_000, torch.Generator().manual_seed(0))
    w = torch.exp(-(y - x).square().sum(1) / (2 * s**2))
    mean = (w[:, None] * x).sum(0) / w.sum()
    theory = float((w.square()[:, None] * (x - mean).square()).mean() / w.mean().square())
    for n in (64, 256):
        variance = float(moments(n, s).variance)
        assert variance * n == pytest.approx(theory, rel=0.15)


def test_the_bias_vanishes_with_the_references_and_one_sample_has_none() -> None:
    one, few, many = (moments(n, 0.6) for n in (1, 8, 64))
    noise = float(one.variance) / REPEATS
    assert abs(float(one.squared_bias)) < 5 * noise
    assert float(one.variance) > 5 * float(few.variance) > 20 * float(many.variance)
    assert float(many.squared_bias) < 2e-4


def test_one_samples_variance_is_the_posteriors() -> None:
    s = 0.6
    x = conditional_sample(torch.tensor([0.1, 0.2]).double(), s, 200_000, torch.Generator().manual_seed(5))
    assert float(moments(1, s).variance) == pytest.approx(float(x.var(0).mean()), rel=0.06)


def test_target_errors_know_what_is_exact_and_what_shrinks() -> None:
    images = pixels(60, seed=2, shape=(1, 4, 4))
    labels = torch.randint(3, (60,), generator=torch.Generator().manual_seed(0))
    world = Empirical(images, labels, EDM())
    estimators = {
        "one": OneSample(),
        "batch": ScoreIdentity(EDM()),
        "random": ScoreIdentity(EDM(), world.reference, size=8),
        "class": ScoreIdentity(EDM(), world.reference),
        "all": ScoreIdentity(EDM(), Reference.ungrouped(images)),
    }
    found = target_errors(world, estimators, 2.0, 512, 64, torch.Generator().manual_seed(1))
    assert found["class"][0] < 1e-12
    assert found["batch"][0] < 0.5 * found["one"][0]
    assert found["random"][0] < 0.6 * found["one"][0]
    assert found["all"][0] > 0.01
    x = dequantise(images)
    exact = sum(float((x[labels == c] - x[labels == c].mean(0)).square().sum()) for c in range(3)) / x.numel()
    prior = target_errors(world, {"one": OneSample()}, 1e4, 20_000, 1000, torch.Generator())
    assert prior["one"][0] == pytest.approx(exact, rel=0.03)  # at the prior: the variance within a class


def test_images_are_redrawn_from_the_posterior_of_their_class() -> None:
    """Their mean is the exact posterior mean, and each is the image of its row."""
    images = pixels(60, seed=2, shape=(1, 4, 4))
    labels = torch.randint(3, (60,), generator=torch.Generator().manual_seed(0))
    world = Empirical(images, labels, EDM())
    g = torch.Generator().manual_seed(1)
    query = world.draw(3, g)
    t = torch.full((3,), 2.0)
    x_t = query.x_0 + 2.0 * torch.randn(query.x_0.shape, generator=g)
    redraw = world.redraws(x_t, t, query)
    drawn = [redraw(g) for _ in range(4000)]
    for batch in drawn[:100]:
        assert batch.x_0.equal(dequantise(world.images[batch.index]))
        assert world.labels[batch.index].equal(query.condition)
    values = torch.stack([batch.x_0 for batch in drawn]).double()
    error = values.mean(0) - world.mean(x_t, t, query)
    assert (error.abs() < 5 * values.std(0) / len(drawn) ** 0.5 + 1e-6).all()
