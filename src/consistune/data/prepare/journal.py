"""What of a preparation is done, on the disk: after a kill the next run goes on from there."""

import fcntl
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from consistune.errors import UserError


class Journal:
    """JSON lines in the work folder: the plan's fingerprint first, then what has been done.

    A line is written after the data that it speaks of are on the disk. A torn last line counts as not
    written. Only one process at a time can hold it.
    """

    def __init__(self, path: Path) -> None:
        """Take hold of it. Raises UserError where another run has."""
        self.path = path
        self.done: set[int] = set()
        self.bad: dict[int, str] = {}
        self.hashes: dict[int, str] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise UserError("another run is preparing it", str(path.parent)) from error

    @property
    def begun(self) -> bool:
        """Whether there is anything to go on from."""
        return self.path.stat().st_size > 0

    def begin(self, plan: dict[str, Any]) -> None:
        """Write the plan: from now on the work folder is one to go on from."""
        self._file.truncate(0)
        self.write([{"plan": plan}])

    def resume(self, plan: dict[str, Any]) -> None:
        """Read what is done. Raises UserError where it was begun with another plan."""
        self._file.seek(0)
        whole = 0
        for number, line in enumerate(self._file):
            if not line.endswith(b"\n"):
                break
            entry = json.loads(line)
            if number == 0 and entry.get("plan") != plan:
                raise UserError(
                    "holds a preparation that was begun from another source or with other options",
                    str(self.path.parent.parent),
                    "remove the folder, or give the same options",
                )
            self._take(entry)
            whole += len(line)
        self._file.truncate(whole)

    def _take(self, entry: dict[str, Any]) -> None:
        if "piece" in entry:
            self.done.add(entry["piece"])
            self.bad.update((item, reason) for item, reason in entry["bad"])
        elif "file" in entry:
            self.hashes[entry["file"]] = entry["sha256"]

    def write(self, entries: list[dict[str, Any]]) -> None:
        """Append; on the disk when it returns."""
        self._file.write(b"".join(json.dumps(entry).encode() + b"\n" for entry in entries))
        self._file.flush()
        os.fsync(self._file.fileno())
        for entry in entries:
            self._take(entry)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
