"""Layers that keep few tensors for the backward pass; the numbers are the same.

The memory of a training step is mostly what its forward pass keeps. A norm, an activation and a convolution
keep the inputs of all three. The input of the norm suffices, because norm and activation are quickly computed
again; so are the rounding of a weight to bf16 and its normalisation.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint


def transformed() -> bool:
    """Whether a derivative is taken around the call: `torch.func.jvp`, `grad`, or forward-mode AD."""
    if torch.compiler.is_compiling():
        return False
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def recomputed(function: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """function(*inputs); only the inputs are kept, and the backward pass computes the rest again.

    A convolution or product at the end is not computed again, because the second pass stops at the last
    tensor that a gradient needs, its input. The function must not draw random numbers. It is called directly
    without gradients, under a derivative (torch 2.6's checkpoints have none), and in a compiled network: the
    compiler decides itself what to compute again, and would repeat the convolutions.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or transformed():
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)


def clipped(x: Tensor, limit: float) -> Tensor:
    """x clamped to ±limit. It keeps its result, which the next layer keeps too; torch.clamp keeps x."""
    if transformed():  # a forward derivative in _Clipped would break the graph of a compiled network
        return x.clamp(-limit, limit)
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


def normed_by_groups(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Group norm of x [B, C, H, W] in x's dtype; mean and 1/√(variance + eps) [B, G, 1] in at least fp32."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(1, (groups, -1))  # type: ignore[no-untyped-call]
    variance, mean = torch.var_mean(wide, dim=(2, 3, 4), correction=0)
    inverse, mean = torch.rsqrt(variance + eps)[:, :, None], mean[:, :, None]
    scale = inverse * weight.to(inverse.dtype).view(groups, -1)
    shift = bias.to(inverse.dtype).view(groups, -1) - mean * scale
    scale, shift = (value.flatten(1)[:, :, None, None] for value in (scale, shift))
    return torch.addcmul(shift, x, scale).to(x.dtype), mean, inverse


class NormInFormat(torch.autograd.Function):
    """Group norm y = w·x̂ + b of x [B, C, H, W] in x's memory format and dtype, x̂ = (x − mean)·inverse.

    The derivatives of `normed_by_groups`' steps, one after another, would go through x twice as often:

        dx = inverse·(w·dy − mean_g(w·dy) − x̂·mean_g(w·dy·x̂)),   dw = Σ dy·x̂,   db = Σ dy.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        y, mean, inverse = normed_by_groups(x, weight, bias, groups, eps)
        ctx.save_for_backward(x, weight, bias, mean, inverse)
        ctx.options = groups, eps
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, inverse = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted: mean and inverse depend on x
            y = normed_by_groups(x, weight, bias, *ctx.options)[0]
            inputs = [value for value in (x, weight, bias) if value.requires_grad]
            found = iter(torch.autograd.grad(y, inputs, dy, create_graph=True))
            return (*(next(found) if v.requires_grad else None for v in (x, weight, bias)), None, None)
        shape = (len(x), inverse.shape[1], -1)  # [B, G, C/G]
        scale, dy = inverse * weight.to(inverse.dtype).view(shape[1:]), dy.to(inverse.dtype)
        sums = dy.sum((2, 3)).view(shape)
        of_normed = ((dy * x).sum((2, 3)).view(shape) - mean * sums) * inverse  # Σ dy·x̂
        size = x[0].numel() // shape[1]
        level = (scale * sums).sum(2, keepdim=True) / size
        slope = inverse * (scale * of_normed).sum(2, keepdim=True) / size
        of_x = (-slope).expand_as(scale).flatten(1)[:, :, None, None]
        constant = (slope * mean - level).expand_as(scale).flatten(1)[:, :, None, None]
        dx = torch.addcmul(torch.addcmul(constant, x, of_x), dy, scale.flatten(1)[:, :, None, None])
        of_channels = (sums.sum(0).flatten(), of_normed.sum(0).flatten())
        return dx.to(x.dtype), of_channels[1].to(weight.dtype), of_channels[0].to(weight.dtype), None, None


class Dropout(nn.Dropout):
    """x·mask/(1 − p) in training; the backward pass keeps the mask, one byte an element.

    p, in the scale too, is rounded to a multiple of 2⁻¹⁶: on the CPU the mask is made of 16 random bits an
    element, twice as fast as Bernoulli numbers. Compiled passes draw those, and with `compiled` eager ones
    too: the same generator then gives both the same mask.
    """

    LEVELS = 1 << 16
    compiled = False

    @property
    def dropped(self) -> int:
        """p·LEVELS, an integer."""
        return round(self.p * self.LEVELS)

    def mask(self, like: Tensor) -> Tensor | None:
        """The elements that stay, bool in the shape and memory format of `like`; None: all stay.

        They are drawn in one order, whatever the format: that of a forward derivative may differ. On a card
        and in compiled passes it is the order of channels last, which images have there by default.
        """
        if not self.training or self.dropped == 0:
            return None
        if self.dropped == self.LEVELS:
            return torch.zeros_like(like, dtype=torch.bool)
        if like.device.type != "cpu" or self.compiled or torch.compiler.is_compiling():
            images = like.ndim == 4
            shape = like.movedim(1, -1).shape if images else like.shape
            drawn = torch.zeros(shape, dtype=torch.bool, device=like.device)
            drawn.bernoulli_(1 - self.dropped / self.LEVELS)
            drawn = drawn.movedim(-1, 1) if images else drawn
        else:
            count = like.numel()
            bits = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
            drawn = (bits[:count] >= self.dropped - self.LEVELS // 2).view(like.shape)
        same = drawn.stride() == like.stride()
        return drawn if same else torch.empty_like(like, dtype=torch.bool).copy_(drawn)

    def masked(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x·mask/(1 − p); mask None: x."""
        if mask is None:
            return x
        return (x * mask).mul_(self.LEVELS / max(self.LEVELS - self.dropped, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.masked(x, self.mask(x))
