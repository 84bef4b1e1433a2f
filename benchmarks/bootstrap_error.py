"""What the bootstrap sees as r → t: the parts of the TD error of ECT's and SCT's students on the digits.

    python benchmarks/bootstrap_error.py         minutes on one core; continues after a stop

Trains the long runs of digits_seeds (384,000 images, no cap) on one seed and keeps the averaged model after
stages 3, 4, 5 and 6. On the training set as the data the flow is known exactly (the score identity over
a class's images), so at a fixed x_t the TD error f(x_t, t) − f(x_r, r) falls into three parts, as root mean
squares:

    own     f(x_t, t) − f(x_r, r), x_r on the exact flow: the network's inconsistency, all there is to learn
    euler   f(x_r, r) at the exact x_r − at one Euler step's: the discretisation
    noise   f(x_r, r) at the score identity's x_r − at one-sample's: the scatter that SCT takes away

and end is f(x_t, t) − the exact end of the trajectory. Writes benchmarks/results/bootstrap_error.json.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from consistune.analyze.worlds import Empirical
from consistune.core.estimators import OneSample, ScoreIdentity
from consistune.core.noise import EDM
from consistune.core.objectives import gaussian_like
from consistune.core.solve import solve
from consistune.data.images import digits
from consistune.nn import store
from consistune.nn.precond import Preconditioned
from consistune.recipe import read_recipe
from consistune.recipe.plan import make_plan
from consistune.system.files import write_atomically
from consistune.system.host import machine
from digits import read_study, teacher

RESULTS = Path(__file__).parent / "results" / "bootstrap_error.json"
LONG = ["optimizer.lr=5e-4", "train.images=384_000", "pairs.gap.every_images=64_000"]
ESTIMATORS = read_study("digits_seeds").factors["estimator"]
RUNS = {name: ESTIMATORS[name] for name in ("class", "one-sample")}
STAGES = (3, 4, 5, 6)
TIMES = (0.2, 0.4, 0.8, 1.5, 3.0, 10.0, 80.0)
GAPS = (1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64)
QUERIES = 256


def students(name: str, seed: int, work: Path) -> Path:
    """The folder of one run's averaged models, trained if it is not there."""
    folder = work / f"{name}-{seed}"
    if (folder / f"stage-{STAGES[-1]}").exists():
        return folder
    keys = [f"start_from={teacher(seed, work)}", f"train.seed={seed}", *LONG, *RUNS[name]]
    trainer = make_plan(read_recipe("digits-sct", keys)).trainer()
    for report in trainer.steps():
        for stage in STAGES:
            if report.images == stage * 64_000:
                store.save(trainer.averaged, folder / f"stage-{stage}")
    return folder


def measured(model: Preconditioned, seed: int = 0) -> list[dict[str, float]]:
    """A row for each t and gap 1 − r/t; the same x_t for every model."""
    train, schedule = digits().train, EDM()
    world = Empirical(train.images, train.labels, schedule)
    exact = ScoreIdentity(schedule, world.reference)
    rows = []
    for t in TIMES:
        generator = torch.Generator().manual_seed(seed)
        batch = world.draw(QUERIES, generator)
        times = torch.full((QUERIES,), t)
        x_t = schedule.diffuse(batch.x_0, gaussian_like(batch.x_0, generator), times)
        found = model(x_t, times, batch.condition)
        end = solve(schedule, exact, x_t, times, torch.zeros_like(times), batch, 40, "heun")
        for gap in GAPS:
            r = times * (1 - gap)
            on_flow, euler, one = (
                model(solve(schedule, *call), r, batch.condition)
                for call in (
                    (exact, x_t, times, r, batch, 4, "heun"),
                    (exact, x_t, times, r, batch),
                    (OneSample(), x_t, times, r, batch),
                )
            )
            rows.append(
                {"t": t, "gap": gap, "end": rms(found - end), "own": rms(found - on_flow)}
                | {"euler": rms(on_flow - euler), "noise": rms(euler - one)}
                | {"class": rms(found - euler), "one-sample": rms(found - one)}
            )
    return rows


def rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {
        "queries": QUERIES,
        "seed": arguments.seed,
        "machine": machine(),
        "models": [],
    }
    for name in RUNS:
        began = time.process_time()
        folder = students(name, arguments.seed, arguments.work)
        for stage in STAGES:
            with torch.no_grad():
                rows = measured(store.load(folder / f"stage-{stage}"))
            results["models"].append({"run": name, "stage": stage, "rows": rows})
        write_atomically(RESULTS, json.dumps(results, indent=1) + "\n")
        print(f"{name}: {time.process_time() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
