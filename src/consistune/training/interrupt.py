"""SIGINT and SIGTERM end a run after the current step, with its state saved."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any


class Interrupted(Exception):
    """The run stopped after a signal; its state is saved.

    Attributes:
        status: the exit status that shells expect, 128 + the signal's number: 130 or 143.
    """

    def __init__(self, number: int | None) -> None:
        # A process without a signal of its own stops because another process had one: the launcher's SIGTERM.
        self.status = 128 + (signal.SIGTERM if number is None else number)
        super().__init__("stopped")


STEP = "this step"


class StopSignal:
    """Records the first SIGINT or SIGTERM while the context is open; the second one acts as usual.

    Args:
        say: takes a line at once, since what must be finished first can take longer than a user waits.

    Attributes:
        number: the signal's number; None before there was one.
        doing: what is finished first.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.number: int | None = None
        self.doing = STEP
        main = threading.current_thread() is threading.main_thread()  # no other may take signals
        numbers = (signal.SIGINT, signal.SIGTERM) if main else ()
        self._old: dict[int, Any] = {number: signal.getsignal(number) for number in numbers}

    def received(self) -> bool:
        return self.number is not None

    @contextmanager
    def during(self, what: str) -> Iterator[None]:
        """Name what is finished first, while the block runs."""
        self.doing = what
        try:
            yield
        finally:
            self.doing = STEP

    def __enter__(self) -> "StopSignal":
        for number in self._old:
            signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.number = number
        signal.signal(number, self._old[number])
        name = signal.Signals(number).name
        self.say(f"{name}: stops when {self.doing} is done and saved; a second {name} ends it at once")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
