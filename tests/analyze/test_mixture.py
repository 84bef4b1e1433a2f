"""Gaussian mixtures: closed forms against automatic differentiation and against the single Gaussian."""

import pytest
import torch

from consistune.analyze.mixture import GaussianMixture
from tests.support.gaussian import SCHEDULES, Gaussian

CORNERS = torch.tensor([[0.6, 0.6], [-0.6, 0.4], [0.1, -0.7]], dtype=torch.float64)


def points(n: int = 16, scale: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    y = scale * torch.randn(n, 2, generator=g, dtype=torch.float64)
    return y, torch.rand(n, generator=g, dtype=torch.float64) * scale + 0.01


def test_the_score_is_the_gradient_of_the_log_density() -> None:
    weights = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    mixture = GaussianMixture(CORNERS, 0.2, weights)
    y, s = points()
    y.requires_grad_()
    variance = (0.2**2 + s**2)[:, None]
    squares = (y[:, None] - CORNERS).square().sum(2)
    log_density = torch.logsumexp(weights.log() - squares / (2 * variance), 1)
    (gradient,) = torch.autograd.grad(log_density.sum(), y)
    torch.testing.assert_close(mixture.score(y.detach(), s), gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_one_component_is_the_gaussian_to_1e_8(schedule) -> None:
    mixture = GaussianMixture(torch.full((1, 2), 0.3, dtype=torch.float64), 0.5)
    gaussian = Gaussian(schedule)
    y, s = points(scale=10.0)
    t = schedule.time_at(s)
    torch.testing.assert_close(mixture.denoise(y, t, schedule), gaussian.denoise(y, t), rtol=1e-9, atol=1e-10)
    f = mixture.consistency(y, t, schedule)
    torch.testing.assert_close(f, gaussian.consistency(y, t), rtol=0, atol=1e-8)


def test_the_consistency_function_is_constant_along_its_trajectory() -> None:
    """Follow the flow of three components half-way with small Runge–Kutta steps; both ends agree to 1e-8."""
    mixture, schedule = GaussianMixture(CORNERS, 0.1), SCHEDULES[0]
    y, t = 3 * CORNERS.roll(1, 0), torch.full((3,), 4.0, dtype=torch.float64)
    here = mixture.consistency(y, t, schedule)
    n = 600
    h = torch.full((3, 1), -3.0 / n, dtype=torch.float64)

    def slope(y, s):
        return -s[:, None] * mixture.score(y, s)

    for i in range(n):
        s = 4.0 + h[:, 0] * i
        k1 = slope(y, s)
        k2 = slope(y + h / 2 * k1, s + h[:, 0] / 2)
        k3 = slope(y + h / 2 * k2, s + h[:, 0] / 2)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(y + h * k3, s + h[:, 0]))
    there = mixture.consistency(y, torch.full((3,), 1.0, dtype=torch.float64), schedule)
    torch.testing.assert_close(here, there, rtol=0, atol=1e-8)


def test_samples_have_the_mixtures_moments(generator) -> None:
    weights = torch.tensor([0.2, 0.3, 0.5])
    x, component = GaussianMixture(CORNERS, 0.1, weights).sample(100_000, generator)
    shares = torch.bincount(component) / 100_000
    torch.testing.assert_close(shares, weights, rtol=0, atol=0.006)
    torch.testing.assert_close(x[component == 1].mean(0), CORNERS[1], rtol=0, atol=0.003)
    assert float(x[component == 2].std()) > 0.099


def test_impossible_mixtures_are_refused() -> None:
    with pytest.raises(ValueError, match="std"):
        GaussianMixture(CORNERS, 0.0)
    with pytest.raises(ValueError, match="weights"):
        GaussianMixture(CORNERS, 0.1, torch.ones(2))
    y, s = points(scale=10.0)
    with pytest.raises(ValueError, match="not within"):
        GaussianMixture(CORNERS, 0.01).consistency(y, s, SCHEDULES[0], max_steps=64)


def test_posterior_samples_have_the_posterior_mean_and_are_bayes_inverse(generator) -> None:
    """Their mean is E[x_0 | y]; and drawn for y of the noisy data, they are the data again."""
    mixture = GaussianMixture(CORNERS, 0.15)
    y, s = torch.tensor([[0.2, 0.1]], dtype=torch.float64), torch.tensor([0.5], dtype=torch.float64)
    many = mixture.posterior_sample(y.expand(100_000, 2), s.expand(100_000), SCHEDULES[0], generator)
    mean = mixture.denoise(y, s, SCHEDULES[0])[0]
    torch.testing.assert_close(many.mean(0), mean, rtol=0, atol=0.006)
    x_0, _ = mixture.sample(100_000, generator)
    noisy = x_0 + 0.5 * torch.randn(x_0.shape, generator=generator, dtype=torch.float64)
    again = mixture.posterior_sample(noisy, s.expand(100_000), SCHEDULES[0], generator)
    torch.testing.assert_close(again.mean(0), x_0.mean(0), rtol=0, atol=0.006)
    torch.testing.assert_close(again.T.cov(), x_0.T.cov(), rtol=0, atol=0.006)
