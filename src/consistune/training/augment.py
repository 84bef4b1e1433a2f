"""EDM's augmentation (2206.00364, app. F.2, after ADA, 2006.06676), with labels that tell the network.

Each image gets a random geometric transform, which the network receives as nine numbers. Sampling passes
none, which equals the label of an untouched image. All transforms but the flips are one affine map, resampled
at twice the resolution between a wavelet's low-pass filters.
"""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn.functional import affine_grid, conv2d, grid_sample, pad

from consistune.core.types import Batch, moved

LABELS = 9
"""Entries of a label: flips in x and y, scale, rotation (2), stretch (2), shift (2); 0: no transform."""
SCALE_STD = STRETCH_STD = 0.2
"""Standard deviations of log₂ of the factors."""
SHIFT_STD = 0.125
"""Standard deviation of the shift, as a share of the image's size."""
SYM6 = (
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)
"""The low-pass filter of the wavelet "sym6"; its sum is √2."""
REACH = len(SYM6) // 4


def augment_batch(batch: Batch, generator: Generator, probability: float) -> Batch:
    """The batch with its images augmented and with the labels that say how, for the network."""
    x_0, labels = augment(batch.x_0, probability, generator)
    return replace(batch, x_0=x_0, augment=labels)


def augment(x: Tensor, probability: float, generator: Generator) -> tuple[Tensor, Tensor]:
    """Images [B, C, H, W] → transformed images, labels [B, 9] in fp32.

    The flip in x has probability ½, every other transform the given one. The random numbers are drawn in the
    published order.
    """
    n, (height, width) = len(x), x.shape[2:]
    device = generator.device

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    def angle() -> Tensor:
        return (2 * torch.rand(n, generator=generator, device=device) - 1) * math.pi

    def gated(value: Tensor, chance: float, *shape: int) -> Tensor:
        return torch.where(
            torch.rand(shape or value.shape, generator=generator, device=device) < chance, value, 0
        )

    def coin(chance: float) -> Tensor:
        return gated(torch.randint(2, (n, 1, 1, 1), generator=generator, device=device), chance)

    flip_x, flip_y = coin(1.0), coin(probability)
    scale = gated(normal(n), probability)
    turn = gated(angle(), probability)
    stretch, along = normal(n), angle()
    stretch, along = gated(stretch, probability), gated(along, 0.5)
    shift = gated(normal(2, n), probability, 1, n)

    factor, ratio = (SCALE_STD * scale).exp2(), (STRETCH_STD * stretch).exp2()
    inverse = scaling(1 / factor, 1 / factor) @ rotation(turn)
    inverse = inverse @ rotation(-along) @ scaling(1 / ratio, ratio) @ rotation(along)
    inverse = inverse @ translation(-SHIFT_STD * width * shift[0], -SHIFT_STD * height * shift[1])
    labels = [flip_x, flip_y, scale, turn.cos() - 1, turn.sin()]
    labels += [stretch * along.cos(), stretch * along.sin(), *shift]
    flip_x, flip_y = flip_x.to(x.device), flip_y.to(x.device)
    x = torch.where(flip_x == 1, x.flip(3), x)
    x = torch.where(flip_y == 1, x.flip(2), x)
    return (
        warp(x, inverse.to(x.device)),
        torch.stack([label.reshape(n).float() for label in labels], 1).to(x.device),
    )


def warp(x: Tensor, inverse: Tensor) -> Tensor:
    """Images [B, C, H, W] under the map whose inverse [B, 3, 3] takes output pixels to input pixels.

    Coordinates are pixels from the image's centre. The border is reflected as far as any image needs.
    """
    height, width = x.shape[2:]
    x, inverse = _reflected(x, inverse)
    taps = moved(torch.tensor(SYM6, dtype=x.dtype), x.device)
    for axis in (3, 2):
        x = _doubled(x, taps, axis)
    inverse = scaling(2, 2, inverse) @ inverse @ scaling(0.5, 0.5, inverse)
    inverse = translation(-0.5, -0.5, inverse) @ inverse @ translation(0.5, 0.5, inverse)
    tall, wide = 2 * (height + 2 * REACH), 2 * (width + 2 * REACH)
    to_unit = scaling(2 / x.shape[3], 2 / x.shape[2], inverse)
    inverse = to_unit @ inverse @ scaling(wide / 2, tall / 2, inverse)
    grid = affine_grid(inverse[:, :2], [len(x), x.shape[1], tall, wide], align_corners=False)
    x = grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    for axis in (3, 2):
        x = _halved(x, taps, axis)
    return x


def _reflected(x: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """The images with a mirrored border as wide as the farthest corner of any transformed image."""
    height, width = x.shape[2:]
    cx, cy = (width - 1) / 2, (height - 1) / 2

    def constant(values: list[Any]) -> Tensor:
        return moved(torch.tensor(values, dtype=inverse.dtype), inverse.device)

    corners = constant([[-cx, -cy, 1], [cx, -cy, 1], [cx, cy, 1], [-cx, cy, 1]])
    reached = (inverse @ corners.T)[:, :2].permute(1, 0, 2).flatten(1)
    margin = torch.cat([-reached, reached]).amax(1) + constant([2 * REACH - cx, 2 * REACH - cy] * 2)
    limit = constant([width - 1, height - 1] * 2)
    left, top, right, bottom = (int(m) for m in margin.clamp(min=0).minimum(limit).ceil().tolist())
    x = pad(x, [left, right, top, bottom], mode="reflect")
    return x, translation((left - right) / 2, (top - bottom) / 2, inverse) @ inverse


def _doubled(x: Tensor, taps: Tensor, axis: int) -> Tensor:
    """Twice as many pixels along an axis: zeros between, then the reversed filter."""
    zeros = torch.zeros_like(x)
    x = torch.stack([x, zeros], axis + 1).flatten(axis, axis + 1).narrow(axis, 0, 2 * x.shape[axis] - 1)
    return _filtered(x, taps.flip(0), axis, stride=1, padding=len(taps) // 2)


def _halved(x: Tensor, taps: Tensor, axis: int) -> Tensor:
    """Half as many pixels along an axis after the filter, without the canvas's border."""
    x = _filtered(x, taps, axis, stride=2, padding=(len(taps) - 1) // 2)
    return x.narrow(axis, REACH, x.shape[axis] - 2 * REACH)


def _filtered(x: Tensor, taps: Tensor, axis: int, stride: int, padding: int) -> Tensor:
    channels, along = x.shape[1], axis == 3
    kernel = taps.view(1, 1, 1, -1) if along else taps.view(1, 1, -1, 1)
    kernel = kernel.expand(channels, -1, -1, -1)
    strides, paddings = ((1, stride), (0, padding)) if along else ((stride, 1), (padding, 0))
    return conv2d(x, kernel, stride=strides, padding=paddings, groups=channels)


# --- 3 × 3 matrices on homogeneous coordinates, [B, 3, 3] or [3, 3] -----------------------------------


def matrix(rows: list[list[Tensor | float]], like: Tensor) -> Tensor:
    shape = next((entry.shape for row in rows for entry in row if isinstance(entry, Tensor)), ())
    made = like.new_empty(*shape, 3, 3)
    for i, row in enumerate(rows):
        for j, entry in enumerate(row):
            place = made[..., i, j]
            place.copy_(entry) if isinstance(entry, Tensor) else place.fill_(entry)
    return made


def scaling(x: Tensor | float, y: Tensor | float, like: Tensor | None = None) -> Tensor:
    return matrix([[x, 0, 0], [0, y, 0], [0, 0, 1]], _like(x, like))


def translation(x: Tensor | float, y: Tensor | float, like: Tensor | None = None) -> Tensor:
    return matrix([[1, 0, x], [0, 1, y], [0, 0, 1]], _like(x, like))


def rotation(angle: Tensor) -> Tensor:
    c, s = angle.cos(), angle.sin()
    return matrix([[c, -s, 0], [s, c, 0], [0, 0, 1]], angle)


def _like(value: Tensor | float, like: Tensor | None) -> Tensor:
    if isinstance(value, Tensor):
        return value
    return torch.empty(0) if like is None else like
