"""Locks of the operating system, which some network file systems do not have."""

import errno
from collections.abc import Callable

from filelock import FileLock

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)


def take(lock: FileLock, say: Callable[[str], object], work: str) -> None:
    """Acquire a lock. Where the file system has none, `say` gets a warning about the `work`.

    Raises filelock.Timeout as the lock does.
    """
    try:
        lock.acquire()
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in NO_LOCKS:
            raise
        say(f"this file system has no locks; let no other program {work} here")
