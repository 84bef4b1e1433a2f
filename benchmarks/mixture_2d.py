"""Every method trained on a 2-D Gaussian mixture, against the exact consistency function.

    python benchmarks/mixture_2d.py [--steps 3000] [--seeds 3]

Eight Gaussians on a ring; a bank of 2048 samples is the training set. One small network is pretrained as a
diffusion model a seed, and every method starts from it with equal steps, batch, optimizer and noise. CD's
teacher is that network (and, as a bound, the exact denoiser). Reported: the root mean square distance between
f_θ(x_t, t) and the exact f(x_t, t), at the prior t = 80 and over t from ECT's law; and of the exact data
distribution in one step, the energy distance to fresh samples. Writes benchmarks/results/mixture_2d.json.
"""

import argparse
import copy
import json
import math
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from sct.core.estimators import NoiseEstimator, OneSample, ScoreIdentity, Teacher
from sct.core.mixture import GaussianMixture
from sct.core.noise import EDM
from sct.core.objectives import Consistency, Denoising, Huber, InverseGap, Objective, SquaredL2, Uniform
from sct.core.posterior import Reference
from sct.core.times import (
    DoublingGrid,
    FixedGrid,
    GridPairs,
    GrowingGrid,
    LogNormal,
    LogNormalPairs,
    SigmoidGap,
)
from sct.core.types import Batch

RESULT = Path(__file__).parent / "results" / "mixture_2d.json"
BATCH, BANK, STAGES = 128, 2048, 6
SCHEDULE = EDM()
ANGLES = torch.arange(8, dtype=torch.float64) * math.pi / 4
MIXTURE = GaussianMixture(0.7 * torch.stack([ANGLES.cos(), ANGLES.sin()], 1).view(8, 1, 1, 2), 0.06)


class Net(nn.Module):
    """EDM-preconditioned MLP on points [B, 1, 1, 2]."""

    def __init__(self) -> None:
        super().__init__()
        width = 128
        self.body = nn.Sequential(
            nn.Linear(2 + 16, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2),
        )  # fmt: skip

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        del condition
        t = t.to(x_t).view(-1, 1)
        x, variance = x_t.flatten(1), t.square() + 0.25
        angles = t.log() / 4 * torch.logspace(-0.3, 1, 8)
        features = torch.cat([x / variance.sqrt(), angles.cos(), angles.sin()], dim=1)
        return (0.25 / variance * x + 0.5 * t / variance.sqrt() * self.body(features)).view_as(x_t)


def train(
    net: Net,
    objective: Objective,
    bank: Tensor,
    steps: int,
    lr: float,
    seed: int,
    ema_target: bool = False,
) -> tuple[Net, float]:
    """RAdam, the rate falling to 0 over the second half; the averaged network, seconds a step."""
    average, target = copy.deepcopy(net), copy.deepcopy(net) if ema_target else net
    optimizer = torch.optim.RAdam(net.parameters(), lr=lr)
    generator = torch.Generator().manual_seed(seed)
    start = time.perf_counter()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * min(1.0, 2 * (1 - step / steps))
        index = torch.randint(len(bank), (BATCH,), generator=generator)
        loss = objective(net, target, Batch(bank[index], None, index), step * BATCH, generator).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for mine, new in zip(average.parameters(), net.parameters(), strict=True):
                mine.lerp_(new, 1 - 0.998)
            if ema_target:
                for mine, new in zip(target.parameters(), net.parameters(), strict=True):
                    mine.lerp_(new, 1 - 0.95)
    return average, (time.perf_counter() - start) / steps


def exact_denoiser(x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
    del condition
    return MIXTURE.denoise(x_t, t, SCHEDULE).float()


def methods(bank: Tensor, teacher: Net, steps: int) -> dict[str, tuple[Consistency, bool]]:
    """Each method's objective, and whether its target network is an average."""
    images = steps * BATCH

    def tuned(estimator: NoiseEstimator, stages_per_halving: float = 1) -> tuple[Consistency, bool]:
        gap = SigmoidGap(every_images=images // STAGES, stages_per_halving=stages_per_halving)
        return Consistency(SCHEDULE, LogNormalPairs(gap), estimator), False

    def distilled(model) -> tuple[Consistency, bool]:
        pairs = GridPairs(FixedGrid(18))
        return Consistency(SCHEDULE, pairs, Teacher(model), SquaredL2(), Uniform(), method="heun"), True

    growing = GridPairs(GrowingGrid(images))
    doubling = GridPairs(DoublingGrid(images, s1=640), std=2.0)
    every = Reference.whole(bank)
    return {
        "CD": distilled(teacher),
        "CD, exact teacher": distilled(exact_denoiser),
        "CT": (
            Consistency(SCHEDULE, growing, OneSample(), SquaredL2(), Uniform()),
            True,
        ),
        "iCT": (
            Consistency(SCHEDULE, doubling, OneSample(), Huber(per_root_dim=0.00054), InverseGap()),
            False,
        ),
        "ECT": tuned(OneSample()),
        "SCT, batch": tuned(ScoreIdentity(SCHEDULE)),
        "SCT, 64 random": tuned(ScoreIdentity(SCHEDULE, every, size=64)),
        "SCT, all": tuned(ScoreIdentity(SCHEDULE, every)),
        "SCT, all, smooth (m = 8)": tuned(ScoreIdentity(SCHEDULE, every), 8),
    }


def points(n: int = 500) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """x_t, t and the exact f(x_t, t) at the prior and over ECT's law."""
    g = torch.Generator().manual_seed(123)
    x_0, _ = MIXTURE.sample(n, g)
    out = {}
    for name, t in {
        "prior": torch.full((n,), 80.0),
        "law": LogNormal(low=0.002, high=80.0).sample(n, g),
    }.items():
        noise = torch.randn(n, 1, 1, 2, generator=g, dtype=torch.float64)
        x_t = SCHEDULE.diffuse(x_0 if name == "law" else 0 * x_0, noise, t.double())
        out[name] = (x_t, t, MIXTURE.consistency(x_t, t, SCHEDULE))
    return out


def energy_distance(a: Tensor, b: Tensor) -> float:
    a, b = a.flatten(1).double(), b.flatten(1).double()
    n, m = len(a), len(b)
    within = torch.cdist(a, a).sum() / (n * (n - 1)) + torch.cdist(b, b).sum() / (m * (m - 1))
    return float(2 * torch.cdist(a, b).mean() - within)


@torch.no_grad()
def judge(net: Net, truth: dict[str, tuple[Tensor, Tensor, Tensor]]) -> dict[str, float]:
    result = {}
    for name, (x_t, t, exact) in truth.items():
        error = net(x_t.float(), t) - exact
        result[f"rms_{name}"] = float(error.square().sum((1, 2, 3)).mean().sqrt())
    fresh, _ = MIXTURE.sample(4000, torch.Generator().manual_seed(9))
    x_t, t, _ = truth["prior"]
    result["energy"] = energy_distance(net(x_t.float(), t), fresh)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    truth = points()
    runs: dict[str, list[dict[str, float]]] = {}
    for seed in range(options.seeds):
        torch.manual_seed(seed)
        bank = MIXTURE.sample(BANK, torch.Generator().manual_seed(seed))[0].float()
        teacher, _ = train(Net(), Denoising(SCHEDULE), bank, 2 * options.steps, 2e-3, seed)
        runs.setdefault("diffusion model in one step", []).append(judge(teacher, truth))
        for name, (objective, ema_target) in methods(bank, teacher, options.steps).items():
            net, seconds = train(
                copy.deepcopy(teacher), objective, bank, options.steps, 1e-3, seed, ema_target
            )
            runs.setdefault(name, []).append({**judge(net, truth), "ms_a_step": 1000 * seconds})
            print(seed, name, {k: round(v, 4) for k, v in runs[name][-1].items()}, flush=True)
    summary = {
        name: {
            key: {
                "mean": statistics.mean(r[key] for r in results),
                "least": min(r[key] for r in results),
                "most": max(r[key] for r in results),
            }
            for key in results[0]
        }
        for name, results in runs.items()
    }
    settings = {
        "steps": options.steps,
        "seeds": options.seeds,
        "batch": BATCH,
        "bank": BANK,
        "stages": STAGES,
    }
    RESULT.write_text(json.dumps({"settings": settings, "summary": summary, "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
