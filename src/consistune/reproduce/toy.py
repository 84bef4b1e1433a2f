"""Eight Gaussians on a ring in the plane, and a small network that learns them."""

import copy
import time

import torch
from torch import Tensor, nn

from consistune.analyze.mixture import RING
from consistune.core.noise import EDM
from consistune.core.objectives import Denoising, Objective
from consistune.core.types import Batch, Conditioning

BATCH, BANK = 128, 2048
SCHEDULE = EDM()
MIXTURE = RING


class Net(nn.Module):
    """EDM-preconditioned MLP on points [B, 1, 1, 2]; computes in fp32."""

    def __init__(self) -> None:
        super().__init__()
        width = 128
        self.body = nn.Sequential(
            nn.Linear(2 + 16, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2),
        )  # fmt: skip

    def forward(self, x_t: Tensor, t: Tensor, condition: Conditioning = None) -> Tensor:
        del condition
        t = t.float().view(-1, 1)
        x, variance = x_t.flatten(1).float(), t.square() + 0.25
        angles = t.log() / 4 * torch.logspace(-0.3, 1, 8)
        features = torch.cat([x / variance.sqrt(), angles.cos(), angles.sin()], dim=1)
        return (0.25 / variance * x + 0.5 * t / variance.sqrt() * self.body(features)).view_as(x_t).to(x_t)


def bank_of(seed: int) -> Tensor:
    """BANK samples: a seed's training set [n, 1, 1, 2]."""
    return MIXTURE.sample(BANK, torch.Generator().manual_seed(seed))[0].float()


def diffusion_model(bank: Tensor, steps: int, seed: int) -> Net:
    """The diffusion model that all methods of a seed start from."""
    torch.manual_seed(seed)
    return train(Net(), Denoising(SCHEDULE), bank, steps, 2e-3, seed)[0]


def train(
    net: Net,
    objective: Objective,
    bank: Tensor,
    steps: int,
    lr: float,
    seed: int,
    ema_target: bool = False,
) -> tuple[Net, float]:
    """The averaged network, and the seconds of a step. RAdam; the rate falls to 0 over the second half."""
    average, target = copy.deepcopy(net), copy.deepcopy(net) if ema_target else net
    optimizer = torch.optim.RAdam(net.parameters(), lr=lr)
    generator = torch.Generator().manual_seed(seed)
    start = time.perf_counter()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * min(1.0, 2 * (1 - step / steps))
        index = torch.randint(len(bank), (BATCH,), generator=generator)
        loss = objective(net, target, Batch(bank[index], None, index), step * BATCH, generator).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        with torch.no_grad():
            for kept, new in zip(average.parameters(), net.parameters(), strict=True):
                kept.lerp_(new, 1 - 0.998)
            if ema_target:
                for kept, new in zip(target.parameters(), net.parameters(), strict=True):
                    kept.lerp_(new, 1 - 0.95)
    return average.requires_grad_(False), (time.perf_counter() - start) / steps


def energy_distance(a: Tensor, b: Tensor) -> float:
    """2·E‖a − b‖ − E‖a − a'‖ − E‖b − b'‖ of two samples [n, ...], [m, ...]."""
    a, b = a.flatten(1).double(), b.flatten(1).double()
    n, m = len(a), len(b)
    within = torch.cdist(a, a).sum() / (n * (n - 1)) + torch.cdist(b, b).sum() / (m * (m - 1))
    return float(2 * torch.cdist(a, b).mean() - within)
