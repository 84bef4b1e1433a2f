"""Attention over a block of images at a time: how `posterior` sums without forming [B, n] or [B, n, d].

METHOD §2 as it is computed:

    x̂_0 = Σ_i w_i x⁽ⁱ⁾,   w = softmax(l),   l_i = (2 y·x⁽ⁱ⁾ − ‖x⁽ⁱ⁾‖²)/2s² + log-prior_i

(−‖y − x‖²/2s² less ‖y‖²/2s², which the softmax cancels.)

Precision. The logits reach 10⁵ at small s, where an error of 10⁻⁷ in a dot product already shows. Images are
stored as integer pixel levels x, so y is written in integers as well, three signed digits of base 254 and
one scale a query,

    y ≈ S·(q⁰ + q¹/254 + q²/254²),   |q| ≤ 127,   S = max|y|/127,

within 8·10⁻⁶·S. Each q·x is a sum of products of integers, which integer arithmetic gives without
rounding, and so do fp32 products of at most 1024 of them (TF32 too). The digits are combined in float64. The
weights e^{l − max l} ≤ 1 are four such digits, within 3·10⁻¹⁰ of the largest in the block, where bytes
multiply fast.

Speed. Bytes multiply several times faster than floats, and images stay bytes throughout. The first
digit alone bounds every distance, ‖y − x‖ = ‖S·q⁰ − x‖ ± ‖y − S·q⁰‖. Pairs that cannot reach e⁻⁵⁰ of the
largest weight are left out before the other products: at small s these are nearly all.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from consistune.core.posterior.integers import (
    BASE,
    CENTRE,
    EXACT_TERMS,
    HALF_RANGE,
    exact_products,
    fast_bytes,
    short_sums,
    signed_digits,
    signed_pixels,
)

DIGITS, WEIGHT_DIGITS = 3, 4
SHORT = 256
"""So many terms at a time: a longer sum in fp32 of one sign may lose 1e-5 of itself."""
NEGLIGIBLE = 50.0
"""Weights below e⁻⁵⁰ = 2·10⁻²² of the largest are left out: 10⁹ of them would not show in fp32."""
SPARSE_SHARE = 1 / 16
"""Queries that have a smaller share of a block near them are computed apart from the others."""


@dataclass
class Stream:
    """The running softmax average of each query.

    Attributes:
        maximum: the largest logit m so far, float64 [b].
        weight, square: Σe^{l−m}, Σe^{2(l−m)} [b].
        total: Σe^{l−m}·x [b, d].
        norm: Σe^{l−m}·‖x‖² [b], float64.
    """

    maximum: Tensor
    weight: Tensor
    square: Tensor
    total: Tensor
    norm: Tensor

    @classmethod
    def empty(cls, rows: int, size: int, dtype: torch.dtype, device: torch.device) -> "Stream":
        maximum = torch.full((rows,), -torch.inf, dtype=torch.float64, device=device)
        weight, square = torch.zeros(2, rows, dtype=dtype, device=device)
        total = torch.zeros(rows, size, dtype=dtype, device=device)
        return cls(maximum, weight, square, total, torch.zeros_like(maximum))

    def add(self, rows: Tensor, logits: Tensor, values: Tensor, norms: Tensor) -> None:
        """Add logits [b, m] (float64, overwritten) of the queries `rows` [b], values [m, d], ‖x‖² [m]."""
        before = self.maximum[rows]
        top = logits.amax(1)
        maximum = torch.maximum(before, top)
        # Relative to the block's own maximum, so that the digits of its weights are used in full. The clamp
        # avoids −∞ − (−∞) where no reference counts yet.
        weights = logits.sub_(top.clamp(min=-1e300)[:, None]).to(self.weight.dtype).exp_()
        shift = maximum.clamp(min=-1e300)
        decay, gain = torch.exp(before - shift).to(weights), torch.exp(top - shift).to(weights)
        squares = torch.linalg.vector_norm(weights, dim=1).square()
        norm = weights.double() @ norms
        weight, total = weighted_sums(weights, values)
        self.maximum[rows] = maximum
        self.weight[rows] = self.weight[rows] * decay + weight * gain
        self.square[rows] = self.square[rows] * decay.square() + squares * gain.square()
        self.total[rows] = total.mul_(gain[:, None]).addcmul_(self.total[rows], decay[:, None])
        self.norm[rows] = self.norm[rows] * decay + norm * gain

    def part(self, rows: slice | Tensor) -> "Stream":
        """The sums of some of the queries."""
        return Stream(*(value[rows] for value in vars(self).values()))

    def merge(self, rows: Tensor, other: "Stream") -> None:
        """Add the sums over other references to the queries `rows` [b], which are distinct."""
        for name, value in vars(self.part(rows).merged(other)).items():
            getattr(self, name)[rows] = value

    def merged(self, other: "Stream") -> "Stream":
        """The sums over both streams' references."""
        maximum = torch.maximum(self.maximum, other.maximum)
        shift = maximum.clamp(min=-1e300)
        a, b = (torch.exp(m - shift).to(self.weight) for m in (self.maximum, other.maximum))
        weight = a * self.weight + b * other.weight
        square = a.square() * self.square + b.square() * other.square
        total = a[:, None] * self.total + b[:, None] * other.total
        return Stream(maximum, weight, square, total, a * self.norm + b * other.norm)


def weighted_sums(weights: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Σ_i w_i [b] and Σ_i w_i x_i [b, d] for weights in 0 … 1 [b, m] (overwritten), values [m, d].

    Bytes are summed as integers where that is faster: the result then depends neither on the order nor on
    images in the block that have weight 0.
    """
    if values.dtype != torch.int8:
        return weights.sum(1), weights @ values.to(weights.dtype)
    if not fast_bytes(values.device):
        return weights.sum(1), short_sums(weights, values, SHORT).to(weights.dtype)
    digits = signed_digits(weights.mul_(127), WEIGHT_DIGITS).flatten(0, 1)
    ones = values.new_ones(len(values), 8)
    sums = [
        exact_products(digits, x).reshape(WEIGHT_DIGITS, len(weights), -1).to(weights.dtype)
        for x in (ones, values)
    ]
    weight, total = (combined(s) / 127 for s in sums)
    return weight[:, 0], total


def combined(sums: Tensor) -> Tensor:
    """Σ_k sums[k]/254ᵏ, the smallest first; `sums` is overwritten."""
    for i in range(len(sums) - 1, 0, -1):
        sums[i - 1].add_(sums[i], alpha=1 / BASE)
    return sums[0]


def root_variance(sums: Stream) -> Tensor:
    """√(Σ_i w_i‖x⁽ⁱ⁾ − x̂_0‖²) = √(E‖x‖² − ‖x̂_0‖²) in the units of the sums [b], float64.

    0 exactly where one image has all the weight; elsewhere within 1e-6 of ‖x‖² under the root.
    """
    mean = sums.total.double() / sums.weight.double()[:, None]
    return (sums.norm / sums.weight - mean.square().sum(1)).clamp(min=0).sqrt()


class LevelQuery(NamedTuple):
    """Queries of uint8 images: y in levels less 128 as digits [DIGITS, b, d] and scale S [b], width s [b]."""

    digits: Tensor
    scale: Tensor
    rest: Tensor
    """‖y − S·q⁰‖ [b]."""
    first_square: Tensor
    """‖S·q⁰‖² [b]."""
    square: Tensor
    """‖y‖² [b]."""
    width: Tensor

    @classmethod
    def of(cls, y: Tensor, s: Tensor) -> "LevelQuery":
        y = y.double() * HALF_RANGE + (HALF_RANGE - CENTRE)
        scale = (y.abs().amax(1) / 127).clamp(min=1e-30)
        digits = signed_digits(y / scale[:, None], DIGITS)
        first = digits[0].double() * scale[:, None]
        return cls(
            digits,
            scale,
            (y - first).norm(dim=1),
            first.square().sum(1),
            y.square().sum(1),
            s.double() * HALF_RANGE,
        )

    def rows(self, rows: Tensor) -> "LevelQuery":
        return LevelQuery(self.digits[:, rows], *(value[rows] for value in self[1:]))

    def read(
        self, stream: Stream, queries: Tensor, keys: Tensor, squares: Tensor, log_prior: Tensor | None
    ) -> None:
        """Add keys [m, d] with ‖x‖² [m] to the stream's rows `queries` [b], which these queries are."""
        x = signed_pixels(keys)
        products = exact_products(self.digits[0], x.T)
        if x.device.type != "cpu":  # choosing would wait for the device
            stream.add(queries, self._logits(products, x, squares, log_prior), x, squares)
            return
        near = self._near(products, squares, stream.maximum[queries], log_prior)
        for rows, columns in _near_parts(near):
            chosen, norms = x[columns], squares[columns]
            prior = None if log_prior is None else log_prior[rows][:, columns]
            part = self.rows(rows)
            logits = part._logits(products[rows][:, columns], chosen, norms, prior)
            logits.masked_fill_(~near[rows][:, columns], -torch.inf)
            stream.add(queries[rows], logits, chosen, norms)

    def _logits(self, products: Tensor, x: Tensor, squares: Tensor, log_prior: Tensor | None) -> Tensor:
        """l [b, m] in float64, from the first digit's products [b, m] and x [m, d]."""
        if fast_bytes(x.device):
            others = exact_products(self.digits[1:].flatten(0, 1), x.T)
            dots = combined(torch.cat([products, others]).view(DIGITS, *products.shape).double())
        else:  # what the first digit leaves is small enough for fp32
            rest = combined(self.digits[1:].float())
            dots = torch.add(products, rest @ x.T.float(), alpha=1 / BASE)
        logits = torch.addcmul(-squares, dots, 2 * self.scale[:, None])
        logits.mul_((0.5 / self.width.square())[:, None])
        return logits if log_prior is None else logits.add_(log_prior)

    def _near(self, products: Tensor, squares: Tensor, maximum: Tensor, log_prior: Tensor | None) -> Tensor:
        """Which pairs [b, m] can have a weight that is not negligible.

        a² = ‖S·q⁰ − x‖² − 2s²·log-prior is within 2a·rest + rest² of the same with y, so a pair is out if
        (a − rest)² − 2·rest² exceeds the best found or certain, (min a + rest)², by 2s²·NEGLIGIBLE.
        """
        double_variance = 2 * self.width.square()
        a = torch.addcmul(squares.float(), products.float(), -2 * self.scale.float()[:, None])
        if log_prior is not None:
            a -= double_variance[:, None] * log_prior
        # fp32 rounds each of these numbers by 2⁻²⁴ at most.
        longest = squares.amax()
        rounding = 2**-21 * (longest + 2 * (self.first_square * longest).sqrt())
        certain = ((a.amin(1) + rounding + self.first_square).clamp(min=0).sqrt() + self.rest).square()
        best = torch.minimum(certain, self.square - double_variance * maximum) + double_variance * NEGLIGIBLE
        limit = (self.rest + (best + 2 * self.rest.square()).sqrt()).square() - self.first_square
        return a <= (limit + rounding + 2**-21 * limit.abs()).float()[:, None]

    @staticmethod
    def squares(keys: Tensor) -> Tensor:
        """‖x‖² of keys [m, d] in levels, without rounding, float64 [m]."""
        squares = signed_pixels(keys).float().square_()
        return torch.stack([part.sum(1) for part in torch.split(squares, EXACT_TERMS, 1)]).sum(
            0, dtype=torch.float64
        )

    @staticmethod
    def to_image(mean: Tensor) -> Tensor:
        return (mean + (CENTRE - HALF_RANGE)) / HALF_RANGE

    @staticmethod
    def to_length(levels: Tensor) -> Tensor:
        return levels / HALF_RANGE


def _near_parts(near: Tensor) -> Iterator[tuple[Tensor, Tensor | slice]]:
    """Rows and columns that cover the pairs `near` [b, m]; rows with few such pairs come first, apart."""
    count = near.sum(1)
    few = count <= SPARSE_SHARE * near.shape[1]
    for chosen in (few & (count > 0), ~few):
        rows = chosen.nonzero()[:, 0]
        columns = near[rows].any(0).nonzero()[:, 0]
        if len(rows):
            yield rows, columns if 2 * len(columns) < near.shape[1] else slice(None)


class FloatQuery(NamedTuple):
    """Queries of floating-point images: y [b, d] and s [b] as they are, in float64."""

    y: Tensor
    width: Tensor

    @classmethod
    def of(cls, y: Tensor, s: Tensor) -> "FloatQuery":
        return cls(y.double(), s.double())

    def rows(self, rows: Tensor) -> "FloatQuery":
        return FloatQuery(self.y[rows], self.width[rows])

    def read(
        self, stream: Stream, queries: Tensor, keys: Tensor, squares: Tensor, log_prior: Tensor | None
    ) -> None:
        x = keys.double()
        logits = (2 * (self.y @ x.T) - squares) / (2 * self.width.square())[:, None]
        stream.add(queries, logits if log_prior is None else logits + log_prior, x, squares)

    @staticmethod
    def squares(keys: Tensor) -> Tensor:
        return keys.double().square().sum(1)

    @staticmethod
    def to_image(mean: Tensor) -> Tensor:
        return mean

    @staticmethod
    def to_length(length: Tensor) -> Tensor:
        return length
