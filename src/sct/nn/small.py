"""The demo's network: a residual MLP over the pixels, for images so small that convolutions do not pay."""

import math

import torch
from torch import Tensor, nn


class SinusoidalEmbedding(nn.Module):
    """u [B] → [cos(2π f u) | sin(2π f u)] [B, features], f spaced geometrically in [f_min, f_max].

    The frequencies stay low: a consistency model needs an embedding whose slope in u is small
    (iCT, 2310.14189, §3.3).
    """

    frequencies: Tensor

    def __init__(self, features: int, f_min: float = 0.125, f_max: float = 4.0) -> None:
        super().__init__()
        grid = torch.linspace(math.log(f_min), math.log(f_max), features // 2)
        self.register_buffer("frequencies", 2 * math.pi * grid.exp(), persistent=False)

    def forward(self, u: Tensor) -> Tensor:
        angle = u[:, None] * self.frequencies.to(u)
        return torch.cat([angle.cos(), angle.sin()], dim=1)


class ModulatedBlock(nn.Module):
    """x + W₂·dropout(silu(W₁·(LN(x)·(1 + scale) + shift))), scale and shift linear in the embedding."""

    def __init__(self, width: int, expansion: int, embedding: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(embedding, 2 * width)
        self.inner = nn.Linear(width, expansion * width)
        self.outer = nn.Linear(expansion * width, width)
        self.dropout = nn.Dropout(dropout)
        for zero in (self.modulation, self.outer):
            nn.init.zeros_(zero.weight)
            nn.init.zeros_(zero.bias)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulation(embedding).chunk(2, dim=1)
        h = torch.addcmul(shift, self.norm(x), 1 + scale)
        return x + self.outer(self.dropout(nn.functional.silu(self.inner(h))))


class ResidualMLP(nn.Module):
    """Raw network F: (x [B, C, H, W], c_noise [B], one_hot [B, num_classes] or None) → [B, C, H, W].

    Args:
        image_shape: (C, H, W).
        num_classes: 0 for an unconditional network.
        width, blocks, expansion: size of the trunk.
        embedding: size of the noise-level and class embedding.
        dropout: probability, on the hidden layer of each block.
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
    ) -> None:
        super().__init__()
        channels, height, rows = image_shape
        self.image_shape = (channels, height, rows)
        self.num_classes = num_classes
        self.options: dict[str, object] = {
            "image_shape": list(self.image_shape),
            "num_classes": num_classes,
            "width": width,
            "blocks": blocks,
            "expansion": expansion,
            "embedding": embedding,
            "dropout": dropout,
        }
        pixels = math.prod(self.image_shape)
        self.map_noise = SinusoidalEmbedding(32)
        self.map_label = nn.Linear(num_classes, embedding, bias=False) if num_classes else None
        self.map_hidden = nn.Linear(32, embedding)
        self.map_out = nn.Linear(embedding, embedding)
        self.enter = nn.Linear(pixels, width)
        self.trunk = nn.ModuleList(
            ModulatedBlock(width, expansion, embedding, dropout) for _ in range(blocks)
        )
        self.norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, pixels)
        if self.map_label is not None:
            nn.init.normal_(self.map_label.weight)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, x: Tensor, c_noise: Tensor, one_hot: Tensor | None = None) -> Tensor:
        embedding = self.map_hidden(self.map_noise(c_noise))
        if self.map_label is not None and one_hot is not None:
            embedding = embedding + self.map_label(one_hot)
        embedding = nn.functional.silu(self.map_out(nn.functional.silu(embedding)))
        h = self.enter(x.flatten(1))
        for block in self.trunk:
            h = block(h, embedding)
        return self.leave(self.norm(h)).view_as(x)
