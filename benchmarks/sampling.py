"""One-step sampling of DDPM++ at 32×32 against diffusers' ConsistencyModelPipeline, used as it is documented.

    python benchmarks/sampling.py [--threads 2] [--compile]

The peer's UNet2DModel has random weights and as many parameters (±5 %); ours in fp32 and bf16 (channels
last), in ONNX Runtime, and with --compile through torch.compile. Adds to results/sampling.json.
"""

import argparse
import json
from pathlib import Path

import torch

from consistune.bench.sampling import against_peer
from consistune.system.files import write_atomically
from consistune.system.host import machine

RESULT = Path(__file__).parent / "results" / "sampling.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--compile", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    measured = {"machine": machine(), **against_peer(tuple(given.batches), given.rounds, given.compile)}
    results = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    results[f"{given.threads} threads"] = measured
    write_atomically(RESULT, json.dumps(results, indent=1) + "\n")
    print(json.dumps(measured, indent=1))


if __name__ == "__main__":
    main()
