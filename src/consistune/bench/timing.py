"""Time and memory, measured so that a disturbance meets all sides alike."""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds of one thing, a number a round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def record(self) -> dict[str, Any]:
        """For JSON: the median, and all rounds."""
        return {"median": round(self.median, 6), "seconds": [round(s, 6) for s in self.seconds]}


@dataclass(frozen=True)
class Ratio:
    """How many times as long (or large) one thing is as another: the median over rounds, and its range."""

    median: float
    low: float
    high: float

    def record(self) -> dict[str, float]:
        return {name: round(value, 4) for name, value in asdict(self).items()}

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def ratio(numerator: Timing, denominator: Timing) -> Ratio:
    """The quotient of each round's times, which ran one after the other."""
    each = [a / b for a, b in zip(numerator.seconds, denominator.seconds, strict=True)]
    return Ratio(statistics.median(each), min(each), max(each))


def alternate(
    runs: Mapping[str, Callable[[], object]],
    rounds: int,
    warmup: int = 1,
    inner: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Seconds of each run, in turns; `inner` calls a turn, of which the mean counts.

    The first `warmup` turns do not count. On a card the clock stops when its work is done. Where other work
    shares the machine, `time.process_time` is the fairer clock of what runs on one thread.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(-warmup, rounds):
        for name, run in runs.items():
            wait()
            start = clock()
            for _ in range(inner):
                run()
            wait()
            if turn >= 0:
                seconds[name].append((clock() - start) / inner)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def wait() -> None:
    """Until the card, if there is one, has done all it was asked."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def in_a_process(module: str, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
    """What `python -m module arguments` prints; memory and start-up are measured in processes of their own.

    `environment` is added to this process's. Raises RuntimeError with its last line of errors where it fails.
    """
    command = [sys.executable, "-m", module, *arguments]
    variables = {**os.environ, **(environment or {})}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=variables)
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise RuntimeError(f"{' '.join(command[1:])}: {last}")
    return done.stdout
