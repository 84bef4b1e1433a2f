"""Which lever keeps the score-identity target's lead to the end of the schedule: an ablation on the digits.

    python benchmarks/digits_levers.py           continues after a stop; hours on one core
    python benchmarks/digits_levers.py --budget short --lever "2 solver steps" --seeds 0

Every run starts from its seed's teacher and is as in digits_seeds.py (rate 5e-4, six stages), with averages
at several decays in one run. A lever is tried for both targets wherever both can have it: several solver
steps before bootstrapping cannot be had with one sample, and a blend of one sample with itself is one sample.
Budgets: short, 192,000 images; long, 384,000. Writes benchmarks/results/digits_levers.json after every run.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from consistune.metrics.scores import scores
from consistune.metrics.suite import Suite
from consistune.models import sample
from consistune.recipe import read_recipe
from consistune.recipe.plan import make_plan
from digits_seeds import ESTIMATORS, POINTS, SAMPLES, kept, opened, teacher

RESULTS = Path(__file__).parent / "results" / "digits_levers.json"
BUDGETS = {
    "short": ["train.images=192_000", "pairs.gap.every_images=32_000", "train.ema=[0.998, 0.999]"],
    "long": ["train.images=384_000", "pairs.gap.every_images=64_000", "train.ema=[0.998, 0.999, 0.9995]"],
}
BOTH = {
    "none": [],
    "cap 31/32": ["pairs.gap.max_ratio=0.96875"],
    "8 stages a halving": ["pairs.gap.stages_per_halving=8"],
    "dropout 0": ["dropout=0.0"],
    "dropout 0.2": ["dropout=0.2"],
    "average target 0.99": ["target={kind: average, mu: 0.99}"],
    "smaller t": ["pairs.mean=-1.6"],
    "rate 2.5e-4": ["optimizer.lr=2.5e-4"],
    "cosine rate": ["optimizer.lr_schedule={kind: cosine}"],
    "Huber 0.03": ["loss.distance={kind: huber, c: 0.03}"],
    "Huber 0.1": ["loss.distance={kind: huber, c: 0.1}"],
    "Huber 0.3": ["loss.distance={kind: huber, c: 0.3}"],
}
CLASS_ALONE = {
    "2 solver steps": ["loss.steps=2"],
    "4 solver steps": ["loss.steps=4"],
    "4 solver steps, cap 15/16": ["loss.steps=4", "pairs.gap.max_ratio=0.9375"],
    "blend below 1/4": [
        "estimator={kind: blend, full_gap: 0.25, estimator: {kind: score-identity, reference: class}}"
    ],
    "blend below 1/16": [
        "estimator={kind: blend, full_gap: 0.0625, estimator: {kind: score-identity, reference: class}}"
    ],
    "32 references": ["estimator={kind: score-identity, reference: class, size: 32}"],
}
Job = tuple[str, str, str, int]


def jobs(seeds: list[int]) -> Iterator[Job]:
    """(budget, estimator, lever, seed), what matters most first."""
    for budget in BUDGETS:
        for seed in seeds:
            yield budget, "class", "4 solver steps", seed
            yield budget, "class", "none", seed
            yield budget, "one-sample", "none", seed
    for seed in seeds:
        for lever in CLASS_ALONE:
            yield "long", "class", lever, seed
        for lever in BOTH:
            yield "long", "class", lever, seed
            yield "long", "one-sample", lever, seed


def keys_of(budget: str, estimator: str, lever: str) -> list[str]:
    """Every override of digits-sct, so that a run can be made again from them alone."""
    return [
        "optimizer.lr=5e-4",
        *BUDGETS[budget],
        ESTIMATORS[estimator],
        *(BOTH | CLASS_ALONE)[lever],
    ]


def run(suite: Suite, start: Path, seed: int, keys: list[str]) -> dict[str, Any]:
    """One training, measured at POINTS points for each decay of the averages.

    `curve` is the fastest `average`'s, as in digits_seeds.json; `slower` holds the others by their decay.
    """
    recipe = read_recipe("digits-sct", [f"start_from={start}", f"train.seed={seed}", *keys])
    trainer = make_plan(recipe).trainer()
    labels = torch.arange(SAMPLES) % 10
    every = trainer.options.images / POINTS
    curves: dict[str, list[dict[str, Any]]] = {f"{decay:g}": [] for decay in trainer.options.ema}
    seconds, began = 0.0, time.process_time()
    for report in trainer.steps():
        if report.images // every != (report.images - trainer.options.batch) // every:
            seconds += time.process_time() - began
            for average, curve in zip(trainer.averages, curves.values(), strict=True):
                drawn = {n: sample(average.model, range(SAMPLES), n, labels) for n in (1, 2)}
                curve.append(
                    {"images": report.images}
                    | {f"steps_{n}": asdict(scores(suite, x, labels)) for n, x in drawn.items()}
                )
            began = time.process_time()
    fastest, *_ = curves
    return {"average": fastest, "curve": curves.pop(fastest), "slower": curves, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--budget", choices=BUDGETS)
    parser.add_argument("--lever", choices=[*BOTH, *CLASS_ALONE])
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks/digits_seeds"))
    arguments = parser.parse_args()
    suite, results = opened(RESULTS)
    done = {(r["budget"], r["estimator"], r["lever"], r["seed"]) for r in results["runs"]}
    for job in jobs(arguments.seeds):
        budget, estimator, lever, seed = job
        if job in done or arguments.budget not in (None, budget) or arguments.lever not in (None, lever):
            continue
        done.add(job)
        keys = keys_of(budget, estimator, lever)
        outcome = run(suite, teacher(seed, arguments.work), seed, keys)
        found = {"budget": budget, "estimator": estimator, "lever": lever, "seed": seed, "keys": keys}
        kept(RESULTS, results, found | outcome, f"{budget}, {estimator}, {lever}, seed {seed}")


if __name__ == "__main__":
    main()
