"""EDM2's magnitude-preserving U-Net (2312.02696, config G) and its preconditioning."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from consistune.nn.layers import BOX, attend, check_heads, filter_2d, resampled, split_heads
from consistune.nn.lean import Dropout, clipped
from consistune.nn.magnitude import MPConv, MPFourier, mp_cat, mp_silu, mp_sum, normalize
from consistune.nn.precond import EDMPrecond, Precision
from consistune.nn.unet import BlockSpec, UNet, layout, recorded


@dataclass(frozen=True)
class BlockOptions:
    """The options that all blocks of a network share: the U-Net's arguments of the same names."""

    embedding: int
    channels_per_head: int
    dropout: float
    dropout_res: int | None
    res_balance: float
    attn_balance: float
    clip_act: float
    resample_filter: tuple[int, ...]


class Block(nn.Module):
    """Residual block of the encoder ("enc": pixel norm on the main path) or the decoder ("dec").

    x ← mp_sum(x, conv₁(dropout(mp_silu(conv₀(mp_silu x)·(1 + gain·W e)))), res_balance), then attention with
    normalised q, k and v in the same manner, then a clip to ±clip_act. x [B, C, H, W] in the network's dtype.
    """

    def __init__(self, spec: BlockSpec, options: BlockOptions, flavor: Literal["enc", "dec"]) -> None:
        super().__init__()
        self.flavor, self.resample, self.options = flavor, spec.resample, options
        in_channels, out_channels = spec.in_channels, spec.out_channels
        self.heads = out_channels // options.channels_per_head if spec.attention else 0
        check_heads(out_channels, self.heads)
        inner = out_channels if flavor == "enc" else in_channels
        self.emb_gain = nn.Parameter(torch.zeros([]))
        self.conv_res0 = MPConv(inner, out_channels, (3, 3))
        self.emb_linear = MPConv(options.embedding, out_channels)
        drops = options.dropout_res is None or spec.level.resolution <= options.dropout_res
        self.dropout = Dropout(options.dropout) if drops else None
        self.conv_res1 = MPConv(out_channels, out_channels, (3, 3))
        widens = in_channels != out_channels
        self.conv_skip = MPConv(in_channels, out_channels, (1, 1)) if widens else nn.Identity()
        if self.heads:
            self.attn_qkv = MPConv(out_channels, 3 * out_channels, (1, 1))
            self.attn_proj = MPConv(out_channels, out_channels, (1, 1))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        if self.resample != "keep":
            taps = self.options.resample_filter
            x = resampled(x, self.resample, None if taps == BOX else filter_2d(taps, x.device))
        if self.flavor == "enc":
            x = normalize(self.conv_skip(x), dims=(1,))
        y = self.conv_res0(x, before=mp_silu)
        modulation = (self.emb_linear(embedding, gain=self.emb_gain) + 1).to(y.dtype)
        mask = None if self.dropout is None else self.dropout.mask(y)
        y = self.conv_res1(y, 1.0, self._second, modulation[:, :, None, None], mask)
        if self.flavor == "dec":
            x = self.conv_skip(x)
        x = mp_sum(x, y, self.options.res_balance)
        if self.heads:
            q, k, v = (normalize(part, dims=(3,)) for part in split_heads(self.attn_qkv(x), self.heads))
            attended = attend(q, k, v, x, self.attn_qkv.product_dtype)
            x = mp_sum(x, self.attn_proj(attended), self.options.attn_balance)
        return clipped(x, self.options.clip_act)

    def _second(self, y: Tensor, modulation: Tensor, mask: Tensor | None) -> Tensor:
        """dropout(mp_silu(y·(1 + gain·W e)))."""
        y = mp_silu(y * modulation)
        return y if self.dropout is None else self.dropout.masked(y, mask)


class EDM2UNet(UNet):
    """Raw network F: (x, c_noise, one_hot) → [B, C, H, W], see `UNet`.

    Args:
        model_channels, channel_mult: a level's blocks are model_channels·channel_mult wide.
        channel_mult_noise, channel_mult_emb: width of the noise level's Fourier features (None: the finest
            level's) and of the embedding (None: the widest level's).
        num_blocks: blocks a level in the encoder; the decoder has one more.
        attn_resolutions: where every block has attention.
        label_balance, concat_balance, res_balance, attn_balance: shares of the class in the embedding, and of
            the skip, the residual branch and attention in their sums. A label_balance of None is learned, and
            begins at 0: for classes that are new to trained weights (`adapt`).
        noise_gain: factor of the noise level's embedding; 1 unless `adapt` changed the classes.
        dropout_res: the finest resolution at which blocks drop out; None: all do (ECT on ImageNet: 16).
        clip_act: activations are clipped to ± this.
        second_time: whether the network also takes the time where a jump ends (`Preconditioned`).
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] | list[int],
        num_classes: int = 0,
        model_channels: int = 192,
        channel_mult: tuple[int, ...] = (1, 2, 3, 4),
        channel_mult_noise: int | None = None,
        channel_mult_emb: int | None = None,
        num_blocks: int = 3,
        attn_resolutions: tuple[int, ...] = (16, 8),
        label_balance: float | None = 0.5,
        noise_gain: float = 1.0,
        concat_balance: float = 0.5,
        resample_filter: tuple[int, ...] = (1, 1),
        channels_per_head: int = 64,
        dropout: float = 0.0,
        dropout_res: int | None = None,
        res_balance: float = 0.3,
        attn_balance: float = 0.3,
        clip_act: float = 256.0,
        second_time: bool = False,
    ) -> None:
        super().__init__(recorded(locals()))
        self.concat_balance, self.noise_gain = concat_balance, noise_gain
        channels, finest = self.image_shape[0], self.levels[0].width
        noise = finest if channel_mult_noise is None else model_channels * channel_mult_noise
        widest = max(level.width for level in self.levels)
        embedding = widest if channel_mult_emb is None else model_channels * channel_mult_emb
        self.out_gain = nn.Parameter(torch.zeros([]))
        self.emb_fourier = MPFourier(noise)
        self.emb_noise = MPConv(noise, embedding)
        if second_time:
            self.emb_second, self.second_gain = MPConv(noise, embedding), nn.Parameter(torch.zeros([]))
        self.emb_label = MPConv(num_classes, embedding) if num_classes else None
        self.label_balance = nn.Parameter(torch.zeros([])) if label_balance is None else label_balance
        options = BlockOptions(
            embedding=embedding,
            channels_per_head=channels_per_head,
            dropout=dropout,
            dropout_res=dropout_res,
            res_balance=res_balance,
            attn_balance=attn_balance,
            clip_act=clip_act,
            resample_filter=tuple(resample_filter),
        )
        encoder, decoder = layout(self.levels, finest, num_blocks, attn_resolutions)
        # The input has a further channel, a constant one: no layer has a bias.
        self.enc = nn.ModuleDict({encoder[0].name: MPConv(channels + 1, finest, (3, 3))})
        self.enc.update({spec.name: Block(spec, options, "enc") for spec in encoder[1:]})
        self.dec = nn.ModuleDict({spec.name: Block(spec, options, "dec") for spec in decoder})
        self.out_conv = MPConv(finest, channels, (3, 3))

    def forward(
        self, x: Tensor, c_noise: Tensor, one_hot: Tensor | None = None, *, second: Tensor | None = None
    ) -> Tensor:
        embedding = self.embed(c_noise, one_hot, second)
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        x = self.decode(self.encode(x, embedding), embedding)
        return self.out_conv(x, gain=self.out_gain)

    def join(self, x: Tensor, skip: Tensor) -> Tensor:
        return mp_cat(x, skip, self.concat_balance)

    def embed(self, c_noise: Tensor, one_hot: Tensor | None, second: Tensor | None = None) -> Tensor:
        """Noise level [B], classes and second time [B] → [B, E]."""
        e = self.emb_noise(self.emb_fourier(c_noise), gain=self.noise_gain)
        if self.second_time and second is not None:
            e = e + self.emb_second(self.emb_fourier(second), gain=self.second_gain)
        if self.emb_label is not None and one_hot is not None:
            e = mp_sum(e, self.emb_label(one_hot * math.sqrt(self.num_classes)), self.label_balance)
        return mp_silu(e)


class EDM2Precond(EDMPrecond):
    """EDM's preconditioning around `unet`, with a head that learns the loss's log-variance u(σ).

    u(σ) = W·fourier(ln(σ)/4); the training loss is weighted by e^−u (2312.02696, eq. 21). Sampling does not
    use it.

    Args:
        logvar_channels: width of the head; 0: no head (ECT's ImageNet models).
    """

    kind = "edm2"
    network_name = "unet"

    def __init__(
        self,
        network: nn.Module,
        sigma_data: float = 0.5,
        logvar_channels: int = 128,
        precision: Precision = "fp32",
    ) -> None:
        super().__init__(network, sigma_data, precision=precision)
        self.logvar_channels = logvar_channels
        if logvar_channels:
            self.logvar_fourier = MPFourier(logvar_channels)
            self.logvar_linear = MPConv(logvar_channels, 1)

    def log_variance(self, sigma: Tensor) -> Tensor:
        """u(σ) for σ [B] → [B, 1, 1, 1] in fp32. Raises ValueError where the model has no such head."""
        if not self.logvar_channels:
            raise ValueError("this model was built without its log-variance head (logvar_channels is 0)")
        sigma = sigma.to(self.logvar_linear.weight.device, self.dtype).reshape(-1)
        return self.logvar_linear(self.logvar_fourier(self.scalings(sigma).c_noise))[:, :, None, None]
