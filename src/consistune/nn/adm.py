"""The ADM U-Net (2105.05233), as 2206.00364 trains it on ImageNet-64."""

import math

from torch import Tensor, nn

from consistune.nn.blocks import BlockStyle, ResidualBlock
from consistune.nn.layers import Conv2d, GroupNorm, Init, Linear, PositionalEmbedding
from consistune.nn.tangents import silu
from consistune.nn.unet import UNet, layout, recorded

INIT = Init("kaiming_uniform", weight=math.sqrt(1 / 3), bias=math.sqrt(1 / 3))
ZERO = Init("kaiming_uniform", weight=0.0)


class ADMUNet(UNet):
    """Raw network F: (x, c_noise, one_hot, augment_labels) → [B, out_channels, H, W], see `UNet`.

    The embedding scales and shifts the second norm of every block. Every block of an attention resolution has
    attention, with heads of 64 channels. The arguments are those of `SongUNet`.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] | list[int],
        num_classes: int = 0,
        out_channels: int | None = None,
        augment_dim: int = 0,
        model_channels: int = 192,
        channel_mult: tuple[int, ...] = (1, 2, 3, 4),
        channel_mult_emb: int = 4,
        num_blocks: int = 3,
        attn_resolutions: tuple[int, ...] = (32, 16, 8),
        dropout: float = 0.10,
        label_dropout: float = 0.0,
        second_time: bool = False,
    ) -> None:
        super().__init__(recorded(locals()))
        channels, embedding = self.image_shape[0], model_channels * channel_mult_emb
        self.map_noise = PositionalEmbedding(model_channels, endpoint=False)
        self.map_augment = Linear(augment_dim, model_channels, ZERO, bias=False) if augment_dim else None
        second = Linear(model_channels, model_channels, ZERO, bias=False) if second_time else None
        self.map_second = second
        self.map_layer0 = Linear(model_channels, embedding, INIT)
        self.map_layer1 = Linear(embedding, embedding, INIT)
        normal = Init("kaiming_normal", weight=math.sqrt(num_classes))
        self.map_label = Linear(num_classes, embedding, normal, bias=False) if num_classes else None
        style = BlockStyle(embedding, dropout, init=INIT, init_zero=ZERO, init_attention=INIT)
        finest = self.levels[0].width
        encoder, decoder = layout(self.levels, finest, num_blocks, attn_resolutions)
        self.enc = nn.ModuleDict({encoder[0].name: Conv2d(channels, finest, 3, INIT)})
        self.enc.update({spec.name: ResidualBlock.of(spec, style) for spec in encoder[1:]})
        self.dec = nn.ModuleDict({spec.name: ResidualBlock.of(spec, style) for spec in decoder})
        self.out_norm = GroupNorm(finest, style.eps)
        self.out_conv = Conv2d(finest, out_channels or channels, 3, ZERO)

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
        x = self.decode(self.encode(x, embedding), embedding)
        return self.out_conv(silu(self.out_norm(x)))

    def embed(
        self,
        c_noise: Tensor,
        one_hot: Tensor | None,
        augment_labels: Tensor | None,
        second: Tensor | None = None,
    ) -> Tensor:
        """Noise level [B], classes, augmentation and second time [B] → [B, E]."""
        e = self.map_noise(c_noise)
        if self.map_augment is not None and augment_labels is not None:
            e = e + self.map_augment(augment_labels)
        if self.map_second is not None and second is not None:
            e = e + self.map_second(self.map_noise(second))
        e = self.map_layer1(silu(self.map_layer0(e)))
        if self.map_label is not None and one_hot is not None:
            e = e + self.map_label(self.drop_labels(one_hot))
        return silu(e)
