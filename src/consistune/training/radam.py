"""Rectified Adam with torch's fused kernels for Adam: RAdam is Adam with another lr and ε at each step."""

import math
from typing import Any

import torch

LARGE = 1e12
"""An ε so large that √v̂ + ε rounds to ε."""


class RAdam(torch.optim.Adam):
    """RAdam (1908.03265): θ ← θ − lr·m̂·ρ-rectification/√v̂, and θ − lr·m̂ while the variance is unknown.

    With ρ_∞ = 2/(1−β₂) − 1 and ρ_t = ρ_∞ − 2tβ₂ᵗ/(1−β₂ᵗ), torch's own RAdam steps by
    lr·r_t·√(1−β₂ᵗ)·m̂/(√v + ε) where ρ_t > 5, r_t² = (ρ_t−4)(ρ_t−2)ρ_∞/((ρ_∞−4)(ρ_∞−2)ρ_t), and by lr·m̂
    before. Adam's step lr·m̂/(√v/√(1−β₂ᵗ) + ε) is the first with lr·r_t and ε/√(1−β₂ᵗ), and tends to the
    second, m̂ scaled by lr·E/(√v̂ + E), with a large E. Takes Adam's arguments except amsgrad.

    The number of steps is kept on the host, in a group's `steps`, so that no step waits for the device.
    """

    def step(self, closure: Any = None) -> Any:
        given = [(group["lr"], group["eps"]) for group in self.param_groups]
        for group in self.param_groups:
            group["steps"] = group.get("steps", 0) + 1
            group["lr"], group["eps"] = adam_equivalent(
                group["lr"], group["eps"], group["betas"][1], group["steps"]
            )
        try:
            return super().step(closure)
        finally:
            for group, (lr, eps) in zip(self.param_groups, given, strict=True):
                group["lr"], group["eps"] = lr, eps


def adam_equivalent(lr: float, eps: float, beta2: float, step: int) -> tuple[float, float]:
    """The (lr, ε) with which Adam's step number `step` (from 1) is RAdam's with the given ones."""
    variance_share = 1 - beta2**step
    rho_inf = 2 / (1 - beta2) - 1
    rho = rho_inf - 2 * step * beta2**step / variance_share
    if rho <= 5:
        return lr * LARGE, LARGE
    rectified = (rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho)
    return lr * math.sqrt(rectified), eps / math.sqrt(variance_share)
