"""A diffusion transformer (DiT, 2212.09748) for small grids: latents of 8×8, or patches of pictures."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, pixel_shuffle, pixel_unshuffle

from consistune.nn.layers import attend
from consistune.nn.small import Embedded, modulated, zero
from consistune.nn.unet import recorded


class TransformerBlock(nn.Module):
    """h ← h + g₁·attention(m₁(h)), then h ← h + g₂·W₂·dropout(gelu(W₁·m₂(h))), m = LN(h)·(1 + scale) + shift.

    Scales, shifts and gates g are linear in the embedding and begin with 0 ("adaLN-Zero").
    """

    def __init__(self, width: int, heads: int, expansion: int, embedding: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.modulation = nn.Linear(embedding, 6 * width)
        self.norm0 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.inner = nn.Linear(width, expansion * width)
        self.outer = nn.Linear(expansion * width, width)
        self.dropout = nn.Dropout(dropout)
        zero(self.modulation)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        scale0, shift0, gate0, scale1, shift1, gate1 = self.modulation(embedding)[:, None].chunk(6, dim=2)
        qkv = self.qkv(modulated(self.norm0, h, scale0, shift0)).unflatten(2, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, heads, T, width/heads]
        h = h + gate0 * self.proj(attend(q, k, v, h.transpose(1, 2)).transpose(1, 2))
        inner = gelu(self.inner(modulated(self.norm1, h, scale1, shift1)), approximate="tanh")
        return h + gate1 * self.outer(self.dropout(inner))


class DiT(Embedded):
    """Raw network F: (x [B, C, H, W], c_noise [B], one_hot [B, num_classes] or None) → [B, C, H, W].

    Patches of the image are tokens, each with a learned place; they attend to each other in every block. The
    noise level and the class modulate the blocks. The last layer begins with 0. The embedding of the noise
    level is that of the other small networks. Raises ValueError for sides that are no multiples of the
    patch, and for a width that the heads do not divide.

    Args:
        image_shape: (C, H, W).
        num_classes: 0 for an unconditional network.
        patch: side of a patch.
        width, blocks, expansion: size of the trunk.
        heads: attention heads of a block.
        embedding: size of the noise-level and class embedding.
        dropout: probability, on the hidden layer of each block.
        second_time: whether the network also takes the time where a jump ends (`Preconditioned`).
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] | list[int],
        num_classes: int = 0,
        patch: int = 1,
        width: int = 192,
        blocks: int = 6,
        heads: int = 3,
        expansion: int = 4,
        embedding: int = 128,
        dropout: float = 0.0,
        second_time: bool = False,
    ) -> None:
        super().__init__(recorded(locals()))
        channels, height, side = self.image_shape
        if height % patch or side % patch:
            raise ValueError(f"the images' sides {self.image_shape[1:]} must be multiples of {patch}")
        if width % heads:
            raise ValueError(f"a width of {width} is no multiple of {heads} heads")
        self.patch, inner = patch, channels * patch**2
        self.enter = nn.Linear(inner, width)
        self.place = nn.Parameter(torch.empty(height * side // patch**2, width))
        self.trunk = nn.ModuleList(
            TransformerBlock(width, heads, expansion, embedding, dropout) for _ in range(blocks)
        )
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Linear(embedding, 2 * width)
        self.leave = nn.Linear(width, inner)
        nn.init.uniform_(self.place, -math.sqrt(3) * 0.02, math.sqrt(3) * 0.02)
        self.draw_embeddings()
        zero(self.modulation)
        zero(self.leave)

    def forward(
        self, x: Tensor, c_noise: Tensor, one_hot: Tensor | None = None, *, second: Tensor | None = None
    ) -> Tensor:
        embedding = self.embed(c_noise, one_hot, second)
        grid = pixel_unshuffle(x, self.patch)
        h = self.enter(grid.flatten(2).transpose(1, 2)) + self.place
        for block in self.trunk:
            h = block(h, embedding)
        h = self.leave(modulated(self.norm, h, *self.modulation(embedding)[:, None].chunk(2, dim=2)))
        return pixel_shuffle(h.transpose(1, 2).reshape(grid.shape), self.patch)
