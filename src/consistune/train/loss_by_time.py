"""The loss by noise level: where in t a model is still bad, or a run goes wrong."""

from itertools import pairwise

import torch
from torch import Tensor

EDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
NAMES = (f"t<{EDGES[0]:g}", *(f"t={low:g}-{high:g}" for low, high in pairwise(EDGES)), f"t>{EDGES[-1]:g}")


def loss_by_time(t: Tensor, losses: Tensor) -> Tensor:
    """Sums of the losses [B] and their number in each bin of t [B] → [2, bins]; t as the recipe has it."""
    bins = torch.bucketize(t, torch.tensor(EDGES, dtype=t.dtype, device=t.device))
    inside = bins[:, None] == torch.arange(len(NAMES), device=t.device)
    sums = torch.where(inside, losses[:, None], 0).sum(0)
    return torch.stack([sums, inside.sum(0).to(sums)])


def means(table: Tensor) -> dict[str, float]:
    """The mean loss of each bin that has any."""
    rows = zip(NAMES, *table.tolist(), strict=True)
    return {name: total / count for name, total, count in rows if count}
