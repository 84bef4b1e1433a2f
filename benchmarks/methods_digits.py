"""Every method as a recipe on the embedded digits: three seeds, the same teachers and budget.

    python benchmarks/methods_digits.py          about twenty minutes on one core; continues after a stop

192,000 images, batch 128, RAdam 5e-4 for all: no method had a search of its own here, so the table says
what the recipes do as they stand, not which method is best (for ECT against SCT with the same search see
digits_seeds.py, whose runs at this rate are this table's first rows). The cost of an iteration is measured
apart: the recipes in turn, 50 steps at a time, ten rounds, as a ratio to ECT's in the same round.
Writes benchmarks/results/methods_digits.json after every run, and fills the table of docs/methods.md.
"""

import argparse
import json
import time
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import digits_seeds
from consistune.recipe import read_recipe
from consistune.recipe.plan import make_plan
from consistune.system.files import write_atomically
from digits_seeds import kept, opened, run, teacher
from pages import fill

RESULTS = Path(__file__).parent / "results" / "methods_digits.json"
HERE = ("cd", "cm", "ict", "sct-phased")
ELSEWHERE = {"ect": "one-sample", "sct": "class"}


def step_ratios(start: Path, rounds: int = 10, steps: int = 50) -> dict[str, list[float]]:
    """Time of a training step over ECT's, round by round."""
    trainers = {}
    for method in (*ELSEWHERE, *HERE):
        keys = [f"start_from={start}", *([f"estimator.model={start}"] if method == "cd" else [])]
        trainers[method] = make_plan(read_recipe(f"digits-{method}", keys)).trainer().steps()
    ratios: dict[str, list[float]] = {method: [] for method in trainers}
    for number in range(rounds + 1):
        seconds = {}
        for method, reports in trainers.items():
            began = time.perf_counter()
            for _ in range(steps):
                next(reports)
            seconds[method] = time.perf_counter() - began
        if number > 0:  # the first round warms up
            for method, taken in seconds.items():
                ratios[method].append(taken / seconds["ect"])
    return ratios


def ends(runs: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The last point of each run's curve, by method; ECT's and SCT's from digits_seeds.json."""
    seeds = json.loads(digits_seeds.RESULTS.read_text())["runs"]
    same = [r for r in seeds if r["set"] == "search" and r["keys"] == ["optimizer.lr=5e-4"]]
    found = {m: [r["curve"][-1] for r in same if r["estimator"] == e] for m, e in ELSEWHERE.items()}
    return found | {m: [r["curve"][-1] for r in runs if r["method"] == m] for m in HERE}


def table(results: dict[str, Any]) -> str:
    lines = [
        "| recipe | 1 step | 2 steps | 1 step, held-out | an iteration, over ECT's |",
        "|---|---|---|---|---|",
    ]
    for method, curves in ends(results["runs"]).items():
        cells = []
        for steps, measure in ((1, "frechet_train"), (2, "frechet_train"), (1, "frechet_held_out")):
            values = [float(c[f"steps_{steps}"][measure]) for c in curves]
            each = ", ".join(f"{v:.2f}" for v in values)
            cells.append(f"{mean(values):.2f} ± {stdev(values):.2f} ({each})")
        ratios = results["step_ratios"][method]
        cells.append(f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        lines.append(f"| `digits-{method}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks/digits_seeds"))
    arguments = parser.parse_args()
    measure, results = opened(RESULTS)
    done = {(r["method"], r["seed"]) for r in results["runs"]}
    for seed in range(arguments.seeds):
        start = teacher(seed, arguments.work)
        for method in HERE:
            if (method, seed) in done:
                continue
            keys = [f"estimator.model={start}"] if method == "cd" else []
            outcome = run(measure, f"digits-{method}", start, seed, keys)
            found = {"method": method, "seed": seed, **outcome}
            kept(RESULTS, results, found, f"{method} seed {seed}")
    results["step_ratios"] = step_ratios(teacher(0, arguments.work))
    write_atomically(RESULTS, json.dumps(results, indent=1) + "\n")
    fill("methods.md", "digits", table(results))


if __name__ == "__main__":
    main()
