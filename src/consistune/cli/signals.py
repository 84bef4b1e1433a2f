"""Ctrl-C and SIGTERM raise KeyboardInterrupt in the program, but never in the middle of an import."""

import math
import os
import signal
import time
from types import FrameType

RETRY = 0.02
"""Seconds after which a signal that came during an import is looked at again."""
BURST = 0.2
"""Seconds in which signals are one: terminal and launcher both send it."""
TIMER = hasattr(signal, "setitimer")
"""Whether the system has the timer for it: all but Windows."""


def alone() -> bool:
    """Whether no launcher started several processes; without PyTorch, which `system.processes` imports."""
    return os.environ.get("WORLD_SIZE", "1") in ("", "1")


def importing(frame: FrameType | None) -> bool:
    """Whether the code that the signal met is part of an import.

    There KeyboardInterrupt is no clean end: libraries catch it, or crash in C++, or are left half-imported,
    so that the program goes on or fails with another error.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def take_signals() -> list[int]:
    """Let SIGINT, and SIGTERM where there is one process, raise KeyboardInterrupt; the list names which came.

    During an import, its end is awaited (not on Windows); signals in a burst are one. One process of several
    dies of SIGTERM at once: it may be waiting for the others in code that no handler interrupts.
    """
    came: list[int] = []
    raised = -math.inf

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal raised
        came.append(number)
        if TIMER and importing(frame):
            signal.setitimer(signal.ITIMER_REAL, RETRY)
            return
        if time.monotonic() - raised < BURST:
            return
        raised = time.monotonic()
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, stop)
    if alone():
        signal.signal(signal.SIGTERM, stop)
    if TIMER:
        signal.signal(signal.SIGALRM, stop)
    return came


def release_signals() -> None:
    """Nothing is left to stop: SIGINT does nothing, and SIGTERM ends the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if TIMER:
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
