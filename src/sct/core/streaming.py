"""Attention over a block of images at a time: how `posterior` sums without forming [B, n] or [B, n, d].

    x̂_0 = Σ_i w_i x⁽ⁱ⁾,   w = softmax(l),   l_i = −‖y − x⁽ⁱ⁾‖²/2s² + log-prior_i

Precision. The logits reach 10⁵ at small s, where an error of 10⁻⁷ in a dot product already shows. Images are
stored as whole pixel levels x, so y is written in whole numbers as well, three signed digits of base 254 and
one scale a query,

    y ≈ S·(q⁰ + q¹/254 + q²/254²),   |q| ≤ 127,   S = max|y|/127,

within 8·10⁻⁶·S. Each q·x is a sum of products of whole numbers, which integer arithmetic gives without any
rounding, and so do fp32 products of at most 1024 of them (TF32 too). The digits meet in float64.

Speed. The first digit alone bounds every distance, ‖y − x‖ = ‖S·q⁰ − x‖ ± ‖y − S·q⁰‖. What cannot reach a
weight of e⁻⁵⁰ of the largest is left out before the other products: at small s that is nearly everything.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

LEVELS = 127.5
"""Pixel levels p = 0 … 255 stand for x = p/127.5 − 1."""
CENTRE = 128
"""Levels are counted from here, so that they fit a signed byte."""
BASE, DIGITS = 254, 3
EXACT_TERMS = 1024
"""2¹⁰ products of two whole numbers up to 2⁷ sum to at most 2²⁴, which fp32 holds exactly."""
NEGLIGIBLE = 50.0
"""Weights below e⁻⁵⁰ = 2·10⁻²² of the largest are left out: 10⁹ of them would not show in fp32."""


def _integer_products(q: Tensor) -> bool:
    """Whether signed bytes multiply fast here: x86 with VNNI. Rows of one byte come out wrong there."""
    fast = q.device.type == "cpu" and hasattr(torch, "_int_mm") and torch.cpu._is_vnni_supported()
    return fast and q.shape[1] >= 32


def whole_products(q: Tensor, x: Tensor) -> Tensor:
    """q·xᵀ without rounding: signed bytes [b, d], [m, d] → whole numbers [b, m], int32 or float64."""
    if _integer_products(q):
        return torch._int_mm(q, x.T)
    sums = torch.zeros(len(q), len(x), dtype=torch.float64, device=q.device)
    for start in range(0, q.shape[1], EXACT_TERMS):
        part = slice(start, start + EXACT_TERMS)
        sums += q[:, part].float() @ x[:, part].float().T
    return sums


def levels(pixels: Tensor) -> Tensor:
    """uint8 pixels → pixels − 128 as signed bytes."""
    return (pixels ^ CENTRE).view(torch.int8)


class Scores(NamedTuple):
    """What a block adds: the queries (rows) it concerns, their logits [b, m], the values [m, d]."""

    rows: Tensor
    logits: Tensor
    values: Tensor


class Query(Protocol):
    """Queries in a reference's own units, able to score a block of it."""

    def rows(self, rows: Tensor) -> "Query": ...

    def score(self, keys: Tensor, squares: Tensor, maximum: Tensor, log_prior: Tensor | None) -> Scores:
        """Logits for keys [m, d] with ‖x‖² [m]; `maximum` [b] is each query's largest logit so far."""
        ...

    def to_image(self, mean: Tensor) -> Tensor: ...


class LevelQuery(NamedTuple):
    """y in pixel levels less 128, as digits [DIGITS, b, d] and scale S [b]; width s in levels [b]."""

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
        y = y.double() * LEVELS + (LEVELS - CENTRE)
        scale = (y.abs().amax(1) / 127).clamp(min=1e-30)
        left = y / scale[:, None]
        digits = []
        for _ in range(DIGITS):
            digits.append(left.round().to(torch.int8))
            left = (left - digits[-1]) * BASE
        first = digits[0].double() * scale[:, None]
        return cls(
            torch.stack(digits),
            scale,
            (y - first).norm(dim=1),
            first.square().sum(1),
            y.square().sum(1),
            s.double() * LEVELS,
        )

    def rows(self, rows: Tensor) -> "LevelQuery":
        return LevelQuery(self.digits[:, rows], *(value[rows] for value in self[1:]))

    def score(self, keys: Tensor, squares: Tensor, maximum: Tensor, log_prior: Tensor | None) -> Scores:
        x = levels(keys)
        products = whole_products(self.digits[0], x).double()
        rows = torch.arange(len(self.width), device=x.device)
        query = self
        if x.device.type == "cpu":
            near = self._near(products, squares, maximum, log_prior)
            kept, columns = near.any(1).nonzero()[:, 0], near.any(0).nonzero()[:, 0]
            if len(kept) < len(rows):
                rows, query, products = kept, self.rows(kept), products[kept]
                log_prior = None if log_prior is None else log_prior[kept]
            if 2 * len(columns) < len(x):
                x, squares, products = x[columns], squares[columns], products[:, columns]
                log_prior = None if log_prior is None else log_prior[:, columns]
        for i in range(1, DIGITS):
            products.add_(whole_products(query.digits[i], x), alpha=BASE**-i)
        # −‖y − x‖²/2s², in place: these are the largest arrays here.
        logits = products.mul_(-2 * query.scale[:, None]).add_(squares).add_(query.square[:, None])
        logits.mul_((-0.5 / query.width.square())[:, None])
        return Scores(rows, logits if log_prior is None else logits.add_(log_prior), x.float())

    def _near(self, products: Tensor, squares: Tensor, maximum: Tensor, log_prior: Tensor | None) -> Tensor:
        """Which pairs [b, m] may still weigh something.

        a² = ‖S·q⁰ − x‖² − 2s²·log-prior is within 2a·rest + rest² of the same with y, so a pair is out if
        (a − rest)² − 2·rest² exceeds the best found or certain, (min a + rest)², by 2s²·NEGLIGIBLE.
        """
        double_variance = 2 * self.width.square()
        a = torch.addcmul(squares, products, self.scale[:, None], value=-2)
        if log_prior is not None:
            a = a - double_variance[:, None] * log_prior
        certain = ((a.amin(1) + self.first_square).clamp(min=0).sqrt() + self.rest).square()
        best = torch.minimum(certain, -double_variance * maximum) + double_variance * NEGLIGIBLE
        limit = (self.rest + (best + 2 * self.rest.square()).sqrt()).square() - self.first_square
        return a < limit[:, None]

    def to_image(self, mean: Tensor) -> Tensor:
        return (mean + (CENTRE - LEVELS)) / LEVELS


class FloatQuery(NamedTuple):
    """y [b, d] and s [b] as they are, in float64."""

    y: Tensor
    width: Tensor

    @classmethod
    def of(cls, y: Tensor, s: Tensor) -> "FloatQuery":
        return cls(y.double(), s.double())

    def rows(self, rows: Tensor) -> "FloatQuery":
        return FloatQuery(self.y[rows], self.width[rows])

    def score(self, keys: Tensor, squares: Tensor, maximum: Tensor, log_prior: Tensor | None) -> Scores:
        del maximum
        x = keys.double()
        distances = self.y.square().sum(1)[:, None] - 2 * (self.y @ x.T) + squares
        logits = distances / (-2 * self.width.square())[:, None]
        rows = torch.arange(len(self.y), device=x.device)
        return Scores(rows, logits if log_prior is None else logits + log_prior, x)

    def to_image(self, mean: Tensor) -> Tensor:
        return mean


class Stream:
    """The running softmax average: maximum m, Σe^{l−m}, Σe^{2(l−m)}, Σe^{l−m}·x for each query."""

    def __init__(self, rows: int, size: int, like: Tensor) -> None:
        self.maximum = torch.full((rows,), -torch.inf, dtype=torch.float64, device=like.device)
        self.weight = like.new_zeros(rows)
        self.square = like.new_zeros(rows)
        self.total = like.new_zeros(rows, size)

    def add(self, rows: Tensor, logits: Tensor, values: Tensor) -> None:
        """Take in a block: logits [b, m] (float64, overwritten) of the queries `rows` [b], values [m, d]."""
        if logits.numel() == 0:
            return
        before = self.maximum[rows]
        maximum = torch.maximum(before, logits.amax(1))
        shift = maximum.clamp(min=-1e300)  # where nothing counts yet, not −∞ − (−∞)
        decay = torch.exp(before - shift).to(self.weight)
        weights = logits.sub_(shift[:, None]).to(self.weight.dtype).exp_()
        self.maximum[rows] = maximum
        self.weight[rows] = self.weight[rows] * decay + weights.sum(1)
        squares = torch.linalg.vector_norm(weights, dim=1).square()
        self.square[rows] = self.square[rows] * decay.square() + squares
        self.total[rows] = torch.addmm(self.total[rows] * decay[:, None], weights, values)

    def merged(self, other: "Stream") -> "Stream":
        """The average over both streams' references."""
        both = Stream.__new__(Stream)
        both.maximum = torch.maximum(self.maximum, other.maximum)
        a = torch.exp(self.maximum - both.maximum).to(self.weight)
        b = torch.exp(other.maximum - both.maximum).to(self.weight)
        both.weight = a * self.weight + b * other.weight
        both.square = a.square() * self.square + b.square() * other.square
        both.total = a[:, None] * self.total + b[:, None] * other.total
        return both
