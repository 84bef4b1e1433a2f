"""Distances between sets of features."""

import torch
from torch import Tensor


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [D] and unbiased covariance [D, D] of features [n, D], in float64."""
    features = features.double()
    mean = features.mean(0)
    centred = features - mean
    return mean, centred.T @ centred / (len(features) - 1)


def _square_root(matrix: Tensor) -> Tensor:
    """The symmetric root; eigenvalues that are rounding noise around zero count as zero."""
    values, vectors = torch.linalg.eigh(matrix)
    noise = len(values) * torch.finfo(values.dtype).eps * values[-1]
    return (vectors * torch.where(values > noise, values, 0.0).clamp(min=0).sqrt()) @ vectors.T


def frechet(mean_a: Tensor, covariance_a: Tensor, mean_b: Tensor, covariance_b: Tensor) -> float:
    """‖μ_a − μ_b‖² + tr(Σ_a + Σ_b − 2(Σ_a Σ_b)^{1/2}), in float64  (FID, 1706.08500, eq. 6).

    tr (Σ_a Σ_b)^{1/2} is the sum of the singular values of Σ_a^{1/2} Σ_b^{1/2}. Both roots come from
    symmetric eigenproblems; no root is taken of the product, so a singular covariance costs no accuracy.
    Means [D], covariances [D, D].
    """
    mean_a, covariance_a, mean_b, covariance_b = (
        u.double() for u in (mean_a, covariance_a, mean_b, covariance_b)
    )
    between = torch.linalg.svdvals(_square_root(covariance_a) @ _square_root(covariance_b)).sum()
    shift = (mean_a - mean_b).square().sum()
    return float(shift + covariance_a.trace() + covariance_b.trace() - 2 * between)


def relative_frechet(features: Tensor, reference: Tensor) -> float:
    """The Fréchet distance of features [n, D] to reference features [m, D], in % of the reference's variance.

    100·d/tr Σ_ref: a number that keeps its meaning when the feature extractor is trained anew.
    """
    mean, covariance = moments(features)
    reference_mean, reference_covariance = moments(reference)
    distance = frechet(mean, covariance, reference_mean, reference_covariance)
    return 100 * distance / float(reference_covariance.trace())
