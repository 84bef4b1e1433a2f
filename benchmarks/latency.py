"""How long a user waits: from a cold start, and from noise to pixels in one step.

    python benchmarks/latency.py startup [--rounds 7]
    python benchmarks/latency.py sampling [--threads 2] [--batches 1 16] [--compile]

startup: `consistune --help`, and `consistune sample` of 64 images of a digits model, from a cold process, and
  their imports.
sampling: DDPM++ at 32×32 against diffusers' ConsistencyModelPipeline, used as its documentation shows. The
  peer's UNet2DModel has random weights and as many parameters (±5 %). Ours runs in fp32 and bf16 (channels
  last), in ONNX Runtime, and with --compile through torch.compile. The images of all our forms are compared
  before they are timed.
"""

import re
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import torch

from consistune.bench import sampling as forms_of
from consistune.bench import startup as commands_of
from consistune.bench.timing import alternate, ratio
from consistune.bench.workload import Workload
from consistune.system.host import machine
from harness import Benchmark, Record

IMPORT = re.compile(r"import time:\s*(\d+) \|\s*(\d+) \|( *)(\S+)")
"""A line of `python -X importtime`: own and cumulative microseconds, indentation, module."""

benchmark = Benchmark(__doc__)
benchmark.parser.add_argument("--batches", type=int, nargs="+", default=[1, 16], help="of sampling")
benchmark.parser.add_argument("--compile", action="store_true", help="sampling through torch.compile too")


def imports_of(words: Sequence[str], at_least: float = 0.02) -> dict[str, float]:
    """Seconds of each package that `consistune …` imports, nested imports included, longest first.

    Packages below `at_least` seconds are left out.
    """
    packages: dict[str, float] = {}
    for _, total, _, name in IMPORT.findall(commands_of.run(words, "-X", "importtime")):
        package = name.partition(".")[0]
        packages[package] = max(packages.get(package, 0.0), int(total) / 1e6)
    long = {name: round(seconds, 3) for name, seconds in packages.items() if seconds >= at_least}
    return dict(sorted(long.items(), key=lambda item: -item[1]))


@benchmark.section("startup.json", rounds=7, threads=2)
def startup(given: Namespace) -> Record:
    with tempfile.TemporaryDirectory() as folder:
        commands = commands_of.commands(Path(folder))
        times = commands_of.timed(commands, given.rounds)
        imports = {name: imports_of(words) for name, words in commands.items()}
    empty = {"python": lambda: subprocess.run([sys.executable, "-c", "pass"], check=True)}
    return {
        "machine": machine(),
        "times": {name: timing.record() for name, timing in times.items()},
        "imports": imports,
        "interpreter": round(alternate(empty, given.rounds, warmup=0)["python"].median, 4),
    }


@benchmark.section("sampling.json", rounds=5, threads=2)
def sampling(given: Namespace) -> Record:
    model = Workload("edm-cifar10-ddpmpp", 1).model().eval()
    ours = {f"ours, {word}": forms_of.ours(model, word) for word in ("fp32", "bf16")}
    ours["ours, ONNX Runtime fp32"] = forms_of.onnx_runtime(model)
    if given.compile:
        ours |= {
            f"ours, {word} compiled": forms_of.ours(model, word, compiled=True) for word in ("fp32", "bf16")
        }
    levels = forms_of.checked(ours)
    peer, network = forms_of.peer(32)
    batches = {}
    for batch in given.batches[:1] if given.quick else given.batches:
        times = forms_of.timed({**ours, forms_of.PEER: peer}, batch, given.rounds)
        batches[str(batch)] = {
            "times": {name: timing.record(batch) for name, timing in times.items()},
            "times as fast as the peer": {
                name: ratio(times[forms_of.PEER], times[name]).record() for name in ours
            },
        }
    x = torch.randn(1, 3, 32, 32)
    sizes = {
        name: {"parameters": sum(p.numel() for p in net.parameters()), "flops": forms_of.flops(net, x, time)}
        for name, net, time in (
            ("ours", model, torch.tensor([80.0])),
            (forms_of.PEER, network, torch.tensor([10.0])),
        )
    }
    measured = {"machine": machine(), "sizes": sizes, "pixel levels off": levels, "batches": batches}
    return {f"{torch.get_num_threads()} threads": measured}


if __name__ == "__main__":
    benchmark.main()
