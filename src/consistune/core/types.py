"""The words that all parts share: a batch of data, a pair of times, a denoiser, progress."""

from dataclasses import dataclass
from typing import Protocol, TypeAlias

from torch import Tensor

Progress: TypeAlias = int
"""Training images seen so far. Schedules are functions of it, so the batch size changes nothing."""


@dataclass(frozen=True)
class Batch:
    """Training images and what is known of them.

    Attributes:
        x_0: images in [-1, 1], [B, C, H, W].
        condition: integer class labels [B], or an embedding [B, K], or None.
        index: each image's row in the reference bank [B], or None where there is no bank.
        augment: what was done to each image, as the network is told [B, A]; None: nothing was.
    """

    x_0: Tensor
    condition: Tensor | None = None
    index: Tensor | None = None
    augment: Tensor | None = None

    def __len__(self) -> int:
        return self.x_0.shape[0]

    def rows(self, part: slice) -> "Batch":
        """These rows of the batch."""
        condition = None if self.condition is None else self.condition[part]
        index = None if self.index is None else self.index[part]
        augment = None if self.augment is None else self.augment[part]
        return Batch(self.x_0[part], condition, index, augment)


@dataclass(frozen=True)
class Times:
    """A transition t → r inside the phase that ends at s: t > r ≥ s ≥ 0, each [B]."""

    t: Tensor
    r: Tensor
    s: Tensor

    def rows(self, part: slice) -> "Times":
        """These rows of the batch."""
        return Times(self.t[part], self.r[part], self.s[part])


class Denoiser(Protocol):
    """x̂_0 = D(x_t, t | condition): images [B, C, H, W] from noisy images and their times [B].

    Preconditioning happens inside. A diffusion model's x̂_0 is the posterior mean E[x_0 | x_t]; a
    consistency model's is the end of the trajectory through x_t.
    """

    def __call__(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor: ...


def expand(value: Tensor, like: Tensor) -> Tensor:
    """Give a per-sample value [B] the trailing axes it needs to broadcast against `like` [B, ...]."""
    return value.reshape(value.shape + (1,) * (like.ndim - value.ndim))
