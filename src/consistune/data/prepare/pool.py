"""Pieces of work over all cores, a bounded number at a time; with one worker, in this process."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from typing import Any, TypeAlias

from consistune.data.prepare.work import start_worker

AHEAD = 3
"""Pieces a worker that wait for it, so that none is idle and few are in memory."""


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


Task: TypeAlias = tuple[Callable[..., Any], Callable[[], tuple[Any, ...]]]
"""A function, and what makes its arguments when its turn comes."""


def run(tasks: Sequence[Task], workers: int) -> Iterator[tuple[int, Any]]:
    """(task number, result) as they come."""
    if workers == 1:
        for number, (function, arguments) in enumerate(tasks):
            yield number, function(*arguments())
        return
    # Spawned, not forked: the parent has threads (torch's, the progress line's).
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=start_worker)
    running: dict[Future[Any], int] = {}
    pending = iter(enumerate(tasks))
    try:
        while True:
            while len(running) < AHEAD * workers and (following := next(pending, None)) is not None:
                number, (function, arguments) = following
                running[pool.submit(function, *arguments())] = number
            if not running:
                return
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                yield running.pop(future), future.result()
    finally:
        pool.shutdown(cancel_futures=True)
