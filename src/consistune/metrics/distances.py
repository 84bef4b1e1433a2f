"""The Fréchet distance between sets of features."""

import torch
from torch import Tensor


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [D] and unbiased covariance [D, D] of features [n, D], in float64."""
    features = features.double()
    mean = features.mean(0)
    centred = features - mean
    return mean, centred.T @ centred / (len(features) - 1)


def _factor(matrix: Tensor) -> Tensor:
    """V·√λ of a covariance V·λ·Vᵀ; eigenvalues that are rounding noise around zero count as zero."""
    values, vectors = torch.linalg.eigh(matrix)
    noise = len(values) * torch.finfo(values.dtype).eps * values[-1]
    return vectors * torch.where(values > noise, values, 0.0).clamp(min=0).sqrt()


def frechet(mean_a: Tensor, covariance_a: Tensor, mean_b: Tensor, covariance_b: Tensor) -> float:
    """‖μ_a − μ_b‖² + tr(Σ_a + Σ_b − 2(Σ_a Σ_b)^{1/2}), in float64  (FID, 1706.08500, eq. 6).

    With Σ = F Fᵀ from symmetric eigenproblems, tr (Σ_a Σ_b)^{1/2} is the sum of the singular values of
    F_aᵀ F_b; no root is taken of a product, so a singular covariance costs no accuracy.
    Means [D], covariances [D, D].
    """
    mean_a, covariance_a, mean_b, covariance_b = (
        u.double() for u in (mean_a, covariance_a, mean_b, covariance_b)
    )
    between = torch.linalg.svdvals(_factor(covariance_a).T @ _factor(covariance_b)).sum()
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


def finite_sample_bias(covariance: Tensor, samples: int) -> float:
    """What the distance of n Gaussian samples to their own distribution Σ [D, D] is on average, to order 1/n.

    (tr Σ + ½ Σ_ij λ_i λ_j (1 + δ_ij)/(λ_i + λ_j))/n: the mean's share, and the second-order perturbation of
    the Bures distance by the Wishart covariance E|E_ij|² = λ_i λ_j (1 + δ_ij)/n. Valid for n ≫ D; another
    finite set of m on the other side adds the same with m.
    """
    values = torch.linalg.eigvalsh(covariance.double()).clamp(min=0)
    total = values[:, None] + values
    pairs = torch.where(total > 0, values[:, None] * values / total, 0.0)
    return float(values.sum() + 0.5 * (pairs.sum() + pairs.trace())) / samples
