"""The common part of the U-Nets: levels, the layout of the blocks, and the pass through them."""

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from consistune.nn.layers import Resample
from consistune.nn.lean import transformed


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


def layout(
    levels: list[Level],
    first_width: int,
    num_blocks: int,
    attn_resolutions: tuple[int, ...],
    last_only: bool = False,
) -> tuple[list[BlockSpec], list[BlockSpec]]:
    """The modules of the encoder and of the decoder.

    Encoder: a convolution of the image to `first_width`; then at each level a step down (but at the finest)
    and num_blocks blocks. Each output is a skip. Decoder: at each level two blocks (the coarsest) or a step
    up, then a block for each skip of the level. With `last_only`, only the last of these has attention.
    """
    encoder = [BlockSpec(levels[0], "conv", 0, first_width)]
    width = first_width
    for level in levels:
        if level is not levels[0]:
            encoder.append(BlockSpec(level, "down", width, width, "down"))
        attention = level.resolution in attn_resolutions
        for index in range(num_blocks):
            encoder.append(BlockSpec(level, f"block{index}", width, level.width, attention=attention))
            width = level.width
    decoder = [
        BlockSpec(levels[-1], "in0", width, width, attention=True),
        BlockSpec(levels[-1], "in1", width, width),
    ]
    skips = [spec.out_channels for spec in encoder]
    for level in reversed(levels):
        if level is not levels[-1]:
            decoder.append(BlockSpec(level, "up", width, width, "up"))
        last = sum(spec.level is level for spec in encoder) - 1
        for index in range(last + 1):
            attention = level.resolution in attn_resolutions and (index == last or not last_only)
            widened = width + skips.pop()
            decoder.append(BlockSpec(level, f"block{index}", widened, level.width, attention=attention))
            width = level.width
    return encoder, decoder


class RawNetwork(nn.Module):
    """What `Preconditioned` reads of a network, from the arguments of its constructor (`recorded`)."""

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__()
        channels, height, width = options["image_shape"]
        self.image_shape = (channels, height, width)
        self.num_classes: int = options["num_classes"]
        self.augment_dim: int = options.get("augment_dim", 0)
        self.second_time: bool = options.get("second_time", False)
        self.label_dropout: float = options.get("label_dropout", 0.0)
        self.options = options


class UNet(RawNetwork):
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
    checkpointing: bool = False

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__(options)
        _, height, width = self.image_shape
        deepest = len(options["channel_mult"]) - 1
        if height != width or height % 2**deepest:
            raise ValueError(
                f"{height}×{width} images do not fit: a U-Net of {deepest + 1} levels takes square images "
                f"whose side is a multiple of {2**deepest}"
            )
        self.levels = [
            Level(f"{height >> i}x{height >> i}", height >> i, options["model_channels"] * mult)
            for i, mult in enumerate(options["channel_mult"])
        ]

    @property
    def outer_layers(self) -> list[nn.Module]:
        """The first convolution, the decoder's level of the finest resolution, and what stands behind it."""
        first = next(iter(self.enc.values()))
        last = [module for name, module in self.dec.items() if name.startswith(f"{self.levels[0].name}_")]
        return [first, *last, *(module for name, module in self.named_children() if name == "out_conv")]

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
        if self.checkpointing and torch.is_grad_enabled() and not transformed():
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
