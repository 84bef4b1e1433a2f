"""EDM's "Song" U-Net: DDPM++ and NCSN++ (2011.13456), as 2206.00364 trains them."""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from sct.nn.blocks import BlockStyle, Level, ResidualBlock, UNet, recorded
from sct.nn.layers import Conv2d, FourierEmbedding, GroupNorm, Init, Linear, PositionalEmbedding

INIT = Init("xavier_uniform")
INIT_ZERO = Init("xavier_uniform", weight=1e-5)
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
        channel_mult_emb, channel_mult_noise: width of the embedding, and of the noise level's before it.
        num_blocks: blocks a level in the encoder; the decoder has one more.
        attn_resolutions: where the encoder's blocks and the decoder's last block attend.
        label_dropout: probability with which a training sample loses its class.
        encoder_type: skip and residual feed the shrinking image itself into every level.
        decoder_type: skip lets every level add to a growing output image.
        fourier_scale: standard deviation of the Fourier frequencies (iCT, 2310.14189: 0.02).
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
    ) -> None:
        super().__init__(image_shape, num_classes, model_channels, channel_mult, recorded(locals()))
        channels = self.image_shape[0]
        self.augment_dim = augment_dim
        self.label_dropout = label_dropout
        noise, embedding = model_channels * channel_mult_noise, model_channels * channel_mult_emb
        self.map_noise: nn.Module = {
            "positional": lambda: PositionalEmbedding(noise, endpoint=True),
            "fourier": lambda: FourierEmbedding(noise, fourier_scale),
        }[embedding_type]()
        self.map_label = Linear(num_classes, noise, INIT) if num_classes else None
        self.map_augment = Linear(augment_dim, noise, INIT, bias=False) if augment_dim else None
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
        attends = {level.name: level.resolution in attn_resolutions for level in self.levels}
        self.enc, skips = _encoder(
            self.levels, channels, model_channels, num_blocks, attends, encoder_type, style
        )
        self.dec = _decoder(
            self.levels, out_channels or channels, skips, num_blocks, attends, decoder_type, style
        )

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        one_hot: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        embedding = self.embed(c_noise, one_hot, augment_labels)
        x, skips = self._encode(x, embedding)
        return self._decode(x, skips, embedding)

    def embed(self, c_noise: Tensor, one_hot: Tensor | None, augment_labels: Tensor | None) -> Tensor:
        """Noise level [B], classes and augmentation → [B, E]. The noise embedding is consumed as [sin | cos]."""
        e = torch.cat(self.map_noise(c_noise).chunk(2, dim=1)[::-1], dim=1)
        if self.map_label is not None and one_hot is not None:
            if self.training and self.label_dropout:
                one_hot = one_hot * (torch.rand_like(one_hot[:, :1]) >= self.label_dropout)
            e = e + self.map_label(one_hot * math.sqrt(self.num_classes))
        if self.map_augment is not None and augment_labels is not None:
            e = e + self.map_augment(augment_labels)
        return silu(self.map_layer1(silu(self.map_layer0(e))))

    def _encode(self, x: Tensor, embedding: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The coarsest features, and the output of every module on the way there."""
        image, skips = x, []
        for name, module in self.enc.items():
            if name.endswith("aux_down"):
                image = module(image)
            elif name.endswith("aux_skip"):
                x = skips[-1] = x + module(image)
            elif name.endswith("aux_residual"):
                x = skips[-1] = image = (x + module(image)) / math.sqrt(2)
            else:
                x = module(x, embedding) if isinstance(module, ResidualBlock) else module(x)
                skips.append(x)
        return x, skips

    def _decode(self, x: Tensor, skips: list[Tensor], embedding: Tensor) -> Tensor:
        """Up again, a skip for every block; the heads (`aux_norm`, `aux_conv`) add to the output image."""
        output: Tensor | None = None
        normed = x
        for name, module in self.dec.items():
            if name.endswith("aux_up"):
                output = module(output)
            elif name.endswith("aux_norm"):
                normed = silu(module(x))
            elif name.endswith("aux_conv"):
                output = module(normed) if output is None else output + module(normed)
            else:
                x = module(torch.cat([x, skips.pop()], dim=1) if "block" in name else x, embedding)
        assert output is not None
        return output


def _encoder(
    levels: list[Level],
    channels: int,
    width: int,
    num_blocks: int,
    attends: dict[str, bool],
    encoder_type: str,
    style: BlockStyle,
) -> tuple[nn.ModuleDict, list[int]]:
    """The encoder and the widths of its skips. `width` is the first convolution's, whatever channel_mult."""
    enc, skips, image = nn.ModuleDict(), [width], channels
    for depth, level in enumerate(levels):
        if depth == 0:
            enc[f"{level.name}_conv"] = Conv2d(channels, width, 3, INIT)
        else:
            enc[f"{level.name}_down"] = ResidualBlock(width, width, style, "down")
            skips.append(width)
            if encoder_type == "skip":
                enc[f"{level.name}_aux_down"] = Conv2d(channels, channels, 0, INIT, "down", style.taps)
                enc[f"{level.name}_aux_skip"] = Conv2d(channels, width, 1, INIT)
            elif encoder_type == "residual":
                enc[f"{level.name}_aux_residual"] = Conv2d(image, width, 3, INIT, "down-after", style.taps)
                image = width
        for index in range(num_blocks):
            attention = attends[level.name]
            enc[f"{level.name}_block{index}"] = ResidualBlock(width, level.width, style, attention=attention)
            width = level.width
            skips.append(width)
    return enc, skips


def _decoder(
    levels: list[Level],
    out_channels: int,
    skips: list[int],
    num_blocks: int,
    attends: dict[str, bool],
    decoder_type: str,
    style: BlockStyle,
) -> nn.ModuleDict:
    dec, skips, width = nn.ModuleDict(), list(skips), skips[-1]
    coarsest, finest = levels[-1], levels[0]
    for level in reversed(levels):
        if level is coarsest:
            dec[f"{level.name}_in0"] = ResidualBlock(width, width, style, attention=True)
            dec[f"{level.name}_in1"] = ResidualBlock(width, width, style)
        else:
            dec[f"{level.name}_up"] = ResidualBlock(width, width, style, "up")
        for index in range(num_blocks + 1):
            attention = attends[level.name] and index == num_blocks
            dec[f"{level.name}_block{index}"] = ResidualBlock(
                width + skips.pop(), level.width, style, attention=attention
            )
            width = level.width
        if decoder_type == "skip" or level is finest:
            if decoder_type == "skip" and level is not coarsest:
                dec[f"{level.name}_aux_up"] = Conv2d(
                    out_channels, out_channels, 0, INIT, "up", style.taps
                )
            dec[f"{level.name}_aux_norm"] = GroupNorm(width, EPS)
            dec[f"{level.name}_aux_conv"] = Conv2d(width, out_channels, 3, INIT_ZERO)
    return dec
