"""Layers that keep little for the backward pass: the same numbers, computed twice or stored small.

A training step's memory is what its forward pass keeps. Of a convolution and what is done to its input that
is the norm's input, the norm's output and the activation's, of which the first alone suffices: norm and
activation are quickly computed again. So is a weight's rounding to bf16, or its normalisation.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def recomputed(function: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """function(*inputs), of which the backward pass keeps the inputs alone and computes the rest again.

    A convolution or product that comes last is not computed again: the repetition stops where the last tensor
    is known that a gradient needs, and that is its input. The function must draw nothing at random. Without
    gradients it is called as it is; and in a compiled network, where the compiler itself decides what to
    compute again, and would repeat the convolutions of such a region.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)


def clipped(x: Tensor, limit: float) -> Tensor:
    """x clamped to ±limit. Keeps its result, which the next layer keeps too, where torch's clamp keeps x."""
    return _Clipped.apply(x, limit)  # type: ignore[no-untyped-call]


class _Clipped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, limit: float) -> Tensor:
        ctx.limit = limit
        y = x.clamp(-limit, limit)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors
        return gradient * (y.abs() < ctx.limit), None


class Dropout(nn.Dropout):
    """x·mask/(1 − p) in training, of which the backward pass keeps the mask, a byte an element.

    p is rounded to a multiple of 2⁻¹⁶, and the scale is that one's: on the CPU the mask comes from 16 random
    bits an element, twice as fast as torch's Bernoulli numbers.
    """

    LEVELS = 1 << 16

    @property
    def dropped(self) -> int:
        """p in LEVELS."""
        return round(self.p * self.LEVELS)

    def mask(self, like: Tensor) -> Tensor | None:
        """Which elements stay, bool in the shape and memory format of `like`; None: all do."""
        if not self.training or self.dropped == 0:
            return None
        kept = torch.zeros_like(like, dtype=torch.bool)
        if self.dropped == self.LEVELS:
            return kept
        if like.device.type != "cpu" or torch.compiler.is_compiling():
            return kept.bernoulli_(1 - self.dropped / self.LEVELS)
        bits = torch.empty(-(-like.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        drawn = (bits[: like.numel()] >= self.dropped - self.LEVELS // 2).view(like.shape)
        return drawn if like.is_contiguous() else kept.copy_(drawn)  # the same mask in every memory format

    def masked(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x with what the mask says, scaled."""
        if mask is None:
            return x
        return (x * mask).mul_(self.LEVELS / max(self.LEVELS - self.dropped, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.masked(x, self.mask(x))
