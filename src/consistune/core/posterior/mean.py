"""The posterior mean over a finite set of images: x̂_0 = Σ_i w_i x⁽ⁱ⁾ (METHOD §2).

    w_i = softmax_i( −‖x_t − α_t x⁽ⁱ⁾‖² / (2σ_t²) )

With y = x_t/α_t and s = σ_t/α_t this is attention with query y and the images as keys and values.
`streaming` computes it exactly, a block of images at a time, from the stored uint8 images.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from consistune.core.noise import NoiseSchedule
from consistune.core.posterior.integers import HALF_RANGE
from consistune.core.posterior.streaming import FloatQuery, LevelQuery, Stream, root_variance
from consistune.core.types import expand

BLOCK = 4096
Span: TypeAlias = tuple[int, int]
"""Rows first … last − 1 of a reference."""
LogPrior: TypeAlias = Callable[[Tensor, int, int], Tensor]
"""log_prior(queries [b], first, last) → [b, last − first], added to the logits of those reference rows.

−inf leaves a reference out. Values must not be positive, and each query needs one that is finite.
"""


def dequantise(pixels: Tensor) -> Tensor:
    """uint8 0 … 255 → fp32 in [−1, 1]."""
    return pixels.float() / HALF_RANGE - 1


def quantise(x: Tensor) -> Tensor:
    """Images in [−1, 1] → uint8: x·127.5 + 128, truncated, clipped (EDM's convention, 2206.00364)."""
    return (x.float() * HALF_RANGE + 128).clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class Reference:
    """The images that represent p(x_0 | c). The members of a group (class) are consecutive rows.

    Attributes:
        images: [n, C, H, W], uint8 pixels or floating point in [−1, 1] (computed with in float64).
        offsets: group g is rows offsets[g] … offsets[g + 1] − 1.
        conditions: continuous conditions [n, K], one per image, or None.
    """

    images: Tensor
    offsets: tuple[int, ...]
    conditions: Tensor | None = None
    _squared: set[Span] = field(default_factory=set, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 and not self.images.is_floating_point():
            raise ValueError(f"reference images must be uint8 or floating point, got {self.images.dtype}")
        if len(self.images) == 0:
            raise ValueError("a reference needs at least one image")
        if self.images.is_floating_point() and not bool(torch.isfinite(self.images).all()):
            raise ValueError("reference images contain NaN or infinity")

    @classmethod
    def ungrouped(cls, images: Tensor) -> "Reference":
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

    @property
    def device(self) -> torch.device:
        """Where queries must be."""
        return self.images.device

    def take(self, rows: Tensor) -> Tensor:
        """The images of these rows [k], where the queries are."""
        return self.images[rows]

    def sums(
        self,
        x_t: Tensor,
        t: Tensor,
        schedule: NoiseSchedule,
        group: Tensor | None,
        log_prior: LogPrior | None,
        mirrored: bool,
        block: int,
    ) -> Stream:
        """The sums from which `posterior` computes the mean; same arguments."""
        if x_t.shape[1:] != self.images.shape[1:]:
            raise ValueError(
                f"queries are {list(x_t.shape[1:])}, reference images {list(self.images.shape[1:])}"
            )
        if x_t.device != self.device:
            raise ValueError(f"queries are on {x_t.device}, the reference on {self.device}")
        t = t.double()
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        valid = torch.stack([torch.isfinite(x_t).all(), (sigma > 0).all(), (alpha > 0).all()])
        segments = list(_segments(self, group, len(x_t), valid))
        y, s = x_t.double() / expand(alpha, x_t), sigma / alpha
        if not mirrored:
            return _read(y, s, self, segments, log_prior, block)
        # A flipped image times y is the image times y flipped, so each query gets a flipped copy.
        rows = len(x_t)
        y, s = torch.cat([y, y.flip(-1)]), s.repeat(2)
        segments = [(torch.cat([q, q + rows]), first, last) for q, first, last in segments]
        prior = None if log_prior is None else lambda q, *span: log_prior(q % rows, *span)
        both = _read(y, s, self, segments, prior, block)
        plain, flipped = both.part(slice(rows)), both.part(slice(rows, None))
        flipped.total = flipped.total.view(x_t.shape).flip(-1).reshape(flipped.total.shape)
        return plain.merged(flipped)

    def blocks(self, spans: Sequence[Span]) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows [m, C, H, W] of each span in turn, where the queries are, and their ‖x‖² (`squares`)."""
        for first, last in spans:
            rows = self.images[first:last]
            yield rows, self.squares(first, rows)

    def squares(self, first: int, rows: Tensor) -> Tensor:
        """‖x‖² of the `rows` from `first` on, in the units of the queries, float64 [m]; cached."""
        last = first + len(rows)
        if (first, last) not in self._squared:
            self._squares[first:last] = _units(self).squares(rows.flatten(1))
            self._squared.add((first, last))
        return self._squares[first:last]

    @cached_property
    def _squares(self) -> Tensor:
        return torch.empty(len(self), dtype=torch.float64, device=self.device)


class Posterior(NamedTuple):
    """The posterior over the references.

    Attributes:
        mean: x̂_0, as x_t.
        effective_size: 1/Σw² [B]: how many references really count.
        scatter: √(Σ_i w_i‖x⁽ⁱ⁾ − x̂_0‖²) [B], the root variance over the whole image.
    """

    mean: Tensor
    effective_size: Tensor
    scatter: Tensor


def _segments(
    reference: Reference, group: Tensor | None, rows: int, valid: Tensor
) -> Iterator[tuple[Tensor, int, int]]:
    """(queries, first row, end row) for each group among the queries; waits for the device once.

    valid: whether the images are finite, all sigmas positive, all alphas positive, bool [3].
    """
    if group is None:
        if len(reference.offsets) != 2:
            raise ValueError("the reference is grouped: every query needs its group")
        group = torch.zeros(rows, dtype=torch.long, device=valid.device)
    if group.shape != (rows,) or group.is_floating_point():
        raise ValueError(f"group must be integers [{rows}], got {group.dtype} {list(group.shape)}")
    order = torch.argsort(group, stable=True)
    finite, noisy, signal, *values = torch.cat([valid.long(), group[order]]).tolist()
    if not finite:
        raise ValueError("the noisy images contain NaN or infinity")
    if not noisy:
        raise ValueError("the posterior mean needs sigma(t) > 0; at sigma = 0 it is the image itself")
    if not signal:
        raise ValueError("the posterior mean needs alpha(t) > 0; at alpha = 0 it is the reference mean")
    begin = 0
    for value, members in groupby(values):
        end = begin + len(list(members))
        if not 0 <= value < len(reference.offsets) - 1:
            raise ValueError(f"group {value} is not in the reference (0 … {len(reference.offsets) - 2})")
        start, stop = reference.offsets[value], reference.offsets[value + 1]
        if start == stop:
            raise ValueError(f"group {value} has no reference images")
        yield order[begin:end], start, stop
        begin = end


@torch.no_grad()
def posterior(
    x_t: Tensor,
    t: Tensor,
    schedule: NoiseSchedule,
    reference: Reference,
    group: Tensor | None = None,
    *,
    log_prior: LogPrior | None = None,
    mirrored: bool = False,
    block: int = BLOCK,
) -> Posterior:
    """x̂_0 = Σ_i w_i x⁽ⁱ⁾ over the reference images of each query's group, streamed.

    Args:
        x_t: noisy images [B, C, H, W]; t: their times [B], with α(t) > 0 and σ(t) > 0.
        group: each query's group [B] (integers); None where the reference has one group.
        log_prior: added to each logit, which weights references or leaves them out; see `LogPrior`.
        mirrored: every reference counts twice, as it is and flipped left to right.
        block: reference rows at a time; memory is O(B·d + B·block + block·d).

    Returns:
        The mean in x_t's shape and (at least fp32) dtype, the effective size and the root variance. No
        gradient flows.

    Raises:
        ValueError: shapes or devices that do not fit, groups that are unknown or empty, σ(t) = 0.

    Accuracy: within 1e-5 relative of float64 for uint8 references, all t from 0.002 to 80; floating-point
    references are computed in float64. Where bytes multiply fast (`integers.fast_bytes`), a query's mean does
    not depend on the other queries, to the bit. Source: METHOD §2; STF, 2302.00670.
    """
    sums = reference.sums(x_t, t, schedule, group, log_prior, mirrored, block)
    units = _units(reference)
    mean = units.to_image(sums.total / sums.weight[:, None]).view(x_t.shape)
    dtype = torch.promote_types(x_t.dtype, torch.float32)
    scatter = units.to_length(root_variance(sums))
    return Posterior(mean.to(dtype), (sums.weight.square() / sums.square).to(dtype), scatter.to(dtype))


def _units(reference: Reference) -> type[LevelQuery] | type[FloatQuery]:
    return LevelQuery if reference.images.dtype == torch.uint8 else FloatQuery


def _read(
    y: Tensor,
    s: Tensor,
    reference: Reference,
    segments: list[tuple[Tensor, int, int]],
    log_prior: LogPrior | None,
    block: int,
) -> Stream:
    """The sums over every block of every segment; a block is read once for all queries of its group."""
    query = _units(reference).of(y.flatten(1), s)
    dtype = torch.float32 if reference.images.dtype == torch.uint8 else torch.float64
    sums = Stream.empty(len(y), y.shape[1:].numel(), dtype, y.device)
    spans = [
        [(first, min(first + block, stop)) for first in range(start, stop, block)]
        for _, start, stop in segments
    ]
    blocks = reference.blocks([span for several in spans for span in several])
    for (queries, _, _), several in zip(segments, spans, strict=True):
        part = query.rows(queries)
        for span in several:
            keys, squares = next(blocks)
            prior = None if log_prior is None else log_prior(queries, *span).double()
            part.read(sums, queries, keys.flatten(1), squares, prior)
    return sums
