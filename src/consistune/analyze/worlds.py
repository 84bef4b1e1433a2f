"""Consistency learning as value estimation: reward, value, TD error, and errors of estimates (METHOD §1).

State (t, x_t), action "follow the flow to r", reward of it, value h of what remains:

    R(t → r) = ∫_{λ_t}^{λ_r} e^{−λ} ε* dλ,   h(x_t, t) = x_t/α_t − x_0,   h(x_t, t) = R(t → r) + h(x_r, r)

With e^{−λ} = σ/α = s the integral is ∫_{s_r}^{s_t} ε* ds, so in y = x/α a reward is just y_t − y_r.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Generator, Tensor

from consistune.analyze.mixture import GaussianMixture
from consistune.core.estimators import NoiseEstimator
from consistune.core.noise import NoiseSchedule
from consistune.core.objectives import gaussian_like
from consistune.core.posterior.mean import Reference, dequantise, posterior
from consistune.core.solve import Method, solve
from consistune.core.types import Batch, Times, expand


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


class World(Protocol):
    """Data of which the exact score is known: what estimators are measured against."""

    def draw(self, n: int, generator: Generator) -> Batch:
        """n samples of p(x_0, c)."""
        ...

    def mean(self, x_t: Tensor, t: Tensor, batch: Batch) -> Tensor:
        """E[x_0 | x_t, c], exact. x_t [B, ...], t [B] → [B, ...]."""
        ...

    def redraws(self, x_t: Tensor, t: Tensor, batch: Batch) -> Callable[[Generator], Batch]:
        """A function that draws the batch again, every image from p(x_0 | x_t, c)."""
        ...


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

    def __init__(
        self, images: Tensor, labels: Tensor | None, schedule: NoiseSchedule, mirrored: bool = False
    ) -> None:
        if labels is not None:
            order = torch.argsort(labels, stable=True)  # row i here is row i of the reference
            images, labels = images[order], labels[order]
        self.images, self.labels, self.schedule, self.mirrored = images, labels, schedule, mirrored
        self.reference = Reference.ungrouped(images) if labels is None else Reference.grouped(images, labels)

    def draw(self, n: int, generator: Generator) -> Batch:
        rows = torch.randint(len(self.images), (n,), generator=generator)
        x_0 = self._values(self.images[rows])
        if self.mirrored:
            flip = torch.rand(n, generator=generator) < 0.5
            x_0 = torch.where(expand(flip, x_0), x_0.flip(-1), x_0)
        return Batch(x_0, None if self.labels is None else self.labels[rows], rows)

    def mean(self, x_t: Tensor, t: Tensor, batch: Batch) -> Tensor:
        found = posterior(x_t, t, self.schedule, self.reference, batch.condition, mirrored=self.mirrored)
        return found.mean

    def redraws(self, x_t: Tensor, t: Tensor, batch: Batch) -> Callable[[Generator], Batch]:
        """As the protocol; float64 weights, one query at a time, for few queries; flips where `mirrored`."""
        groups = [0] * len(x_t) if batch.condition is None else batch.condition.tolist()
        spans = [self.reference.offsets[c : c + 2] for c in groups]
        weights = [self._weights(*at) for at in zip(x_t.double(), t.double(), spans, strict=True)]

        def redraw(generator: Generator) -> Batch:
            images, rows = [], []
            for (start, stop), w in zip(spans, weights, strict=True):
                flipped, row = divmod(int(torch.multinomial(w, 1, generator=generator)), stop - start)
                x = self._values(self.images[start + row])
                images.append((x.flip(-1) if flipped else x).to(batch.x_0))
                rows.append(start + row)
            return Batch(torch.stack(images), batch.condition, torch.tensor(rows))

        return redraw

    def _weights(self, x_t: Tensor, t: Tensor, span: tuple[int, ...]) -> Tensor:
        """p(x_0 = x⁽ⁱ⁾ | x_t) over the images of a span, float64 [m]; then over their flips."""
        x = self._values(self.images[slice(*span)]).double()
        x = torch.cat([x, x.flip(-1)]) if self.mirrored else x
        squares = (x_t - self.schedule.alpha(t) * x).flatten(1).square().sum(1)
        return torch.softmax(squares / (-2 * self.schedule.sigma(t).square()), 0)

    @staticmethod
    def _values(images: Tensor) -> Tensor:
        return dequantise(images) if images.dtype == torch.uint8 else images


class TargetError(NamedTuple):
    """The error of an estimator's x̂_0 at one t, averaged over queries and elements.

    Attributes:
        error: E(x̂_0 − E[x_0 | x_t])², variance and squared bias together.
        spread: its standard error.
    """

    error: float
    spread: float


def target_errors(
    world: World,
    estimators: dict[str, NoiseEstimator],
    schedule: NoiseSchedule,
    t: float,
    queries: int,
    batch_size: int,
    generator: Generator,
) -> dict[str, TargetError]:
    """E(x̂_0 − E[x_0 | x_t])² of each estimator at time t, all on the same batches of `batch_size`.

    Batches are drawn as in training, since `batch` references depend on it. For the one-sample estimate,
    which is unbiased, this is its variance.
    """
    errors: dict[str, list[Tensor]] = {name: [] for name in estimators}
    for _ in range(-(-queries // batch_size)):
        batch = world.draw(batch_size, generator)
        times = torch.full((batch_size,), t, dtype=torch.float64).to(batch.x_0)
        x_t = schedule.diffuse(batch.x_0, gaussian_like(batch.x_0, generator), times)
        exact = world.mean(x_t, times, batch).double()
        for name, estimator in estimators.items():
            bound = estimator.bind(batch, Times(times, torch.zeros_like(times), 0 * times), generator)
            found = bound.clean(x_t, times, batch).double()
            errors[name].append((found - exact).flatten(1).square().mean(1))
    return {name: _summary(torch.cat(parts)) for name, parts in errors.items()}


def _summary(errors: Tensor) -> TargetError:
    return TargetError(float(errors.mean()), float(errors.std() / len(errors) ** 0.5))


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
    total, squares = torch.zeros_like(exact), torch.zeros_like(exact)
    for k in range(repeats):
        off = estimate(k).to(exact) - exact
        total += off
        squares += off.square()
    mean = total / repeats
    variance = (squares - repeats * mean.square()) / (repeats - 1)
    squared_bias = mean.square() - variance / repeats
    return Moments(squared_bias.flatten(1).mean(1), variance.flatten(1).mean(1))
