"""Which images a training step sees, and in which order."""

from enum import IntEnum
from typing import Protocol

import torch
from torch import Tensor

from consistune.core.rng import mix_seed
from consistune.core.types import Batch


class Stream(IntEnum):
    """The independent sources of randomness of a run."""

    ORDER = 1
    NOISE = 2
    DROPOUT = 3


class TrainingData(Protocol):
    """What the loop asks of a data set."""

    def __len__(self) -> int: ...

    def resident(self, device: torch.device) -> "TrainingData": ...

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
