"""The lock of a run's folder: one program at a time trains in it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

from consistune.errors import UserError
from consistune.system.locks import take

LOCK = ".lock"
Key = TypeVar("Key")
Result = TypeVar("Result")


class Busy(UserError):
    """Another program trains in the folder."""

    def __init__(self, folder: Path) -> None:
        what = "another program trains in this folder (or a generator of this program that is still open)"
        super().__init__(what, str(folder), "wait for it, or stop it")
        self.folder = folder

    def wait(self) -> None:
        """Wait until the other program is done or has ended."""
        with FileLock(self.folder / LOCK, poll_interval=1.0):
            pass


def shared(jobs: Mapping[Key, Callable[[], Result]], say: Callable[[str], None]) -> dict[Key, Result]:
    """Do jobs of which each may raise Busy → their results by key, in the order of the jobs.

    A job that another program is doing is tried again later, and waited for when no other job is left. So
    programs that are given the same jobs share the work.
    """
    done: dict[Key, Result] = {}
    while open_jobs := [key for key in jobs if key not in done]:
        busy: list[Busy] = []
        for key in open_jobs:
            try:
                done[key] = jobs[key]()
            except Busy as error:
                busy.append(error)
        if len(busy) == len(open_jobs):
            say(f"waiting for the program that trains in {busy[0].folder}")
            busy[0].wait()
    return {key: done[key] for key in jobs}


@contextmanager
def folder_lock(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the folder's lock, so that no other program trains in it. Raises Busy where one does.

    It is a lock of the operating system: it is released when the process ends, in whatever way. On a file
    system without locks, `say` gets a warning and nothing is locked.
    """
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        take(lock, say, "train")
    except Timeout:
        raise Busy(folder) from None
    del say  # it may belong to the lock's owner, who would then never be collected with an open lock
    try:
        yield
    finally:
        lock.release()
