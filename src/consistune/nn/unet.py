"""The common part of the U-Nets: levels, the layout of the blocks, and the pass through them."""

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from consistune.nn.layers import Resample


class Level(NamedTuple):
    """One resolution of a U-Net: "32x32", 32, and its blocks' width."""

    name: str
    resolution: int
    width: int


class BlockSpec(NamedTuple):
    """A module of a U-Net: its level, its role there (conv, down, up, in0, in1, block0, …) and its form."""

    level: Level
    role: str
    in_channels: int
    out_channels: int
    resample: Resample = "keep"
    attention: bool = False

    @property
    def name(self) -> str:
        """The module's name in official files, such as `32x32_block0`."""
        return f"{self.level.name}_{self.role}"


def encoder_layout(
    levels: list[Level], first_width: int, num_blocks: int, attn_resolutions: tuple[int, ...]
) -> list[BlockSpec]:
    """A convolution of the image; then at each level a step down and the blocks. Each output is a skip."""
    specs = [BlockSpec(levels[0], "conv", 0, first_width)]
    for level in levels:
        width = specs[-1].out_channels
        if level is not levels[0]:
            specs.append(BlockSpec(level, "down", width, width, "down"))
        attention = level.resolution in attn_resolutions
        for index in range(num_blocks):
            width = specs[-1].out_channels
            specs.append(BlockSpec(level, f"block{index}", width, level.width, attention=attention))
    return specs


def decoder_layout(
    levels: list[Level],
    encoder: list[BlockSpec],
    attn_resolutions: tuple[int, ...],
    attend_last_only: bool = False,
) -> list[BlockSpec]:
    """At each level two blocks (the coarsest) or a step up, then a block for each skip of the level."""
    skips = [spec.out_channels for spec in encoder]
    width, specs = skips[-1], list[BlockSpec]()
    for level in reversed(levels):
        if level is levels[-1]:
            specs += [
                BlockSpec(level, "in0", width, width, attention=True),
                BlockSpec(level, "in1", width, width),
            ]
        else:
            specs.append(BlockSpec(level, "up", width, width, "up"))
        last = sum(spec.level is level for spec in encoder) - 1
        for index in range(last + 1):
            attention = level.resolution in attn_resolutions and (index == last or not attend_last_only)
            role, widened = f"block{index}", width + skips.pop()
            specs.append(BlockSpec(level, role, widened, level.width, attention=attention))
            width = level.width
    return specs


class UNet(nn.Module):
    """Raw network F: (x [B, C, H, W], c_noise [B], one_hot [B, num_classes] or None, …) → [B, out, H, W].

    The result has the dtype of x; the embedding is computed in the dtype of c_noise, fp32. The modules have
    the names of official files in `enc` and `dec`.

    Raises ValueError for images that are not square, or not divisible by 2 at every level.

    Attributes:
        checkpointing: in training, blocks keep only their inputs and compute the rest again for the gradient.
    """

    enc: nn.ModuleDict
    dec: nn.ModuleDict

    precisions: ClassVar[tuple[str, ...]] = ("fp32", "bf16", "fp16")
    augment_dim: int = 0
    label_dropout: float = 0.0
    checkpointing: bool = False

    def __init__(
        self,
        image_shape: tuple[int, int, int] | list[int],
        num_classes: int,
        model_channels: int,
        channel_mult: tuple[int, ...],
        options: dict[str, Any],
    ) -> None:
        super().__init__()
        channels, height, width = image_shape
        deepest = len(channel_mult) - 1
        if height != width or height % 2**deepest:
            raise ValueError(
                f"{height}×{width} images do not fit: a U-Net of {deepest + 1} levels takes square images "
                f"whose side is a multiple of {2**deepest}"
            )
        self.image_shape = (channels, height, width)
        self.num_classes = num_classes
        self.options = options
        self.levels = [
            Level(f"{height >> i}x{height >> i}", height >> i, model_channels * mult)
            for i, mult in enumerate(channel_mult)
        ]

    def encode(self, x: Tensor, embedding: Tensor) -> list[Tensor]:
        """The output of every module of the encoder; the last one goes on, all are skips."""
        skips: list[Tensor] = []
        for name, module in self.enc.items():
            x = module(x) if name.endswith("_conv") else self.run(module, x, embedding)
            skips.append(x)
        return skips

    def decode(self, skips: list[Tensor], embedding: Tensor) -> Tensor:
        """The output of the decoder, whose modules named block each take a skip, the last one first."""
        x = skips[-1]
        for name, module in self.dec.items():
            x = self.run(module, self.join(x, skips.pop()) if "block" in name else x, embedding)
        return x

    def join(self, x: Tensor, skip: Tensor) -> Tensor:
        """Features and a skip → the input of a decoder's block."""
        return torch.cat([x, skip], dim=1)

    def run(self, block: nn.Module, x: Tensor, embedding: Tensor) -> Tensor:
        """A block's pass; with `checkpointing`, the second pass draws the same dropout masks."""
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(block, x, embedding, use_reentrant=False)
        return block(x, embedding)

    def drop_labels(self, one_hot: Tensor) -> Tensor:
        """In training, set a sample's class to "no class" with probability label_dropout."""
        if not self.training or self.label_dropout == 0:
            return one_hot
        return one_hot * (torch.rand_like(one_hot[:, :1]) >= self.label_dropout)


def recorded(arguments: dict[str, Any]) -> dict[str, Any]:
    """A constructor's locals() → its arguments as JSON has them, from which `store.build` makes it again."""
    own = {name: value for name, value in arguments.items() if name not in ("self", "__class__")}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in own.items()}
