"""Metrics that are fed batch by batch, in one process or many: their states merge when they are computed."""

from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors

from consistune.metrics.feature_file import FeatureFile, feature_file
from consistune.system.processes import rank_and_count

Convention = Literal["unbiased", "biased"]
"""A covariance divided by n − 1 (EDM, EDM2) or by n (ECT)."""
SPLITS = 10
"""Parts of the Inception Score (1606.03498; ECT and StyleGAN's metrics)."""
GATHERED_ROWS = 1024
"""Rows that each process sends at a time."""


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

    def __init__(self, dim: int, convention: Convention = "unbiased", *, everywhere: bool = False) -> None:
        """`everywhere`: each process is fed all of the features, so that there is nothing to merge."""
        super().__init__(sync_on_compute=not everywhere)
        self.lost = 1 if convention == "unbiased" else 0
        for name, shape in (("count", ()), ("mean", (dim,)), ("scatter", (dim, dim))):
            # No reduction: the processes' states come stacked, and `compute` merges them by the same rule.
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
        return mean, scatter / (count - self.lost)


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


class InceptionScore(Metric):
    """exp of the mean KL divergence of p(y|x) from p(y), over 10 consecutive parts  (1606.03498, eq. 1).

    Keeps Σ p and Σ p·ln p of each part, not the probabilities (torchmetrics' own keeps all of them, 200 MB
    at 50 000 × 1008). `compute`: mean and standard deviation over the parts.
    """

    full_state_update = False
    counts: Tensor
    sums: Tensor
    negative_entropies: Tensor

    def __init__(self, classes: int, total: int, splits: int = SPLITS) -> None:
        super().__init__()
        self.total, self.splits = total, splits
        for name, shape in (
            ("counts", (splits,)),
            ("sums", (splits, classes)),
            ("negative_entropies", (splits,)),
        ):
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, probabilities: Tensor, places: Tensor) -> None:
        """Probabilities [n, K] and the samples' places [n] among the `total`."""
        p = probabilities.to(self.sums)
        part = places.to(self.sums.device) * self.splits // self.total
        self.counts.index_add_(0, part, torch.ones(len(p), dtype=torch.float64, device=p.device))
        self.sums.index_add_(0, part, p)
        self.negative_entropies.index_add_(0, part, torch.special.xlogy(p, p).sum(1))

    def compute(self) -> tuple[Tensor, Tensor]:
        counts = self.counts[self.counts > 0]
        mean = self.sums[self.counts > 0] / counts[:, None]
        divergence = self.negative_entropies[self.counts > 0] / counts - torch.special.xlogy(mean, mean).sum(
            1
        )
        scores = divergence.exp()
        return scores.mean(), scores.std(correction=0)


def gathered_file(own: Path, path: Path, total: int) -> FeatureFile:
    """The rows in all processes' `own` files, written to `path`; process r of w has the samples r, r + w, …

    With one process its own file as it is. A block of every process is a run of consecutive samples, so no
    process ever holds all rows.
    """
    rows = FeatureFile(own)
    _, world = rank_and_count()
    if world == 1:
        return rows
    with feature_file(path, total, rows.shape[1]) as file:
        for start in range(0, -(-total // world), GATHERED_ROWS):
            parts = gather_all_tensors(rows[slice(start, start + GATHERED_ROWS)])
            block = torch.empty(sum(len(part) for part in parts), rows.shape[1])
            for place, part in enumerate(parts):
                block[place::world] = part
            file.append(block)
    return FeatureFile(path)


def gathered(rows: Tensor, places: Tensor, total: int) -> Tensor:
    """The rows of all processes [total, ...], each at its place [n]; with one process, its own in order."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        whole = torch.empty(total, *rows.shape[1:], dtype=rows.dtype)
        for part, where in zip(gather_all_tensors(rows), gather_all_tensors(places), strict=True):
            whole[where] = part
        return whole
    return rows
