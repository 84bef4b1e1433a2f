"""The kernel distance between sets of features; on Inception's features it is KID."""

import torch
from torchmetrics.image.kid import poly_mmd

from consistune.metrics.feature_file import Rows
from consistune.metrics.metric import Metric, Result

SUBSETS, SUBSET_SIZE = 100, 1000
"""100 subsets of 1000 rows (1801.01401; ECT)."""


def kernel_distance(
    real: Rows, samples: Rows, subsets: int = SUBSETS, size: int = SUBSET_SIZE, seed: int = 0
) -> tuple[float, float]:
    """Squared MMD with the kernel (x·y/D + 1)³, unbiased, mean and standard error over random subsets.

    The mean over the subsets estimates the distance of the whole sets. torchmetrics computes each subset, in
    the features' own precision: fp32 from an extractor, whose rounding is far below the standard error, in
    half the time of float64. Subsets are no larger than the smaller set. real [m, D], samples [n, D].
    Source: Bińkowski et al., 1801.01401, §4.
    """
    size = min(size, len(real), len(samples))
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(subsets):
        x, y = (u[torch.randperm(len(u), generator=generator)[:size]] for u in (real, samples))
        values.append(poly_mmd(x, y))
    distances = torch.stack(values)
    return float(distances.mean()), float(distances.std() / subsets**0.5)


class KernelDistance(Metric):
    """`kernel_distance` to the real features, and NAME_error.

    NAME is "kid" on the official Inception, "kd-…" on another extractor.
    """

    stores_features = True

    def check(self) -> None:
        self.setup.need_real_features()

    def result(self) -> Result:
        extractor = self.setup.extractor.name
        name = "kid" if extractor == "fid" else extractor.replace("fd-", "kd-", 1)
        distance, error = kernel_distance(self.setup.need_real_features(), self.block.need_features())
        return Result({name: distance, f"{name}_error": error})
