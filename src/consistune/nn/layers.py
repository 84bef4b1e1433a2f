"""The layers of EDM's U-Nets (2206.00364): linear, convolution with resampling, group norm, attention.

Parameters stay in their own precision (fp32) and are cast at every call to the dtype of the input, so that an
fp16 input makes the network compute in fp16. A layer's `product_dtype` casts only the products of
convolutions and attention; bf16 uses it, because its 8 bits are too few for a sum of residuals.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import (
    avg_pool2d,
    conv_transpose2d,
    interpolate,
    scaled_dot_product_attention,
)

from consistune.nn.lean import NormInFormat, normed_by_groups, transformed
from consistune.nn.tangents import conv2d, group_norm, linear

Resample = Literal["keep", "up", "down", "down-after"]
"""down-after: the convolution first, at the high resolution, then the filter."""
BOX = (1, 1)


def fresh(shape: tuple[int, ...], fill: Callable[[Tensor], Tensor]) -> Tensor:
    """fill(torch.empty(shape)); without values on the meta device, where drawing would take a second."""
    empty = torch.empty(shape)
    return empty if empty.is_meta else fill(empty)


@dataclass(frozen=True)
class Init:
    """The distribution of a layer's fresh parameters, times a factor for the weight and one for the bias.

    With fan_in = C_in·k², fan_out = C_out·k²: xavier has variance 2/(fan_in + fan_out), kaiming 1/fan_in.
    """

    distribution: Literal["xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal"]
    weight: float = 1.0
    bias: float = 0.0

    def draw(self, shape: tuple[int, ...], fan_in: int, fan_out: int, factor: float) -> nn.Parameter:
        if factor == 0:
            return nn.Parameter(fresh(shape, Tensor.zero_))
        variance = 2 / (fan_in + fan_out) if self.distribution.startswith("xavier") else 1 / fan_in
        if self.distribution.endswith("normal"):
            scale = factor * math.sqrt(variance)
            return nn.Parameter(fresh(shape, lambda x: x.normal_().mul_(scale)))
        scale = factor * math.sqrt(3 * variance)
        return nn.Parameter(fresh(shape, lambda x: x.uniform_(-1, 1).mul_(scale)))


class Product(nn.Module):
    """A layer whose products may be computed in another dtype than that of its input and output."""

    product_dtype: torch.dtype | None = None
    """None: the dtype of the input. See `set_product_dtype`."""

    def convolve(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, padding: int, out: torch.dtype | None = None
    ) -> Tensor:
        """The convolution in dtype `out` (None: x's)."""
        dtype = self.product_dtype or x.dtype
        bias = None if bias is None else bias.to(dtype)
        return conv2d(x.to(dtype), weight.to(dtype), bias, padding=padding).to(out or x.dtype)


def set_product_dtype(network: nn.Module, dtype: torch.dtype | None) -> None:
    """Set what the products of a network, or of a part of it, are computed in; None: the input's dtype."""
    for module in network.modules():
        if isinstance(module, Product):
            module.product_dtype = dtype


class Linear(nn.Module):
    """x [B, in] → x Wᵀ + b [B, out], in x's dtype."""

    bias: nn.Parameter | None

    def __init__(self, in_features: int, out_features: int, init: Init, bias: bool = True) -> None:
        super().__init__()
        fans = in_features, out_features
        self.weight = init.draw((out_features, in_features), *fans, init.weight)
        self.bias = init.draw((out_features,), *fans, init.bias) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


class Resampler(Product):
    """Images up or down by 2: x [B, C, H, W] → [B, C, H', W'] in x's dtype.

    Args:
        taps: the filter's one-dimensional taps; outer(f, f)/(Σf)² is kept in the buffer `resample_filter`,
            as official files have it. (1, 1) is computed as means and copies of pixels.
    """

    resample_filter: Tensor
    """None where nothing is resampled; the state then has no such key."""

    def __init__(self, resample: Resample, taps: tuple[int, ...] = BOX) -> None:
        super().__init__()
        self.resample = resample
        self.box = tuple(taps) == BOX
        kernel = None if resample == "keep" else filter_2d(taps, torch.device("cpu"))
        self.register_buffer("resample_filter", kernel)

    def forward(self, x: Tensor) -> Tensor:
        return resampled(x, self.resample, None if self.box else self.resample_filter)


class Conv2d(Resampler):
    """k × k convolution with "same" padding, after a resampling by 2 (or before it: "down-after").

    x [B, C_in, H, W] → [B, C_out, H', W'] in dtype `out` (None: x's).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        init: Init,
        resample: Resample = "keep",
        taps: tuple[int, ...] = BOX,
    ) -> None:
        super().__init__(resample, taps)
        self.padding = kernel // 2
        fans = in_channels * kernel**2, out_channels * kernel**2
        self.weight = init.draw((out_channels, in_channels, kernel, kernel), *fans, init.weight)
        self.bias = init.draw((out_channels,), *fans, init.bias)

    def forward(self, x: Tensor, out: torch.dtype | None = None) -> Tensor:
        if self.resample != "down-after":
            return self.convolve(super().forward(x), self.weight, self.bias, self.padding, out)
        # The border is padded once, before the convolution, for both filters; the bias is added last.
        padding = self.padding + (self.resample_filter.shape[-1] - 1) // 2
        x = self.convolve(x, self.weight, None, padding, out)
        return depthwise(conv2d, x, self.resample_filter, 0) + self.bias.to(x.dtype)[:, None, None]


def check_heads(channels: int, heads: int) -> None:
    """Raises ValueError where attention heads do not divide the channels; 0 heads: there is no attention."""
    if heads and channels % heads:
        raise ValueError(f"{channels} channels are no multiple of {heads} attention heads")


def filter_2d(taps: tuple[int, ...], device: torch.device | None = None) -> Tensor:
    """outer(f, f)/(Σf)², [1, 1, L, L] in fp32. Raises ValueError unless the number of taps is even."""
    if len(taps) == 0 or len(taps) % 2:
        raise ValueError(f"resample_filter needs an even number of taps, not {len(taps)}")
    f = torch.tensor(taps, dtype=torch.float32, device=device)
    return (torch.outer(f, f) / f.sum().square())[None, None]


def depthwise(convolution: Callable[..., Tensor], x: Tensor, kernel: Tensor, padding: int) -> Tensor:
    """Filter every channel with `kernel` [1, 1, L, L] at stride 2, by conv2d or conv_transpose2d."""
    channels = int(x.shape[1])  # a constant where a graph is traced
    kernel = kernel.to(x.dtype).expand(channels, -1, -1, -1)
    return convolution(x, kernel, stride=2, padding=padding, groups=channels)


def resampled(x: Tensor, resample: Resample, kernel: Tensor | None) -> Tensor:
    """x [B, C, H, W] → [B, C, H/2, W/2] ("down"), [B, C, 2H, 2W] ("up"), or x itself.

    Down filters by kernel [1, 1, L, L]; up puts zeros between the pixels and filters by 4·kernel. Without a
    kernel down takes the means of 2 × 2 pixels, and up copies pixels.
    """
    if resample not in ("up", "down"):
        return x
    if kernel is None:
        return avg_pool2d(x, 2) if resample == "down" else interpolate(x, scale_factor=2, mode="nearest")
    padding = (kernel.shape[-1] - 1) // 2
    if resample == "down":
        return depthwise(conv2d, x, kernel, padding)
    return depthwise(conv_transpose2d, x, 4 * kernel.to(x.dtype), padding)


class GroupNorm(nn.GroupNorm):
    """Group norm with min(32, C // 4) groups, affine, in x's dtype (moments in at least fp32)."""

    def __init__(self, channels: int, eps: float) -> None:
        if channels < 4:
            raise ValueError(f"group norm needs at least 4 channels, not {channels}")
        super().__init__(min(32, channels // 4), channels, eps)

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda and not x.is_contiguous() and not transformed():
            return self.in_its_format(x)
        return group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)

    def in_its_format(self, x: Tensor) -> Tensor:
        """The same in x's memory format: CUDA's group norm would copy x into the usual one."""
        norm = (x, self.weight, self.bias, self.num_groups, self.eps)
        if torch.compiler.is_compiling():  # a compiler fuses the parts, and their derivatives
            return normed_by_groups(*norm)[0]
        normed: Tensor = NormInFormat.apply(*norm)  # type: ignore[no-untyped-call]
        return normed


def split_heads(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """qkv [B, 3C, H, W] → q, k, v, each [B, heads, H·W, d].

    Channel of qkv = head·3d + c·3 + j with j = 0, 1, 2 for q, k, v: interleaved innermost.
    """
    batch, channels, height, width = qkv.shape
    apart = qkv.reshape(batch, heads, channels // (3 * heads), 3, height * width)
    q, k, v = apart.transpose(2, 4).unbind(3)  # [B, heads, H·W, 3, d] → 3 × [B, heads, H·W, d]
    return q, k, v


def attend(q: Tensor, k: Tensor, v: Tensor, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """softmax(q kᵀ/√d) v for q, k, v [B, heads, H·W, d] → [B, C, H, W] as `like`, channel = head·d + c.

    Computed in `dtype` (None: that of q); torch's kernels accumulate products and softmax in fp32, as EDM
    does.
    """
    q, k, v = (part.to(dtype or part.dtype) for part in (q, k, v))
    if q.is_cuda:  # its fast kernels take features that lie side by side alone
        q, k, v = (part.contiguous() for part in (q, k, v))
    # Only the plain kernel has a forward derivative.
    with sdpa_kernel(SDPBackend.MATH) if transformed() else nullcontext():
        attended = scaled_dot_product_attention(q, k, v)
    return attended.transpose(2, 3).reshape(like.shape).to(like.dtype)


def cos_sin(u: Tensor, f: Tensor) -> Tensor:
    """u [B], f [n] → [cos(u f) | sin(u f)] [B, 2n], as u."""
    angle = torch.outer(u, f.to(u))
    return torch.cat([angle.cos(), angle.sin()], dim=1)


class PositionalEmbedding(nn.Module):
    """u [B] → [cos(u f) | sin(u f)] [B, features], f_i = 10000^(−i/(half − endpoint)), i < half."""

    def __init__(self, features: int, endpoint: bool) -> None:
        super().__init__()
        self.frequencies = features // 2
        self.endpoint = endpoint

    def forward(self, u: Tensor) -> Tensor:
        i = torch.arange(self.frequencies, dtype=torch.float32, device=u.device)
        return cos_sin(u, (1 / 10000) ** (i / (self.frequencies - self.endpoint)))


class FourierEmbedding(nn.Module):
    """u [B] → [cos(2π f u) | sin(2π f u)] [B, features], f ~ N(0, scale²) drawn once and stored."""

    freqs: Tensor

    def __init__(self, features: int, scale: float) -> None:
        super().__init__()
        self.register_buffer("freqs", fresh((features // 2,), Tensor.normal_) * scale)

    def forward(self, u: Tensor) -> Tensor:
        return cos_sin(u, 2 * math.pi * self.freqs)
