"""One program at a time trains in a run's folder."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from sct.errors import UserError

LOCK = ".lock"


class Busy(UserError):
    """Another program trains in the folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__("another program trains in this folder", str(folder), "wait for it, or stop it")
        self.folder = folder

    def wait(self) -> None:
        """Until the other program is done, or gone."""
        with FileLock(self.folder / LOCK, poll_interval=1.0):
            pass


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
