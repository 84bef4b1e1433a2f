"""The posterior mean over a finite set of images: x̂_0 = Σ_i w_i x⁽ⁱ⁾ (METHOD §2).

    w_i = softmax_i( −‖x_t − α_t x⁽ⁱ⁾‖² / (2σ_t²) )

With y = x_t/α_t and s = σ_t/α_t this is attention with the query y, and the images as keys and values. It is
streamed in blocks with a running maximum and sum, so that neither [B, n, d] nor [B, n] is ever formed.

Precision. The logits reach 10⁵ at small t, where an error of 10⁻⁷ in a dot product would already matter.
Images are stored as uint8, so y is split into c, the nearest whole pixel levels, and the rest e:

    ‖y − x‖² = ‖c − x‖² + 2e·(c − x) + ‖e‖²

‖c − x‖² is a sum of whole numbers, which fp32 products of at most 1024 of them give without any rounding;
e·x needs only relative accuracy, and what does not depend on i drops out of the softmax.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sct.core.noise import NoiseSchedule
from sct.core.types import expand

LEVELS = 127.5
"""Pixel levels p = 0 … 255 stand for x = p/127.5 − 1."""
EXACT_TERMS = 1024
"""2¹⁰ products of two whole numbers up to 2⁷ sum to at most 2²⁴, which fp32 holds exactly."""
BLOCK = 4096


def dequantise(pixels: Tensor) -> Tensor:
    """uint8 0 … 255 → fp32 in [−1, 1]."""
    return pixels.float() / LEVELS - 1


def quantise(x: Tensor) -> Tensor:
    """Images in [−1, 1] → uint8: x·127.5 + 128, truncated, clipped (EDM's convention, 2206.00364)."""
    return (x.float() * LEVELS + 128).clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class Reference:
    """The images that stand for p(x_0 | c), the members of a group (class) in consecutive rows.

    Attributes:
        images: [n, C, H, W], uint8 pixels or floating point in [−1, 1] (computed with in float64).
        offsets: group g is rows offsets[g] … offsets[g + 1] − 1.
    """

    images: Tensor
    offsets: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 and not self.images.is_floating_point():
            raise ValueError(f"reference images must be uint8 or floating point, got {self.images.dtype}")
        if len(self.images) == 0:
            raise ValueError("a reference needs at least one image")
        if self.images.is_floating_point() and not bool(torch.isfinite(self.images).all()):
            raise ValueError("reference images contain NaN or infinity")

    @classmethod
    def whole(cls, images: Tensor) -> "Reference":
        """One group: every image is a reference for every query."""
        return cls(images, (0, len(images)))

    @classmethod
    def grouped(cls, images: Tensor, labels: Tensor, num_groups: int | None = None) -> "Reference":
        """Groups by integer label [n]; images are reordered so that a group is contiguous (stable).

        Raises ValueError for labels that are not [n] integers in 0 … num_groups − 1.
        """
        if labels.is_floating_point() or labels.shape != images.shape[:1]:
            raise ValueError(
                f"labels must be integers [{len(images)}], got {labels.dtype} {list(labels.shape)}"
            )
        if num_groups is None:
            num_groups = int(labels.max()) + 1 if len(labels) else 0
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_groups:
            raise ValueError(
                f"labels must lie in 0 … {num_groups - 1}, got {int(labels.min())} … {int(labels.max())}"
            )
        order = torch.argsort(labels, stable=True)
        sizes = torch.bincount(labels, minlength=num_groups)
        return cls(images[order.to(images.device)], (0, *torch.cumsum(sizes, 0).tolist()))

    def __len__(self) -> int:
        return len(self.images)


class Posterior(NamedTuple):
    """mean x̂_0, as x_t; effective_size 1/Σw² [B]: how many references really count."""

    mean: Tensor
    effective_size: Tensor


class _Query(Protocol):
    """Queries in a reference's own units, able to score a block of it."""

    def rows(self, rows: Tensor) -> "_Query": ...
    def keys(self, images: Tensor) -> Tensor: ...
    def logits(self, keys: Tensor) -> Tensor: ...


class _LevelQuery(NamedTuple):
    """y in pixel levels (less 128), split into whole levels c and the rest e; s in levels."""

    c: Tensor
    e: Tensor
    s: Tensor

    @classmethod
    def of(cls, y: Tensor, s: Tensor) -> "_LevelQuery":
        levels = y.double() * LEVELS + (LEVELS - 128)
        c = levels.round().clamp(-128, 127)
        return cls(c.float(), (levels - c).float(), s.double() * LEVELS)

    def rows(self, rows: Tensor) -> "_LevelQuery":
        return _LevelQuery(self.c[rows], self.e[rows], self.s[rows])

    def keys(self, images: Tensor) -> Tensor:
        return images.float() - 128

    def logits(self, keys: Tensor) -> Tensor:
        squares = torch.zeros(len(self.c), len(keys), dtype=torch.float64, device=keys.device)
        for start in range(0, keys.shape[1], EXACT_TERMS):
            part = slice(start, start + EXACT_TERMS)
            c, x = self.c[:, part], keys[:, part]
            squares += c.square().sum(1)[:, None] - 2 * (c @ x.T).double() + x.square().sum(1)
        squares -= 2 * (self.e @ keys.T)
        return squares / (-2 * self.s.square())[:, None]

    def to_image(self, mean: Tensor) -> Tensor:
        return (mean + (128 - LEVELS)) / LEVELS


class _FloatQuery(NamedTuple):
    """y and s as they are, in float64."""

    y: Tensor
    s: Tensor

    @classmethod
    def of(cls, y: Tensor, s: Tensor) -> "_FloatQuery":
        return cls(y.double(), s.double())

    def rows(self, rows: Tensor) -> "_FloatQuery":
        return _FloatQuery(self.y[rows], self.s[rows])

    def keys(self, images: Tensor) -> Tensor:
        return images.double()

    def logits(self, keys: Tensor) -> Tensor:
        squares = keys.square().sum(1) - 2 * (self.y @ keys.T)
        return squares / (-2 * self.s.square())[:, None]

    def to_image(self, mean: Tensor) -> Tensor:
        return mean


class _Stream:
    """The running softmax average: maximum m, Σe^{l−m}, Σe^{2(l−m)}, Σe^{l−m}·x for each query."""

    def __init__(self, rows: int, size: int, like: Tensor) -> None:
        self.maximum = torch.full((rows,), -torch.inf, dtype=torch.float64, device=like.device)
        self.weight = like.new_zeros(rows)
        self.square = like.new_zeros(rows)
        self.total = like.new_zeros(rows, size)

    def add(self, rows: Tensor, logits: Tensor, keys: Tensor) -> None:
        """Take in a block: logits [b, m] (float64) of the queries `rows` [b] for the keys [m, d]."""
        if keys.device.type == "cpu":
            # Far blocks weigh nothing, below the smallest fp32 number: leave them out of the product.
            near = logits.amax(1) > self.maximum[rows] - 104
            rows, logits = rows[near], logits[near]
        maximum = torch.maximum(self.maximum[rows], logits.amax(1))
        decay = torch.exp(self.maximum[rows] - maximum).to(self.weight)
        weights = torch.exp((logits - maximum[:, None]).to(self.weight.dtype))
        self.maximum[rows] = maximum
        self.weight[rows] = self.weight[rows] * decay + weights.sum(1)
        self.square[rows] = self.square[rows] * decay.square() + weights.square().sum(1)
        self.total[rows] = torch.addmm(self.total[rows] * decay[:, None], weights, keys)

    def merged(self, other: "_Stream") -> "_Stream":
        """The average over both streams' references."""
        both = _Stream.__new__(_Stream)
        both.maximum = torch.maximum(self.maximum, other.maximum)
        a = torch.exp(self.maximum - both.maximum).to(self.weight)
        b = torch.exp(other.maximum - both.maximum).to(self.weight)
        both.weight = a * self.weight + b * other.weight
        both.square = a.square() * self.square + b.square() * other.square
        both.total = a[:, None] * self.total + b[:, None] * other.total
        return both


def _segments(reference: Reference, group: Tensor | None, rows: int) -> Iterator[tuple[Tensor, int, int]]:
    """(queries, first row, end row) for each group that a query asks for."""
    if group is None:
        if len(reference.offsets) != 2:
            raise ValueError("the reference is grouped: every query needs its group")
        group = torch.zeros(rows, dtype=torch.long)
    group = group.cpu()
    if group.shape != (rows,) or group.is_floating_point():
        raise ValueError(f"group must be integers [{rows}], got {group.dtype} {list(group.shape)}")
    order = torch.argsort(group, stable=True)
    values, counts = torch.unique_consecutive(group[order], return_counts=True)
    for value, queries in zip(values.tolist(), torch.split(order, counts.tolist()), strict=True):
        if not 0 <= value < len(reference.offsets) - 1:
            raise ValueError(f"group {value} is not in the reference (0 … {len(reference.offsets) - 2})")
        start, stop = reference.offsets[value], reference.offsets[value + 1]
        if start == stop:
            raise ValueError(f"group {value} has no reference images")
        yield queries.to(reference.images.device), start, stop


@torch.no_grad()
def posterior(
    x_t: Tensor,
    t: Tensor,
    schedule: NoiseSchedule,
    reference: Reference,
    group: Tensor | None = None,
    *,
    mirrored: bool = False,
    block: int = BLOCK,
) -> Posterior:
    """x̂_0 = Σ_i w_i x⁽ⁱ⁾ over the reference images of each query's group, streamed.

    Args:
        x_t: noisy images [B, C, H, W]; t: their times [B], with α(t) > 0 and σ(t) > 0.
        group: each query's group [B] (integers); None where the reference has one group.
        mirrored: every reference counts twice, as it is and flipped left to right.
        block: reference rows at a time; memory is O(B·d + B·block + block·d).

    Returns:
        The mean in x_t's shape and (at least fp32) dtype, and the effective size. No gradient flows.

    Raises:
        ValueError: shapes or devices that do not fit, groups that are unknown or empty, σ(t) = 0.

    Accuracy: within 1e-5 relative of float64 for uint8 references, all t from 0.002 to 80; floating-point
    references are computed in float64. Source: METHOD §2; STF, 2302.00670.
    """
    if x_t.shape[1:] != reference.images.shape[1:]:
        raise ValueError(
            f"queries are {list(x_t.shape[1:])}, reference images {list(reference.images.shape[1:])}"
        )
    if x_t.device != reference.images.device:
        raise ValueError(f"queries are on {x_t.device}, the reference on {reference.images.device}")
    t = t.double()
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    if not bool(torch.isfinite(x_t).all()):
        raise ValueError("the noisy images contain NaN or infinity")
    if not bool((sigma > 0).all()):
        raise ValueError("the posterior mean needs sigma(t) > 0; at sigma = 0 it is the image itself")
    if not bool((alpha > 0).all()):
        raise ValueError("the posterior mean needs alpha(t) > 0; at alpha = 0 it is the reference mean")
    stream, query = _run(x_t.double() / expand(alpha, x_t), sigma / alpha, reference, group, block)
    shape = x_t.shape
    if mirrored:
        flipped, _ = _run(x_t.flip(-1).double() / expand(alpha, x_t), sigma / alpha, reference, group, block)
        flipped.total = flipped.total.view(shape).flip(-1).reshape(flipped.total.shape)
        stream = stream.merged(flipped)
    mean = query.to_image(stream.total / stream.weight[:, None]).view(shape)
    dtype = torch.promote_types(x_t.dtype, torch.float32)
    return Posterior(mean.to(dtype), (stream.weight.square() / stream.square).to(dtype))


def _run(
    y: Tensor, s: Tensor, reference: Reference, group: Tensor | None, block: int
) -> tuple[_Stream, _LevelQuery | _FloatQuery]:
    kind = _LevelQuery if reference.images.dtype == torch.uint8 else _FloatQuery
    query = kind.of(y.flatten(1), s)
    dtype = torch.float32 if kind is _LevelQuery else torch.float64
    stream = _Stream(len(y), y[0].numel(), torch.empty(0, dtype=dtype, device=y.device))
    for queries, start, stop in _segments(reference, group, len(y)):
        part = query.rows(queries)
        for first in range(start, stop, block):
            keys = query.keys(reference.images[first : min(first + block, stop)].flatten(1))
            stream.add(queries, part.logits(keys), keys)
    return stream, query


@torch.no_grad()
def posterior_exact(
    x_t: Tensor, t: Tensor, schedule: NoiseSchedule, images: Tensor, log_prior: Tensor | None = None
) -> Tensor:
    """The same mean written out in float64, for tests and small sets: forms [B, n, d].

    x_t [B, ...], t [B], images [n, ...] (uint8 or floating), log_prior [B, n] or None → float64 [B, ...].
    """
    x = (images.double() / LEVELS - 1) if images.dtype == torch.uint8 else images.double()
    t = t.double()
    shift = x_t.double()[:, None] - expand(schedule.alpha(t), x[None]) * x[None]
    logits = -shift.square().flatten(2).sum(2) / (2 * schedule.sigma(t).square())[:, None]
    if log_prior is not None:
        logits = logits + log_prior
    return torch.einsum("bn,n...->b...", torch.softmax(logits, dim=1), x)
