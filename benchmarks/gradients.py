"""The gradients of one-sample noise and of the score identity: their noise, and the bias of normalisation.

    python benchmarks/gradients.py gradient-variance [--only family_unlabelled:ect …] [--seeds 0 1 2]
    python benchmarks/gradients.py normalised-bias [--work runs/benchmarks]

A part is STUDY:RECIPE. The weights are those of the study's runs with one-sample noise at the best rate,
averaged; a run that is not under --work is trained.

gradient-variance: half-way in the run the gradient g of one step's mean loss is taken for `draws` batches,
  with the same images, times and noise for each estimate. Reported is the variance over the squared mean,
  tr Cov(g) / ‖E g‖²; ‖E g‖² is the mean of g_i·g_j over i ≠ j, which has no bias.
normalised-bias: at the end of the run, by noise level, the pull of the loss on the network's output at x_t.
  The training set is the data, so the score identity's pull p is that of the exact velocity. One-sample's
  pulls are those of `redraws` images from the posterior at the same x_t. Their mean is p where the loss is
  linear in the velocity; where it is normalised its size is less and its direction another (METHOD §8).
  Reported are ‖E pull‖/‖p‖ and the cosine between them, over all queries; no bias from few redraws.
"""

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor

import digits
from consistune.analyze.worlds import Empirical
from consistune.cli.screen import Screen
from consistune.core.estimators import ScoreIdentity
from consistune.core.noise import rescheduled
from consistune.core.objectives import ContinuousConsistency, Draws, gaussian_like
from consistune.core.types import Batch, Times
from consistune.nn.precond import Preconditioned
from consistune.pages.plots import Axis, Plot
from consistune.recipe.plan import Given, Plan, make_plan
from consistune.reproduce.spec import RunSpec
from consistune.reproduce.study import Study, with_teacher
from consistune.system.files import write_atomically
from consistune.system.host import machine
from harness import RESULTS, Benchmark, Record
from tables import DOCS, markdown

RATES = {
    "family": {"ect": "5e-4", "tcm": "1e-3", "sct-continuous": "5e-4", "meanflow": "2e-3", "imf": "2e-3"},
    "family_unlabelled": dict.fromkeys(["ect", "tcm", "sct-continuous", "meanflow", "imf"], "as with labels"),
    "mnist10k_family": dict.fromkeys(["ect", "sct-continuous", "meanflow", "imf"], "recipe's"),
}
"""Study → recipe → its best rate there."""
LAWS = {"mnist10k_family": {"sct-continuous": "sCM's", "imf": "iMF's"}}
"""Study → recipe → the law of its times, where the study has several."""
PARTS = [f"{study}:{recipe}" for study, recipes in RATES.items() for recipe in recipes]
ESTIMATES = {
    "one-sample": {"estimator": "one-sample"},
    "score identity": {"estimator": "score-identity"},
    "score identity, adaptive norm": {"estimator": "score-identity", "norm": "own"},
}

PAGE = "results/gradients.md"

benchmark = Benchmark(__doc__)
benchmark.parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
benchmark.parser.add_argument("--work", type=Path, default=digits.WORK)
benchmark.parser.add_argument("--draws", type=int, default=128)
benchmark.parser.add_argument("--queries", type=int, default=64)
benchmark.parser.add_argument("--redraws", type=int, default=64)


def table(record: Record) -> str:
    """The noise of each part by estimate, and its ratio to one-sample's: the mean, then each seed."""
    rows = []
    for study, recipes in record["noise"].items():
        for recipe, seeds in recipes.items():
            for estimate in next(iter(seeds.values())):
                noise = [seed[estimate] for seed in seeds.values()]
                ratios = [seed[estimate] / seed["one-sample"] for seed in seeds.values()]
                each = f"{mean(ratios):.2f} ({', '.join(f'{ratio:.2f}' for ratio in ratios)})"
                rows.append([f"{study}, {recipe}", estimate, f"{mean(noise):.1f}", each])
    return markdown(["study, recipe", "estimate", "variance of the gradient", "over one-sample's"], rows)


@benchmark.section("gradient_variance.json", PARTS, tables={(PAGE, "variance"): table})
def gradient_variance(given: Namespace, part: str) -> Record:
    seeds = {
        str(seed): noise_by_estimate(harness, study, recipe, seed, given.draws)
        for harness, study, recipe, seed in runs_of(given, part)
    }
    return {"noise": added(given.record.get("noise", {}), part, seeds)} | settings(given, "draws")


def runs_of(given: Namespace, part: str) -> Iterator[tuple[Study, digits.StudyFile, str, int]]:
    """The harness, the study and the recipe of a part, with each seed."""
    file, _, recipe = part.partition(":")
    study = digits.read_study(file)
    with Screen() as screen:
        harness = Study(given.work, study.data, "cpu", screen, settings=study.scale)
        for seed in given.seeds:
            yield harness, study, recipe, seed


def added(known: Record, part: str, seeds: Record) -> Record:
    """What is known, by study, recipe and seed, with these seeds of a part."""
    file, _, recipe = part.partition(":")
    of_study = known.get(file, {})
    return known | {file: of_study | {recipe: of_study.get(recipe, {}) | seeds}}


def settings(given: Namespace, *names: str) -> Record:
    return {name: getattr(given, name) for name in names} | {"machine": machine()}


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
    file = next(file for file in RATES if study == digits.read_study(file))
    laws = LAWS.get(file, {})
    law = {"law": laws[name]} if name in laws else {}
    row = {"recipe": name, "norm": "recipe's", "rate": RATES[file][name], **law, **labels}
    return RunSpec(recipe=study.recipe.format(**row), set=digits.overrides_of(study, row))


def gradients(recipe: Any, model: Preconditioned, images: int, draws: int) -> Tensor:
    """The gradients [draws, parameters] of the mean loss of as many batches, after so many images."""
    plan = plan_of(recipe, model)
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


def plan_of(recipe: Any, model: Preconditioned) -> Plan:
    """The plan of a recipe with this model in the place of what it starts from."""
    return make_plan(
        recipe.model_copy(update={"start_from": None, "network": None}), given=Given(model=model)
    )


def noise_of(found: Tensor) -> float:
    """tr Cov(g) / ‖E g‖² of gradients [n, parameters], both without bias. Raises ValueError if ‖E g‖² ≤ 0."""
    found = found.double()
    square = float(found.square().sum(1).mean())
    mean_square = square_of_mean(found)
    if mean_square <= 0:
        raise ValueError(f"{len(found)} draws are too few: the mean gradient cannot be told from zero")
    return (square - mean_square) / mean_square


def square_of_mean(found: Tensor) -> float:
    """‖E g‖² from draws of g [n, …]: the mean of g_i·g_j over i ≠ j, which has no bias."""
    n = len(found)
    return (float(found.sum(0).square().sum()) - float(found.square().sum())) / (n * (n - 1))


# --- the bias of normalised objectives

LEVELS = (0.1, 0.3, 0.6, 1.0, 2.0, 4.0, 8.0, 20.0, 60.0)
"""Noise-to-signal ratios."""


def bias_table(record: Record) -> str:
    """Size and cosine of one-sample's mean pull by noise level: the mean over the seeds."""
    rows = []
    for study, recipes in record["agreement"].items():
        for recipe, seeds in recipes.items():
            levels = [level["ratio"] for level in next(iter(seeds.values()))]
            cells = [
                f"{size:.2f}, {cosine:.2f}" for size, cosine in (means(seeds, k) for k in range(len(levels)))
            ]
            rows.append([f"{study}, {recipe}", len(seeds), *cells])
    return markdown(["study, recipe", "seeds", *(f"σ/α = {level:g}" for level in levels)], rows)


def means(seeds: Record, level: int) -> tuple[float, float]:
    """Of size and cosine at a level, over the seeds."""
    of_each = [levels[level] for levels in seeds.values()]
    return mean(each["size"] for each in of_each), mean(each["cosine"] for each in of_each)


def draw_bias(record: Record) -> None:
    """docs/normalised-bias.svg: the size of one-sample's mean pull over the exact one's, by noise level."""
    series = {}
    for study, recipes in record["agreement"].items():
        for recipe, seeds in recipes.items():
            levels = list(zip(*seeds.values(), strict=True))
            sizes = [[each["size"] for each in level] for level in levels]
            errors = [stdev(values) if len(values) > 1 else 0.0 for values in sizes]
            xs = [level[0]["ratio"] for level in levels]
            series[f"{study}, {recipe}"] = (xs, [mean(values) for values in sizes], errors)
    title = "Mean pull of one-sample noise, over the score identity's"
    svg = Plot(series, Axis("σ/α", log=True), Axis("ratio of sizes"), title).svg()
    write_atomically(DOCS / "normalised-bias.svg", svg)


@benchmark.section("normalised_bias.json", PARTS, tables={(PAGE, "bias"): bias_table})
def normalised_bias(given: Namespace, part: str) -> Record:
    levels = LEVELS[::3] if given.quick else LEVELS
    found = {}
    for harness, study, recipe, seed in runs_of(given, part):
        spec = spec_of(study, recipe, ESTIMATES["one-sample"])
        model, resolved = harness.run(recipe, spec, seed).model(), harness.recipe(spec, seed)
        found[str(seed)] = [{"ratio": ratio} | compared(model, resolved, ratio, given) for ratio in levels]
    agreement = {"agreement": added(given.record.get("agreement", {}), part, found)}
    if given.out == RESULTS:
        draw_bias(agreement)
    return agreement | settings(given, "queries", "redraws")


def compared(model: Preconditioned, recipe: Any, ratio: float, given: Namespace) -> dict[str, float]:
    """‖E pull‖/‖p‖ and the cosine of E pull and p at a noise-to-signal ratio, over the queries."""
    plan = plan_of(recipe, model)
    train, generator = plan.data.train, torch.Generator().manual_seed(0)
    labels = train.labels if model.num_classes else None
    world = Empirical(train.images, labels, plan.objective.schedule)
    times = times_at(plan.objective, ratio, given.queries, recipe.train.images)
    batch = world.draw(given.queries, generator)
    x_t = world.schedule.diffuse(batch.x_0, gaussian_like(batch.x_0, generator), times.t)
    exact = replace(plan.objective, estimator=ScoreIdentity(world.schedule, world.reference))
    p = pull(exact, model, x_t, batch, times)
    redraw = world.redraws(x_t, times.t, batch)
    pulls = [pull(plan.objective, model, x_t, redraw(generator), times) for _ in range(given.redraws)]
    return agreement(torch.stack(pulls), p)


def times_at(objective: Any, ratio: float, n: int, images: int) -> Times:
    """t at a noise-to-signal ratio, and r as the end of the training has it: of the gap; for a continuous
    objective t itself, where its tangent is whole; for a mean velocity 0, the longest jump."""
    t = objective.schedule.time_at(torch.full((n,), ratio, dtype=torch.float64)).float()
    zero = torch.zeros_like(t)
    if isinstance(objective, ContinuousConsistency):
        return Times(t, t, zero)
    return Times(t, zero if objective.needs_two_times else objective.pairs.gap.lower(t, images), zero)


def pull(objective: Any, model: Preconditioned, x_t: Tensor, batch: Batch, times: Times) -> Tensor:
    """The gradient of each sample's loss by the network's output, [B, C, H, W], at x_t of these images."""
    schedule, outputs = objective.schedule, []
    noise = schedule.noise_hat(x_t, batch.x_0, times.t)
    keep = model.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    draws = Draws(batch, times, noise, objective.estimator.bind(batch, times, None), bootstraps=True)
    network = rescheduled(model.requires_grad_(True), schedule)
    losses = objective.losses(network, network, draws)
    keep.remove()
    (of_student,) = [output for output in outputs if output.requires_grad]
    (gradient,) = torch.autograd.grad(losses.sum(), of_student)
    return gradient.detach()


def agreement(pulls: Tensor, p: Tensor) -> dict[str, float]:
    """Of pulls [K, B, …] against p [B, …]: the mean's size over p's, without bias, and the cosine."""
    pulls, p = pulls.double().flatten(2), p.double().flatten(1)
    size = (max(square_of_mean(pulls), 0.0) / float(p.square().sum())) ** 0.5
    along = float((pulls.mean(0) * p).sum()) / float(p.square().sum())
    return {"size": size, "cosine": along / size if size > 0 else 0.0}


if __name__ == "__main__":
    benchmark.main()
