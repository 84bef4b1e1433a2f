"""The residual block of EDM's two U-Nets, `SongUNet` and `ADMUNet`."""

from dataclasses import dataclass

from torch import Tensor, nn

from consistune.nn.layers import (
    Conv2d,
    GroupNorm,
    Init,
    Linear,
    Resample,
    Resampler,
    attend,
    check_heads,
    split_heads,
)
from consistune.nn.lean import Dropout, recomputed
from consistune.nn.tangents import silu
from consistune.nn.unet import BlockSpec


@dataclass(frozen=True)
class BlockStyle:
    """The options that all residual blocks of a network share.

    Attributes:
        embedding: width of the noise-level and class embedding.
        dropout: probability, before the second convolution.
        init, init_zero, init_attention: for ordinary layers, layers that end a residual branch, and qkv.
        skip_scale: the factor after each residual sum; √½ keeps the variance.
        eps: of the group norms.
        adaptive_scale: the embedding scales and shifts the second norm (ADM), or is added before it (Song).
        resample_proj: the skip of an up or down block has a 1 × 1 convolution even where the width stays.
        heads: attention heads; None: one for every 64 channels.
        taps: of the resampling filter.
    """

    embedding: int
    dropout: float
    init: Init
    init_zero: Init
    init_attention: Init
    skip_scale: float = 1.0
    eps: float = 1e-5
    adaptive_scale: bool = True
    resample_proj: bool = False
    heads: int | None = None
    taps: tuple[int, ...] = (1, 1)


class ResidualBlock(nn.Module):
    """x ← s·(skip(x) + conv₁(dropout(modulated(conv₀(silu(norm₀ x)))))), then x ← s·(x + attention(x)).

    x [B, C_in, H, W], embedding [B, E] → [B, C_out, H', W'] in x's dtype (2206.00364; ADM is 2105.05233).
    With one head per 64 channels, a block of fewer channels has no attention.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        style: BlockStyle,
        resample: Resample = "keep",
        attention: bool = False,
    ) -> None:
        super().__init__()
        heads = out_channels // 64 if style.heads is None else style.heads
        self.heads = heads if attention else 0
        check_heads(out_channels, self.heads)
        self.skip_scale = style.skip_scale
        self.adaptive_scale = style.adaptive_scale
        self.norm0 = GroupNorm(in_channels, style.eps)
        self.conv0 = Conv2d(in_channels, out_channels, 3, style.init, resample, style.taps)
        self.affine = Linear(style.embedding, out_channels * (1 + style.adaptive_scale), style.init)
        self.norm1 = GroupNorm(out_channels, style.eps)
        self.dropout = Dropout(style.dropout)
        self.conv1 = Conv2d(out_channels, out_channels, 3, style.init_zero)
        widens = out_channels != in_channels
        self.skip: nn.Module | None = None
        if widens or (resample != "keep" and style.resample_proj):
            self.skip = Conv2d(in_channels, out_channels, 1, style.init, resample, style.taps)
        elif resample != "keep":
            self.skip = Resampler(resample, style.taps)
        if self.heads:
            self.norm2 = GroupNorm(out_channels, style.eps)
            self.qkv = Conv2d(out_channels, 3 * out_channels, 1, style.init_attention)
            self.proj = Conv2d(out_channels, out_channels, 1, style.init_zero)

    @classmethod
    def of(cls, spec: BlockSpec, style: BlockStyle) -> "ResidualBlock":
        """The block of a U-Net's layout."""
        return cls(spec.in_channels, spec.out_channels, style, spec.resample, spec.attention)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = recomputed(lambda x: self.conv0(silu(self.norm0(x)), x.dtype), x)
        modulation = self.affine(embedding).to(h.dtype)[:, :, None, None]
        if self.adaptive_scale:
            h = recomputed(self._second, h, self.dropout.mask(h), *modulation.chunk(2, dim=1))
        else:
            h = h + modulation
            h = recomputed(self._second, h, self.dropout.mask(h))
        x = (h + (x if self.skip is None else recomputed(self.skip, x))) * self.skip_scale
        if self.heads:
            q, k, v = split_heads(recomputed(lambda x: self.qkv(self.norm2(x)), x), self.heads)
            attended = attend(q, k, v, x, self.qkv.product_dtype)
            x = (self.proj(attended) + x) * self.skip_scale
        return x

    def _second(
        self, h: Tensor, mask: Tensor | None, scale: Tensor | None = None, shift: Tensor | None = None
    ) -> Tensor:
        """conv₁(dropout(silu(norm₁(h)·(1 + scale) + shift)))."""
        normed = self.norm1(h)
        if scale is not None and shift is not None:
            normed = shift.addcmul(normed, scale + 1)
        return self.conv1(self.dropout.masked(silu(normed), mask), h.dtype)
