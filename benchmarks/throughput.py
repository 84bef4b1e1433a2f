"""Consistency steps a second, and the memory they take, for each network that fits here, in fp32 and bf16.

A step is a whole one: two evaluations (one with gradients), the optimizer, one average. Half-way through
training, so that the target is really evaluated. Each case runs in a process of its own, whose largest
resident memory is the peak. One thread, in the process's CPU time, which other work on the machine lengthens
least; the first step is not timed.

Writes results/throughput.json and the table in docs/recipes.md.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from consistune.core.estimators import OneSample
from consistune.core.noise import EDM
from consistune.core.objectives import Consistency
from consistune.core.times import LogNormalPairs, SigmoidGap
from consistune.data.images import ImageSet
from consistune.nn import store
from consistune.nn.precond import Preconditioned
from consistune.nn.presets import preset
from consistune.recipe import build, read_recipe
from consistune.system.host import machine, peak_bytes
from consistune.train.loop import Trainer
from consistune.train.optim import Optimizer
from consistune.train.options import TrainOptions
from pages import fill

RESULT = Path(__file__).parent / "results" / "throughput.json"
CASES = {
    "digits-edm": ("the recipes' network", 128, 20),
    "mnist10k-edm": ("the recipes' network", 64, 8),
    "emoji32-edm": ("the recipes' network", 16, 3),
    "edm-cifar10-ddpmpp": ("CIFAR-10's DDPM++", 2, 3),
    "emoji64-edm2": ("the recipes' network", 2, 3),
    "edm-imagenet64-adm": ("ImageNet-64's ADM", 1, 2),
    "edm2-img64-s": ("EDM2's S", 1, 2),
}
"""Recipe or preset → what it is, images a step, timed steps."""
SHAPES = {"digits-edm": (1, 8, 8), "mnist10k-edm": (1, 32, 32), "emoji32-edm": (3, 32, 32)}


def network(name: str) -> Preconditioned:
    if not name.endswith(("-edm", "emoji64-edm2")):
        return preset(name)
    section: Any = read_recipe(name).network
    made = build(section, "network", image_shape=SHAPES.get(name, (3, 64, 64)), num_classes=10)
    config = {"network": {"kind": section.kind, **made.options}, "precond": {"kind": "edm"}}
    return store.build(config)


def one(name: str, precision: str) -> dict[str, Any]:
    """Run one case in this process."""
    _, batch, steps = CASES[name]
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = network(name)
    classes = model.num_classes or 1
    images = torch.randint(256, (2 * batch, *model.image_shape), dtype=torch.uint8)
    labels = torch.arange(2 * batch) % classes
    data = ImageSet.of("noise", images, labels, tuple(str(c) for c in range(classes)))
    options = TrainOptions(images=1_000_000, batch=batch, precision=precision)  # type: ignore[arg-type]
    pairs = LogNormalPairs(gap=SigmoidGap(q=2, every_images=100_000))
    objective = Consistency(EDM(), pairs, OneSample())
    trainer = Trainer(model, objective, data, Optimizer("adam", 1e-5), options)
    trainer.images = options.images // 2
    taken = trainer.steps()
    next(taken)
    seconds = []
    for _ in range(steps):
        began = time.process_time()
        next(taken)
        seconds.append(time.process_time() - began)
    return {
        "network": name,
        "what": CASES[name][0],
        "precision": precision,
        "batch": batch,
        "parameters": sum(p.numel() for p in model.parameters()),
        "images_per_second": round(batch / statistics.median(seconds), 3),
        "seconds_per_step": [round(value, 4) for value in seconds],
        "peak_mib": round(peak_bytes() / 2**20),
    }


def table(result: dict[str, Any]) -> str:
    lines = [
        "| network | parameters | images a step | fp32, images/s | memory | bf16, images/s | memory |",
        "|---|---|---|---|---|---|---|",
    ]
    rows = {(row["network"], row["precision"]): row for row in result["cases"]}
    for name in (case for case in CASES if (case, "fp32") in rows):
        row = rows[name, "fp32"]
        cells = [f"`{name}`", f"{row['parameters'] / 1e6:,.1f} M", str(row["batch"])]
        for precision in ("fp32", "bf16"):
            found = rows.get((name, precision))
            speed = _speed(found["images_per_second"]) if found else "–"
            cells += [speed, f"{found['peak_mib'] / 1024:.2f} GiB" if found else "–"]
        lines.append(f"| {' | '.join(cells)} |")
    about = (
        f"One thread of {result['cpu']}, torch {result['torch']}, in processor time; medians of 2 to 20 "
        "steps, one run each; memory is the process's peak. The MLP computes in fp32 alone."
    )
    return "\n".join([*lines, "", about])


def _speed(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", nargs=2, metavar=("NAME", "PRECISION"))
    parser.add_argument("--only", nargs="*", default=list(CASES), help="measure these and keep the rest")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(*given.one)))
        return
    found = json.loads(RESULT.read_text())["cases"] if RESULT.exists() else []
    cases = {(row["network"], row["precision"]): row for row in found}
    for name in given.only:
        for precision in ("fp32",) if name == "digits-edm" else ("fp32", "bf16"):
            command = [sys.executable, __file__, "--one", name, precision]
            row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            print(row, flush=True)
            cases[name, precision] = row
    order = {name: index for index, name in enumerate(CASES)}
    result = {
        "what": "training steps of a consistency model, data random, one process",
        "machine": machine() | {"threads": 1},  # of the processes that measure
        "cases": sorted(cases.values(), key=lambda row: (order[row["network"]], row["precision"])),
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    fill("recipes.md", "throughput", table(result))


if __name__ == "__main__":
    main()
