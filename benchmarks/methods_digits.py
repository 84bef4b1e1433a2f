"""Every method as a recipe on the embedded digits: three seeds, the same teachers and budget.

    python benchmarks/methods_digits.py          about half an hour on one core; continues after a stop

192,000 images, batch 128, RAdam 5e-4 for all: no method had a search of its own here, so the table says
what the recipes do as they stand, not which method is best (for ECT against SCT with the same search see
digits_seeds.py). Seconds are of training alone; read them as ratios to ECT's.
Writes benchmarks/results/methods_digits.json after every run and docs/methods-table.md.
"""

import argparse
import json
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import torch

from digits_seeds import SAMPLES, digit_measure, machine, run, teacher
from sct.files import write_atomically

RESULTS = Path(__file__).parent / "results" / "methods_digits.json"
TABLE = Path(__file__).resolve().parents[1] / "docs" / "methods-table.md"
METHODS = ("ect", "sct", "cd", "cm", "ict", "sct-phased")


def table(runs: list[dict[str, Any]]) -> str:
    lines = [
        "| recipe | 1 step | 2 steps | 1 step, held-out | time an iteration, over ECT's |",
        "|---|---|---|---|---|",
    ]
    seconds = {m: median(r["seconds"] for r in runs if r["method"] == m) for m in METHODS}
    for method in METHODS:
        curves = [r["curve"][-1] for r in runs if r["method"] == method]
        cells = []
        for steps, measure in ((1, "frechet_train"), (2, "frechet_train"), (1, "frechet_held_out")):
            values = [float(c[f"steps_{steps}"][measure]) for c in curves]
            each = ", ".join(f"{v:.2f}" for v in values)
            cells.append(f"{mean(values):.2f} ± {stdev(values):.2f} ({each})")
        lines.append(f"| `digits-{method}` | {' | '.join(cells)} | {seconds[method] / seconds['ect']:.2f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks/digits_seeds"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    measure = digit_measure()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"runs": []}
    results |= {"samples": SAMPLES, "machine": machine(1)}
    done = {(r["method"], r["seed"]) for r in results["runs"]}
    for seed in range(arguments.seeds):
        start = teacher(seed, arguments.work)
        for method in METHODS:
            if (method, seed) in done:
                continue
            keys = [f"estimator.model={start}"] if method == "cd" else []
            outcome = run(measure, f"digits-{method}", start, seed, keys)
            results["runs"].append({"method": method, "seed": seed, **outcome})
            write_atomically(RESULTS, json.dumps(results, indent=1) + "\n")
            last = outcome["curve"][-1]
            print(
                f"{method} seed {seed}: {last['steps_1']['frechet_train']:.2f} / "
                f"{last['steps_2']['frechet_train']:.2f}, {outcome['seconds']:.0f} s",
                flush=True,
            )
    write_atomically(TABLE, table(results["runs"]))


if __name__ == "__main__":
    main()
