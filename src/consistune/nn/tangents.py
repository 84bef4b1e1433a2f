"""Layers whose forward derivative along their input is written out.

torch takes that of a norm or an activation from many elementwise operations, and computes every product a
third time, with the weights' derivative of zero. These are used where a derivative is taken without gradients
(`core.derivative`); elsewhere the layers are torch's own.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional

from consistune.nn.lean import transformed


def _derived() -> bool:
    return transformed() and not torch.is_grad_enabled()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b."""
    return _affine(functional.linear, x, weight, bias)


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, **options: int) -> Tensor:
    """The convolution of x [B, C, H, W]; `options` are those of torch's."""
    return _affine(partial(functional.conv2d, **options), x, weight, bias)


def _affine(product: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if not _derived():
        return product(x, weight, bias)
    y: Tensor = _Affine.apply(x, weight, bias, product)  # type: ignore[no-untyped-call]
    return y


def silu(x: Tensor) -> Tensor:
    """x·sigmoid(x)."""
    if not _derived():
        return functional.silu(x)
    y: Tensor = _Silu.apply(x)  # type: ignore[no-untyped-call]
    return y


def group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """w·(x − mean)/√(variance + eps) + b of x [B, C, H, W], with the moments of each sample's groups."""
    if not _derived():
        if transformed():  # torch takes a view of the tangent, whose strides may be others than those of x
            x = x.clone(memory_format=torch.contiguous_format)
        return functional.group_norm(x, groups, weight, bias, eps)
    x = x.contiguous()
    y: Tensor = _GroupNorm.apply(x, weight, bias, groups, eps)[0]  # type: ignore[no-untyped-call]
    return y


def _along_input_alone(of_weights: tuple[Tensor | None, ...]) -> None:
    """Raises NotImplementedError where a weight has a derivative."""
    if any(tangent is not None for tangent in of_weights):
        raise NotImplementedError("a derivative along a weight needs torch.enable_grad() around it")


class _Affine(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, product: Callable[..., Tensor]) -> Tensor:
        return product(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        del output
        ctx.set_materialize_grads(False)
        ctx.save_for_forward(inputs[1])
        ctx.product = inputs[3]

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, *of_weights: Tensor | None) -> Tensor | None:
        _along_input_alone(of_weights)
        (weight,) = ctx.saved_for_forward
        with forward_ad._set_fwd_grad_enabled(False):
            return None if dx is None else ctx.product(dx, weight)


class _Silu(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return functional.silu(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        del output
        ctx.save_for_forward(*inputs)

    @staticmethod
    def jvp(ctx: Any, dx: Tensor) -> Tensor:
        (x,) = ctx.saved_for_forward
        with forward_ad._set_fwd_grad_enabled(False):
            slope: Tensor = torch.ops.aten.silu_backward(dx, x)  # dx·silu'(x)
            return slope


class _GroupNorm(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        samples, channels, height, width = x.shape
        return torch.native_group_norm(x, weight, bias, samples, channels, height * width, groups, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_forward(*inputs[:2], *output[1:])

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, *of_weights: Tensor | None) -> tuple[Tensor | None, None, None]:
        """s·w·(dx − mean(dx) − x̂·mean(x̂·dx)), s = 1/√(variance + eps), x̂ = s·(x − mean)."""
        _along_input_alone(of_weights)
        if dx is None:
            return None, None, None
        with forward_ad._set_fwd_grad_enabled(False):
            x, weight, mean, scale = ctx.saved_for_forward
            mean, scale = mean[..., None], scale[..., None]  # [B, groups, 1]
            of_groups, d = (each.reshape(*mean.shape[:2], -1) for each in (x, dx))
            standard = (of_groups - mean).mul_(scale)
            along = torch.linalg.vecdot(standard, d)[..., None] / d.shape[-1]
            slope = torch.addcmul(d - d.mean(-1, keepdim=True), standard, along, value=-1)
            of_channels = (scale * weight.view(mean.shape[1], -1)).flatten(1)[..., None, None]
            return slope.view_as(x).mul_(of_channels), None, None
