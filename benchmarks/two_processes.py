"""What a second process brings: a step of N images on each of two processes against one of N on one.

    python benchmarks/two_processes.py [--preset edm-cifar10-ddpmpp] [--batch 4] [--rounds 3] [--cores 0 1]

Two processes of one thread, each on a core of its own. In turns, each a whole step of the Trainer in fp32:
`alone`, the first while the second waits; `side by side`, both and no exchange, which is what the machine's
shared memory and clock leave; `together`, both on one batch of 2N, gradients averaged over gloo (DDP). The
slower process counts. The efficiency is a time alone over the same round's. First, after a step together,
both must hold the same weights, other than those they started from. Writes results/two_processes.json and
its table in docs/performance.md.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing import spawn

from consistune.bench.timing import Timing, ratio
from consistune.bench.training import trainer_of
from consistune.bench.workload import Workload
from consistune.system.files import write_atomically
from consistune.system.host import machine
from consistune.system.processes import Processes
from consistune.train.loop import Trainer
from tables import fill, span

RESULT = Path(__file__).parent / "results" / "two_processes.json"
COUNT = 2
TURNS = ("alone", "side by side", "together")


def process(rank: int, folder: str, given: argparse.Namespace) -> None:
    """One of both: its steps' seconds, a list a turn, as JSON into the folder."""
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {given.cores[rank]})
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=COUNT)
    workload, cpu = Workload(given.preset, given.batch), torch.device("cpu")
    single = trainer_of(workload, "fp32", processes=Processes(cpu))
    pair = trainer_of(
        Workload(given.preset, COUNT * given.batch), "fp32", processes=Processes(cpu, rank, COUNT)
    )
    lonely, shared = single.steps(), pair.steps()
    calls: dict[str, Callable[[], object]] = {
        "alone": lambda: next(lonely) if rank == 0 else None,
        "side by side": lambda: next(lonely),
        "together": lambda: next(shared),
    }
    check(pair, calls["together"])
    seconds: dict[str, list[float]] = {name: [] for name in TURNS}
    for turn in range(-1, given.rounds):
        for name, call in calls.items():
            dist.barrier()
            start = time.perf_counter()
            call()
            if turn >= 0:
                seconds[name].append(time.perf_counter() - start)
    Path(f"{folder}/{rank}.json").write_text(json.dumps(seconds))
    dist.destroy_process_group()


def check(trainer: Trainer, step: Callable[[], object]) -> None:
    """Take a step. Raises RuntimeError unless it changes the weights, and both processes' alike."""
    before = digest(trainer)
    step()
    mine = digest(trainer)
    every = [torch.empty_like(mine) for _ in range(COUNT)]
    dist.all_gather(every, mine)
    if torch.equal(mine, before) or not all(torch.equal(other, mine) for other in every):
        raise RuntimeError("a step together did not leave both processes with the same new weights")


def digest(trainer: Trainer) -> torch.Tensor:
    """The sum and the sum of squares of each parameter, [P, 2]."""
    parameters = [p.detach().double() for p in trainer.model.parameters()]
    return torch.stack([torch.stack([p.sum(), p.square().sum()]) for p in parameters])


def summary(seconds: list[dict[str, list[float]]]) -> dict[str, Any]:
    """Of both processes' seconds: the slower of each round, and a time alone over it."""
    alone = Timing(tuple(seconds[0]["alone"]))
    both = {
        name: Timing(tuple(max(pair) for pair in zip(*(s[name] for s in seconds), strict=True)))
        for name in TURNS[1:]
    }
    return {
        "seconds": {name: timing.record() for name, timing in {"alone": alone, **both}.items()},
        "efficiency": {name: ratio(alone, timing).record() for name, timing in both.items()},
    }


def markdown(result: dict[str, Any]) -> str:
    batch, found = result["batch a process"], result["seconds"]
    images = {"alone": batch, "side by side": COUNT * batch, "together": COUNT * batch}
    lines = ["| | seconds a step | images a second | efficiency |", "|---|---|---|---|"]
    for name in TURNS:
        share = result["efficiency"].get(name)
        cell = "1" if share is None else span(share)
        median = found[name]["median"]
        lines.append(f"| {name} | {median:.2f} | {images[name] / median:.2f} | {cell} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="edm-cifar10-ddpmpp")
    parser.add_argument("--batch", type=int, default=4, help="a process")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", type=int, nargs=COUNT, default=[0, 1])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        spawn(process, (folder, given), nprocs=COUNT)
        seconds = [json.loads(Path(f"{folder}/{rank}.json").read_text()) for rank in range(COUNT)]
    torch.set_num_threads(1)
    result = {"machine": machine(), "preset": given.preset, "batch a process": given.batch} | summary(seconds)
    write_atomically(RESULT, json.dumps(result, indent=1) + "\n")
    fill("performance.md", "two processes", markdown(result))
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
