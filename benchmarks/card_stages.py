"""What benchmarks/card.py measures: each stage yields (part, record), written as soon as it is there."""

import copy
import functools
import gc
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch

from consistune.bench import card, sampling, training
from consistune.bench.timing import Timing, alternate
from consistune.bench.workload import Workload, pictures
from consistune.core.estimators import NoiseEstimator, OneSample, ScoreIdentity
from consistune.core.noise import EDM
from consistune.core.posterior.mean import Reference, dequantise, posterior
from consistune.nn.precond import Preconditioned
from consistune.system.host import machine, package_version, peak_bytes

Record = dict[str, Any]
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
SMALL_UNET: dict[str, Any] = {
    "network": {**TINY["network"], "image_shape": (3, 32, 32), "model_channels": 64},
    "precond": {"kind": "edm"},
}
"""A network whose kernels are so short that launching them takes longer."""
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
    graphed: tuple[Kept, ...] = (Kept("small", 128, config=SMALL_UNET), Kept(DDPMPP, 512))
    graphs: bool = True
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
    graphed=(Kept("tiny", 4, config=TINY),),
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
        yield word, _rate(timing, 2 * sizes.side**3, "FLOP/s")
    a = torch.randint(256, (sizes.copied_bytes,), device=sizes.device, dtype=torch.uint8)
    b = torch.empty_like(a)
    timing = alternate({"copy": lambda: b.copy_(a)}, sizes.rounds, inner=sizes.inner)["copy"]
    yield "copy", _rate(timing, 2 * sizes.copied_bytes, "bytes/s")


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
    while (peaks := _fitting(runs, _plain_forms(workload, sizes))) is None:
        runs.clear()
        _free()
        workload = Kept(workload.preset, workload.batch // 2, workload.dropout, workload.config)
    flops = {"batch": workload.batch, "FLOP a step": card.step_flops(workload)}
    yield "work", flops
    eager = {"ECT, bf16": partial(_ours, workload, sizes, compile=False)}
    peaks |= {name: _build(runs, name, make) for name, make in eager.items()}
    yield "eager", {"peak bytes": dict(peaks), **_in_turns(runs, min(3, sizes.rounds), workload)}
    shape = workload.image_shape
    references = pictures(max(sizes.references), shape).to(sizes.device)
    sct = ScoreIdentity(EDM(), Reference.ungrouped(references))
    compiled = {
        "ECT, bf16, compiled": partial(_ours, workload, sizes, compile=True),
        "SCT, bf16, compiled": partial(_ours, workload, sizes, sct, compile=True),
    }
    for name, make in compiled.items():
        began = time.perf_counter()
        peaks[name] = _build(runs, name, make)
        yield "compilation", {name: f"{time.perf_counter() - began:.1f} s for the first two steps"}
    yield "compiled", {"peak bytes": peaks, **_in_turns(runs, sizes.rounds, workload)}


def graphs(sizes: Sizes) -> Parts:
    """Compiled steps with and without CUDA graphs, in turns, of a small network, then of a large one.

    All forms begin from the same weights and draw the same numbers: their first losses must agree.
    """
    for workload in sizes.graphed:
        yield f"{workload.preset}, batch {workload.batch}", attempt(_graphs, workload, sizes)


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
        side = model.image_shape[-1]
        for word, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            forms[f"diffusers, {word}"] = sampling.peer(side, sizes.device, dtype, sizes.peer_channels)[0]
    for batch in sizes.sampled:
        yield f"batch {batch}", attempt(_sampled, forms, batch, sizes)
    if sizes.graphs:
        yield (
            "one image",
            attempt(lambda: {row[0]: f"{row[1]} {row[2]}" for row in card.one_image(workload, 5)}),
        )
    forms["ours, bf16, compiled"] = sampling.ours(model, "bf16", compiled=True)
    yield "compiled", attempt(_sampled, forms, sizes.sampled[-1], sizes)


STAGES: Mapping[str, Callable[[Sizes], Parts]] = {
    "ceilings": ceilings,
    "posterior": posteriors,
    "train": train,
    "sampling": samples,
    "graphs": graphs,
    "steps": steps,
}
"""Stages that measure in one process. `card_run` has the others, which start programs."""


def attempt(measure: Callable[..., Record], *arguments: Any, **options: Any) -> Record:
    """The record, or {"failed": why}; the memory is free again after it."""
    try:
        return measure(*arguments, **options)
    except Exception as error:  # one configuration that fails must not end the stage
        return {"failed": f"{type(error).__name__}: {str(error)[:300]}"}
    finally:
        _free()


def _rate(timing: Timing, work: float, unit: str) -> Record:
    rates = sorted(work / seconds for seconds in timing.seconds)
    return {unit: work / timing.median, "least": rates[0], "most": rates[-1]}


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


def _build(runs: dict[str, Callable[[], object]], name: str, make: Callable[[], Callable[[], object]]) -> int:
    """Add a step to `runs`; the bytes that it takes at its peak, above what the earlier ones hold."""
    before = _allocated()
    runs[name] = make()
    for _ in range(training.MEMORY_STEPS):
        runs[name]()
    return _peak() - before


def _fitting(
    runs: dict[str, Callable[[], object]], forms: Mapping[str, Callable[[], Callable[[], object]]]
) -> dict[str, int] | None:
    """`_build` of all forms; None where the device's memory is too small for one."""
    try:
        return {name: _build(runs, name, make) for name, make in forms.items()}
    except torch.OutOfMemoryError:
        return None


def _in_turns(runs: Mapping[str, Callable[[], object]], rounds: int, workload: Workload) -> Record:
    times = alternate(runs, rounds)
    return {"times": {name: timing.record(workload.batch) for name, timing in times.items()}}


def _step(workload: Workload, sizes: Sizes, **options: Any) -> Record:
    before = _allocated()
    step = training.our_step(workload, device=sizes.device, **options)
    timing = alternate({"": step}, 3)[""]
    return {"batch": workload.batch, **timing.record(workload.batch), "peak bytes": _peak() - before}


def _graphs(workload: Workload, sizes: Sizes) -> Record:
    forms = {"eager": False, "compiled": True} | ({"graphs": "graphs"} if sizes.device == "cuda" else {})
    runs: dict[str, Callable[[], object]] = {}
    peaks, losses = {}, {}
    for name, compiled in forms.items():
        peaks[name] = _build(runs, name, partial(_ours, workload, sizes, compile=compiled))
        losses[name] = [runs[name]().loss for _ in range(3)]  # type: ignore[attr-defined]
    apart = {
        name: max(abs(a / b - 1) for a, b in zip(of, losses["eager"], strict=True))
        for name, of in losses.items()
    }
    return {"peak bytes": peaks, "losses from eager ones": apart, **_in_turns(runs, sizes.rounds, workload)}


def _sampled(forms: Mapping[str, sampling.DrawImages], batch: int, sizes: Sizes) -> Record:
    """Those forms in turns that can draw; the others with what they fail for."""
    tried = {name: attempt(lambda draw=draw: {"drawn": len(draw(batch))}) for name, draw in forms.items()}
    failed = {name: found["failed"] for name, found in tried.items() if "failed" in found}
    runs = {name: partial(draw, batch) for name, draw in forms.items() if name not in failed}
    times = alternate(runs, sizes.rounds, warmup=1)
    record: Record = {"batch": batch, "times": {name: timing.record(batch) for name, timing in times.items()}}
    return record | ({"failed": failed} if failed else {})


def _allocated() -> int:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated()
    return 0


def _peak() -> int:
    return peak_bytes(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
