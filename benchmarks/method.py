"""Properties of the methods against exact references: on a 2-D mixture, and on the digits' flow.

    python benchmarks/method.py mixture-2d [--steps 3000] [--seeds 3]
    python benchmarks/method.py bootstrap-error [--seed 0]       minutes on one core; continues after a stop

mixture-2d: every method trained on eight Gaussians on a ring, with a bank of 2048 samples as training set.
  Each seed has one small network, pretrained as a diffusion model; every method starts from it with equal
  steps, batch, optimizer and noise. CD's teacher is that network (and, as a bound, the exact denoiser).
  Reported: the root mean square distance between f_θ(x_t, t) and the exact consistency function, at the prior
  t = 80 and over ECT's distribution of t; and the energy distance of one-step samples to fresh ones.
bootstrap-error: the parts of the TD error f(x_t, t) − f(x_r, r) of ECT's and SCT's students on the digits, as
  root mean squares, after stages 3 to 6 of a run of 384,000 images without a cap. With the training set as
  the data the flow is known exactly (the score identity over a class's images):
    own     f(x_t, t) − f(x_r, r), x_r on the exact flow: the inconsistency, which training can remove
    euler   f(x_r, r) at the exact x_r − at one Euler step's: the discretisation
    noise   f(x_r, r) at the score identity's x_r − at one-sample's: the scatter that SCT removes
  and end is f(x_t, t) − the exact end of the trajectory.
"""

import copy
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from consistune.analyze.worlds import Empirical
from consistune.core.estimators import NoiseEstimator, OneSample, ScoreIdentity, Teacher
from consistune.core.laws import LogNormal
from consistune.core.noise import EDM
from consistune.core.objectives import Consistency, Huber, InverseGap, SquaredL2, Uniform, gaussian_like
from consistune.core.posterior.mean import Reference
from consistune.core.solve import solve
from consistune.core.times import (
    DoublingGrid,
    FixedGrid,
    GridPairs,
    GrowingGrid,
    LogNormalPairs,
    SigmoidGap,
)
from consistune.data.images import digits
from consistune.nn import store
from consistune.nn.precond import Preconditioned
from consistune.recipe import read_recipe
from consistune.recipe.plan import make_plan
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
from consistune.system.host import machine
from harness import Benchmark, Record

benchmark = Benchmark(__doc__)
add = benchmark.parser.add_argument
add("--steps", type=int, default=3000, help="of mixture-2d")
add("--seeds", type=int, default=3, help="of mixture-2d")
add("--seed", type=int, default=0, help="of bootstrap-error")
add("--work", type=Path, default=Path("runs/benchmarks/digits_seeds"), help="the models of bootstrap-error")

# --- the mixture

STAGES_2D = 6


def exact_denoiser(x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
    del condition
    return MIXTURE.denoise(x_t, t, SCHEDULE).float()


def methods(bank: Tensor, teacher: Net, steps: int) -> dict[str, tuple[Consistency, bool]]:
    """Each method's objective, and whether its target network is an average of the weights."""
    images = steps * BATCH

    def tuned(estimator: NoiseEstimator, stages_per_halving: float = 1) -> tuple[Consistency, bool]:
        gap = SigmoidGap(every_images=images // STAGES_2D, stages_per_halving=stages_per_halving)
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
        "CT": (Consistency(SCHEDULE, growing, OneSample(), SquaredL2(), Uniform()), True),
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
    """x_t, t and the exact f(x_t, t) at the prior and over ECT's distribution of t."""
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


@benchmark.section("mixture_2d.json")
def mixture_2d(given: Namespace) -> Record:
    steps, seeds = (20, 1) if given.quick else (given.steps, given.seeds)
    truth, runs = points(), dict[str, list[dict[str, float]]]()
    for seed in range(seeds):
        bank = bank_of(seed)
        teacher = diffusion_model(bank, 2 * steps, seed)
        runs.setdefault("diffusion model in one step", []).append(judge(teacher, truth))
        for name, (objective, ema_target) in methods(bank, teacher, steps).items():
            start = copy.deepcopy(teacher).requires_grad_(True)
            net, seconds = train(start, objective, bank, steps, 1e-3, seed, ema_target)
            runs.setdefault(name, []).append({**judge(net, truth), "ms_a_step": 1000 * seconds})
            print(seed, name, {k: round(v, 4) for k, v in runs[name][-1].items()}, flush=True)
    summary = {
        name: {key: mean_spread([r[key] for r in each]) for key in each[0]} for name, each in runs.items()
    }
    settings = {"steps": steps, "seeds": seeds, "batch": BATCH, "bank": BANK, "stages": STAGES_2D}
    return {"settings": settings, "summary": summary, "runs": runs}


def mean_spread(values: list[float]) -> dict[str, float]:
    return {"mean": sum(values) / len(values), "least": min(values), "most": max(values)}


# --- the bootstrap's error

LONG = ["optimizer.lr=5e-4", "train.images=384_000", "pairs.gap.every_images=64_000"]
ESTIMATORS = {
    "class": "estimator={kind: score-identity, reference: class}",
    "one-sample": "estimator={kind: one-sample}",
}
STAGES = (3, 4, 5, 6)
TD_QUERIES = 256
TD_TIMES = (0.2, 0.4, 0.8, 1.5, 3.0, 10.0, 80.0)
GAPS = (1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64)


def train_to_the_end(recipe: str, keys: list[str]) -> Iterator[tuple[int, Preconditioned]]:
    """After every step the images seen so far, and the averaged model."""
    trainer = make_plan(read_recipe(recipe, keys)).trainer()
    for report in trainer.steps():
        yield report.images, trainer.averaged


def students(name: str, seed: int, work: Path) -> Path:
    """The folder of one run's averaged models by stage; a stored teacher and stored stages are used again."""
    folder, teacher = work / f"{name}-{seed}", work / f"teacher-{seed}"
    if (folder / f"stage-{STAGES[-1]}").exists():
        return folder
    if not teacher.exists():
        *_, (_, averaged) = train_to_the_end("digits-edm", [f"train.seed={seed}"])
        store.save(averaged, teacher)
    keys = [f"start_from={teacher}", f"train.seed={seed}", *LONG, ESTIMATORS[name]]
    for images, averaged in train_to_the_end("digits-sct", keys):
        if images in [64_000 * stage for stage in STAGES]:
            store.save(averaged, folder / f"stage-{images // 64_000}")
    return folder


def td_error(model: Preconditioned, seed: int = 0) -> list[dict[str, float]]:
    """The root mean squares for each t and gap 1 − r/t, at the same x_t for every model."""
    train, schedule = digits().train, EDM()
    world = Empirical(train.images, train.labels, schedule)
    exact = ScoreIdentity(schedule, world.reference)
    rows = []
    for t in TD_TIMES:
        generator = torch.Generator().manual_seed(seed)
        batch = world.draw(TD_QUERIES, generator)
        times = torch.full((TD_QUERIES,), t)
        x_t = schedule.diffuse(batch.x_0, gaussian_like(batch.x_0, generator), times)
        student = model(x_t, times, batch.condition)
        end = solve(schedule, exact, x_t, times, torch.zeros_like(times), batch, 40, "heun")
        for gap in GAPS:
            r = times * (1 - gap)
            exact_r, euler_r, one_sample_r = (
                model(solve(schedule, *call), r, batch.condition)
                for call in (
                    (exact, x_t, times, r, batch, 4, "heun"),
                    (exact, x_t, times, r, batch),
                    (OneSample(), x_t, times, r, batch),
                )
            )
            rows.append(
                {"t": t, "gap": gap, "end": rms(student - end), "own": rms(student - exact_r)}
                | {"euler": rms(exact_r - euler_r), "noise": rms(euler_r - one_sample_r)}
                | {"class": rms(student - euler_r), "one-sample": rms(student - one_sample_r)}
            )
    return rows


def rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


@benchmark.section("bootstrap_error.json", ESTIMATORS)
def bootstrap_error(given: Namespace, part: str) -> Record:
    models = [model for model in given.record.get("models", []) if model["run"] != part]
    folder = students(part, given.seed, given.work)
    for stage in STAGES:
        with torch.no_grad():
            rows = td_error(store.load(folder / f"stage-{stage}"))
        models.append({"run": part, "stage": stage, "rows": rows})
    return {"queries": TD_QUERIES, "seed": given.seed, "machine": machine(), "models": models}


if __name__ == "__main__":
    benchmark.main()
