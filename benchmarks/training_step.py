"""A consistency-training step against the same step written plainly, and what each lever brings.

    python benchmarks/training_step.py step --preset edm-cifar10-ddpmpp --batch 8
    python benchmarks/training_step.py levers
    python benchmarks/training_step.py memory --preset edm-cifar10-ddpmpp --batch 16

`step`: the Trainer's whole step (images, noise, both passes, gradient norm, RAdam, average) in fp32 and bf16
against `consistune.bench.plain`; the same losses and gradients first. `levers`: DDPM++ at 32×32, one change
at a time. With --threads 1 the clock is the processor's, which other work hardly touches. `memory`: peaks,
each in a process of its own. Adds to results/training_step.json.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from consistune.bench import memory
from consistune.bench.plain import PlainLoop
from consistune.bench.predict import BYTES_A_PARAMETER, state_bytes
from consistune.bench.timing import alternate, ratio
from consistune.bench.training import checked, our_step, plain_step, speed, trainer_of
from consistune.bench.workload import Draw, Workload
from consistune.core.types import expand
from consistune.nn import blocks, magnitude
from consistune.nn.lean import Dropout
from consistune.recipe.cost import kept_for_gradient
from consistune.system.files import write_atomically
from consistune.system.host import machine

RESULT = Path(__file__).parent / "results" / "training_step.json"
WORDS = ("fp32", "bf16")


def clock() -> Callable[[], float]:
    """The processor's time of one thread; of several the sum would count, so the wall's."""
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def step(workload: Workload, rounds: int) -> dict[str, Any]:
    """Both precisions and the plain loop in turns."""
    errors = {word: checked(workload, word) for word in WORDS}
    runs = {word: our_step(workload, word) for word in WORDS} | {"plain": plain_step(workload)}
    times = alternate(runs, rounds, clock=clock())
    return {
        "machine": machine(),
        "clock": clock().__name__,
        "batch": workload.batch,
        "errors": {word: {"loss": e.loss, "gradient": e.gradient} for word, e in errors.items()},
        "times": {name: speed(timing, workload.batch) for name, timing in times.items()},
        "times as fast": {word: ratio(times["plain"], times[word]).record() for word in WORDS},
    }


def passes(workload: Workload, how: str) -> Callable[[], object]:
    """Two forward passes and a backward in fp32, channels last: the target's pass in one of three ways."""
    model = workload.model().train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    draw = Draw.of(model, workload.batch)
    t, r = draw.times.t, draw.times.r
    x_t, x_r = (draw.x_0 + expand(u, draw.x_0) * draw.noise for u in (t, r))

    def target() -> Tensor:
        if how == "inference mode":
            with torch.inference_mode():
                return model(x_r, r)
        with torch.no_grad():
            return model(x_r, r)

    def run() -> None:
        model.zero_grad()
        if how == "one batched pass":
            f_t, f_r = model(torch.cat([x_t, x_r]), torch.cat([t, r])).chunk(2)
            f_r = f_r.detach()
        else:
            f_t, f_r = model(x_t, t), target().clone()
        (f_t - f_r).square().mean().backward()

    return run


def with_other(run: Callable[[], object], places: dict[Any, str], other: Callable) -> Callable[[], object]:
    """The same call with another function in these places: {owner: attribute}."""

    def changed() -> None:
        own = {owner: getattr(owner, name) for owner, name in places.items()}
        for owner, name in places.items():
            setattr(owner, name, other)
        try:
            run()
        finally:
            for owner, name in places.items():
                setattr(owner, name, own[owner])

    return changed


def bernoulli(layer: Dropout, like: Tensor) -> Tensor:
    """torch's own Bernoulli numbers as a mask."""
    return torch.empty_like(like, dtype=torch.bool).bernoulli_(1 - layer.p)


def called(function: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """In `recomputed`'s place: everything is kept."""
    return function(*inputs)


def levers(workload: Workload, rounds: int) -> dict[str, Any]:
    """Seconds with and without each lever, in turns."""
    regions = {blocks: "recomputed", magnitude: "recomputed"}
    fp32, bf16 = (our_step(workload, word) for word in WORDS)
    steps = {
        "plain": plain_step(workload),
        "our parts, fp32": our_step(workload, "fp32", channels_last=False),
        "+ channels last": fp32,
        "+ bf16 products": bf16,
        "fp32, all activations kept": with_other(fp32, regions, called),
        "bf16, all activations kept": with_other(bf16, regions, called),
        "bf16, torch's Bernoulli mask": with_other(bf16, {Dropout: "mask"}, bernoulli),
        "bf16, checkpointing": our_step(workload, "bf16", checkpointing=True),
    }
    forms = {how: passes(workload, how) for how in ("no_grad", "inference mode", "one batched pass")}
    return {
        "machine": machine(),
        "clock": clock().__name__,
        "batch": workload.batch,
        "steps": {name: timing.record() for name, timing in alternate(steps, rounds, clock=clock()).items()},
        "passes": {name: timing.record() for name, timing in alternate(forms, rounds, clock=clock()).items()},
    }


def kept(workload: Workload, form: str) -> int:
    """Bytes that a forward pass of this form keeps for the backward pass, the weights' own excepted."""
    side, word, *checkpointing = memory.FORMS[form]
    if side == "plain":
        loop = PlainLoop(workload.model())
        draw = Draw.of(loop.model, workload.batch)
        with kept_for_gradient(loop.model) as found:
            loop.step(draw.x_0, draw.times, draw.noise, draw.labels)
    else:
        trainer = trainer_of(workload, word, checkpointing=bool(checkpointing))
        with kept_for_gradient(trainer.model) as found:
            next(trainer.steps())
    return found[0]


def peaks(workload: Workload, forms: list[str]) -> dict[str, Any]:
    """Peak bytes as the system counts them, and with freed memory given back at once; and their parts."""
    parameters = sum(p.numel() for p in workload.model().parameters())
    return {
        "batch": workload.batch,
        "state": state_bytes(parameters),
        "gradients": BYTES_A_PARAMETER * parameters,
        "kept": {form: kept(workload, form) for form in (memory.PLAIN, *forms)},
        "forms": memory.against_plain(workload, forms),
        "forms, freed memory given back": memory.against_plain(workload, forms, memory.RETURNED),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("step", "levers", "memory"))
    parser.add_argument("--preset", default="edm-cifar10-ddpmpp")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    ours = [form for form in memory.FORMS if form != memory.PLAIN]
    parser.add_argument("--forms", nargs="+", default=ours, choices=ours, help="of memory")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    workload = Workload(given.preset, given.batch)
    if given.what == "memory":
        key, measured = f"memory {given.preset}, batch {given.batch}", peaks(workload, given.forms)
    elif given.what == "step":
        key, measured = f"step {given.preset}", step(workload, given.rounds)
    else:
        key, measured = "levers", levers(workload, given.rounds)
    results = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    results[key] = measured
    write_atomically(RESULT, json.dumps(results, indent=1) + "\n")
    print(json.dumps(measured, indent=1))


if __name__ == "__main__":
    main()
