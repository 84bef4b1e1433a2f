"""Which network for the demo's 8×8 digits: the cost of a step, and what equal cost buys.

    python benchmarks/demo_network.py            some minutes on one core

First the consistency step (batch 128) of each network in turn, 10 steps at a time, as a ratio to the
chosen one's in the same round. Then EDM pretraining of each for as many images as cost the same as
768,000 of the chosen network's (by the ratios just measured), and the Fréchet distance of 5,000 samples
in 35 evaluations. One seed: this chooses a default and claims nothing else.
Writes benchmarks/results/demo_network.json.
"""

import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from consistune.metrics.scores import scores
from consistune.models import sample
from consistune.recipe import read_recipe
from consistune.recipe.plan import make_plan
from consistune.system.files import write_atomically
from consistune.system.host import machine
from digits_seeds import SAMPLES, digit_suite

RESULTS = Path(__file__).parent / "results" / "demo_network.json"
CHOSEN = "mlp 256x3"
UNET = "kind: song, channel_mult: [1, 2], num_blocks: 1, attn_resolutions: [], dropout: 0.1"
NETWORKS = {
    "mlp 192x3": "network={kind: mlp, width: 192, blocks: 3, dropout: 0.1}",
    CHOSEN: "network={kind: mlp, width: 256, blocks: 3, dropout: 0.1}",
    "mlp 384x3": "network={kind: mlp, width: 384, blocks: 3, dropout: 0.1}",
    "unet 32": f"network={{{UNET}, model_channels: 32}}",
}
BUDGET = 768_000
"""The demo's pretraining."""


def step_ratios(rounds: int = 7, steps: int = 10) -> dict[str, list[float]]:
    """Time of a consistency step over the chosen network's, round by round."""
    runs = {
        name: make_plan(read_recipe("digits-ect", [key, "start_from=null"])).trainer().steps()
        for name, key in NETWORKS.items()
    }
    ratios: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        seconds = {}
        for name, reports in runs.items():
            began = time.perf_counter()
            for _ in range(steps):
                next(reports)
            seconds[name] = time.perf_counter() - began
        if number > 0:  # the first round warms up
            for name, taken in seconds.items():
                ratios[name].append(taken / seconds[CHOSEN])
    return ratios


def main() -> None:
    torch.set_num_threads(1)
    suite = digit_suite()
    labels = torch.arange(SAMPLES) % 10
    rows: dict[str, Any] = {}
    for name, ratios in step_ratios().items():
        images = int(BUDGET / median(ratios)) // 256 * 256
        plan = make_plan(read_recipe("digits-edm", [NETWORKS[name], f"train.images={images}"]))
        trainer = plan.trainer()
        for _ in trainer.steps():
            pass
        found = scores(suite, sample(trainer.averaged, range(SAMPLES), None, labels), labels)
        rows[name] = {
            "parameters": sum(p.numel() for p in plan.model.parameters()),
            "step_ratios": ratios,
            "images": images,
            "frechet_train": found.frechet_train,
            "frechet_held_out": found.frechet_held_out,
        }
        print(
            f"{name}: {rows[name]['parameters']:,} parameters, step {median(ratios):.2f} of the chosen, "
            f"{images:,} images: {found.frechet_train:.2f} %",
            flush=True,
        )
    results = {"networks": rows, "chosen": CHOSEN, "samples": SAMPLES, "machine": machine()}
    write_atomically(RESULTS, json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
