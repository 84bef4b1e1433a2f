"""The mean loss by the schedule's time (EDM's is the noise level), which shows where a model is still bad."""

from itertools import pairwise

import torch
from torch import Tensor

from consistune.core.types import moved

EDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
NAMES = (f"t<{EDGES[0]:g}", *(f"t={low:g}-{high:g}" for low, high in pairwise(EDGES)), f"t>{EDGES[-1]:g}")


def loss_by_time(t: Tensor, losses: Tensor) -> Tensor:
    """Losses [B] and times t [B] → their sums and their numbers in each bin of t, [2, bins]."""
    bins = torch.bucketize(t, moved(torch.tensor(EDGES, dtype=t.dtype), t.device))
    inside = bins[:, None] == torch.arange(len(NAMES), device=t.device)
    sums = torch.where(inside, losses[:, None], 0).sum(0)
    return torch.stack([sums, inside.sum(0).to(sums)])


def means(table: Tensor) -> dict[str, float]:
    """A table of `loss_by_time` → the mean loss by the bin's name, without empty bins."""
    rows = zip(NAMES, *table.tolist(), strict=True)
    return {name: total / count for name, total, count in rows if count}
