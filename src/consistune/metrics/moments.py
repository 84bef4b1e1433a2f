"""Mean and covariance of features, in one pass over batches, in one process or many."""

from typing import Literal

import torch
from torch import Tensor
from torchmetrics import Metric

Convention = Literal["unbiased", "biased"]
"""A covariance divided by n − 1 (EDM, EDM2) or by n (ECT)."""


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [D] and unbiased covariance [D, D] of features [n, D], in float64, all at once."""
    features = features.double()
    mean = features.mean(0)
    centred = features - mean
    return mean, centred.T @ centred / (len(features) - 1)


class Moments(Metric):
    """Mean [D] and covariance [D, D] of features by Chan's update, in float64.

    With n_a, μ_a, M_a seen and a batch n_b, μ_b, M_b (M: the scatter Σ(f − μ)(f − μ)ᵀ), δ = μ_b − μ_a:
    μ = μ_a + δ·n_b/n,  M = M_a + M_b + δδᵀ·n_a·n_b/n  (Chan, Golub, LeVeque 1979, eq. 2.1). No sum of squares
    is formed, so a large mean costs no digits. `compute` gives the covariance M/(n − 1), or
    M/n under the convention "biased".
    """

    full_state_update = False
    count: Tensor
    mean: Tensor
    scatter: Tensor

    def __init__(self, dim: int, convention: Convention = "unbiased", *, merged: bool = False) -> None:
        """`merged`: each process has a share of the features, and `compute` merges the shares."""
        super().__init__(sync_on_compute=merged)
        self.lost_degrees = 1 if convention == "unbiased" else 0
        for name, shape in (("count", ()), ("mean", (dim,)), ("scatter", (dim, dim))):
            # No reduction: the processes' states are stacked, and `compute` merges them by Chan's rule.
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx=None)

    def update(self, features: Tensor) -> None:
        """Features [n, D] of any float type; an empty batch changes nothing."""
        x = features.to(self.mean)
        if len(x) == 0:
            return
        mean = x.mean(0)
        centred = x - mean
        # The scatter in place: at D = 2048 it is 32 MB, and Chan's sum would make three more of it.
        self.scatter.addmm_(centred.T, centred)
        self.count, self.mean = _join(self.count, self.mean, self.scatter, len(x), mean)

    def compute(self) -> tuple[Tensor, Tensor]:
        count, mean, scatter = self.count, self.mean, self.scatter
        if count.ndim:  # stacked by process
            counts, means, scatters = count, mean, scatter
            count, mean, scatter = counts[0], means[0], scatters[0]
            for n, other, more in zip(counts[1:], means[1:], scatters[1:], strict=True):
                scatter = scatter + more
                count, mean = _join(count, mean, scatter, n, other)
        if count < 2:
            raise ValueError(f"a covariance needs two samples, got {int(count)}")
        return mean, scatter / (count - self.lost_degrees)


def _join(
    n_a: Tensor, mean_a: Tensor, scatter: Tensor, n_b: Tensor | int, mean_b: Tensor
) -> tuple[Tensor, Tensor]:
    """n and μ of both; `scatter`, which holds M_a + M_b, gets its δδᵀ·n_a·n_b/n in place."""
    n = n_a + n_b
    if n == 0:
        return n, mean_a
    delta = mean_b - mean_a
    scatter.addr_(delta, delta, alpha=float(n_a * n_b / n))
    return n, mean_a + delta * (n_b / n)
