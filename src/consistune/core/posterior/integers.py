"""Exact products of integer matrices: of bytes where those are fast, else in short sums in fp32."""

from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import pad

HALF_RANGE = 127.5
"""Pixel levels p = 0 … 255 stand for x = p/127.5 − 1."""
CENTRE = 128
"""Subtracted from pixel levels, so that they fit a signed byte."""
BASE = 254
"""The base of the signed digits."""
EXACT_TERMS = 1024
"""2¹⁰ products of two whole numbers up to 2⁷ sum to at most 2²⁴, which fp32 holds exactly."""
INT32_TERMS = 2**17
"""This many products of a digit (up to 127) and a pixel (up to 128) sum to less than 2³¹."""


def fast_bytes(device: torch.device) -> bool:
    """Whether signed bytes multiply faster than floats: x86 with VNNI, CUDA from capability 8.0."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and _fast_on_cpu()


@cache
def _fast_on_cpu() -> bool:
    """Whether the CPU has VNNI and its byte product is exact.

    Without VNNI oneDNN adds two products in 16 bits, which overflow. It does so on a processor with VNNI too
    where ONEDNN_MAX_CPU_ISA forbids that: so products of the largest bytes are tried.
    """
    if not (hasattr(torch, "_int_mm") and torch.cpu._is_vnni_supported()):
        return False
    for rows, inner, columns in ((1, 32, 1), (32, 64, 48)):
        q = torch.full((rows, inner), 127, dtype=torch.int8, device="cpu")
        x = torch.full((inner, columns), -128, dtype=torch.int8, device="cpu")
        if not (torch._int_mm(q, x) == -127 * 128 * inner).all():
            return False
    return True


def exact_products(q: Tensor, x: Tensor) -> Tensor:
    """q @ x without rounding: signed bytes [..., b, k], [..., k, m] → whole numbers [..., b, m].

    int32 or float64; stacks of matrices are multiplied as floats.
    """
    # Rows of one byte come out wrong from the CPU's byte product.
    if q.ndim == 2 and fast_bytes(q.device) and 32 <= q.shape[1] <= INT32_TERMS:
        return _byte_products(q, x)
    return short_sums(q, x, EXACT_TERMS)


def short_sums(q: Tensor, x: Tensor, terms: int) -> Tensor:
    """q @ x [..., b, m] in float64, of products that are summed in fp32, so many terms at a time."""
    sums = torch.zeros(*q.shape[:-1], x.shape[-1], dtype=torch.float64, device=q.device)
    for start in range(0, q.shape[-1], terms):
        part = slice(start, start + terms)
        sums += q[..., part].float() @ x[..., part, :].float()
    return sums


def _byte_products(q: Tensor, x: Tensor) -> Tensor:
    if q.device.type == "cpu":
        return torch._int_mm(q, x)
    # CUDA's takes more than 16 rows, other sizes in eights, and the second matrix by columns.
    (rows, inner), columns = q.shape, x.shape[1]
    q = _padded(q, (0, -inner % 8, 0, max(0, 17 - rows)))
    x = _padded(x.T, (0, -inner % 8, 0, -columns % 8)).contiguous().T
    return torch._int_mm(q, x)[:rows, :columns]


def _padded(x: Tensor, by: tuple[int, int, int, int]) -> Tensor:
    return pad(x, by) if any(by) else x  # torch's copies also where nothing is added


def signed_digits(value: Tensor, count: int) -> Tensor:
    """|value| ≤ 127 [...] → signed bytes q [count, ...], value ≈ Σ_k q_k/254ᵏ; `value` is overwritten."""
    digits = torch.empty(count, *value.shape, dtype=torch.int8, device=value.device)
    for digit in digits:
        whole = value.round()
        digit.copy_(whole)
        value.sub_(whole).mul_(BASE)
    return digits


def signed_pixels(pixels: Tensor) -> Tensor:
    """uint8 pixels → pixels − 128 as signed bytes."""
    return (pixels ^ CENTRE).view(torch.int8)
