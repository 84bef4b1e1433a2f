"""The posterior mean written out, against which the streamed one is tested."""

import torch
from torch import Tensor

from consistune.core.noise import NoiseSchedule
from consistune.core.types import expand


def posterior_exact(
    x_t: Tensor, t: Tensor, schedule: NoiseSchedule, images: Tensor, log_prior: Tensor | None = None
) -> Tensor:
    """Σ_i w_i x⁽ⁱ⁾ in float64; forms [B, n, d].

    x_t [B, ...], t [B], images [n, ...] (uint8 or floating), log_prior [B, n] or None → float64 [B, ...].
    """
    x = (images.double() / 127.5 - 1) if images.dtype == torch.uint8 else images.double()
    t = t.double()
    shift = x_t.double()[:, None] - expand(schedule.alpha(t), x[None]) * x[None]
    logits = -shift.square().flatten(2).sum(2) / (2 * schedule.sigma(t).square())[:, None]
    if log_prior is not None:
        logits = logits + log_prior
    return torch.einsum("bn,n...->b...", torch.softmax(logits, dim=1), x)


def scatter_exact(x_t: Tensor, t: Tensor, schedule: NoiseSchedule, images: Tensor) -> Tensor:
    """√(Σ_i w_i‖x⁽ⁱ⁾ − x̂_0‖²) [B] in float64, by its definition; arguments as for `posterior_exact`."""
    x = (images.double() / 127.5 - 1) if images.dtype == torch.uint8 else images.double()
    mean, t = posterior_exact(x_t, t, schedule, images), t.double()
    shift = x_t.double()[:, None] - expand(schedule.alpha(t), x[None]) * x[None]
    logits = -shift.square().flatten(2).sum(2) / (2 * schedule.sigma(t).square())[:, None]
    squares = (x[None] - mean[:, None]).square().flatten(2).sum(2)
    return (torch.softmax(logits, dim=1) * squares).sum(1).sqrt()
