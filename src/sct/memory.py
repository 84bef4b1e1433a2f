"""The memory that a process has held."""

import resource
import sys
from pathlib import Path

RSS_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes of ru_maxrss's unit."""


def peak_bytes() -> int:
    """The most memory that this process has held so far.

    Linux hands ru_maxrss on to the programs that a process starts, so that it may be the parent's; what the
    kernel says of this program alone stands in /proc.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT
