"""Magnitude-preserving layers (EDM2, 2312.02696): every operation keeps its input's expected magnitude."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from consistune.nn.layers import Product, fresh
from consistune.nn.lean import recomputed, transformed
from consistune.nn.tangents import linear, silu

EPS = 1e-4


def normalize(x: Tensor, dims: tuple[int, ...] | None = None) -> Tensor:
    """x / (ε + RMS over dims); default dims: all but the first. Norms in fp32."""
    dims = tuple(range(1, x.ndim)) if dims is None else dims
    norm = torch.linalg.vector_norm(x, dim=dims, keepdim=True, dtype=_at_least_fp32(x))
    scale = math.sqrt(norm.numel() / x.numel())
    return x / (EPS + norm * scale).to(x.dtype)


def _at_least_fp32(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def mp_silu(x: Tensor) -> Tensor:
    """silu(x)/0.596, of unit magnitude for a standard normal x."""
    return silu(x) / 0.596


def mp_sum(a: Tensor, b: Tensor, t: float | Tensor = 0.5) -> Tensor:
    """((1−t) a + t b)/√((1−t)² + t²); t may be a scalar parameter."""
    return a.lerp(b, t) / (torch.hypot(1 - t, t) if isinstance(t, Tensor) else math.hypot(1 - t, t))


def mp_cat(a: Tensor, b: Tensor, t: float = 0.5) -> Tensor:
    """Channels of a and b, weighted so that they contribute in the ratio 1−t : t."""
    n_a, n_b = a.shape[1], b.shape[1]
    k = math.sqrt((n_a + n_b) / ((1 - t) ** 2 + t**2))
    return torch.cat([a * (k * (1 - t) / math.sqrt(n_a)), b * (k * t / math.sqrt(n_b))], dim=1)


class MPConv(Product):
    """Convolution (or linear layer, with no kernel) by weights of unit magnitude, without a bias.

    x → gain/√fan · normalize(weight) ∗ x in the dtype of x; the weight is normalised row by row in fp32, and
    the gradient passes through the normalisation. `gain` may be a scalar parameter.

    Forced weight normalisation: a training pass first overwrites the stored weight by its normalised value,
    so that the effective learning rate stays the same. It does so only while gradients are enabled. A pass of
    the target or the teacher under no_grad computes the same function and does not change the weight, which
    the student's backward still needs (ECT does the same for its teacher); neither does a pass of which a
    derivative is taken (`torch.func.jvp`), where a write would be an error. Before the student's pass, the
    weight is as the optimizer left it, which is the same function up to ε. A compiled pass would lose the
    write and give a wrong gradient; it does not write, and the training loop normalises before it.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.weight = nn.Parameter(fresh((out_channels, in_channels, *kernel), Tensor.normal_))

    def forward(
        self,
        x: Tensor,
        gain: float | Tensor = 1.0,
        before: Callable[..., Tensor] | None = None,
        *inputs: Tensor | None,
    ) -> Tensor:
        """The layer's value at x, or at before(x, *inputs).

        For the gradient only x, the inputs and the stored weight are kept; `before` and the normalisation are
        computed again.
        """
        writes = torch.is_grad_enabled() and not torch.compiler.is_compiling() and not transformed()
        if self.training and writes:
            with torch.no_grad():
                self.weight.copy_(normalize(self.weight.to(_at_least_fp32(self.weight))))
        return recomputed(self._product, before, x, self.weight, gain, *inputs)

    def _product(
        self,
        before: Callable[..., Tensor] | None,
        x: Tensor,
        weight: Tensor,
        gain: float | Tensor,
        *inputs: Tensor | None,
    ) -> Tensor:
        x = x if before is None else before(x, *inputs)
        if weight.ndim == 2:
            return linear(x, self._effective(weight, gain, x.dtype))
        weight = self._effective(weight, gain, self.product_dtype or x.dtype)
        return self.convolve(x, weight, None, padding=weight.shape[-1] // 2)

    def _effective(self, weight: Tensor, gain: float | Tensor, dtype: torch.dtype) -> Tensor:
        """gain/√fan · normalize(weight) in `dtype`, as one factor a row: one pass through memory."""
        weight = weight.to(_at_least_fp32(weight))
        root = math.sqrt(weight[0].numel())
        norm = torch.linalg.vector_norm(weight, dim=tuple(range(1, weight.ndim)), keepdim=True)
        return (weight * (gain / (root * EPS + norm))).to(dtype)


class MPFourier(nn.Module):
    """u [B] → √2·cos(u ⊗ freqs + phases) [B, features] in fp32; freqs = 2π·N(0, bandwidth²), phases = 2π·U.

    Both are drawn once and stored, with the factor 2π.
    """

    freqs: Tensor
    phases: Tensor

    def __init__(self, features: int, bandwidth: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("freqs", 2 * math.pi * fresh((features,), Tensor.normal_) * bandwidth)
        self.register_buffer("phases", 2 * math.pi * fresh((features,), Tensor.uniform_))

    def forward(self, u: Tensor) -> Tensor:
        dtype = _at_least_fp32(u)
        angle = torch.outer(u.to(dtype), self.freqs.to(dtype)) + self.phases.to(dtype)
        return (angle.cos() * math.sqrt(2)).to(u.dtype)
