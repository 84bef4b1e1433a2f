"""The Fréchet distance at infinitely many samples, by its growth as samples are left out."""

import numpy as np
import torch

from consistune.metrics.distances import frechet
from consistune.metrics.feature_file import Rows
from consistune.metrics.moments import Convention, Moments
from consistune.metrics.statistics import Reference

POINTS = 6


def limit(
    features: Rows, reference: Reference, name: str, convention: Convention = "unbiased", seed: int = 0
) -> dict[str, float]:
    """FD_∞: the intercept of a straight line through FD at N samples against 1/N  (1911.07023, §4.1).

    POINTS sizes, evenly in 1/N from an eighth of the samples [n, D] to all, each a random subset.
    Returns NAME_infinity. It has no error of its own: the subsets share samples, so the line's residuals say
    nothing of its spread; blocks of other seeds do.
    """
    n = len(features)
    generator = torch.Generator().manual_seed(seed)
    inverse = np.linspace(8 / n, 1 / n, POINTS)
    values = []
    for size in np.round(1 / inverse).astype(int):
        rows = torch.randperm(n, generator=generator)[: int(size)]
        subset = Moments(features.shape[1], convention, everywhere=True)
        for part in torch.split(rows, 1024):
            subset.update(features[part])
        values.append(frechet(*subset.compute(), reference.mean, reference.covariance))
    _, intercept = np.polyfit(inverse, np.array(values), 1)
    return {f"{name}_infinity": float(intercept)}
