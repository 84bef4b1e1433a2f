"""What normalised losses make of one-sample noise at the exact solution (METHOD §8).

There a part of the update's mean size remains in its mean: some 0.2 on a mixture in the plane, 0.5 to 1 where
the posterior is three points, some 1 % where 48 coordinates are independent (1.0 to 1.5 % by 16,000 images).
"""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from consistune.core.estimators import NoiseEstimator, OneSample, Teacher
from consistune.core.noise import EDM
from consistune.core.objectives import AdaptivePower
from consistune.core.types import Batch, Times
from tests.core.test_flow_laws import WARM, every_objective, objective_of

AT = torch.tensor([0.6], dtype=torch.float64)


@dataclass
class Spots:
    """Spots N(m_i, τ²) as data: the exact flow by steps of the fourth order; EDM's schedule.

    centres: [n, K], of each of the independent parts of x [B, 1, P, K].
    """

    centres: Tensor
    tau: float = 0.2
    steps: int = 30
    two_times = True

    def weights(self, x: Tensor, t: Tensor) -> Tensor:
        """The posterior of the spots [B, P, n]."""
        shift = (x[:, 0, :, None] - self.centres).square().sum(3)
        return torch.softmax(-shift / (2 * (t.square() + self.tau**2))[:, None, None], 2)

    def spot(self, x: Tensor, t: Tensor) -> Tensor:
        """The mean of the spots' centres [B, 1, P, K]."""
        return (self.weights(x, t) @ self.centres)[:, None]

    def denoise(self, x: Tensor, t: Tensor, condition: Any = None) -> Tensor:
        mean = self.spot(x, t)
        share = (self.tau**2 / (t.square() + self.tau**2)).view(-1, 1, 1, 1)
        return mean + share * (x - mean)

    def posterior(self, x: Tensor, t: Tensor, n: int) -> Tensor:
        """n images that may have made x [1, 1, P, K] at t."""
        g = torch.Generator().manual_seed(0)
        drawn = torch.multinomial(self.weights(x, t)[0], n, replacement=True, generator=g)
        centre = self.centres[drawn.T][:, None]
        share = self.tau**2 / (t.square() + self.tau**2)
        noise = torch.randn(centre.shape, generator=g, dtype=torch.float64)
        return centre + share * (x - centre) + (share.sqrt() * t) * noise

    def __call__(self, x: Tensor, t: Tensor, condition: Any = None, s: Tensor | None = None) -> Tensor:
        if s is None:
            return self.denoise(x, t)
        start, u = x, t
        h = (s - t) / self.steps

        def slope(x: Tensor, u: Tensor) -> Tensor:  # (x − x̂_0)/u, without its 0/0 at the end
            return (u / (u.square() + self.tau**2)).view(-1, 1, 1, 1) * (x - self.spot(x, u))

        half = (h / 2).view(-1, 1, 1, 1)
        for _ in range(self.steps):
            a = slope(x, u)
            b = slope(x + half * a, u + h / 2)
            c = slope(x + half * b, u + h / 2)
            d = slope(x + 2 * half * c, u + h)
            x, u = x + half / 3 * (a + 2 * b + 2 * c + d), u + h
        keep = (s / t).view(-1, 1, 1, 1)
        return (x - keep * start) / (1 - keep)


def updates(kind: str, world: Spots, x_t: Tensor, estimator: NoiseEstimator, images: Tensor) -> Tensor:
    """The derivative of each normalised loss with respect to the model's x̂_0, [n, P·K]."""
    shift = torch.zeros(images.shape, dtype=torch.float64, requires_grad=True)

    def shifted(*inputs: Any) -> Tensor:
        return world(*inputs) + shift

    shifted.two_times = True
    options = {"c": 0.1} if kind == "continuous" else {"scale": AdaptivePower(0.75, 1e-3)}
    objective = objective_of(kind, EDM(), estimator, **options)
    t = AT.expand(len(images))
    where = (t, WARM) if kind == "continuous" else (Times(t, 0.3 * t, 0 * t),)
    loss = objective.at(shifted, Batch(images), *where, (x_t - images) / AT)
    return torch.autograd.grad(loss.sum(), shift)[0].flatten(1)


THREE = torch.tensor([[-0.8, 0.1], [0.5, 0.9], [0.6, -0.7]], dtype=torch.float64)
POINT = torch.tensor([[1.0, 0.5]], dtype=torch.float64).view(1, 1, 1, 2)


def share(kind: str, world: Spots, x_t: Tensor, n: int) -> tuple[float, float]:
    """The length of the mean update over the updates' mean length: of one-sample noise, of the marginal."""
    images = world.posterior(x_t, AT, n)
    one = updates(kind, world, x_t, OneSample(), images)
    size = float(one.norm(dim=1).mean())
    marginal = updates(kind, replace(world, steps=30), x_t, Teacher(world.denoise), images[:1])
    # Of a long list of images that are as likely as the posterior has them, the plain mean has no bias.
    v = (x_t - images) / AT
    error = (v.mean(0) - (x_t - world.denoise(x_t, AT))[0] / AT).norm()
    assert error < 4 * v.flatten(1).std(0).norm() / n**0.5
    first, second = one.tensor_split(2)
    squared = float(first.mean(0) @ second.mean(0))  # two halves: their own noise does not count
    return max(squared, 0.0) ** 0.5 / size, float(marginal.norm()) / size


@every_objective
def test_on_a_mixture_in_the_plane(kind) -> None:
    of_one, of_marginal = share(kind, Spots(THREE), POINT, 500)
    assert of_one > 0.15
    assert of_marginal < 1e-3


@pytest.mark.parametrize("kind", ["mean-velocity", "improved"])
def test_where_the_posterior_is_three_points(kind) -> None:
    of_one, of_marginal = share(kind, Spots(THREE, tau=0.02), POINT, 500)
    assert 0.5 < of_one < 1.0
    assert of_marginal < 1e-3


@every_objective
def test_in_many_independent_coordinates(kind) -> None:
    world = Spots(torch.tensor([[-0.7], [0.5]], dtype=torch.float64), steps=10)
    x_t = torch.linspace(-1, 1, 48, dtype=torch.float64).view(1, 1, 48, 1)
    of_one, of_marginal = share(kind, world, x_t, 4000)
    assert of_one < 0.015 + 0.015  # the bias, and what 4,000 images leave of their noise
    assert of_marginal < 1e-3
