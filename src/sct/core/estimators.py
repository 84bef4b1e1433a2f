"""How the noise in x_t is estimated: the choice that separates the methods (METHOD §1, §2).

Each estimator gives x̂_0; the noise is ε̂ = (x_t − α_t x̂_0)/σ_t. In x̂_0 all of them are natural and nothing
divides by α_t.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sct.core.noise import NoiseSchedule
from sct.core.posterior import Reference, posterior
from sct.core.types import Batch, Denoiser


class NoiseEstimator(Protocol):
    """x̂_0 at the noisy images x_t [B, C, H, W] of a batch at times t [B]."""

    def clean(self, x_t: Tensor, t: Tensor, batch: Batch) -> Tensor: ...


@dataclass(frozen=True)
class OneSample:
    """x̂_0 = x_0, the very image that made x_t: unbiased, large variance (CT, iCT, ECT).

    Valid only at the x_t that x_0 made, so never for more than one solver step.
    """

    def clean(self, x_t: Tensor, t: Tensor, batch: Batch) -> Tensor:  # noqa: ARG002 - the definition
        return batch.x_0


@dataclass(frozen=True)
class Teacher:
    """x̂_0 = D_φ(x_t, t): a frozen diffusion model (CD, 2303.01469). Biased as the teacher is, no variance."""

    model: Denoiser

    def clean(self, x_t: Tensor, t: Tensor, batch: Batch) -> Tensor:
        with torch.no_grad():
            return self.model(x_t, t, batch.condition)


@dataclass(frozen=True)
class ScoreIdentity:
    """x̂_0 = Σ_i w_i x⁽ⁱ⁾, the posterior mean over reference images: SCT's target (2410.18958, §4.1).

    Its variance falls with the number of references; its bias vanishes with it. References share the
    query's condition. The image that made x_t is always among them.

    Attributes:
        reference: the images of the training set, grouped by class (or one group); None takes the other
            images of the mini-batch with the same condition.
        mirrored: references count as they are and flipped, as x-flip augmentation makes them.
    """

    schedule: NoiseSchedule
    reference: Reference | None = None
    mirrored: bool = False

    def clean(self, x_t: Tensor, t: Tensor, batch: Batch) -> Tensor:
        if self.reference is None:
            reference, group = self._mini_batch(batch)
        else:
            reference = self.reference
            group = batch.condition if len(reference.offsets) > 2 else None
            if len(reference.offsets) > 2 and group is None:
                raise ValueError("references are grouped by class, but the batch has no labels")
        return posterior(x_t, t, self.schedule, reference, group, mirrored=self.mirrored).mean

    def _mini_batch(self, batch: Batch) -> tuple[Reference, Tensor | None]:
        if batch.condition is None:
            return Reference.whole(batch.x_0), None
        if batch.condition.is_floating_point():
            raise ValueError("batch references need integer class labels as conditions")
        return Reference.grouped(batch.x_0, batch.condition), batch.condition
