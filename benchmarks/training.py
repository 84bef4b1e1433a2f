"""A training step against the same step written plainly, on two processes, and as predicted.

    python benchmarks/training.py step --preset edm-cifar10-ddpmpp --batch 8
    python benchmarks/training.py levers
    python benchmarks/training.py memory --batch 16
    python benchmarks/training.py two-processes --batch 4 [--cores 0 1]
    python benchmarks/training.py predict

step: the Trainer's whole step (images, noise, both passes, gradient norm, RAdam, average) in fp32 and bf16
  against `consistune.bench.plain`, after their losses and gradients were compared.
levers: DDPM++ at 32×32, one change at a time.
memory: peaks, each in a process of its own.
two-processes: a step of N images on each of two processes of one thread, each on a core of its own, in turns:
  `alone`, the first process while the second waits; `side by side`, both without an exchange, which shows
  what they lose to shared memory and clock; `together`, both on one batch of 2N, gradients averaged over gloo
  (DDP). The slower process counts. The efficiency is the time alone over that of the same round.
predict: steps of a small U-Net at two batch sizes, from which two others are predicted and then measured.
"""

import os
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from consistune.bench.plain import PlainLoop
from consistune.bench.timing import Timing, alternate, ratio
from consistune.bench.training import (
    FORMS,
    PLAIN,
    TOLERANCE,
    against_plain,
    our_step,
    plain_step,
    trainer_of,
)
from consistune.bench.training import peaks as peaks_of
from consistune.bench.workload import StepInputs, Workload
from consistune.core.types import expand
from consistune.nn import blocks, magnitude
from consistune.nn.lean import Dropout
from consistune.recipe.cost import kept_for_gradient
from consistune.system.host import machine
from consistune.system.processes import Processes
from consistune.training.loop import Trainer
from harness import FREED_AT_ONCE, Benchmark, Record, clock, in_pair
from step_model import BYTES_PER_PARAMETER, MeasuredStep, StepModel, state_bytes
from tables import markdown

SMALL = {
    "network": {
        "kind": "song",
        "image_shape": (3, 16, 16),
        "model_channels": 64,
        "channel_mult": (1, 2),
        "num_blocks": 2,
    },
    "precond": {"kind": "edm"},
}
TURNS = ("alone", "side by side", "together")
benchmark = Benchmark(__doc__)
add = benchmark.parser.add_argument
add("--preset", default="edm-cifar10-ddpmpp")
add("--batch", type=int, default=8, help="images of a step, of each process")
add("--forms", nargs="+", default=list(FORMS), choices=list(FORMS), help="of memory")
add("--cores", type=int, nargs=2, default=[0, 1], help="of two-processes")


def small(batch: int) -> Workload:
    return Workload("small", batch, config=SMALL)


def workload_of(given: Namespace) -> Workload:
    return small(4) if given.quick else Workload(given.preset, given.batch)


@benchmark.section("training_step.json", threads=2)
def step(given: Namespace) -> Record:
    workload = workload_of(given)
    errors, times = against_plain(workload, given.rounds, clock())
    measured = {
        "machine": machine(),
        "clock": clock().__name__,
        "batch": workload.batch,
        "errors": {word: vars(error) for word, error in errors.items()},
        "times": {name: timing.record(workload.batch) for name, timing in times.items()},
        "times as fast": {word: ratio(times["plain"], times[word]).record() for word in errors},
    }
    return {f"step {workload.preset}": measured}


# --- levers


def passes(workload: Workload, how: str) -> Callable[[], object]:
    """Two forward passes and a backward in fp32, channels last; the target's pass in one of three ways."""
    model = workload.model().train().to(memory_format=torch.channels_last)
    inputs = StepInputs.of(model, workload.batch)
    t, r = inputs.times.t, inputs.times.r
    x_t, x_r = (inputs.x_0 + expand(u, inputs.x_0) * inputs.noise for u in (t, r))

    def run() -> None:
        model.zero_grad()
        if how == "one batched pass":
            f_t, f_r = model(torch.cat([x_t, x_r]), torch.cat([t, r])).chunk(2)
        else:
            f_t = model(x_t, t)
            with torch.inference_mode() if how == "inference mode" else torch.no_grad():
                f_r = model(x_r, r)
            f_r = f_r.clone()
        (f_t - f_r.detach()).square().mean().backward()

    return run


def with_other(
    run: Callable[[], object], attributes: dict[Any, str], other: Callable
) -> Callable[[], object]:
    """The call while these attributes {owner: name} are another function."""

    def changed() -> None:
        own = {owner: getattr(owner, name) for owner, name in attributes.items()}
        for owner, name in attributes.items():
            setattr(owner, name, other)
        try:
            run()
        finally:
            for owner, name in attributes.items():
                setattr(owner, name, own[owner])

    return changed


def bernoulli(layer: Dropout, like: Tensor) -> Tensor:
    """A mask from torch's own Bernoulli numbers."""
    return torch.empty_like(like, dtype=torch.bool).bernoulli_(1 - layer.p)


def keep_all(function: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """A replacement of `recomputed` that keeps all activations."""
    return function(*inputs)


@benchmark.section("training_step.json", threads=2)
def levers(given: Namespace) -> Record:
    workload = workload_of(given)
    regions = {blocks: "recomputed", magnitude: "recomputed"}
    fp32, bf16 = (our_step(workload, word) for word in TOLERANCE)
    steps = {
        "plain": plain_step(workload),
        "our parts, fp32": our_step(workload, "fp32", channels_last=False),
        "+ channels last": fp32,
        "+ bf16 products": bf16,
        "fp32, all activations kept": with_other(fp32, regions, keep_all),
        "bf16, all activations kept": with_other(bf16, regions, keep_all),
        "bf16, torch's Bernoulli mask": with_other(bf16, {Dropout: "mask"}, bernoulli),
        "bf16, checkpointing": our_step(workload, "bf16", checkpointing=True),
    }
    forms = {how: passes(workload, how) for how in ("no_grad", "inference mode", "one batched pass")}
    times = {
        part: {name: timing.record() for name, timing in alternate(runs, given.rounds, clock=clock()).items()}
        for part, runs in (("steps", steps), ("passes", forms))
    }
    about = {"machine": machine(), "clock": clock().__name__, "batch": workload.batch}
    return {"levers": about | times}


# --- memory


def kept(workload: Workload, form: str) -> int:
    """Bytes that a forward pass of this form keeps for the backward pass, without the weights."""
    if form == PLAIN:
        loop = PlainLoop(workload.model())
        with kept_for_gradient(loop.model) as found:
            loop.step(StepInputs.of(loop.model, workload.batch))
    else:
        trainer = trainer_of(workload, **FORMS[form])
        with kept_for_gradient(trainer.model) as found:
            next(trainer.steps())
    return found[0]


@benchmark.section("training_step.json")
def memory(given: Namespace) -> Record:
    """Peak bytes as the system counts them, the same with freed memory returned at once, and their parts."""
    workload = workload_of(given)
    forms = given.forms[:1] if given.quick else given.forms
    parameters = sum(p.numel() for p in workload.model().parameters())
    measured = {
        "batch": workload.batch,
        "state": state_bytes(parameters),
        "gradients": BYTES_PER_PARAMETER * parameters,
        "kept": {form: kept(workload, form) for form in (PLAIN, *forms)},
        "forms": peaks_of(workload, forms),
        "forms, freed memory given back": peaks_of(workload, forms, FREED_AT_ONCE),
    }
    return {f"memory {workload.preset}, batch {workload.batch}": measured}


# --- two processes


def of_pair(rank: int, workload: Workload, rounds: int, cores: list[int]) -> dict[str, tuple[float, ...]]:
    """One process of the pair: its seconds of each turn."""
    os.sched_setaffinity(0, {cores[rank]})
    cpu, both = torch.device("cpu"), replace(workload, batch=2 * workload.batch)
    single = trainer_of(workload, "fp32", processes=Processes(cpu)).steps()
    pair = trainer_of(both, "fp32", processes=Processes(cpu, rank, 2))
    shared = pair.steps()
    check_equal_weights(pair, lambda: next(shared))
    calls = {
        "alone": lambda: next(single) if rank == 0 else None,
        "side by side": lambda: next(single),
        "together": lambda: next(shared),
    }
    return {name: timing.seconds for name, timing in alternate(calls, rounds, before=dist.barrier).items()}


def check_equal_weights(trainer: Trainer, step: Callable[[], object]) -> None:
    """Take a step. Raises RuntimeError unless both processes then hold the same weights, and other ones."""

    def sums() -> Tensor:
        parameters = [p.detach().double() for p in trainer.model.parameters()]
        return torch.stack([torch.stack([p.sum(), p.square().sum()]) for p in parameters])

    before = sums()
    step()
    mine = sums()
    every = [torch.empty_like(mine) for _ in range(2)]
    dist.all_gather(every, mine)
    if torch.equal(mine, before) or not all(torch.equal(other, mine) for other in every):
        raise RuntimeError("a step together did not leave both processes with the same new weights")


def summary(seconds: list[dict[str, list[float]]]) -> Record:
    """The slower process's seconds of each round, and the time alone over them."""
    times = {"alone": Timing(tuple(seconds[0]["alone"]))}
    for name in TURNS[1:]:
        times[name] = Timing(tuple(max(pair) for pair in zip(*(s[name] for s in seconds), strict=True)))
    return {
        "seconds": {name: timing.record() for name, timing in times.items()},
        "efficiency": {name: ratio(times["alone"], times[name]).record() for name in TURNS[1:]},
    }


def efficiency_table(record: Record) -> str:
    rows = []
    for name in TURNS:
        median, share = record["seconds"][name]["median"], record["efficiency"].get(name)
        images = record["batch a process"] * (1 if name == "alone" else 2)
        efficiency = "**{median:.2f}** ({low:.2f} to {high:.2f})".format(**share) if share else "1"
        rows.append([name, f"{median:.2f}", f"{images / median:.2f}", efficiency])
    return markdown(["", "seconds a step", "images a second", "efficiency"], rows)


@benchmark.section("two_processes.json", tables={("performance.md", "two processes"): efficiency_table})
def two_processes(given: Namespace) -> Record:
    workload = workload_of(given)
    seconds = in_pair(of_pair, workload, given.rounds, given.cores)
    about = {"machine": machine(), "preset": workload.preset, "batch a process": workload.batch}
    return about | summary(seconds)


# --- predictions


@benchmark.section("predict.json", rounds=5)
def predict(given: Namespace) -> Record:
    def seconds(batch: int) -> float:
        run = {"step": our_step(small(batch), "fp32")}
        return alternate(run, given.rounds, clock=time.process_time)["step"].median

    steps = [MeasuredStep(batch, seconds(batch), 0.0) for batch in (4, 16)]
    parameters = sum(p.numel() for p in small(1).model().parameters())
    model, rows = StepModel.fitted(parameters, steps), []
    for batch in (8, 32):
        predicted, measured = model.seconds(batch), seconds(batch)
        row = {"batch": batch, "predicted": round(predicted, 4), "measured": round(measured, 4)}
        rows.append(row | {"predicted / measured": round(predicted / measured, 3)})
    fitted_on = [{"batch": step.batch, "seconds": round(step.seconds, 4)} for step in steps]
    return {"machine": machine(), "parameters": parameters, "fitted on": fitted_on, "check": rows}


if __name__ == "__main__":
    benchmark.main()
