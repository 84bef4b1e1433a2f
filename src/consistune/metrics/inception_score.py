"""The Inception Score."""

import torch
from torch import Tensor

from consistune.errors import UserError
from consistune.metrics.gather import summed
from consistune.metrics.metric import Block, Metric, Result, SampleBatch

SPLITS = 10
"""Parts of the samples (1606.03498; ECT and StyleGAN's metrics)."""


class InceptionScore(Metric):
    """exp of the mean KL divergence of p(y|x) from p(y), over 10 consecutive parts  (1606.03498, eq. 1).

    Part k of n samples is [⌊kn/10⌋, ⌊(k + 1)n/10⌋), as its authors cut them.

    Keeps Σ p and Σ p·ln p of each part in float64, not the probabilities: torchmetrics' own keeps all of
    them, 200 MB at 50 000 × 1008. Values: "is", the mean over the parts; "is_deviation", their standard
    deviation, which is published; and, of two parts or more, "is_error", the standard error of the mean: the
    parts share no sample.
    """

    uses_probabilities = True
    by_default = False
    splits = SPLITS

    def check(self) -> None:
        extractor = self.setup.extractor
        if not extractor.has_probabilities:
            raise UserError(f"{extractor.name} gives no class probabilities", "--metrics is", "leave it out")

    def start(self, block: Block) -> None:
        super().start(block)
        self.counts = torch.zeros(self.splits, dtype=torch.float64)
        self.negative_entropies = torch.zeros(self.splits, dtype=torch.float64)
        self.sums: Tensor | None = None  # [splits, K]: K is known with the first batch

    def accumulate(self, batch: SampleBatch) -> None:
        if batch.probabilities is None:
            raise ValueError("the suite computes no class probabilities")
        p = batch.probabilities.double()
        if self.sums is None:
            self.sums = torch.zeros(self.splits, p.shape[1], dtype=torch.float64)
        part = ((batch.indices + 1) * self.splits - 1) // self.block.total
        self.counts.index_add_(0, part, torch.ones(len(p), dtype=torch.float64))
        self.sums.index_add_(0, part, p)
        self.negative_entropies.index_add_(0, part, torch.special.xlogy(p, p).sum(1))

    def result(self) -> Result:
        if self.sums is None:
            raise ValueError("no samples were measured")
        counts, sums, negative_entropies = (
            summed(values, self.block.world) for values in (self.counts, self.sums, self.negative_entropies)
        )
        filled = counts > 0
        mean = sums[filled] / counts[filled, None]
        divergence = negative_entropies[filled] / counts[filled] - torch.special.xlogy(mean, mean).sum(1)
        scores = divergence.exp()
        values = {"is": float(scores.mean()), "is_deviation": float(scores.std(correction=0))}
        if len(scores) > 1:
            values["is_error"] = float(scores.std() / len(scores) ** 0.5)
        return Result(values)
