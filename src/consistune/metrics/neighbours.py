"""Nearest neighbours in feature space: precision and recall, and the real image next to each sample."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from consistune.metrics.feature_file import Rows

NEIGHBOURS = 3
"""k of the published precision and recall (1904.06991; ECT)."""
QUERY_ROWS, OTHER_ROWS = 1024, 4096
"""Rows of a block of distances: 16 MB, whatever the sets' sizes."""
SIDE = 2048
"""Rows of a block of distances within one set, which is symmetric: a block serves its transpose too."""


@dataclass(frozen=True)
class Neighbourhoods:
    """Improved precision and recall (Kynkäänniemi et al., 1904.06991, eq. 1, 2), and the nearest real rows.

    Attributes:
        precision: share of samples within the k-th neighbour's radius of some real row.
        recall: share of real rows within the k-th neighbour's radius of some sample.
        distances, rows: of each sample to its nearest real row [n], and which that is [n].
    """

    precision: float
    recall: float
    distances: Tensor
    rows: Tensor


def radii(features: Rows, k: int = NEIGHBOURS, device: torch.device | str = "cpu") -> Tensor:
    """Distance of each row to its k-th nearest other row of the same set [n], fp32.

    Raises ValueError for k rows and fewer.
    """
    if len(features) <= k:
        raise ValueError(f"{k} neighbours need more than {k} rows, got {len(features)}")
    centre = _centre(features).to(device)
    nearest = torch.full((len(features), k + 1), torch.inf, device=device)
    for i, x in _blocks(features, SIDE, centre):
        for j, y in _blocks(features, SIDE, centre, first=i.start):
            pairs = _squared(x, y)
            _take_nearest(nearest[i], pairs)
            if j != i:
                _take_nearest(nearest[j], pairs.T)
    return nearest[:, -1].sqrt().cpu()


def _take_nearest(nearest: Tensor, distances: Tensor) -> None:
    """Updates in place the k smallest distances of each row [n, k] with more distances [n, m]."""
    k = nearest.shape[1]
    new = distances.topk(min(k, distances.shape[1]), 1, largest=False).values
    nearest.copy_(torch.cat([nearest, new], 1).topk(k, 1, largest=False).values)


def neighbourhoods(
    real: Rows, samples: Rows, real_radii: Tensor, sample_radii: Tensor, device: torch.device | str = "cpu"
) -> Neighbourhoods:
    """Precision, recall and nearest real rows in one pass over all pairs, in blocks.

    real [m, D], samples [n, D], real_radii [m], sample_radii [n]: `radii` of the two sets.
    """
    centre = _centre(real).to(device)
    r_real, r_sample = real_radii.to(device).square(), sample_radii.to(device).square()
    inside = torch.zeros(len(samples), dtype=torch.bool, device=device)
    covered = torch.zeros(len(real), dtype=torch.bool, device=device)
    distances = torch.full((len(samples),), torch.inf, device=device)
    rows = torch.zeros(len(samples), dtype=torch.long, device=device)
    for i, x in _blocks(samples, QUERY_ROWS, centre):
        for j, y in _blocks(real, OTHER_ROWS, centre):
            d = _squared(x, y)
            inside[i] |= (d <= r_real[j]).any(1)
            covered[j] |= (d <= r_sample[i, None]).any(0)
            near, row = d.min(1)
            closer = near < distances[i]
            rows[i] = torch.where(closer, row + j.start, rows[i])
            distances[i] = torch.where(closer, near, distances[i])
    return Neighbourhoods(
        precision=float(inside.double().mean()),
        recall=float(covered.double().mean()),
        distances=distances.sqrt().cpu(),
        rows=rows.cpu(),
    )


def _centre(features: Rows) -> Tensor:
    """A point near the features: fp32 squared distances lose digits far from the origin."""
    return features[slice(0, OTHER_ROWS)].float().mean(0)


def _blocks(features: Rows, size: int, centre: Tensor, first: int = 0) -> Iterator[tuple[slice, Tensor]]:
    for start in range(first, len(features), size):
        rows = slice(start, min(start + size, len(features)))
        yield rows, features[rows].to(centre.device).float() - centre


def _squared(x: Tensor, y: Tensor) -> Tensor:
    """‖x_i − y_j‖² [n, m]."""
    return torch.addmm(y.square().sum(1), x, y.T, alpha=-2).add_(x.square().sum(1)[:, None]).clamp_(min=0)
