"""The posterior mean over a finite set of images: x̂_0 = Σ_i w_i x⁽ⁱ⁾ (METHOD §2).

    w_i = softmax_i( −‖x_t − α_t x⁽ⁱ⁾‖² / (2σ_t²) )

With y = x_t/α_t and s = σ_t/α_t this is attention with query y and the images as keys and values.
`streaming` computes it exactly, a block of images at a time, from the stored uint8 images; `own_rows` for
small groups on a card.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby, pairwise
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from consistune.core.noise import NoiseSchedule
from consistune.core.posterior.integers import HALF_RANGE
from consistune.core.posterior.own_rows import own_sums
from consistune.core.posterior.streaming import FloatQuery, LevelQuery, Stream, root_variance
from consistune.core.types import exact_device, expand, moved

BLOCK = 4096
"""Reference rows at a time on the CPU."""
CARD_PAIRS, CARD_VALUES = 1 << 23, 1 << 28
"""The most pairs of a query and a row, and the most values of rows, at a time on a card."""
APART = 4
"""On a card queries read their own groups, one by one, where the set has this many times more rows than that:
gathered rows are multiplied as floats, the whole set as bytes."""
LEAST, GREATEST = 1e-120, 1e100
"""Noise-to-signal ratios σ/α whose squares, and the images' over them, float64 holds."""
Span: TypeAlias = tuple[int, int]
"""Rows first … last − 1 of a reference."""
OwnRows: TypeAlias = tuple[Tensor, Tensor]
"""Rows of a reference for each query [B, m], and which of them count [B, m] (bool)."""
Segment: TypeAlias = tuple[Tensor | None, int, int]
"""Queries [b] (None: all), and the rows first … last − 1 that they read."""
LogPrior: TypeAlias = Callable[[Tensor, int, int], Tensor]
"""log_prior(queries [b], first, last) → [b, last − first], added to the logits of those reference rows.

−inf leaves a reference out. Values must not be positive, and each query needs one that is finite.
"""


def dequantise(pixels: Tensor) -> Tensor:
    """uint8 0 … 255 → fp32 in [−1, 1]."""
    return pixels.float() / HALF_RANGE - 1


def restored(values: Tensor, scale: float = 1.0) -> Tensor:
    """Stored values in fp32: scale·`dequantise` of uint8 levels; others times the scale."""
    return (dequantise(values) if values.dtype == torch.uint8 else values.float()) * scale


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
        scale: a stored value v stands for x = scale·v; latents as uint8 reach beyond [−1, 1].
    """

    images: Tensor
    offsets: tuple[int, ...]
    conditions: Tensor | None = None
    scale: float = 1.0
    _squared: set[Span] = field(default_factory=set, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 and not self.images.is_floating_point():
            raise ValueError(f"reference images must be uint8 or floating point, got {self.images.dtype}")
        if len(self.images) == 0:
            raise ValueError("a reference needs at least one image")
        on_host = (
            self.images.device.type == "cpu"
        )  # elsewhere the look would wait; NaN then shows in the mean
        if on_host and self.images.is_floating_point() and not bool(torch.isfinite(self.images).all()):
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
        """The images of these rows [k] of the whole set, where the queries are."""
        return self.here(rows)

    def here(self, rows: Tensor) -> Tensor:
        """The images of these rows [k] of what this process holds, where the queries are."""
        return self.images[rows]

    @property
    def walks(self) -> bool:
        """Whether `sums` goes from group to group, for which the host must know the queries' groups.

        On the CPU that costs nothing. On a card, the host would wait for it.
        """
        return self.device.type == "cpu"

    @cached_property
    def starts(self) -> Tensor:
        """`offsets` where the queries are."""
        return moved(torch.tensor(self.offsets), self.device)

    @cached_property
    def row_groups(self) -> Tensor:
        """The group of each row [n], where the queries are."""
        sizes = torch.tensor(self.offsets).diff()
        return moved(torch.repeat_interleave(torch.arange(len(sizes)), sizes), self.device)

    @cached_property
    def longest(self) -> int:
        """The size of the largest group."""
        return max(b - a for a, b in pairwise(self.offsets))

    def sums(
        self,
        x_t: Tensor,
        t: Tensor,
        schedule: NoiseSchedule,
        group: Tensor | None,
        log_prior: LogPrior | None,
        mirrored: bool,
        block: int | None,
        own: OwnRows | None = None,
    ) -> Stream:
        """The sums from which `posterior` computes the mean; same arguments."""
        if x_t.shape[1:] != self.images.shape[1:]:
            raise ValueError(
                f"queries are {list(x_t.shape[1:])}, reference images {list(self.images.shape[1:])}"
            )
        if x_t.device != self.device:
            raise ValueError(f"queries are on {x_t.device}, the reference on {self.device}")
        if group is None and own is None and len(self.offsets) != 2:
            raise ValueError("the reference is grouped: every query needs its group")
        if group is not None and (group.shape != x_t.shape[:1] or group.is_floating_point()):
            raise ValueError(f"group must be integers [{len(x_t)}], got {group.dtype} {list(group.shape)}")
        t = t.double()
        alpha, sigma = schedule.alpha(t) * self.scale, schedule.sigma(t)
        rows, prior = len(x_t), log_prior
        y, s = x_t.double() / expand(alpha, x_t), sigma / alpha
        if mirrored:
            # A flipped image times y is the image times y flipped, so each query gets a flipped copy.
            y, s = torch.cat([y, y.flip(-1)]), s.repeat(2)
            prior = None if log_prior is None else lambda q, *span: log_prior(q % rows, *span)
        if own is not None:
            sums = own_sums(y, s, self.take, *(value.repeat(len(y) // rows, 1) for value in own))
        elif self.walks:
            signal = (alpha > 0).all() & (s <= GREATEST).all()
            valid = torch.stack([torch.isfinite(x_t).all(), (s >= LEAST).all(), signal])
            segments = list(_segments(self, group, rows, valid))
            if mirrored:
                segments = [(torch.cat([q, q + rows]), a, b) for q, a, b in segments]
            sums = _read(y, s, self, segments, prior, block)
        else:
            group = None if group is None else group.repeat(len(y) // rows)
            sums = self._read_at_once(y, s, group, prior, block)
        if not mirrored:
            return sums
        plain, flipped = sums.part(slice(rows)), sums.part(slice(rows, None))
        flipped.total = flipped.total.view(x_t.shape).flip(-1).reshape(flipped.total.shape)
        return plain.merged(flipped)

    def _read_at_once(
        self, y: Tensor, s: Tensor, group: Tensor | None, log_prior: LogPrior | None, block: int | None
    ) -> Stream:
        """The sums without a wait of the host: each query's own group, or the whole set under a mask.

        A query that cannot be answered has NaN for its mean.
        """
        if group is None:
            return _read(y, s, self, [(None, 0, len(self))], log_prior, block)
        known = (group >= 0) & (group < len(self.offsets) - 1)
        group = group.where(known, 0)
        if log_prior is None and APART * len(y) * self.longest <= len(self):
            rows = self.starts[group][:, None] + torch.arange(self.longest, device=y.device)
            counted = known[:, None] & (rows < self.starts[group + 1][:, None])
            return own_sums(y, s, self.here, rows.where(counted, 0), counted)

        def masked(queries: Tensor, first: int, last: int) -> Tensor:
            mine = (group[queries, None] == self.row_groups[first:last]) & known[queries, None]
            prior = torch.zeros(mine.shape, dtype=torch.float64, device=y.device).masked_fill(
                ~mine, -torch.inf
            )
            return prior if log_prior is None else prior + log_prior(queries, first, last)

        return _read(y, s, self, [(None, 0, len(self))], masked, block)

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

    valid: whether the images are finite, all have noise, and all a signal, bool [3].
    """
    if group is None:
        group = torch.zeros(rows, dtype=torch.long, device=valid.device)
    order = torch.argsort(group, stable=True)
    finite, noisy, signal, *values = torch.cat([valid.long(), group[order]]).tolist()
    if not finite:
        raise ValueError("the noisy images contain NaN or infinity")
    if not noisy:
        raise ValueError(
            f"the posterior mean needs sigma(t) > 0, and sigma/alpha of {LEAST:g} at least; "
            "at sigma = 0 it is the image itself"
        )
    if not signal:
        raise ValueError(
            f"the posterior mean needs alpha(t) > 0, and sigma/alpha of {GREATEST:g} at most; "
            "at alpha = 0 it is the reference mean"
        )
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
    block: int | None = None,
    own: OwnRows | None = None,
) -> Posterior:
    """x̂_0 = Σ_i w_i x⁽ⁱ⁾ over the reference images of each query's group, streamed.

    Args:
        x_t: noisy images [B, C, H, W].
        t: their times [B], with α(t) > 0, σ(t) > 0 and σ/α from LEAST to GREATEST.
        group: each query's group [B] (integers); None where the reference has one group.
        log_prior: added to each logit, which weights references or leaves them out; see `LogPrior`.
        mirrored: every reference counts twice, as it is and flipped left to right.
        block: reference rows at a time; memory is O(B·d + B·block + block·d). None: as many as the device
            does well with.
        own: references of each query's own instead of its group's; no log-prior goes with them.

    Returns:
        The mean in x_t's shape and (at least fp32) dtype, the effective size and the root variance. No
        gradient flows.

    Raises:
        ValueError: shapes or devices that do not fit, groups that are unknown or empty, σ(t) = 0. On a card
            the host does not wait to see values: a query that cannot be answered has NaN for its mean.

    Accuracy: within 1e-5 relative of float64 for uint8 references, all t from 0.002 to 80; floating-point
    references are computed in float64. Where bytes multiply fast (`integers.fast_bytes`), a query's mean does
    not depend on the other queries, to the bit. Source: METHOD §2; STF, 2302.00670.
    """
    home, device = exact_device(x_t.device), x_t.device
    if home != device:
        x_t, t, group = x_t.to(home), t.to(home), None if group is None else group.to(home)
    sums = reference.sums(x_t, t, schedule, group, log_prior, mirrored, block, own)
    units = _units(reference)
    mean = units.to_image(sums.total / sums.weight[:, None]).view(x_t.shape) * reference.scale
    dtype = torch.promote_types(x_t.dtype, torch.float32)
    size = sums.weight.square() / sums.square
    scatter = units.to_length(root_variance(sums)) * reference.scale
    return Posterior(mean.to(device, dtype), size.to(device, dtype), scatter.to(device, dtype))


def _units(reference: Reference) -> type[LevelQuery] | type[FloatQuery]:
    return LevelQuery if reference.images.dtype == torch.uint8 else FloatQuery


def _read(
    y: Tensor,
    s: Tensor,
    reference: Reference,
    segments: Sequence[Segment],
    log_prior: LogPrior | None,
    block: int | None,
) -> Stream:
    """The sums over every block of every segment; a block is read once for all queries of its group."""
    query = _units(reference).of(y.flatten(1), s)
    dtype = torch.float32 if reference.images.dtype == torch.uint8 else torch.float64
    sums = Stream.empty(len(y), y.shape[1:].numel(), dtype, y.device)
    block = block or _block(len(y), y.shape[1:].numel(), y.device)
    spans = [
        [(first, min(first + block, stop)) for first in range(start, stop, block)]
        for _, start, stop in segments
    ]
    blocks = reference.blocks([span for several in spans for span in several])
    for (queries, _, _), several in zip(segments, spans, strict=True):
        part = query if queries is None else query.rows(queries)
        asked = torch.arange(len(y), device=y.device) if queries is None else queries
        for span in several:
            keys, squares = next(blocks)
            prior = None if log_prior is None else log_prior(asked, *span).double()
            part.read(sums, asked, keys.flatten(1), squares, prior)
    return sums


def _block(queries: int, size: int, device: torch.device) -> int:
    """Reference rows of `size` values at a time."""
    return BLOCK if device.type == "cpu" else max(BLOCK, min(CARD_PAIRS // queries, CARD_VALUES // size))
