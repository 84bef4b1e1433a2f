"""How benchmarks/card.py measures: times in turns, peak memory, kernels, and what may fail."""

import gc
import itertools
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from consistune.bench import training
from consistune.bench.timing import Timing, alternate
from consistune.bench.workload import Workload
from consistune.system.host import peak_bytes

Record = dict[str, Any]
KEPT_CHARACTERS = 1500
"""Of a traceback: its end."""


def attempt(measure: Callable[..., Record], *arguments: Any, **options: Any) -> Record:
    """The record, or {"failed": why}; the memory is free again after it."""
    try:
        return measure(*arguments, **options)
    except Exception:  # one configuration that fails must not end the stage
        return {"failed": traceback.format_exc()[-KEPT_CHARACTERS:]}
    finally:
        free()


def attempted(part: str, records: Iterator[Record]) -> Iterator[tuple[str, Record]]:
    """The records as parts of that name, and {"failed": why} after those that came before an error."""
    try:
        for record in records:
            yield part, record
    except Exception:
        yield part, {"failed": traceback.format_exc()[-KEPT_CHARACTERS:]}
    finally:
        free()


def kernels(run: Callable[[], object], rows: int = 25) -> list[str]:
    """The kernels of one call that take most of the time: share, milliseconds, number, name."""
    cuda = torch.cuda.is_available()
    activity = torch.profiler.ProfilerActivity.CUDA if cuda else torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity]) as profile:
        run()
    kind = "self_device_time_total" if cuda else "self_cpu_time_total"
    found = sorted(profile.key_averages(), key=lambda event: -getattr(event, kind))
    total = sum(getattr(event, kind) for event in found) or 1.0  # a driver without counters gives none
    lines = [
        f"{getattr(e, kind) / total:.1%}, {getattr(e, kind) / 1e3:.2f} ms, {e.count}, {e.key[:160]}"
        for e in found[:rows]
    ]
    return [f"{total / 1e3:.1f} ms, {sum(event.count for event in found)} kernels", *lines]


def seconds(run: Callable[[], object]) -> Record:
    """How long a call takes that cannot be repeated."""
    began = time.perf_counter()
    run()
    return {"seconds in all": round(time.perf_counter() - began, 1)}


def rate(timing: Timing, work: float, unit: str) -> Record:
    """`work` a second: the median over the rounds, and its range."""
    rates = sorted(work / each for each in timing.seconds)
    return {unit: work / timing.median, "least": rates[0], "most": rates[-1]}


def build(runs: dict[str, Callable[[], object]], name: str, make: Callable[[], Callable[[], object]]) -> int:
    """Add a step to `runs`; the bytes that it takes at its peak, above what the earlier ones hold."""
    before = allocated()
    runs[name] = make()
    for _ in range(training.MEMORY_STEPS):
        runs[name]()
    return peak() - before


def fitting(
    runs: dict[str, Callable[[], object]], forms: Mapping[str, Callable[[], Callable[[], object]]]
) -> dict[str, int] | None:
    """`build` of all forms; None where the device's memory is too small for one."""
    try:
        return {name: build(runs, name, make) for name, make in forms.items()}
    except torch.OutOfMemoryError:
        return None


def in_turns(runs: Mapping[str, Callable[[], object]], rounds: int, workload: Workload) -> Iterator[Record]:
    """The times so far, after every round: one that does not end loses no earlier one.

    Each timed step follows an untimed one: another form's memory was freed, and must be asked for anew.
    """
    ahead = itertools.cycle(runs.values())

    def before() -> None:
        free()
        next(ahead)()

    seconds: dict[str, tuple[float, ...]] = dict.fromkeys(runs, ())
    for _ in range(rounds):
        for name, timing in alternate(runs, 1, warmup=0, before=before).items():
            seconds[name] += timing.seconds
        yield {"times": {name: Timing(each).record(workload.batch) for name, each in seconds.items()}}


def allocated() -> int:
    """Bytes of the card in use; the peak is counted from here on."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated()
    return 0


def peak() -> int:
    """Bytes at the peak, of the card or, without one, of the process."""
    return peak_bytes(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def free() -> None:
    """Give memory back that nothing uses."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
