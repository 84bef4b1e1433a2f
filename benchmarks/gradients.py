"""How noisy a step's gradient is, by objective and estimate.

    python benchmarks/gradients.py gradient-variance [--seeds 0 1 2] [--work runs/benchmarks]

The weights are those of a run with one-sample noise of the study `family` at its best rate, averaged,
half-way; the run is trained if it is not there. At these weights the gradient g of one step's mean loss is
taken for `draws` batches, with the same images, times and noise for each estimate. Reported is the variance
over the squared mean, tr Cov(g) / ‖E g‖²; ‖E g‖² is the mean of g_i·g_j over i ≠ j, which has no bias.
"""

from argparse import Namespace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

import digits
from consistune.cli.screen import Screen
from consistune.core.noise import rescheduled
from consistune.nn.precond import Preconditioned
from consistune.recipe.plan import Given, make_plan
from consistune.reproduce.spec import RunSpec
from consistune.reproduce.study import Study, with_teacher
from consistune.system.host import machine
from harness import Benchmark, Record
from tables import markdown

STUDY = "family"
BEST_RATE = {"ect": "5e-4", "tcm": "1e-3", "sct-continuous": "5e-4", "meanflow": "2e-3", "imf": "2e-3"}
ESTIMATES = {
    "one-sample": {"estimator": "one-sample"},
    "score identity": {"estimator": "score-identity"},
    "score identity, adaptive norm": {"estimator": "score-identity", "norm": "own"},
}

benchmark = Benchmark(__doc__)
benchmark.parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
benchmark.parser.add_argument("--work", type=Path, default=digits.WORK)
benchmark.parser.add_argument("--draws", type=int, default=128)


def table(record: Record) -> str:
    """Each objective's noise by estimate, and its ratio to one-sample's: the mean, then each seed."""
    rows = []
    for name, seeds in record["noise"].items():
        for estimate in ESTIMATES:
            noise = [seed[estimate] for seed in seeds.values() if estimate in seed]
            ratios = [a / seed["one-sample"] for a, seed in zip(noise, seeds.values(), strict=False)]
            if noise:
                each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
                rows.append([name, estimate, f"{mean(noise):.1f}", f"{mean(ratios):.2f} ({each})"])
    return markdown(["recipe", "estimate", "variance of the gradient", "over one-sample's"], rows)


@benchmark.section(
    "gradient_variance.json", BEST_RATE, tables={("results/methods-compared.md", "gradients"): table}
)
def gradient_variance(given: Namespace, part: str) -> Record:
    study = digits.read_study(STUDY)
    known = given.record.get("noise", {})
    with Screen() as screen:
        harness = Study(given.work, study.data, "cpu", screen, settings=study.scale)
        seeds = {
            str(seed): noise_by_estimate(harness, study, part, seed, given.draws) for seed in given.seeds
        }
    noise = {**known, part: {**known.get(part, {}), **seeds}}
    return {"noise": noise, "draws": given.draws, "machine": machine()}


def noise_by_estimate(
    harness: Study, study: digits.StudyFile, name: str, seed: int, draws: int
) -> dict[str, float]:
    """The noise of the gradient by estimate, at the weights of one run half-way."""
    spec = spec_of(study, name, ESTIMATES["one-sample"])
    run, images = harness.run(name, spec, seed), harness.recipe(spec, seed).train.images // 2
    chosen = {word: labels for word, labels in ESTIMATES.items() if name == "ect" or "norm" not in labels}
    found = {}
    for word, labels in chosen.items():
        recipe = harness.recipe(spec_of(study, name, labels), seed)
        if run.teacher is not None:
            recipe = with_teacher(recipe, str(run.teacher.folder / "model"))
        found[word] = noise_of(gradients(recipe, run.snapshot("50%"), images, draws))
    return found


def spec_of(study: digits.StudyFile, name: str, labels: dict[str, str]) -> RunSpec:
    """A run of the study: these labels at the recipe's best rate."""
    row = {"recipe": name, "norm": "recipe's", "rate": BEST_RATE[name], **labels}
    return RunSpec(recipe=study.recipe.format(**row), set=digits.overrides_of(study, row))


def gradients(recipe: Any, model: Preconditioned, images: int, draws: int) -> Tensor:
    """The gradients [draws, parameters] of the mean loss of as many batches, after so many images."""
    plan = make_plan(recipe, given=Given(model=model))
    student = plan.model.train().requires_grad_(True)
    network = rescheduled(student, plan.objective.schedule)
    parameters = list(student.parameters())
    found = []
    for number in range(draws):
        generator = torch.Generator().manual_seed(number)
        rows = torch.randint(len(plan.data.train), (recipe.train.batch,), generator=generator)
        batch = plan.data.train.batch(rows, student.num_classes > 0, torch.device("cpu"))
        torch.manual_seed(number)  # the dropout mask
        losses = plan.objective.losses(network, network, plan.objective.draw(batch, images, generator))
        each = torch.autograd.grad(losses.mean(), parameters, allow_unused=True, materialize_grads=True)
        found.append(torch.cat([gradient.flatten() for gradient in each]))
    return torch.stack(found)


def noise_of(found: Tensor) -> float:
    """tr Cov(g) / ‖E g‖² of gradients [n, parameters], both without bias. Raises ValueError if ‖E g‖² ≤ 0."""
    found = found.double()
    n = len(found)
    square = float(found.square().sum(1).mean())
    mean_square = (float(found.sum(0).square().sum()) - n * square) / (n * (n - 1))
    if mean_square <= 0:
        raise ValueError(f"{n} draws are too few: the mean gradient cannot be told from zero")
    return (square - mean_square) / mean_square


if __name__ == "__main__":
    benchmark.main()
