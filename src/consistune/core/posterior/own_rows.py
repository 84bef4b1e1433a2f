"""The posterior mean of queries that have references of their own: small classes, random references.

The sums are those of `mean` (METHOD §2). Each query's rows are gathered, and products go query by query in
one batched call. No result is needed on the host, so that a device need not wait for it.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from consistune.core.posterior.integers import exact_products, signed_digits, signed_pixels
from consistune.core.posterior.streaming import WEIGHT_DIGITS, LevelQuery, Stream, combined

GATHERED = 1 << 28
"""The most values of reference images that are gathered at a time."""


def own_sums(y: Tensor, s: Tensor, take: Callable[[Tensor], Tensor], rows: Tensor, counted: Tensor) -> Stream:
    """The sums of queries y [b, C, H, W] of width s [b] over their references take(rows) [b, m].

    counted [b, m] (bool): which of the rows are references. A query without any has NaN for its mean.
    """
    size = y.shape[1:].numel()
    most = max(1, GATHERED // max(1, rows.shape[1] * size))
    parts = []
    for first in range(0, len(y), most):
        part = slice(first, first + most)
        images = take(rows[part].flatten()).flatten(1)
        compute = _level_sums if images.dtype == torch.uint8 else _float_sums
        parts.append(compute(y[part].flatten(1), s[part], images, counted[part]))
    return Stream(
        *(torch.cat(values) for values in zip(*(vars(part).values() for part in parts), strict=True))
    )


def random_rows(
    offsets: Tensor, group: Tensor, index: Tensor, size: int, longest: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """`size` rows for each query: its own `index` [b], and others drawn without replacement from its group.

    Every query draws for itself. offsets [groups + 1] and group [b] are where index is; longest: the size of
    the largest group. → rows [b, size], and which of them exist (a group may be smaller), bool.
    Drawn on the generator's device.
    """
    start, end = offsets[group], offsets[group + 1]
    most = max(1, GATHERED // (16 * longest))
    found = []
    for first in range(0, len(index), most):
        part = slice(first, first + most)
        keys = torch.rand(len(index[part]), longest, generator=generator, device=generator.device)
        keys = keys.to(index.device, non_blocking=True)
        place = torch.arange(longest, device=index.device) + start[part, None]
        keys = keys.masked_fill(place >= end[part, None], 2.0).masked_fill(place == index[part, None], -1.0)
        found.append(keys.topk(min(size, longest), dim=1, largest=False))
    values = torch.cat([f.values for f in found])
    rows = torch.cat([f.indices for f in found]) + start[:, None]
    # A query whose image is not in its group has no reference, which makes its mean NaN.
    inside = (index >= start) & (index < end)
    counted = (values < 2) & inside[:, None]
    return rows.where(counted, 0), counted


def _level_sums(y: Tensor, s: Tensor, pixels: Tensor, counted: Tensor) -> Stream:
    query, shape = LevelQuery.of(y, s), counted.shape
    x = signed_pixels(pixels).view(*shape, -1)
    dots = combined(exact_products(query.digits.transpose(0, 1), x.mT).transpose(0, 1))
    squares = LevelQuery.squares(pixels).view(shape)
    logits = (2 * query.scale[:, None] * dots - squares) * (0.5 / query.width.square())[:, None]
    top, weights = _weights(logits, counted)
    weights = weights.float()
    norm = (weights.double() * squares.double()).sum(1)
    digits = signed_digits(weights * 127, WEIGHT_DIGITS).transpose(0, 1)
    total = combined(exact_products(digits, x).transpose(0, 1)) / 127
    weight = combined(digits.sum(2, dtype=torch.float64).T) / 127
    return Stream(top, weight.float(), weights.square().sum(1), total.float(), norm)


def _float_sums(y: Tensor, s: Tensor, images: Tensor, counted: Tensor) -> Stream:
    x = images.double().view(*counted.shape, -1)
    dots, norms = (x @ y.double()[:, :, None])[..., 0], x.square().sum(2)
    logits = (2 * dots - norms) / (2 * s.double().square())[:, None]
    top, weights = _weights(logits, counted)
    total, norm = (weights[:, None] @ x)[:, 0], (weights * norms).sum(1)
    return Stream(top, weights.sum(1), weights.square().sum(1), total, norm)


def _weights(logits: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """The largest logit and e^{l − largest}, 0 for rows that are not counted."""
    logits = logits.masked_fill(~counted, -torch.inf)
    top = logits.amax(1)
    return top, torch.exp(logits - top.clamp(min=-1e300)[:, None])
