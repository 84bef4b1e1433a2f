"""The kernel distance between sets of features; on Inception's features it is KID."""

import torch
from torch import Tensor
from torchmetrics.image.kid import maximum_mean_discrepancy, poly_kernel

from consistune.metrics.feature_file import Rows
from consistune.metrics.metric import Metric, Result

SUBSETS, SUBSET_SIZE = 100, 1000
"""100 subsets of 1000 rows (1801.01401; ECT)."""
ERROR_SUBSETS = 10
"""The parts of the variance are estimated on so many of the subsets."""
FEWEST = 4
"""Rows of a subset from which they can be estimated."""


def kernel_distance(
    real: Rows, samples: Rows, subsets: int = SUBSETS, size: int = SUBSET_SIZE, seed: int = 0
) -> tuple[float, float | None]:
    """Squared MMD with the kernel (x·y/D + 1)³, unbiased: the mean over random subsets, its standard error.

    The mean over the subsets estimates the distance of the whole sets. torchmetrics computes each subset, in
    the features' own precision: fp32 from an extractor, whose rounding is far below the standard error, in
    half the time of float64. Subsets are no larger than the smaller set. real [m, D], samples [n, D].
    Source: Bińkowski et al., 1801.01401, §4.

    The standard error is the spread of the mean over fresh draws of both sets. The subsets overlap, so their
    own spread does not show it: the mean over B subsets of b rows has the variance
    (1 − 1/B)·V(m, n) + V(b, b)/B, where V is that of the unbiased distance (`variance_parts`). None where a
    subset has fewer than four rows. Raises ValueError where it has fewer than two.
    """
    size = min(size, len(real), len(samples))
    if size < 2:
        raise ValueError(f"a kernel distance needs two rows of each set, got {len(real)} and {len(samples)}")
    generator = torch.Generator().manual_seed(seed)
    values, parts = [], []
    for index in range(subsets):
        x, y = (u[torch.randperm(len(u), generator=generator)[:size]] for u in (real, samples))
        k_xx, k_xy, k_yy = poly_kernel(x, x), poly_kernel(x, y), poly_kernel(y, y)
        values.append(maximum_mean_discrepancy(k_xx, k_xy, k_yy))
        if index < ERROR_SUBSETS and size >= FEWEST:
            parts.append(variance_parts(k_xx, k_xy, k_yy))
    distance = float(torch.stack(values).mean())
    if not parts:
        return distance, None
    mean = torch.stack(parts).mean(0).clamp(min=0)
    variance = (1 - 1 / subsets) * _variance(mean, len(real), len(samples))
    return distance, float((variance + _variance(mean, size, size) / subsets).sqrt())


def variance_parts(k_xx: Tensor, k_xy: Tensor, k_yy: Tensor) -> Tensor:
    """(σ²_x, σ²_y, τ_xx, τ_yy, τ_xy): Hoeffding's parts of the variance of the unbiased MMD², float64 [5].

    With k̃ the kernel less its row and column means: τ = E k̃², σ²_x = Var(E_x' k(x, x') − E_y k(x, y)), and
    the same for y. Each is estimated without bias to first order from one subset's kernels [b, b]; σ² may
    come out below zero. Source: Hoeffding 1948; for the MMD, Sutherland and Deka, 1906.02104.
    """
    k_xx, k_xy, k_yy = k_xx.double(), k_xy.double(), k_yy.double()
    b = len(k_xx)
    rest = k_xy - k_xy.mean(0) - k_xy.mean(1, keepdim=True) + k_xy.mean()
    tau_xy = rest.square().sum() / (b - 1) ** 2
    linear, squared = [], []
    for own, other in ((k_xx, k_xy), (k_yy, k_xy.T)):
        apart = ~torch.eye(b, dtype=torch.bool)
        mean = own[apart].mean()
        # own_ij = mean + u_i + u_j + k̃_ij: a row's mean holds u_i·(b − 2)/(b − 1), as the u sum to 0
        u = ((own.sum(1) - own.diagonal()) / (b - 1) - mean) * (b - 1) / (b - 2)
        residual = (own - mean - u - u[:, None])[apart]
        tau = residual.square().sum() / (b * (b - 3))
        linear.append((u - other.mean(1)).var() - tau / (b - 2) - tau_xy / b)
        squared.append(tau)
    return torch.stack([*linear, *squared, tau_xy])


def _variance(parts: Tensor, m: int, n: int) -> Tensor:
    """V(m, n) = 4σ²_x/m + 4σ²_y/n + 2τ_xx/(m(m − 1)) + 2τ_yy/(n(n − 1)) + 4τ_xy/(mn)."""
    weights = [4 / m, 4 / n, 2 / (m * (m - 1)), 2 / (n * (n - 1)), 4 / (m * n)]
    return parts @ torch.tensor(weights, dtype=torch.float64)


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
        return Result({name: distance} | ({} if error is None else {f"{name}_error": error}))
