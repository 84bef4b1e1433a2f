"""The forward derivative of a network's pass: dF/dt of sCM and du/dt of MeanFlow (METHOD §8)."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from consistune.core.types import Denoiser


def exactly(model: Denoiser) -> AbstractContextManager[None]:
    """The context in which a model's derivative or difference is taken: its method `exactly`, if any.

    The training loop's models compute in fp32 there, whatever the run's precision.
    """
    scope: Callable[[], AbstractContextManager[None]] = getattr(model, "exactly", nullcontext)
    return scope()


@torch.no_grad()
def derivative(
    model: Denoiser,
    function: Callable[..., Tensor],
    point: tuple[Tensor, ...],
    direction: tuple[Tensor, ...],
) -> tuple[Tensor, Tensor]:
    """function(*point), and its derivative along `direction`, both without gradient (`torch.func.jvp`).

    `function` calls the model, within `exactly`. Attention computes plainly there, because its fused kernels
    have no forward derivative.
    """
    with exactly(model), sdpa_kernel(SDPBackend.MATH):
        point, direction = (tuple(x.contiguous() for x in each) for each in (point, direction))
        value, slope, *_ = torch.func.jvp(function, point, direction)
    return value, slope
