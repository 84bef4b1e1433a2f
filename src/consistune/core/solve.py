"""From t down to r along the probability-flow ODE with any noise estimate: the reward of value estimation."""

from typing import Literal

import torch
from torch import Tensor

from consistune.core.estimators import NoiseEstimator
from consistune.core.noise import NoiseSchedule
from consistune.core.types import Batch, expand

Method = Literal["euler", "heun"]
RHO = 7.0
"""The exponent of EDM's spacing of noise levels (2206.00364, eq. 5)."""


def solve(
    schedule: NoiseSchedule,
    estimator: NoiseEstimator,
    x_t: Tensor,
    t: Tensor,
    r: Tensor,
    batch: Batch,
    steps: int = 1,
    method: Method = "euler",
    x0_hat: Tensor | None = None,
) -> Tensor:
    """x_r from x_t in k = `steps` first-order (Euler) or second-order (Heun) steps.

    Euler is one `schedule.step` with the estimator's x̂_0. Heun follows it with a second estimate at the
    point reached and repeats the step with the mean of the two noises; where the step ends at σ = 0 the
    second estimate does not exist and Euler's stands (EDM, 2206.00364, algorithm 1). Between t and r the
    points are evenly spaced in (σ/α)^{1/7}, EDM's spacing; with r = 0 and k > 1 they end at 0 all the same.
    k > 1 or Heun is n-step TD: it needs estimates away from x_t, which `local` estimators do not have.

    x_t [B, ...], t > r ≥ 0 [B] → x_r [B, ...]; `x0_hat` is the estimate at x_t where it is known already.
    Raises ValueError for a local estimator with k > 1 or Heun.
    """
    if estimator.local and (steps > 1 or method == "heun"):
        raise ValueError("a one-sample estimate is valid only at x_t: use steps=1 and method='euler'")
    top, bottom = (schedule.noise_to_signal(time) ** (1 / RHO) for time in (t, r))
    x, u = x_t, t
    for i in range(1, steps + 1):
        v = r if i == steps else schedule.time_at((top + (bottom - top) * i / steps) ** RHO)
        if i > 1 or x0_hat is None:
            x0_hat = estimator.clean(x, u, batch)
        x_v = schedule.step(x, x0_hat, u, v)
        if method == "heun":
            # With ε̂ the mean of its estimates at u and at v. In y = x/α: y_v = y_u + (s_v − s_u)·ε̂.
            inside = schedule.sigma(v) > 0
            mask, safe_v = expand(inside, x), torch.where(inside, v, u)
            at_v = torch.where(mask, x_v, x)
            second = schedule.noise_hat(at_v, estimator.clean(at_v, safe_v, batch), safe_v)
            noise = 0.5 * (schedule.noise_hat(x, x0_hat, u) + second)
            mean_x0 = (x - expand(schedule.sigma(u), x) * noise) / expand(schedule.alpha(u), x)
            x_v = torch.where(mask, schedule.step(x, mean_x0, u, v), x_v)
        x, u = x_v, v
    return x
