"""What of a preparation is done, on the disk. After a kill the next run continues from it."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from consistune.errors import UserError
from consistune.system.locks import take

LOCK = "lock"


def locked(folder: Path, say: Callable[[str], object] = lambda _line: None) -> FileLock:
    """Take the lock of a preparation's folder. Raises UserError where another process has it.

    On a file system without locks, `say` gets a warning and nothing is locked.
    """
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        take(lock, say, "prepare")
    except Timeout as error:
        raise UserError("another run is preparing it", str(folder)) from error
    return lock


class Journal:
    """JSON lines in the work folder: the preparation's fingerprint, then each piece and file that is done.

    A line is written after the data that it describes are on the disk. An incomplete last line is ignored.
    Only one process at a time can have the journal open.
    """

    def __init__(self, path: Path, say: Callable[[str], object] = lambda _line: None) -> None:
        """Open and lock it: see `locked`. Raises UserError where another run has it."""
        self.path = path
        self.done: set[int] = set()
        self.bad: dict[int, str] = {}
        self.animated = 0
        self.hashes: dict[int, str] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = locked(path.parent, say)
        self._file = path.open("a+b")

    @property
    def begun(self) -> bool:
        """Whether an earlier run left something to continue from."""
        return self.path.stat().st_size > 0

    def begin(self, fingerprint: dict[str, Any]) -> None:
        """Write the fingerprint: from now on a later run can continue."""
        self._file.truncate(0)
        self.write([{"plan": fingerprint}])

    def resume(self, fingerprint: dict[str, Any]) -> None:
        """Read what is done. Raises UserError where the fingerprint is another."""
        self._file.seek(0)
        complete = 0
        for number, line in enumerate(self._file):
            if not line.endswith(b"\n"):
                break
            try:
                entry = json.loads(line)
                begun_otherwise = entry.get("plan") != fingerprint and number == 0
                self._remember(entry)
            except (ValueError, RecursionError, AttributeError, TypeError, KeyError) as error:
                what, remedy = f"line {number + 1} is damaged", "remove that folder to begin again"
                raise UserError(what, str(self.path), remedy) from error
            if begun_otherwise:
                raise UserError(
                    "holds a preparation that was begun from another source or with other options, "
                    "or the source has changed since",
                    str(self.path.parent.parent),
                    "remove the folder, or give the same options",
                )
            complete += len(line)
        self._file.truncate(complete)

    def is_of(self, fingerprint: dict[str, Any]) -> bool:
        """Whether it is that of a preparation with this fingerprint."""
        self._file.seek(0)
        return self._file.readline() == json.dumps({"plan": fingerprint}).encode() + b"\n"

    def _remember(self, entry: dict[str, Any]) -> None:
        if "piece" in entry:
            self.done.add(entry["piece"])
            self.bad.update((item, reason) for item, reason in entry["bad"])
            self.animated += entry.get("animated", 0)
        elif "file" in entry:
            self.hashes[entry["file"]] = entry["sha256"]

    def write(self, entries: list[dict[str, Any]]) -> None:
        """Append entries, and return when they are on the disk."""
        self._file.write(b"".join(json.dumps(entry).encode() + b"\n" for entry in entries))
        self._file.flush()
        os.fsync(self._file.fileno())
        for entry in entries:
            self._remember(entry)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._lock.release()
