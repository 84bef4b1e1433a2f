"""ECT against SCT on the embedded digits: three seeds, the same budget and the same search for both.

    python benchmarks/digits_seeds.py            about an hour on one core; continues after a stop

Three questions, each a set of runs from the same three teachers (one a seed):
  search   1-step and 2-step distance for three learning rates, one-sample and class references (and
           batch references at the middle rate), 192,000 images, six stages
  end      twice the budget at the middle rate: what the end of the schedule does, and what a cap on r/t
           (max_ratio) does to it
Writes benchmarks/results/digits_seeds.json after every run.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from consistune.data.images import digits
from consistune.metrics.scores import score_suite, scores
from consistune.metrics.suite import Suite
from consistune.models import sample
from consistune.nn import store
from consistune.recipe import read_recipe
from consistune.recipe.plan import make_plan
from consistune.system.files import write_atomically
from consistune.system.host import machine

RESULTS = Path(__file__).parent / "results" / "digits_seeds.json"
SAMPLES, POINTS = 5000, 8
ESTIMATORS = {
    "one-sample": "estimator={kind: one-sample}",
    "batch": "estimator={kind: score-identity, reference: batch}",
    "class": "estimator={kind: score-identity, reference: class}",
}


def jobs(seeds: int) -> Iterator[tuple[str, str, int, list[str]]]:
    """(set, estimator, seed, overrides), what matters most first."""
    for seed in range(seeds):
        for estimator in ESTIMATORS:
            yield "search", estimator, seed, ["optimizer.lr=5e-4"]
    long = ["optimizer.lr=5e-4", "train.images=384_000", "pairs.gap.every_images=64_000"]
    for cap in ("1.0", "0.9375"):
        for seed in range(seeds):
            for estimator in ("one-sample", "class"):
                yield "end", estimator, seed, [*long, f"pairs.gap.max_ratio={cap}"]
    for seed in range(seeds):
        for rate in ("2e-4", "1e-3"):
            for estimator in ("one-sample", "class"):
                yield "search", estimator, seed, [f"optimizer.lr={rate}"]


def teacher(seed: int, folder: Path) -> Path:
    path = folder / f"teacher-{seed}"
    if not path.exists():
        trainer = make_plan(read_recipe("digits-edm", [f"train.seed={seed}"])).trainer()
        for _ in trainer.steps():
            pass
        store.save(trainer.averaged, path)
    return path


def run(suite: Suite, name: str, start: Path, seed: int, keys: list[str]) -> dict[str, Any]:
    """Tune once by a recipe; the distance at POINTS points of the way, and the training's own seconds."""
    recipe = read_recipe(name, [f"start_from={start}", f"train.seed={seed}", *keys])
    trainer = make_plan(recipe).trainer()
    labels = torch.arange(SAMPLES) % 10
    every = trainer.options.images / POINTS
    curve, seconds, began = [], 0.0, time.perf_counter()
    for report in trainer.steps():
        if report.images // every != (report.images - trainer.options.batch) // every:
            seconds += time.perf_counter() - began
            drawn = {n: sample(trainer.averaged, range(SAMPLES), n, labels) for n in (1, 2)}
            curve.append(
                {
                    "images": report.images,
                    **{f"steps_{n}": asdict(scores(suite, x, labels)) for n, x in drawn.items()},
                }
            )
            began = time.perf_counter()
    return {"curve": curve, "seconds": seconds, "nonfinite": trainer.nonfinite_total}


def digit_suite() -> Suite:
    return score_suite(digits(), "classifier")


def opened(path: Path, threads: int = 1) -> tuple[Suite, dict[str, Any]]:
    """The suite, and the results so far, of a benchmark on so many threads that goes on after a stop."""
    torch.set_num_threads(threads)
    results = json.loads(path.read_text()) if path.exists() else {"runs": []}
    return digit_suite(), results | {"samples": SAMPLES, "machine": machine()}


def kept(path: Path, results: dict[str, Any], run: dict[str, Any], about: str) -> None:
    """Write the results with one more run, and say how it ended."""
    results["runs"].append(run)
    write_atomically(path, json.dumps(results, indent=1) + "\n")
    one, two = (run["curve"][-1][f"steps_{steps}"]["frechet_train"] for steps in (1, 2))
    print(f"{about}: {one:.2f} / {two:.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks/digits_seeds"))
    arguments = parser.parse_args()
    suite, results = opened(RESULTS, arguments.threads)
    done = {(r["set"], r["estimator"], r["seed"], *r["keys"]) for r in results["runs"]}
    for name, estimator, seed, keys in jobs(arguments.seeds):
        if (name, estimator, seed, *keys) in done:
            continue
        every_key = [ESTIMATORS[estimator], *keys]
        outcome = run(suite, "digits-sct", teacher(seed, arguments.work), seed, every_key)
        found = {"set": name, "estimator": estimator, "seed": seed, "keys": keys, **outcome}
        kept(RESULTS, results, found, f"{name} {estimator} seed {seed} {' '.join(keys)}")


if __name__ == "__main__":
    main()
