"""The Fréchet distance between sets of features, and the metrics that report it."""

from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from consistune.errors import UserError
from consistune.metrics.feature_file import Rows
from consistune.metrics.metric import Block, Metric, Result, SampleBatch
from consistune.metrics.moments import Convention, Moments, moments
from consistune.metrics.sheet import WITHOUT_FILE
from consistune.metrics.statistics import ReferenceStatistics

LIMIT_SIZES = 6
"""Numbers of samples through which the line to infinitely many is laid."""


def _factor(matrix: Tensor) -> Tensor:
    """V·√λ of a covariance V·λ·Vᵀ; eigenvalues that are rounding noise around zero count as zero.

    LAPACK's eigenproblem does not converge for some covariances of few samples; their singular value
    decomposition is the same for a matrix without negative eigenvalues.
    """
    try:
        values, vectors = torch.linalg.eigh(matrix)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        vectors, values, _ = torch.linalg.svd(matrix)
        values, vectors = values.flip(0), vectors.flip(1)
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


def finite_sample_bias(covariance: Tensor, samples: int) -> float:
    """The mean distance of n samples of a Gaussian to the Gaussian itself, with Σ [D, D], to order 1/n.

    (tr Σ + ½ Σ_ij λ_i λ_j (1 + δ_ij)/(λ_i + λ_j))/n: the mean's share, and the second-order perturbation of
    the Bures distance by the Wishart covariance E|E_ij|² = λ_i λ_j (1 + δ_ij)/n. Valid for n ≫ D; another
    finite set of m on the other side adds the same with m.
    """
    values = torch.linalg.eigvalsh(covariance.double()).clamp(min=0)
    pairs = _pairs(values)
    return float(values.sum() + 0.5 * (pairs.sum() + pairs.trace())) / samples


def _pairs(values: Tensor) -> Tensor:
    """λ_i λ_j/(λ_i + λ_j) [D, D], 0 where both are 0."""
    total = values[:, None] + values
    return torch.where(total > 0, values[:, None] * values / total, 0.0)


LEAST_TO_EXTRAPOLATE = 16
"""Samples of which an eighth has a covariance."""


def limit(
    features: Rows, reference: ReferenceStatistics, convention: Convention = "unbiased", seed: int = 0
) -> float:
    """FD_∞: the intercept of a straight line through FD at N samples against 1/N  (1911.07023, §4.1).

    LIMIT_SIZES sizes, evenly in 1/N from an eighth of the samples [n, D] to all, each a random subset.
    It has no standard error: the subsets share samples, so the residuals of the line do not estimate its
    spread. Blocks of other seeds do.
    """
    n = len(features)
    generator = torch.Generator().manual_seed(seed)
    inverse = np.linspace(8 / n, 1 / n, LIMIT_SIZES)
    values = []
    for size in np.round(1 / inverse).astype(int):
        rows = torch.randperm(n, generator=generator)[: int(size)]
        subset = Moments(features.shape[1], convention)
        for part in torch.split(rows, 1024):
            subset.update(features[part])
        values.append(frechet(*subset.compute(), reference.mean, reference.covariance))
    _, intercept = np.polyfit(inverse, np.array(values), 1)
    return float(intercept)


def standard_error(
    features: Rows, mean: Tensor, covariance: Tensor, reference: tuple[Tensor, Tensor]
) -> float:
    """The spread of the distance over fresh draws of the samples, the reference fixed.

    By the delta method: the influence of a sample x on the distance is
    φ(x) = 2(μ − μ_r)·(x − μ) + (x − μ)ᵀ(I − T)(x − μ), with T = Σ^{-1/2}(Σ^{1/2} Σ_r Σ^{1/2})^{1/2} Σ^{-1/2}
    the optimal transport from the samples' Gaussian to the reference's, and Var φ/n estimates the variance.
    Where the sets are alike, φ is itself noise and counts the second-order variance V₂ twice; V₂, of a
    Gaussian as in `finite_sample_bias`, is taken off once:
    n²V₂ = 2·Σ_i λ_i² + Σ_ij (λ_i λ_j/(λ_i + λ_j))²(1 + δ_ij). Within a quarter for n ≥ 3·D, a third too
    large for n < D.

    features [n, D], their mean [D] and covariance [D, D]; reference: mean [D] and covariance [D, D].
    """
    mean, covariance = mean.double(), covariance.double()
    mean_r, covariance_r = (u.double() for u in reference)
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > len(values) * torch.finfo(values.dtype).eps * values[-1]
    root, vectors = values[kept].sqrt(), vectors[:, kept]
    factor = vectors * root
    squares, turned = torch.linalg.eigh(factor.T @ covariance_r @ factor)
    transport = (vectors / root) @ turned  # T = G·diag(√squares)·Gᵀ
    influences = []
    for start in range(0, len(features), 1024):
        x = features[start : start + 1024].double() - mean
        moved = (x @ transport).square() @ squares.clamp(min=0).sqrt()
        influences.append(2 * x @ (mean - mean_r) + x.square().sum(1) - moved)
    n = len(features)
    variance = float(torch.cat(influences).var()) / n
    spectrum = torch.linalg.eigvalsh(covariance_r).clamp(min=0)
    pairs = _pairs(spectrum).square()
    second_order = float(2 * spectrum.square().sum() + pairs.sum() + pairs.trace()) / n**2
    return max(variance - second_order, variance / 2) ** 0.5


class FrechetDistance(Metric):
    """The Fréchet distance to the reference, under the extractor's name NAME.

    Values: NAME; NAME_error, its `standard_error`; NAME_bias, the part of it that the finite number of
    samples causes (`finite_sample_bias`); with `Setup.extrapolate` NAME_infinity (`limit`).
    """

    stores_features = True

    def start(self, block: Block) -> None:
        super().start(block)
        dim = len(self.setup.reference.mean)
        self.moments = Moments(dim, self.setup.convention, merged=block.world > 1)

    def accumulate(self, batch: SampleBatch) -> None:
        self.moments.update(batch.features)

    def result(self) -> Result:
        name, reference = self.setup.extractor.name, self.setup.reference
        samples, real = self.moments.compute(), (reference.mean, reference.covariance)
        features = self.block.need_features()
        values = {
            name: frechet(*samples, *real),
            f"{name}_error": standard_error(features, *samples, real),
            f"{name}_bias": self._bias / self.block.total,
        }
        if self.setup.extrapolate:
            values[f"{name}_infinity"] = limit(features, reference, self.setup.convention)
        return Result(values)

    @cached_property
    def _bias(self) -> float:
        """Of one sample."""
        return finite_sample_bias(self.setup.reference.covariance, 1)


class FrechetInceptionDistance(FrechetDistance):
    """FID: the Fréchet distance on the official Inception, and refused on any other extractor."""

    by_default = False

    def check(self) -> None:
        name = self.setup.extractor.name
        if name != "fid":
            raise UserError(f"{name} is not FID", "--metrics fid", f"write fd, or {WITHOUT_FILE}")


class RelativeFrechet(FrechetDistance):
    """100·FD/tr Σ: the Fréchet distance in % of the variance of the real features.

    It keeps its meaning when the feature extractor is trained anew. Values: NAME_percent against the
    reference; NAME_percent_held_out against the held-out images, in % of their own variance.
    """

    by_default = False
    stores_features = False

    def check(self) -> None:
        if not self.setup.reference.covariance.trace() > 0:
            what = f"all real images have the same features ({self.setup.reference.source})"
            raise UserError(what, "--metrics relative", "give images that differ")

    def result(self) -> Result:
        name, reference, samples = self.setup.extractor.name, self.setup.reference, self.moments.compute()
        values = {f"{name}_percent": _percent(samples, (reference.mean, reference.covariance))}
        if self._held_out is not None:
            values[f"{name}_percent_held_out"] = _percent(samples, self._held_out)
        return Result(values)

    @cached_property
    def _held_out(self) -> tuple[Tensor, Tensor] | None:
        """Mean [D] and covariance [D, D] of the held-out images' features."""
        data = self.setup.data
        if data is None or data.held_out is None or len(data.held_out) < 2:  # one image has no covariance
            return None
        mean, covariance = moments(self.setup.extractor(data.held_out.images))
        return (mean, covariance) if covariance.trace() > 0 else None  # it is in % of this trace


def _percent(samples: tuple[Tensor, Tensor], reference: tuple[Tensor, Tensor]) -> float:
    return 100 * frechet(*samples, *reference) / float(reference[1].trace())
