"""The toy network of the parity fixtures, inside EDM's preconditioner; formula in the fixtures' README."""

from collections.abc import Mapping

import torch
from torch import Tensor

from consistune.core.types import expand


class ToyDenoiser:
    """D(x, σ) in the precision of a fixture's weights `{prefix}W1`, …; `parameters` take gradients."""

    def __init__(self, fixture: Mapping[str, Tensor], prefix: str = "net_", sigma_data: float = 0.5) -> None:
        self.weights = {k.removeprefix(prefix): v.clone() for k, v in fixture.items() if k.startswith(prefix)}
        self.frequencies = self.weights.pop("freqs")
        self.parameters = {k: v.requires_grad_() for k, v in self.weights.items()}
        self.sigma_data = sigma_data

    def __call__(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        w, size = self.weights, torch.sqrt(sigma.square() + self.sigma_data**2)
        angles = sigma.log()[:, None] / 4 * self.frequencies
        h = (x / expand(size, x)).flatten(1) @ w["W1"].T
        h = h + torch.cat([angles.sin(), angles.cos()], 1) @ w["Wt"].T + w["b1"]
        if condition is not None:
            h = h + w["Wl"][condition]
        out = (torch.tanh(h) @ w["W2"].T + w["b2"]).view_as(x)
        return (
            expand(self.sigma_data**2 / size.square(), x) * x
            + expand(sigma * self.sigma_data / size, x) * out
        )
