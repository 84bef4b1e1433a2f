"""Data whose exact score is known, and the errors of noise estimates on them (METHOD §1, §2)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Generator, Tensor

from consistune.analyze.mixture import GaussianMixture
from consistune.core.estimators import NoiseEstimator
from consistune.core.noise import NoiseSchedule
from consistune.core.objectives import gaussian_like
from consistune.core.posterior.mean import Reference, dequantise, posterior
from consistune.core.types import Batch, Times


class World(Protocol):
    """Data whose exact score is known, under a noise schedule."""

    schedule: NoiseSchedule

    def draw(self, n: int, generator: Generator) -> Batch:
        """n samples of p(x_0, c)."""
        ...

    def mean(self, x_t: Tensor, t: Tensor, batch: Batch) -> Tensor:
        """E[x_0 | x_t, c], exact. x_t [B, ...], t [B] → [B, ...]."""
        ...

    def redraws(self, x_t: Tensor, t: Tensor, batch: Batch) -> Callable[[Generator], Batch]:
        """A function that draws the batch again, every image from p(x_0 | x_t, c)."""
        ...


@dataclass(frozen=True)
class Exact(NoiseEstimator):
    """A world's exact posterior mean."""

    world: World

    def clean(self, x_t: Tensor, t: Tensor, batch: Batch) -> Tensor:
        return self.world.mean(x_t, t, batch)


class Mixture:
    """A Gaussian mixture as the data, without labels. It has no rows, so no random references."""

    def __init__(self, mixture: GaussianMixture, schedule: NoiseSchedule) -> None:
        self.mixture, self.schedule = mixture, schedule

    def draw(self, n: int, generator: Generator) -> Batch:
        return Batch(self.mixture.sample(n, generator)[0])

    def mean(self, x_t: Tensor, t: Tensor, batch: Batch) -> Tensor:
        del batch
        return self.mixture.denoise(x_t, t, self.schedule)

    def redraws(self, x_t: Tensor, t: Tensor, batch: Batch) -> Callable[[Generator], Batch]:
        del batch
        return lambda generator: Batch(self.mixture.posterior_sample(x_t, t, self.schedule, generator))


class Empirical:
    """The training set as the data: there the score identity over all images of a class is exact."""

    def __init__(self, images: Tensor, labels: Tensor | None, schedule: NoiseSchedule) -> None:
        if labels is not None:
            order = torch.argsort(labels, stable=True)  # row i here is row i of the reference
            images, labels = images[order], labels[order]
        self.images, self.labels, self.schedule = images, labels, schedule
        self.reference = Reference.ungrouped(images) if labels is None else Reference.grouped(images, labels)

    def draw(self, n: int, generator: Generator) -> Batch:
        rows = torch.randint(len(self.images), (n,), generator=generator)
        x_0 = self._values(self.images[rows])
        return Batch(x_0, None if self.labels is None else self.labels[rows], rows)

    def mean(self, x_t: Tensor, t: Tensor, batch: Batch) -> Tensor:
        return posterior(x_t, t, self.schedule, self.reference, batch.condition).mean

    def redraws(self, x_t: Tensor, t: Tensor, batch: Batch) -> Callable[[Generator], Batch]:
        """As the protocol; float64 weights, one query at a time, for few queries."""
        groups = [0] * len(x_t) if batch.condition is None else batch.condition.tolist()
        spans = [self.reference.offsets[c : c + 2] for c in groups]
        weights = [self._weights(*at) for at in zip(x_t.double(), t.double(), spans, strict=True)]

        def redraw(generator: Generator) -> Batch:
            images, rows = [], []
            for (start, _), w in zip(spans, weights, strict=True):
                rows.append(start + int(torch.multinomial(w, 1, generator=generator)))
                images.append(self._values(self.images[rows[-1]]).to(batch.x_0))
            return Batch(torch.stack(images), batch.condition, torch.tensor(rows))

        return redraw

    def _weights(self, x_t: Tensor, t: Tensor, span: tuple[int, ...]) -> Tensor:
        """p(x_0 = x⁽ⁱ⁾ | x_t) over the images of a span, float64 [m]."""
        x = self._values(self.images[slice(*span)]).double()
        squares = (x_t - self.schedule.alpha(t) * x).flatten(1).square().sum(1)
        return torch.softmax(squares / (-2 * self.schedule.sigma(t).square()), 0)

    @staticmethod
    def _values(images: Tensor) -> Tensor:
        return dequantise(images) if images.dtype == torch.uint8 else images


def target_errors(
    world: World,
    estimators: dict[str, NoiseEstimator],
    t: float,
    queries: int,
    batch_size: int,
    generator: Generator,
) -> dict[str, tuple[float, float]]:
    """E(x̂_0 − E[x_0 | x_t])² of each estimator at time t, and its standard error, on the same batches.

    The mean over queries and elements: the estimator's variance and squared bias together. Batches are drawn
    as in training, since `batch` references depend on it.
    """
    errors: dict[str, list[Tensor]] = {name: [] for name in estimators}
    for _ in range(-(-queries // batch_size)):
        x_t, times, batch = noisy(world, batch_size, t, generator)
        exact = world.mean(x_t, times, batch).double()
        for name, estimator in estimators.items():
            bound = estimator.bind(batch, Times(times, 0 * times, 0 * times), generator)
            found = bound.clean(x_t, times, batch).double()
            errors[name].append((found - exact).flatten(1).square().mean(1))
    every = {name: torch.cat(parts) for name, parts in errors.items()}
    return {name: (float(e.mean()), float(e.std() / len(e) ** 0.5)) for name, e in every.items()}


def noisy(world: World, n: int, t: float, generator: Generator) -> tuple[Tensor, Tensor, Batch]:
    """n samples of a world: x_t, the times t [n], and the batch x_t was made from."""
    batch = world.draw(n, generator)
    times = torch.full((n,), t, dtype=torch.float64).to(batch.x_0)
    return world.schedule.diffuse(batch.x_0, gaussian_like(batch.x_0, generator), times), times, batch


class Moments(NamedTuple):
    """Squared bias and variance of an estimator given x_t, per query [B], means over elements."""

    squared_bias: Tensor
    variance: Tensor


def bias_and_variance(estimate: Callable[[int], Tensor], exact: Tensor, repeats: int) -> Moments:
    """Moments of an estimator at fixed x_t, from `repeats` independent estimates of the same targets.

    `estimate(k)` gives the k-th x̂_0 [B, ...] with everything else drawn afresh from p(· | x_t): the image
    that made x_t and the references. The squared bias is corrected for the variance of the mean,
    ‖mean − exact‖² − variance/repeats, so it is unbiased and may come out slightly negative.
    """
    total, squares = torch.zeros(2, *exact.shape).to(exact)
    for k in range(repeats):
        off = estimate(k).to(exact) - exact
        total += off
        squares += off.square()
    mean = total / repeats
    variance = (squares - repeats * mean.square()) / (repeats - 1)
    squared_bias = mean.square() - variance / repeats
    return Moments(squared_bias.flatten(1).mean(1), variance.flatten(1).mean(1))
