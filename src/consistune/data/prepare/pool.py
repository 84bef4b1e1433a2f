"""Tasks over all cores, a limited number at a time; with one worker, in this process."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, TypeAlias, TypeVar

from consistune.data.prepare.work import start_worker
from consistune.errors import RunFailed

QUEUED_PER_WORKER = 3
"""Tasks that are submitted for each worker: enough to keep it busy, few enough for the memory."""
ENDED = (
    "a process that reads the images was ended, perhaps for want of memory; free some and run again "
    "(a script of your own must call this below if __name__ == '__main__')"
)

Key = TypeVar("Key")
Task: TypeAlias = tuple[Key, Callable[[Any], Any], Any]
"""A name for the result, a function, its argument."""


def run(tasks: Iterable[Task[Key]], workers: int) -> Iterator[tuple[Key, Any]]:
    """(key, result) as the tasks end. A task is taken from `tasks` only when its turn comes."""
    if workers == 1:
        for key, function, argument in tasks:
            yield key, function(argument)
        return
    # Spawned, not forked: this process has threads (torch's, the progress line's).
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=start_worker)
    running: dict[Future[Any], Key] = {}
    pending = iter(tasks)
    try:
        while True:
            while len(running) < QUEUED_PER_WORKER * workers and (task := next(pending, None)) is not None:
                key, function, argument = task
                running[pool.submit(function, argument)] = key
            if not running:
                return
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                yield running.pop(future), future.result()
    except BrokenProcessPool as error:
        raise RunFailed(ENDED) from error
    finally:
        pool.shutdown(cancel_futures=True)
