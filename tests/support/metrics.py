"""Metrics without a suite: a setup around statistics, and features or probabilities fed batch by batch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from consistune.metrics.features import Extractor
from consistune.metrics.metric import Block, Metric, SampleBatch, Setup
from consistune.metrics.sheet import Input, Protocol
from consistune.metrics.statistics import ReferenceStatistics

EXTRACTOR = Extractor(
    Protocol(name="fd-pixels", input=Input(dtype="uint8", channels=1)),
    lambda x: x.float().flatten(1),
    "pixels",
    torch.device("cpu"),
)


def reference_of(mean: Tensor, covariance: Tensor) -> ReferenceStatistics:
    return ReferenceStatistics("made", mean, covariance, None, None, None, False)


def setup_of(mean: Tensor, covariance: Tensor) -> Setup:
    return Setup(EXTRACTOR, reference_of(mean, covariance))


def values_of(
    metric: Metric, features: Tensor, sizes: Sequence[int], probabilities: Tensor | None = None
) -> dict[str, float]:
    """The metric's values on features [n, D], in batches of these sizes."""
    metric.start(Block(metric.setup, range(len(features))))
    images = torch.zeros(len(features), 1, 1, 1, dtype=torch.uint8)
    for rows in torch.split(torch.arange(len(features)), list(sizes)):
        chances = None if probabilities is None else probabilities[rows]
        metric.accumulate(SampleBatch(rows, images[rows], None, features[rows], chances))
    return metric.result().values


def squared_mmd(a: Tensor, b: Tensor) -> float:
    """The unbiased squared MMD of two sets [n, D] with the kernel (x·y/D + 1)³, in float64."""
    x, y = a.double().numpy(), b.double().numpy()
    n, dim = x.shape
    kernel = lambda u, v: (u @ v.T / dim + 1) ** 3
    within = sum((kernel(u, u).sum() - kernel(u, u).trace()) / (n * (n - 1)) for u in (x, y))
    return float(within - 2 * kernel(x, y).mean())
