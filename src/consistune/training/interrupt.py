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

    def __init__(self, number: int | None, what: str = "stopped") -> None:
        # A process without a signal of its own stops because another process had one: the launcher's SIGTERM.
        self.status = 128 + (signal.SIGTERM if number is None else number)
        super().__init__(what)


STEP = "this step"


def _signals() -> set[int]:
    """Those that stop a run; no thread but the first may take any."""
    main = threading.current_thread() is threading.main_thread()
    return {signal.SIGINT, signal.SIGTERM} if main else set()


class StopSignal:
    """Records the first SIGINT or SIGTERM while the context is open; the second one acts as usual.

    Args:
        say: takes a line at once, since what must be finished first can take longer than a user waits.
        between_steps: also in a block of `resting`; else signals act there as they did before.

    Attributes:
        number: the signal's number; None before there was one.
        doing: what is finished first.
    """

    def __init__(self, say: Callable[[str], None], between_steps: bool = True) -> None:
        self.say, self.between_steps = say, between_steps
        self.number: int | None = None
        self.doing = STEP
        self._old: dict[int, Any] = {}

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

    @contextmanager
    def resting(self) -> Iterator[None]:
        """While the block runs, another's code may run, for as long as it likes."""
        if self.between_steps:
            yield
            return
        self._give_back()
        try:
            yield
        finally:
            if not self.received():  # else a second signal acts as usual
                self._take()

    def __enter__(self) -> "StopSignal":
        self._take()
        return self

    def _take(self) -> None:
        self._old = {number: signal.getsignal(number) for number in _signals()}
        for number in self._old:
            signal.signal(number, self._handle)

    def _give_back(self) -> None:
        """Put the handlers back that were there before, unless another has taken the place of ours."""
        for number in self._old.keys() & _signals():
            if signal.getsignal(number) == self._handle:
                signal.signal(number, self._old[number])

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.number = number
        signal.signal(number, self._old[number])
        name = signal.Signals(number).name
        self.say(f"{name}: stops when {self.doing} is done and saved; a second {name} ends it at once")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._give_back()
