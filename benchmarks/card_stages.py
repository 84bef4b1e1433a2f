"""What benchmarks/card.py measures: each stage yields (part, record), written as soon as it is there."""

import copy
import functools
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import torch

from card_measure import (
    Record,
    allocated,
    attempt,
    attempted,
    build,
    fitting,
    free,
    in_turns,
    kernels,
    peak,
    rate,
    seconds,
)
from consistune.bench import card, sampling, training
from consistune.bench.timing import alternate
from consistune.bench.workload import Workload, pictures
from consistune.core.estimators import NoiseEstimator, OneSample, ScoreIdentity
from consistune.core.noise import EDM
from consistune.core.objectives import ContinuousConsistency
from consistune.core.posterior.mean import Reference, dequantise, posterior
from consistune.nn.precond import Preconditioned
from consistune.system.host import machine, package_version

Parts = Iterator[tuple[str, Record]]
DDPMPP, EDM2 = "edm-cifar10-ddpmpp", "edm2-img64-s"
TINY: dict[str, Any] = {
    "network": {
        "kind": "song",
        "image_shape": (3, 16, 16),
        "model_channels": 16,
        "channel_mult": (1, 2),
        "num_blocks": 1,
        "attn_resolutions": (8,),
        "dropout": 0.1,
    },
    "precond": {"kind": "edm"},
}
SMALL_DIT: dict[str, Any] = {
    "network": {"kind": "dit", "image_shape": (3, 32, 32), "patch": 2, "width": 256, "blocks": 8},
    "precond": {"kind": "edm"},
}
"""A network whose kernels are so short that launching them takes longer; its blocks are one graph."""
CHECKED_ROWS = 8
"""Queries a noise level whose posterior mean is compared with float64."""
LEVELS = (0.02, 0.1, 1.0, 10.0, 80.0)


@dataclass(frozen=True)
class Kept(Workload):
    """A workload whose weights are drawn once a process: a large network's take seconds."""

    def model(self, seed: int = 0) -> Preconditioned:
        return copy.deepcopy(_drawn(Workload(self.preset, self.batch, self.dropout, self.config), seed))


@functools.cache
def _drawn(workload: Workload, seed: int) -> Preconditioned:
    return workload.model(seed)


@dataclass(frozen=True)
class Sizes:
    """How much is measured, and where."""

    device: str = "cuda"
    side: int = 8192
    copied_bytes: int = 1 << 31
    inner: int = 20
    rounds: int = 5
    workloads: tuple[Kept, ...] = (Kept(DDPMPP, 512), Kept(EDM2, 128))
    references: tuple[int, ...] = (1, 100, 5_000, 50_000)
    classes: int = 1_000
    queries: int = 512
    sampled: tuple[int, ...] = (1, 64, 512)
    graphed: Kept = Kept("dit, width 256", 128, config=SMALL_DIT)
    graphs: bool = True
    derived: int = 128
    peer_channels: tuple[int, int, int] | None = None


REAL = Sizes()
SMALL = Sizes(
    device="cpu",
    side=64,
    copied_bytes=1 << 16,
    inner=1,
    rounds=2,
    workloads=(Kept("tiny", 4, config=TINY),),
    references=(1, 50),
    classes=5,
    queries=8,
    sampled=(1, 2),
    graphed=Kept("tiny", 4, config=TINY),
    graphs=False,
    peer_channels=(16, 16, 16),
)


def sizes(mode: str) -> Sizes:
    """For a card; small for the CPU ("rehearse") and for the pretended card ("pretend")."""
    return {"card": REAL, "rehearse": SMALL, "pretend": replace(SMALL, device="cuda")}[mode]


def ceilings(sizes: Sizes) -> Parts:
    """The machine; its rate of matrix products by precision; its bandwidth of copies, read and written."""
    yield "machine", {**machine(), "consistune": package_version()}
    for word in ("bf16", "tf32", "fp32"):
        timing = card.product(word, sizes.device, sizes.side, sizes.rounds, sizes.inner)
        yield word, rate(timing, 2 * sizes.side**3, "FLOP/s")
    a = torch.randint(256, (sizes.copied_bytes,), device=sizes.device, dtype=torch.uint8)
    b = torch.empty_like(a)
    timing = alternate({"copy": lambda: b.copy_(a)}, sizes.rounds, inner=sizes.inner)["copy"]
    yield "copy", rate(timing, 2 * sizes.copied_bytes, "bytes/s")


def posteriors(sizes: Sizes) -> Parts:
    """The posterior mean: its error at each noise level against float64, and its time for a batch."""
    shape = sizes.workloads[0].image_shape
    stored = pictures(max(sizes.references), shape).to(sizes.device)
    for n in sorted(sizes.references, reverse=True):
        yield f"{n:,} references", attempt(_posterior, sizes, Reference.ungrouped(stored[:n]), None)
    labels = torch.arange(len(stored)) % sizes.classes
    grouped = Reference.grouped(stored, labels, sizes.classes)
    group = torch.arange(sizes.queries, device=sizes.device) % sizes.classes
    yield f"{sizes.classes:,} classes", attempt(_posterior, sizes, grouped, group)


def steps(sizes: Sizes) -> Parts:
    """Eager steps of each network over precision and memory format, one after another."""
    for workload in sizes.workloads:
        for word, last in itertools.product(("bf16", "tf32", "fp32"), (True, False)):
            name = f"{workload.preset}, {word}, {'NHWC' if last else 'NCHW'}"
            options = {"precision": word, "channels_last": last, "compile": False}
            yield name, attempt(_step, workload, sizes, **options)


def train(sizes: Sizes) -> Parts:
    """Steps of ECT and SCT against the plain loop in turns, eager and then compiled; each one's peak memory.

    Where the plain loop does not fit, the batch is halved for all.
    """
    workload = sizes.workloads[0]
    runs: dict[str, Callable[[], object]] = {}
    while (peaks := fitting(runs, _plain_forms(workload, sizes))) is None:
        runs.clear()
        free()
        workload = replace(workload, batch=workload.batch // 2)
    flops = {"batch": workload.batch, "FLOP a step": card.step_flops(workload)}
    yield "work", flops
    eager = {"ECT, bf16": partial(_ours, workload, sizes, compile=False)}
    peaks |= {name: build(runs, name, make) for name, make in eager.items()}
    yield "eager", {"peak bytes": dict(peaks)}
    for times in in_turns(runs, 1, workload):  # the others come with the compiled steps
        yield "eager", times
    references = pictures(max(sizes.references), workload.image_shape).to(sizes.device)
    sct = ScoreIdentity(EDM(), Reference.ungrouped(references))
    compiled = {
        "ECT, bf16, compiled": partial(_ours, workload, sizes, compile=True),
        "SCT, bf16, compiled": partial(_ours, workload, sizes, sct, compile=True),
    }
    for name, make in compiled.items():
        began = time.perf_counter()
        peaks[name] = build(runs, name, make)
        yield "compilation", {name: f"{time.perf_counter() - began:.1f} s for the first two steps"}
    yield "compiled", {"peak bytes": peaks}
    for times in in_turns(runs, min(3, sizes.rounds), workload):
        yield "compiled", times
    for name in ("ECT, bf16, compiled", "SCT, bf16, compiled", "ECT, bf16", "plain, bf16"):
        yield "kernels", attempt(lambda name=name: {name: kernels(runs[name])})


def compiled_step(sizes: Sizes) -> Parts:
    """The first two compiled steps, in seconds; `train` finds them in the compiler's cache."""
    workload = sizes.workloads[0]
    yield f"{workload.preset}, batch {workload.batch}", attempt(seconds, partial(_two_steps, workload, sizes))


def compiled_sampling(sizes: Sizes) -> Parts:
    """The first images of the compiled network, in seconds; `sampling` finds it in the compiler's cache."""
    yield f"batch {sizes.sampled[-1]}", attempt(seconds, partial(_drawn_compiled, sizes))


def derivatives(sizes: Sizes) -> Parts:
    """Steps of continuous time, which take a forward derivative, in turns with ECT's.

    The large network's are eager: compiling them would take minutes. The small one's are compiled too.
    """
    large = replace(sizes.workloads[0], batch=min(sizes.workloads[0].batch, sizes.derived))
    for workload, compiled in ((large, False), (sizes.graphed, True)):
        made = partial(_ours, workload, sizes)
        continuous = partial(made, of=ContinuousConsistency(EDM(), OneSample()))
        forms = {"ECT": partial(made, compile=False), "continuous": partial(continuous, compile=False)}
        if compiled:
            forms["continuous, compiled"] = partial(continuous, compile=True)
        yield from _agreeing(forms, workload, sizes)


def graphs(sizes: Sizes) -> Parts:
    """Compiled steps with and without CUDA graphs, in turns, of a small network.

    All forms begin from the same weights and draw the same numbers: their first losses must agree.
    """
    made = partial(_ours, sizes.graphed, sizes)
    forms = {"ECT": partial(made, compile=False), "ECT, compiled": partial(made, compile=True)}
    if sizes.device == "cuda":
        forms["ECT, graphs"] = partial(made, compile="graphs")
    yield from _agreeing(forms, sizes.graphed, sizes)


def samples(sizes: Sizes) -> Parts:
    """One-step sampling, images to the host included, in turns with diffusers; one image's latency."""
    workload = sizes.workloads[0]
    model = workload.model().eval().to(sizes.device)
    forms: dict[str, sampling.DrawImages] = {
        "ours, fp32": sampling.ours(model, "fp32"),
        "ours, bf16": sampling.ours(model, "bf16"),
    }
    yield "levels of 255 from fp32's images", attempt(sampling.checked, forms)
    if find_spec("diffusers"):
        yield "diffusers", attempt(_with_peers, forms, model.image_shape[-1], sizes)
    for batch in sizes.sampled:
        yield f"batch {batch}", attempt(_sampled, forms, batch, sizes)
    forms["ours, bf16, compiled"] = sampling.ours(model, "bf16", compiled=True)
    yield "compiled", attempt(_sampled, forms, sizes.sampled[-1], sizes)
    if sizes.graphs:  # last: it compiles what no earlier stage has
        yield (
            "one image",
            attempt(lambda: {row[0]: f"{row[1]} {row[2]}" for row in card.one_image(workload, 5)}),
        )


STAGES: Mapping[str, Callable[[Sizes], Parts]] = {
    "ceilings": ceilings,
    "posterior": posteriors,
    "train": train,
    "compile-step": compiled_step,
    "compile-sampling": compiled_sampling,
    "derivatives": derivatives,
    "sampling": samples,
    "graphs": graphs,
    "steps": steps,
}
"""Stages that measure in one process. `card_run` has the others, which start programs."""


def _two_steps(workload: Workload, sizes: Sizes) -> None:
    step: Any = _ours(workload, sizes, compile=True)
    step()
    step()


def _with_peers(forms: dict[str, sampling.DrawImages], side: int, sizes: Sizes) -> Record:
    """Add diffusers' forms, and say its version."""
    for word, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        forms[f"diffusers, {word}"] = sampling.peer(side, sizes.device, dtype, sizes.peer_channels)[0]
    return {"version": version("diffusers")}


def _drawn_compiled(sizes: Sizes) -> None:
    sampling.ours(sizes.workloads[0].model().to(sizes.device), "bf16", compiled=True)(sizes.sampled[-1])


def _posterior(sizes: Sizes, reference: Reference, group: torch.Tensor | None) -> Record:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(len(reference), (sizes.queries,), generator=generator).to(sizes.device)
    if group is not None:
        rows = torch.tensor(reference.offsets, device=sizes.device)[group]
    x_0 = dequantise(reference.images[rows])
    noise = torch.randn(x_0.shape, generator=generator).to(sizes.device)
    schedule, errors = EDM(), {}
    for level in LEVELS:
        t = torch.full((CHECKED_ROWS,), level, device=sizes.device)
        x_t = (x_0 + level * noise)[:CHECKED_ROWS]
        own = None if group is None else group[:CHECKED_ROWS]
        found = posterior(x_t, t, schedule, reference, own).mean.double()
        exact = _exact(x_t, level, reference, own)
        errors[str(level)] = float(
            ((found - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)).max()
        )
    t = torch.logspace(math.log10(LEVELS[0]), math.log10(LEVELS[-1]), sizes.queries, device=sizes.device)
    x_t = x_0 + t[:, None, None, None] * noise
    run = partial(posterior, x_t, t, schedule, reference, group)
    timing = alternate({"": run}, sizes.rounds, warmup=2)[""]
    return {"queries": sizes.queries, "largest relative error at t": errors, **timing.record()}


def _exact(x_t: torch.Tensor, t: float, reference: Reference, group: torch.Tensor | None) -> torch.Tensor:
    """Σ_i w_i x_i in float64, one query at a time."""
    means = []
    for row, x in enumerate(x_t.double()):
        span = (0, len(reference)) if group is None else reference.offsets[int(group[row]) :][:2]
        images = dequantise(reference.images[slice(*span)]).double()
        weights = torch.softmax(-(images - x).square().flatten(1).sum(1) / (2 * t * t), dim=0)
        means.append(torch.tensordot(weights, images, 1))
    return torch.stack(means)


def _plain_forms(workload: Workload, sizes: Sizes) -> dict[str, Callable[[], Callable[[], object]]]:
    words = ("fp32", "tf32", "bf16")
    return {f"plain, {w}": partial(training.plain_step, workload, sizes.device, w) for w in words}  # type: ignore[arg-type]


def _ours(
    workload: Workload, sizes: Sizes, estimator: NoiseEstimator = OneSample(), **options: Any
) -> Callable[[], object]:
    return training.our_step(workload, "bf16", estimator=estimator, device=sizes.device, **options)


def _step(workload: Workload, sizes: Sizes, **options: Any) -> Record:
    before = allocated()
    step = training.our_step(workload, device=sizes.device, **options)
    timing = alternate({"": step}, 3)[""]
    return {"batch": workload.batch, **timing.record(workload.batch), "peak bytes": peak() - before}


def _agreeing(
    forms: Mapping[str, Callable[[], Callable[[], object]]], workload: Workload, sizes: Sizes
) -> Parts:
    """Peak memory and times in turns; the first losses of "FORM, compiled" against the eager FORM's."""
    yield from attempted(f"{workload.preset}, batch {workload.batch}", _compared(forms, workload, sizes))


def _compared(
    forms: Mapping[str, Callable[[], Callable[[], object]]], workload: Workload, sizes: Sizes
) -> Iterator[Record]:
    runs: dict[str, Callable[[], object]] = {}
    peaks: dict[str, int] = {}
    losses: dict[str, list[float]] = {}
    apart: dict[str, float] = {}
    for name, make in forms.items():
        peaks[name] = build(runs, name, make)
        losses[name] = [runs[name]().loss for _ in range(3)]  # type: ignore[attr-defined]
        eager = losses[name.partition(",")[0]]
        apart[name] = max(abs(a / b - 1) for a, b in zip(losses[name], eager, strict=True))
        yield {"peak bytes": dict(peaks), "losses from eager ones": dict(apart)}
    yield from in_turns(runs, min(3, sizes.rounds), workload)


def _sampled(forms: Mapping[str, sampling.DrawImages], batch: int, sizes: Sizes) -> Record:
    """Those forms in turns that can draw; the others with what they fail for."""
    tried = {name: attempt(lambda draw=draw: {"drawn": len(draw(batch))}) for name, draw in forms.items()}
    failed = {name: found["failed"] for name, found in tried.items() if "failed" in found}
    runs = {name: partial(draw, batch) for name, draw in forms.items() if name not in failed}
    times = alternate(runs, sizes.rounds, warmup=1)
    record: Record = {"batch": batch, "times": {name: timing.record(batch) for name, timing in times.items()}}
    return record | ({"failed": failed} if failed else {})
