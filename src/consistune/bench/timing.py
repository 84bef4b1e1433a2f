"""Time measured in turns, so that other work on the machine slows all candidates alike."""

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


@dataclass(frozen=True)
class Timing:
    """Seconds of one candidate, one number per round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def record(self, images: int | None = None) -> dict[str, Any]:
        """For JSON: the median, all rounds, and images per second where a call makes `images`."""
        record: dict[str, Any] = {
            "median": round(self.median, 6),
            "seconds": [round(s, 6) for s in self.seconds],
        }
        return record if images is None else record | {"images a second": round(images / self.median, 3)}


@dataclass(frozen=True)
class Ratio:
    """A quotient of two timings: the median over rounds, and its range."""

    median: float
    low: float
    high: float

    def record(self) -> dict[str, float]:
        return {name: round(value, 4) for name, value in asdict(self).items()}

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def ratio(numerator: Timing, denominator: Timing) -> Ratio:
    """The quotient within each round, whose two runs followed each other."""
    each = [a / b for a, b in zip(numerator.seconds, denominator.seconds, strict=True)]
    return Ratio(statistics.median(each), min(each), max(each))


def times_as_fast(times: Mapping[str, Timing], name: str, base: str) -> str:
    """`name`'s speed over that of `base`, as words; nothing for `base` itself."""
    return "" if name == base else f"{ratio(times[base], times[name])} times as fast as {base}"


def alternate(
    runs: Mapping[str, Callable[[], object]],
    rounds: int,
    warmup: int = 1,
    inner: int = 1,
    clock: Callable[[], float] = time.perf_counter,
    before: Callable[[], object] = lambda: None,
) -> dict[str, Timing]:
    """Seconds of each run, in turns; a turn calls it `inner` times and records the mean.

    The first `warmup` turns are not recorded. `before` is called ahead of each turn, outside the clock. The
    clock stops when the CUDA device has finished. Where other work shares the machine, `time.process_time`
    measures a run on one thread more fairly than the wall clock.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(-warmup, rounds):
        for name, run in runs.items():
            before()
            _synchronize()
            start = clock()
            for _ in range(inner):
                run()
            _synchronize()
            if turn >= 0:
                seconds[name].append((clock() - start) / inner)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def in_own_process(
    function: Callable[..., Result], *arguments: object, environment: Mapping[str, str] | None = None
) -> Result:
    """`function(*arguments)` in a fresh process, because peak memory belongs to a process.

    Function, arguments and result must be picklable. `environment` is added to the child's environment
    variables. An exception of the child is raised here.
    """
    before = dict(os.environ)
    os.environ.update(environment or {})
    try:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            return pool.submit(function, *arguments).result()
    finally:
        os.environ.clear()
        os.environ.update(before)
