"""The kernel distance between sets of features: KID on Inception's."""

import torch
from torchmetrics.image.kid import poly_mmd

from consistune.metrics.feature_file import Rows

SUBSETS, SUBSET_SIZE = 100, 1000
"""100 subsets of 1000 rows (1801.01401; ECT)."""


def kernel_distance(
    real: Rows, samples: Rows, subsets: int = SUBSETS, size: int = SUBSET_SIZE, seed: int = 0
) -> tuple[float, float]:
    """Squared MMD with the kernel (x·y/D + 1)³, unbiased, mean and standard error over random subsets.

    The mean over the subsets estimates the distance of the whole sets; torchmetrics computes each subset, in
    the features' own precision (fp32 from an extractor: float64 takes twice as long for digits that are far
    below the error). Subsets are no larger than the smaller set. Source: Bińkowski et al., 1801.01401, §4.
    """
    size = min(size, len(real), len(samples))
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(subsets):
        x, y = (u[torch.randperm(len(u), generator=generator)[:size]] for u in (real, samples))
        values.append(poly_mmd(x, y))
    found = torch.stack(values)
    return float(found.mean()), float(found.std() / subsets**0.5)
