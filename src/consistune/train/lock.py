"""One program at a time trains in a run's folder."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

from consistune.errors import UserError

LOCK = ".lock"
Key = TypeVar("Key")
Made = TypeVar("Made")


class Busy(UserError):
    """Another program trains in the folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__("another program trains in this folder", str(folder), "wait for it, or stop it")
        self.folder = folder

    def wait(self) -> None:
        """Until the other program is done, or gone."""
        with FileLock(self.folder / LOCK, poll_interval=1.0):
            pass


def shared(jobs: Mapping[Key, Callable[[], Made]], say: Callable[[str], None]) -> dict[Key, Made]:
    """What each of the jobs gives, in their order; each may raise Busy.

    What another program is at is left for later, and waited for where nothing else is left: programs that are
    given the same jobs share the work.
    """
    done: dict[Key, Made] = {}
    while left := [key for key in jobs if key not in done]:
        busy: list[Busy] = []
        for key in left:
            try:
                done[key] = jobs[key]()
            except Busy as elsewhere:
                busy.append(elsewhere)
        if len(busy) == len(left):
            say(f"waiting for the program that trains in {busy[0].folder}")
            busy[0].wait()
    return {key: done[key] for key in jobs}


@contextmanager
def alone(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Keeps other programs from training in this folder. Raises Busy where one does.

    The lock is the operating system's and goes with the process that holds it, however that ends.
    """
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise Busy(folder) from None
    except NotImplementedError:  # some network file systems
        say("warning: this file system has no locks; let no other program train here")
    try:
        yield
    finally:
        lock.release()
