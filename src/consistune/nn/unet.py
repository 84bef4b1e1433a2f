"""What every U-Net here shares: its levels, where its blocks lie, and what `Preconditioned` asks of it."""

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


class Place(NamedTuple):
    """Where a module lies: its level, its role there (conv, down, up, in0, in1, block0, …) and its form."""

    level: Level
    role: str
    in_channels: int
    out_channels: int
    resample: Resample = "keep"
    attention: bool = False

    @property
    def name(self) -> str:
        """As official files have it: `32x32_block0`."""
        return f"{self.level.name}_{self.role}"


def encoder_places(
    levels: list[Level], first_width: int, num_blocks: int, attn_resolutions: tuple[int, ...]
) -> list[Place]:
    """A convolution of the image, then per level a step down and the blocks. Each makes one skip."""
    places = [Place(levels[0], "conv", 0, first_width)]
    for level in levels:
        width = places[-1].out_channels
        if level is not levels[0]:
            places.append(Place(level, "down", width, width, "down"))
        attention = level.resolution in attn_resolutions
        for index in range(num_blocks):
            width = places[-1].out_channels
            places.append(Place(level, f"block{index}", width, level.width, attention=attention))
    return places


def decoder_places(
    levels: list[Level],
    encoder: list[Place],
    attn_resolutions: tuple[int, ...],
    attend_last_only: bool = False,
) -> list[Place]:
    """Two blocks at the coarsest level or a step up, then a block for each of the level's skips."""
    skips = [place.out_channels for place in encoder]
    width, places = skips[-1], list[Place]()
    for level in reversed(levels):
        if level is levels[-1]:
            places += [Place(level, "in0", width, width, attention=True), Place(level, "in1", width, width)]
        else:
            places.append(Place(level, "up", width, width, "up"))
        last = sum(place.level is level for place in encoder) - 1
        for index in range(last + 1):
            attention = level.resolution in attn_resolutions and (index == last or not attend_last_only)
            role, widened = f"block{index}", width + skips.pop()
            places.append(Place(level, role, widened, level.width, attention=attention))
            width = level.width
    return places


class UNet(nn.Module):
    """Raw network F: (x [B, C, H, W], c_noise [B], one_hot [B, num_classes] or None, …) → [B, out, H, W].

    Its result has x's dtype; its embedding is computed in c_noise's, fp32. The modules lie in `enc` and `dec`
    under the names of official files.

    Raises ValueError for images that are not square, or not divisible by 2 at every level.

    Attributes:
        checkpointing: in training, blocks keep only their inputs and compute the rest again for the gradient.
    """

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

    def run(self, block: nn.Module, x: Tensor, embedding: Tensor) -> Tensor:
        """A block's pass; with `checkpointing`, its dropout masks are drawn again alike."""
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(block, x, embedding, use_reentrant=False)
        return block(x, embedding)

    def drop_labels(self, one_hot: Tensor) -> Tensor:
        """In training, a sample's class becomes "no class" with probability label_dropout."""
        if not self.training or self.label_dropout == 0:
            return one_hot
        return one_hot * (torch.rand_like(one_hot[:, :1]) >= self.label_dropout)


def recorded(arguments: dict[str, Any]) -> dict[str, Any]:
    """A constructor's locals() → its arguments as JSON has them, to build the same network again."""
    own = {name: value for name, value in arguments.items() if name not in ("self", "__class__")}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in own.items()}
