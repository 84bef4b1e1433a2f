"""What a step is computed from: which images, in which order, and which of their labels are hidden."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import torch
from torch import Tensor

from consistune.core.rng import mix_seed
from consistune.core.types import Batch
from consistune.nn.precond import Preconditioned


class Stream(IntEnum):
    """The independent sources of randomness of a run."""

    ORDER = 1
    NOISE = 2
    DROPOUT = 3


class TrainingData(Protocol):
    """What the loop asks of a data set."""

    def __len__(self) -> int: ...

    def batch(self, rows: Tensor, conditional: bool, device: torch.device | str = "cpu") -> Batch: ...


class EpochOrder:
    """The k-th image of training: a fresh permutation of the data for every epoch, a function of k alone."""

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed = size, seed
        self._epoch, self._order = -1, torch.empty(0)

    def rows(self, start: int, count: int) -> Tensor:
        """Rows of the images number start … start + count − 1."""
        parts = []
        while count > 0:
            epoch, offset = divmod(start, self.size)
            if epoch != self._epoch:
                generator = torch.Generator().manual_seed(mix_seed(self.seed, epoch, Stream.ORDER))
                self._epoch, self._order = epoch, torch.randperm(self.size, generator=generator)
            parts.append(self._order[offset : offset + count])
            start, count = start + len(parts[-1]), count - len(parts[-1])
        return torch.cat(parts)


@dataclass(frozen=True)
class HiddenLabels:
    """A denoiser that does not see the labels of some rows: their one-hot vector is zero.

    Attributes:
        hidden: which rows [B].
    """

    model: Preconditioned
    hidden: Tensor

    def __call__(
        self, x_t: Tensor, t: Tensor, condition: Tensor | None = None, augment_labels: Tensor | None = None
    ) -> Tensor:
        one_hot = self.model.one_hot(condition, len(x_t), x_t)
        if one_hot is not None:
            one_hot = one_hot.masked_fill(self.hidden[:, None], 0.0)
        return self.model(x_t, t, one_hot, augment_labels)
