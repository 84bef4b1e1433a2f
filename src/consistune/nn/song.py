"""EDM's "Song" U-Net: DDPM++ and NCSN++ (2011.13456), as 2206.00364 trains them."""

import math
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from consistune.nn.blocks import BlockStyle, ResidualBlock
from consistune.nn.layers import (
    Conv2d,
    FourierEmbedding,
    GroupNorm,
    Init,
    Linear,
    PositionalEmbedding,
    Resampler,
)
from consistune.nn.tangents import silu
from consistune.nn.unet import BlockSpec, UNet, layout, recorded

INIT = Init("xavier_uniform")
INIT_ZERO = Init("xavier_uniform", weight=1e-5)
ZERO = Init("xavier_uniform", weight=0.0)
INIT_ATTENTION = Init("xavier_uniform", weight=math.sqrt(0.2))
EPS = 1e-6


class SongUNet(UNet):
    """Raw network F: (x, c_noise, one_hot, augment_labels) → [B, out_channels, H, W], see `UNet`.

    DDPM++: the defaults. NCSN++: embedding_type fourier, encoder_type residual, channel_mult_noise 2 and
    resample_filter (1, 3, 3, 1).

    Args:
        out_channels: None: as many as the image has.
        augment_dim: width of the augmentation labels, 0: none.
        model_channels, channel_mult: a level's blocks are model_channels·channel_mult wide.
        channel_mult_emb, channel_mult_noise: widths, over model_channels, of the embedding and of the noise
            level's features.
        num_blocks: blocks a level in the encoder; the decoder has one more.
        attn_resolutions: where the encoder's blocks and the last block of the decoder have attention.
        label_dropout: probability with which a training sample loses its class.
        encoder_type: with skip and residual the downsampled image is an input of every level.
        decoder_type: with skip every level adds to the output image.
        fourier_scale: standard deviation of the Fourier frequencies (iCT, 2310.14189: 0.02).
        second_time: whether the network also takes the time where a jump ends (`Preconditioned`).
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] | list[int],
        num_classes: int = 0,
        out_channels: int | None = None,
        augment_dim: int = 0,
        model_channels: int = 128,
        channel_mult: tuple[int, ...] = (1, 2, 2, 2),
        channel_mult_emb: int = 4,
        num_blocks: int = 4,
        attn_resolutions: tuple[int, ...] = (16,),
        dropout: float = 0.10,
        label_dropout: float = 0.0,
        embedding_type: Literal["positional", "fourier"] = "positional",
        channel_mult_noise: int = 1,
        encoder_type: Literal["standard", "skip", "residual"] = "standard",
        decoder_type: Literal["standard", "skip"] = "standard",
        resample_filter: tuple[int, ...] = (1, 1),
        fourier_scale: float = 16.0,
        second_time: bool = False,
    ) -> None:
        super().__init__(recorded(locals()))
        channels = self.image_shape[0]
        noise, embedding = model_channels * channel_mult_noise, model_channels * channel_mult_emb
        self.map_noise: nn.Module = PositionalEmbedding(noise, endpoint=True)
        if embedding_type == "fourier":
            self.map_noise = FourierEmbedding(noise, fourier_scale)
        self.map_label = Linear(num_classes, noise, INIT) if num_classes else None
        self.map_augment = Linear(augment_dim, noise, INIT, bias=False) if augment_dim else None
        self.map_second = Linear(noise, noise, ZERO, bias=False) if second_time else None
        self.map_layer0 = Linear(noise, embedding, INIT)
        self.map_layer1 = Linear(embedding, embedding, INIT)
        style = BlockStyle(
            embedding=embedding,
            dropout=dropout,
            init=INIT,
            init_zero=INIT_ZERO,
            init_attention=INIT_ATTENTION,
            skip_scale=math.sqrt(0.5),
            eps=EPS,
            adaptive_scale=False,
            resample_proj=True,
            heads=1,
            taps=tuple(resample_filter),
        )
        encoder, decoder = layout(self.levels, model_channels, num_blocks, attn_resolutions, last_only=True)
        self.enc = _encoder(encoder, channels, encoder_type, style)
        self.dec = _decoder(decoder, out_channels or channels, decoder_type, style)

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        one_hot: Tensor | None = None,
        augment_labels: Tensor | None = None,
        *,
        second: Tensor | None = None,
    ) -> Tensor:
        embedding = self.embed(c_noise, one_hot, augment_labels, second)
        return self.decode(self.encode(x, embedding), embedding)

    def features(self, u: Tensor) -> Tensor:
        """u [B] → [sin | cos] of the noise level's frequencies."""
        return torch.cat(self.map_noise(u).chunk(2, dim=1)[::-1], dim=1)

    def embed(
        self,
        c_noise: Tensor,
        one_hot: Tensor | None,
        augment_labels: Tensor | None,
        second: Tensor | None = None,
    ) -> Tensor:
        """Noise level [B], classes, augmentation and second time [B] → [B, E]."""
        e = self.features(c_noise)
        if self.map_label is not None and one_hot is not None:
            e = e + self.map_label(self.drop_labels(one_hot) * math.sqrt(self.num_classes))
        if self.map_augment is not None and augment_labels is not None:
            e = e + self.map_augment(augment_labels)
        if self.map_second is not None and second is not None:
            e = e + self.map_second(self.features(second))
        return silu(self.map_layer1(silu(self.map_layer0(e))))

    def encode(self, x: Tensor, embedding: Tensor) -> list[Tensor]:
        """As `UNet.encode`; the modules named aux feed the shrinking image into the last skip."""
        image = x
        skips: list[Tensor] = []
        for name, module in self.enc.items():
            if name.endswith("aux_down"):
                image = module(image)
            elif name.endswith("aux_skip"):
                x = skips[-1] = x + module(image)
            elif name.endswith("aux_residual"):
                x = skips[-1] = image = (x + module(image)) / math.sqrt(2)
            else:
                x = module(x) if name.endswith("_conv") else self.run(module, x, embedding)
                skips.append(x)
        return skips

    def decode(self, skips: list[Tensor], embedding: Tensor) -> Tensor:
        """As `UNet.decode`; the modules named aux add to the output image, which grows with the levels."""
        output: Tensor | None = None
        x = normed = skips[-1]
        for name, module in self.dec.items():
            if name.endswith("aux_up"):
                output = module(output)
            elif name.endswith("aux_norm"):
                normed = silu(module(x))
            elif name.endswith("aux_conv"):
                output = module(normed) if output is None else output + module(normed)
            else:
                x = self.run(module, self.join(x, skips.pop()) if "block" in name else x, embedding)
        assert output is not None
        return output


def _encoder(specs: list[BlockSpec], channels: int, encoder_type: str, style: BlockStyle) -> nn.ModuleDict:
    enc, image = nn.ModuleDict(), channels
    for spec in specs:
        size, width = spec.level.name, spec.out_channels
        enc[spec.name] = (
            Conv2d(channels, width, 3, INIT) if spec.role == "conv" else ResidualBlock.of(spec, style)
        )
        if spec.role == "down" and encoder_type == "skip":
            enc[f"{size}_aux_down"] = Resampler("down", style.taps)
            enc[f"{size}_aux_skip"] = Conv2d(channels, width, 1, INIT)
        elif spec.role == "down" and encoder_type == "residual":
            enc[f"{size}_aux_residual"] = Conv2d(image, width, 3, INIT, "down-after", style.taps)
            image = width
    return enc


def _decoder(
    specs: list[BlockSpec], out_channels: int, decoder_type: str, style: BlockStyle
) -> nn.ModuleDict:
    dec = nn.ModuleDict()
    for spec, following in pairwise([*specs, None]):
        assert spec is not None
        dec[spec.name] = ResidualBlock.of(spec, style)
        level_ends = following is None or following.level is not spec.level
        if not level_ends or (decoder_type == "standard" and following is not None):
            continue
        size = spec.level.name
        if any(name.endswith("aux_conv") for name in dec):
            dec[f"{size}_aux_up"] = Resampler("up", style.taps)
        dec[f"{size}_aux_norm"] = GroupNorm(spec.out_channels, EPS)
        dec[f"{size}_aux_conv"] = Conv2d(spec.out_channels, out_channels, 3, INIT_ZERO)
    return dec
