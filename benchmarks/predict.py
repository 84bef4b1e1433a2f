"""Predicted step times and memory at other batch sizes and on N devices, and how right such predictions are.

    python benchmarks/predict.py check                                   # on this CPU, a minute
    python benchmarks/predict.py gpus STEPS.json --devices 1 8 --link 300e9 --memory 80e9

`check` measures steps of a small U-Net at two batch sizes, predicts two others, and measures those; seconds
are one thread's processor time. Writes results/predict.json. `gpus` reads {"parameters": P, "steps":
[{"batch", "seconds", "bytes"}, …]} measured on one card.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from consistune.bench.predict import Measured, StepModel, state_bytes
from consistune.bench.training import our_step
from consistune.bench.workload import Workload
from consistune.nn.presets import PRESETS
from consistune.system.files import write_atomically
from consistune.system.host import machine

RESULT = Path(__file__).parent / "results" / "predict.json"
SMALL = {
    "kind": "song",
    "image_shape": (3, 16, 16),
    "model_channels": 64,
    "channel_mult": (1, 2),
    "num_blocks": 2,
}


def seconds(batch: int, repeats: int = 5) -> float:
    """The median step of the small network."""
    step = our_step(Workload("small", batch), "fp32")
    step()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        step()
        times.append(time.process_time() - start)
    return statistics.median(times)


def check() -> dict[str, Any]:
    PRESETS["small"] = {"network": SMALL, "precond": {"kind": "edm"}}
    torch.set_num_threads(1)
    fitted_on, predicted_for = (4, 16), (8, 32)
    steps = [Measured(batch, seconds(batch), 0.0) for batch in fitted_on]
    parameters = sum(p.numel() for p in Workload("small", 1).model().parameters())
    model = StepModel.fitted(parameters, steps)
    rows = []
    for batch in predicted_for:
        predicted, measured = model.seconds(batch), seconds(batch)
        rows.append({
            "batch": batch,
            "predicted": round(predicted, 4),
            "measured": round(measured, 4),
            "predicted / measured": round(predicted / measured, 3),
        })  # fmt: skip
    given = [{"batch": step.batch, "seconds": round(step.seconds, 4)} for step in steps]
    return {"machine": machine(), "parameters": parameters, "fitted on": given, "check": rows}


def gpus(file: Path, devices: list[int], link: float, memory: float) -> dict[str, Any]:
    given = json.loads(file.read_text())
    model = StepModel.fitted(given["parameters"], [Measured(**step) for step in given["steps"]])
    batch = max(step["batch"] for step in given["steps"])
    return {
        "these are": "predictions",
        "largest batch on a device": model.largest_batch(memory),
        "state, GB": state_bytes(model.parameters) / 1e9,
        "devices": {
            n: {
                "images a second": n * batch / model.seconds(n * batch, n, link),
                "efficiency": model.efficiency(n * batch, n, link),
            }
            for n in devices
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("check")
    cards = commands.add_parser("gpus")
    cards.add_argument("file", type=Path)
    cards.add_argument("--devices", type=int, nargs="+", default=[1, 8])
    cards.add_argument("--link", type=float, default=300e9)
    cards.add_argument("--memory", type=float, default=80e9)
    given = parser.parse_args()
    if given.command == "check":
        result = check()
        write_atomically(RESULT, json.dumps(result, indent=1) + "\n")
    else:
        result = gpus(given.file, given.devices, given.link, given.memory)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
