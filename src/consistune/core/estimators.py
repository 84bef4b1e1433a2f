"""How the noise in x_t is estimated: the choice that separates the methods (METHOD §1, §2).

Each estimator gives x̂_0; the noise is ε̂ = (x_t − α_t x̂_0)/σ_t. No estimator in
this form divides by α_t.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import torch
from torch import Generator, Tensor

from consistune.core.guidance import Guided
from consistune.core.noise import NoiseSchedule
from consistune.core.posterior.mean import LogPrior, OwnRows, Posterior, Reference, posterior
from consistune.core.posterior.own_rows import random_rows
from consistune.core.posterior.priors import kernel_prior, label_prior, nearest_prior, random_subset
from consistune.core.types import Batch, Denoiser, Times, exact_device, expand


class NoiseEstimator(Protocol):
    """x̂_0 at the noisy images x_t [B, C, H, W] of a batch at times t [B].

    Attributes:
        local: the estimate is valid only at the x_t made from x_0, so only for one Euler step.
    """

    local: ClassVar[bool] = False

    def clean(self, x_t: Tensor, t: Tensor, batch: Batch) -> Tensor: ...

    def clean_and_scatter(self, x_t: Tensor, t: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """x̂_0 and the root variance √(E‖x_0 − x̂_0‖²) [B] of the posterior that it is the mean of.

        Raises ValueError where the estimator knows no posterior.
        """
        del x_t, t, batch
        raise ValueError(f"{type(self).__name__} knows no posterior, so no scatter of it")

    @property
    def knows_posterior(self) -> bool:
        """Whether there is a `clean_and_scatter`."""
        return False

    def bind(self, batch: Batch, times: Times, generator: Generator | None) -> "NoiseEstimator":
        """This estimator for one training step: its random choices made, what depends on r computed.

        The solver then calls the result at each of its points.
        """
        del batch, times, generator
        return self

    def rows(self, part: slice | Tensor) -> "NoiseEstimator":
        """The bound estimator for some rows of its batch: a process's share, or a micro-batch."""
        del part
        return self

    def reference_bytes(self) -> int:
        """The size of the reference images that the estimate looks at beside the batch."""
        return 0


@dataclass(frozen=True)
class OneSample(NoiseEstimator):
    """x̂_0 = x_0, the image that x_t was made from: unbiased, large variance (CT, iCT, ECT)."""

    local: ClassVar[bool] = True

    def clean(self, x_t: Tensor, t: Tensor, batch: Batch) -> Tensor:  # noqa: ARG002 - not needed
        return batch.x_0

    def clean_and_scatter(self, x_t: Tensor, t: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        return self.clean(x_t, t, batch), torch.zeros_like(t)

    @property
    def knows_posterior(self) -> bool:
        return True


@dataclass(frozen=True)
class Teacher(NoiseEstimator):
    """x̂_0 = D_φ(x_t, t): a frozen diffusion model (CD, 2303.01469). It has the model's bias and no variance.

    `guidance` ω ≠ 1 distils D(x, ∅) + ω·(D(x, c) − D(x, ∅)), classifier-free guidance (2207.12598).
    """

    model: Denoiser
    guidance: float = 1.0

    def clean(self, x_t: Tensor, t: Tensor, batch: Batch) -> Tensor:
        with torch.no_grad():
            return Guided(self.model, None, self.guidance)(x_t, t, batch.condition)


class PosteriorMean(NoiseEstimator, Protocol):
    """x̂_0 = Σ_i w_i x⁽ⁱ⁾ over reference images, with the scatter of the same weights."""

    def posterior(self, x_t: Tensor, t: Tensor, batch: Batch) -> Posterior: ...

    def clean(self, x_t: Tensor, t: Tensor, batch: Batch) -> Tensor:
        return self.posterior(x_t, t, batch).mean

    def clean_and_scatter(self, x_t: Tensor, t: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        found = self.posterior(x_t, t, batch)
        return found.mean, found.scatter

    @property
    def knows_posterior(self) -> bool:
        return True


@dataclass(frozen=True)
class ScoreIdentity(PosteriorMean):
    """x̂_0 = Σ_i w_i x⁽ⁱ⁾, the posterior mean over reference images: SCT's target (2410.18958, §4.1).

    Its variance and its bias fall as the number of references grows. References share the query's condition.
    The image that x_t was made from is always among them.

    Attributes:
        reference: the images of the training set, grouped by class (or one group); None takes the
            images of the mini-batch with the same condition.
        mirrored: each reference counts twice, as it is and flipped, as under x-flip augmentation.
        size: the number of random references per step and class, the query's own image among them; None: all.
            Needs `reference` and the batch's `index`. 1 is the one-sample estimate.
        bandwidth: for continuous conditions c [B, K], one per image in the reference: references weigh
            exp(−‖c − c_i‖²/2h²). Biased towards the mean over neighbouring conditions, by O(h²)
            where the data change smoothly with c; h → 0 leaves the own image (variance), h → ∞ ignores c.
        nearest: for continuous conditions, only this number of nearest references (and ties) count: the same
            trade, with an h that follows the density of the conditions (both are our choice).

    Recipes have no key for bandwidth and nearest, because no data set of theirs has continuous conditions.
    """

    schedule: NoiseSchedule
    reference: Reference | None = None
    mirrored: bool = False
    size: int | None = None
    bandwidth: float | None = None
    nearest: int | None = None

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise ValueError(f"size must be at least 1, got {self.size}")
        if self.size is not None and self.reference is None:
            raise ValueError("size needs a reference set: a mini-batch is its own random subset")
        if self.bandwidth is not None and self.nearest is not None:
            raise ValueError("give bandwidth or nearest, not both")
        if self.bandwidth is not None and not self.bandwidth > 0:
            raise ValueError(f"bandwidth must be positive, got {self.bandwidth}")
        if self.nearest is not None and self.nearest < 1:
            raise ValueError(f"nearest must be at least 1, got {self.nearest}")
        if self.size is not None and (self.bandwidth is not None or self.nearest is not None):
            raise ValueError("random references are drawn by class: size goes with no bandwidth or nearest")

    def reference_bytes(self) -> int:
        return 0 if self.reference is None else self.reference.images.nbytes

    def bind(self, batch: Batch, times: Times, generator: Generator | None) -> NoiseEstimator:
        if self.reference is None:
            return self._of_mini_batch(batch)  # here, so that `rows` keeps the whole batch as references
        if self.size is None:
            return self
        if self.size == 1 and not self.mirrored:
            return OneSample()
        if batch.index is None or generator is None:
            raise ValueError("random references need the batch's rows in the reference and a generator")
        del times
        group = self._group(self.reference, batch)
        if self.reference.device.type != "cpu":  # a shared pool would need to know on the host who is in it
            group = torch.zeros_like(batch.index) if group is None else group
            reference = self.reference
            drawn = random_rows(reference.starts, group, batch.index, self.size, reference.longest, generator)
            return _OwnRows(replace(self, size=None), drawn)
        index = batch.index.to(self.reference.device)
        group = None if group is None else group.to(self.reference.device)
        subset, prior = random_subset(self.reference, group, index, self.size, generator)
        return _Subset(replace(self, reference=subset, size=None), prior)

    def posterior(
        self,
        x_t: Tensor,
        t: Tensor,
        batch: Batch,
        log_prior: LogPrior | None = None,
        own: OwnRows | None = None,
    ) -> Posterior:
        """Over the references, weighted by `log_prior` (None: by their conditions), or over `own` ones."""
        if self.size is not None:
            raise ValueError("random references are drawn by bind(): call that first")
        if self.reference is None:
            return self._of_mini_batch(batch).posterior(x_t, t, batch)
        reference, group = self.reference, self._group(self.reference, batch)
        if log_prior is None:
            log_prior = self._condition_prior(reference, batch)
        mirrored = self.mirrored
        return posterior(
            x_t, t, self.schedule, reference, group, log_prior=log_prior, mirrored=mirrored, own=own
        )

    def _condition_prior(self, reference: Reference, batch: Batch) -> LogPrior | None:
        if self.bandwidth is None and self.nearest is None:
            return None
        if batch.condition is None or reference.conditions is None:
            raise ValueError("continuous conditions are missing in the batch or the reference")
        conditions = batch.condition.to(reference.device)
        if self.bandwidth is not None:
            return kernel_prior(reference.conditions, conditions, self.bandwidth)
        return nearest_prior(reference.conditions, conditions, int(self.nearest or 1))

    def _group(self, reference: Reference, batch: Batch) -> Tensor | None:
        if len(reference.offsets) == 2:
            return None
        if batch.condition is None:
            raise ValueError("references are grouped by class, but the batch has no labels")
        return batch.condition

    def _of_mini_batch(self, batch: Batch) -> PosteriorMean:
        """The same with the batch's images as references."""
        home = exact_device(batch.x_0.device)
        if batch.condition is None:
            return replace(self, reference=Reference.ungrouped(batch.x_0.to(home)))
        images, condition = batch.x_0.to(home), batch.condition.to(home)
        if condition.is_floating_point():
            if self.bandwidth is None and self.nearest is None:
                raise ValueError("continuous conditions need a bandwidth or a number of nearest references")
            return replace(self, reference=Reference(images, (0, len(batch)), condition))
        if home.type == "cpu":
            return replace(self, reference=Reference.grouped(images, condition))
        # To group them, the host would wait for the labels.
        return _Subset(replace(self, reference=Reference.ungrouped(images)), label_prior(condition))


@dataclass(frozen=True)
class _Subset(PosteriorMean):
    """The score identity over references of one step that a log-prior chooses for each query."""

    identity: ScoreIdentity
    log_prior: LogPrior

    def rows(self, part: slice | Tensor) -> NoiseEstimator:
        def log_prior(queries: Tensor, first: int, last: int) -> Tensor:
            chosen = queries + part.start if isinstance(part, slice) else part[queries]
            return self.log_prior(chosen, first, last)

        return _Subset(self.identity, log_prior)

    def posterior(self, x_t: Tensor, t: Tensor, batch: Batch) -> Posterior:
        return self.identity.posterior(x_t, t, batch, self.log_prior)


@dataclass(frozen=True)
class _OwnRows(PosteriorMean):
    """The score identity over random references of each query's own, of one step."""

    identity: ScoreIdentity
    own: OwnRows

    def rows(self, part: slice | Tensor) -> NoiseEstimator:
        return _OwnRows(self.identity, (self.own[0][part], self.own[1][part]))

    def posterior(self, x_t: Tensor, t: Tensor, batch: Batch) -> Posterior:
        return self.identity.posterior(x_t, t, batch, own=self.own)


@dataclass(frozen=True)
class Blend(NoiseEstimator):
    """x̂_0 = ρ·(another estimator's) + (1 − ρ)·x_0, with ρ = min(1, (1 − s_r/s_t)/full_gap)  (our choice).

    s = σ/α, so (t − r)/t under EDM's schedule. While the relative gap is at least `full_gap` this is the
    other estimator; as r → t the one-sample noise returns and smooths the bootstrap at x_r, where training
    is prone to diverge (METHOD §3).
    """

    schedule: NoiseSchedule
    estimator: NoiseEstimator
    full_gap: float = 1 / 16

    local: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.full_gap <= 1:
            raise ValueError(f"full_gap must lie in (0, 1], got {self.full_gap}")

    def reference_bytes(self) -> int:
        return self.estimator.reference_bytes()

    @property
    def knows_posterior(self) -> bool:
        return self.estimator.knows_posterior

    def bind(self, batch: Batch, times: Times, generator: Generator | None) -> NoiseEstimator:
        gap = 1 - self.schedule.noise_to_signal(times.r) / self.schedule.noise_to_signal(times.t)
        return _Blended(self.estimator.bind(batch, times, generator), (gap / self.full_gap).clamp(max=1))

    def clean(self, x_t: Tensor, t: Tensor, batch: Batch) -> Tensor:  # noqa: ARG002 - always refused
        raise ValueError("a blend depends on r: bind() it to a step first")


@dataclass(frozen=True)
class _Blended(NoiseEstimator):
    estimator: NoiseEstimator
    rho: Tensor

    local: ClassVar[bool] = True

    def rows(self, part: slice | Tensor) -> NoiseEstimator:
        return _Blended(self.estimator.rows(part), self.rho[part])

    def clean(self, x_t: Tensor, t: Tensor, batch: Batch) -> Tensor:
        return self._blended(self.estimator.clean(x_t, t, batch), batch)

    def clean_and_scatter(self, x_t: Tensor, t: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        x0_hat, scatter = self.estimator.clean_and_scatter(x_t, t, batch)
        return self._blended(x0_hat, batch), self.rho * scatter

    def _blended(self, x0_hat: Tensor, batch: Batch) -> Tensor:
        return batch.x_0 + expand(self.rho, x0_hat) * (x0_hat - batch.x_0)
