"""Networks that train on a CPU: a residual MLP for 8×8 digits, and a U-Net over patches for 32×32 images."""

import math
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from consistune.nn.blocks import BlockStyle, ResidualBlock
from consistune.nn.layers import Conv2d, GroupNorm, Init, cos_sin
from consistune.nn.tangents import silu
from consistune.nn.unet import RawNetwork, recorded


class SinusoidalEmbedding(nn.Module):
    """u [B] → [cos(2π f u) | sin(2π f u)] [B, features], f spaced geometrically in [f_min, f_max].

    The frequencies are low, because a consistency model needs an embedding with a small slope in u (iCT,
    2310.14189, §3.3).
    """

    frequencies: Tensor

    def __init__(self, features: int, f_min: float = 0.125, f_max: float = 4.0) -> None:
        super().__init__()
        # On the CPU, also for a model on the meta device, where exp would take a second to import.
        grid = torch.linspace(math.log(f_min), math.log(f_max), features // 2, device="cpu")
        frequencies = (2 * math.pi * grid.exp()).to(torch.get_default_device())
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, u: Tensor) -> Tensor:
        return cos_sin(u, self.frequencies)


class Embedded(RawNetwork):
    """The common part of the small networks: the embedding of noise level and class."""

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__(options)
        num_classes, embedding = self.num_classes, options["embedding"]
        self.map_noise = SinusoidalEmbedding(32)
        self.map_label = nn.Linear(num_classes, embedding, bias=False) if num_classes else None
        self.map_hidden = nn.Linear(32, embedding)
        self.map_second = nn.Linear(32, embedding, bias=False) if self.second_time else None
        self.map_out = nn.Linear(embedding, embedding)

    def draw_embeddings(self) -> None:
        """Fresh class embeddings, none on the meta device, where drawing would take a second; zero for s."""
        if self.map_label is not None and not self.map_label.weight.is_meta:
            nn.init.normal_(self.map_label.weight)
        if self.map_second is not None:
            nn.init.zeros_(self.map_second.weight)

    def embed(self, c_noise: Tensor, one_hot: Tensor | None, second: Tensor | None) -> Tensor:
        """silu(W₁·silu(W₀·sinusoids(c_noise) + W_label·one_hot + W_second·sinusoids(second))).

        [B], [B, num_classes], [B] → [B, embedding].
        """
        embedding = self.map_hidden(self.map_noise(c_noise))
        if self.map_label is not None and one_hot is not None:
            embedding = embedding + self.map_label(one_hot)
        if self.map_second is not None and second is not None:
            embedding = embedding + self.map_second(self.map_noise(second))
        return silu(self.map_out(silu(embedding)))


def zero(layer: nn.Linear) -> None:
    """The layer gives 0 until it is trained."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)


def modulated(norm: nn.Module, h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """LN(h)·(1 + scale) + shift; scale and shift broadcast over h [B, ..., width]."""
    return torch.addcmul(shift, norm(h), 1 + scale)


class ModulatedBlock(nn.Module):
    """x + W₂·dropout(silu(W₁·(LN(x)·(1 + scale) + shift))), scale and shift linear in the embedding."""

    def __init__(self, width: int, expansion: int, embedding: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(embedding, 2 * width)
        self.inner = nn.Linear(width, expansion * width)
        self.outer = nn.Linear(expansion * width, width)
        self.dropout = nn.Dropout(dropout)
        zero(self.modulation)
        zero(self.outer)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulation(embedding).chunk(2, dim=1)
        h = modulated(self.norm, x, scale, shift)
        return x + self.outer(self.dropout(silu(self.inner(h))))


class ResidualMLP(Embedded):
    """Raw network F: (x [B, C, H, W], c_noise [B], one_hot [B, num_classes] or None) → [B, C, H, W].

    Args:
        image_shape: (C, H, W).
        num_classes: 0 for an unconditional network.
        width, blocks, expansion: size of the trunk.
        embedding: size of the noise-level and class embedding.
        dropout: probability, on the hidden layer of each block.
        second_time: whether the network also takes the time where a jump ends (`Preconditioned`).
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] | list[int],
        num_classes: int = 0,
        width: int = 256,
        blocks: int = 3,
        expansion: int = 4,
        embedding: int = 128,
        dropout: float = 0.0,
        second_time: bool = False,
    ) -> None:
        super().__init__(recorded(locals()))
        pixels = math.prod(self.image_shape)
        self.enter = nn.Linear(pixels, width)
        self.trunk = nn.ModuleList(
            ModulatedBlock(width, expansion, embedding, dropout) for _ in range(blocks)
        )
        self.norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, pixels)
        self.draw_embeddings()
        zero(self.leave)

    def forward(
        self, x: Tensor, c_noise: Tensor, one_hot: Tensor | None = None, *, second: Tensor | None = None
    ) -> Tensor:
        embedding = self.embed(c_noise, one_hot, second)
        h = self.enter(x.flatten(1))
        for block in self.trunk:
            h = block(h, embedding)
        return self.leave(self.norm(h)).view_as(x)


INIT, ZERO = Init("kaiming_uniform", weight=math.sqrt(1 / 3)), Init("kaiming_uniform", weight=0.0)
"""ADM's (2105.05233): uniform in ±1/√fan_in; the last layer of a residual branch begins with 0."""


class PatchUNet(Embedded):
    """Raw network F of a small U-Net whose pixels are patches: (x [B, C, H, W], c_noise [B], one_hot) → as x.

    Space to depth turns patch × patch pixels into channels, so that all convolutions run on a grid of
    H/patch: 32×32 images become 8×8 and 4×4, which a CPU computes fastest. Levels are joined by addition.

    Args:
        image_shape: (C, H, W), both sides multiples of patch·2^(levels − 1).
        num_classes: 0 for an unconditional network.
        patch: side of a patch.
        model_channels, channel_mult: a level is model_channels·mult wide.
        num_blocks: residual blocks of a level on the way down, and as many on the way up; the coarsest level
            has them once.
        embedding: size of the noise-level and class embedding.
        dropout: probability, inside each block.
        second_time: whether the network also takes the time where a jump ends (`Preconditioned`).
    """

    precisions: ClassVar[tuple[str, ...]] = ("fp32", "bf16", "fp16")

    def __init__(
        self,
        image_shape: tuple[int, int, int] | list[int],
        num_classes: int = 0,
        patch: int = 4,
        model_channels: int = 64,
        channel_mult: tuple[int, ...] = (1, 2),
        num_blocks: int = 2,
        embedding: int = 128,
        dropout: float = 0.0,
        second_time: bool = False,
    ) -> None:
        super().__init__(recorded(locals()))
        multiple = patch * 2 ** (len(channel_mult) - 1)
        if any(side % multiple for side in self.image_shape[1:]):
            raise ValueError(f"the images' sides {self.image_shape[1:]} must be multiples of {multiple}")
        self.patch = patch
        inner = self.image_shape[0] * patch**2
        widths = [model_channels * mult for mult in channel_mult]
        style = BlockStyle(embedding, dropout, INIT, ZERO, INIT)

        def blocks(width: int) -> nn.ModuleList:
            return nn.ModuleList(ResidualBlock(width, width, style) for _ in range(num_blocks))

        self.enter = Conv2d(inner, widths[0], 3, INIT)
        self.encoder = nn.ModuleList(blocks(width) for width in widths)
        self.down = nn.ModuleList(Conv2d(fine, coarse, 1, INIT, "down") for fine, coarse in pairwise(widths))
        self.up = nn.ModuleList(Conv2d(coarse, fine, 1, INIT, "up") for fine, coarse in pairwise(widths))
        self.decoder = nn.ModuleList(blocks(width) for width in widths[:-1])
        self.norm = GroupNorm(widths[0], 1e-5)
        self.leave = Conv2d(widths[0], inner, 3, ZERO)
        self.draw_embeddings()

    @property
    def outer_layers(self) -> list[nn.Module]:
        """See `UNet.outer_layers`."""
        return [self.enter, *self.up[:1], *self.decoder[:1], self.leave]

    def forward(
        self, x: Tensor, c_noise: Tensor, one_hot: Tensor | None = None, *, second: Tensor | None = None
    ) -> Tensor:
        embedding = self.embed(c_noise, one_hot, second)
        h, skips = self.enter(pixel_unshuffle(x, self.patch)), list[Tensor]()
        for level, blocks in enumerate(self.encoder):
            if level:
                skips.append(h)
                h = self.down[level - 1](h)
            for block in blocks:  # type: ignore[attr-defined]
                h = block(h, embedding)
        for up, blocks in zip(reversed(self.up), reversed(self.decoder), strict=True):
            h = up(h) + skips.pop()
            for block in blocks:  # type: ignore[attr-defined]
                h = block(h, embedding)
        return pixel_shuffle(self.leave(silu(self.norm(h))), self.patch)
