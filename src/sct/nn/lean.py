"""Activations that keep little for the backward pass: the same numbers, computed twice or stored small.

A training step's memory is what its forward pass keeps. Between two convolutions that is the norm's input,
its output and the activation's, of which the first alone suffices: the rest is quickly computed again.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def recomputed(function: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """function(*inputs), of which the backward pass keeps the inputs alone and computes the rest again.

    The function must draw nothing at random. Without gradients it is called as it is.
    """
    if not torch.is_grad_enabled():
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
    """x·mask/(1 − p) in training, keeping a byte an element instead of four.

    On the CPU the mask comes from 16 random bits an element, twice as fast as torch's Bernoulli
    numbers: p is then a multiple of 2⁻¹⁶, at most 2⁻¹⁷ from the one asked for, and the scale is that one's.
    """

    LEVELS = 1 << 16

    def forward(self, x: Tensor) -> Tensor:
        dropped = round(self.p * self.LEVELS)
        if not self.training or dropped == 0 or x.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(x)
        if dropped == self.LEVELS:
            return torch.zeros_like(x)
        bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        kept = (bits[: x.numel()] >= dropped - self.LEVELS // 2).view(x.shape)
        if not x.is_contiguous():  # the same mask in every memory format, in x's own
            kept = torch.empty_like(x, dtype=torch.bool).copy_(kept)
        return (x * kept).mul_(self.LEVELS / (self.LEVELS - dropped))
