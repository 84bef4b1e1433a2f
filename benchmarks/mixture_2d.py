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
import statistics
from pathlib import Path

import torch
from torch import Tensor

from consistune.core.estimators import NoiseEstimator, OneSample, ScoreIdentity, Teacher
from consistune.core.objectives import Consistency, Huber, InverseGap, SquaredL2, Uniform
from consistune.core.posterior.mean import Reference
from consistune.core.times import (
    DoublingGrid,
    FixedGrid,
    GridPairs,
    GrowingGrid,
    LogNormal,
    LogNormalPairs,
    SigmoidGap,
)
from consistune.reproduce.toy import (
    BANK,
    BATCH,
    MIXTURE,
    SCHEDULE,
    Net,
    bank_of,
    diffusion_model,
    energy_distance,
    train,
)

RESULT = Path(__file__).parent / "results" / "mixture_2d.json"
STAGES = 6


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
    every = Reference.ungrouped(bank)
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
        bank = bank_of(seed)
        teacher = diffusion_model(bank, 2 * options.steps, seed)
        runs.setdefault("diffusion model in one step", []).append(judge(teacher, truth))
        for name, (objective, ema_target) in methods(bank, teacher, options.steps).items():
            net, seconds = train(
                copy.deepcopy(teacher).requires_grad_(True),
                objective,
                bank,
                options.steps,
                1e-3,
                seed,
                ema_target,
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
