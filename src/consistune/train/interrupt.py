"""SIGINT and SIGTERM end a run after the current step, with its state saved."""

import signal
from types import FrameType, TracebackType


class Interrupted(Exception):
    """The run stopped after a signal; its state is saved.

    Attributes:
        status: the exit status that shells expect, 128 + the signal's number: 130 or 143.
    """

    def __init__(self, number: int | None) -> None:
        # A process without a signal of its own stops because another process had one: the launcher's SIGTERM.
        self.status = 128 + (signal.SIGTERM if number is None else number)
        super().__init__("stopped")


class StopSignal:
    """Records the first SIGINT or SIGTERM while the context is open; the second one acts as usual.

    Attributes:
        number: the signal's number; None before there was one.
    """

    def __init__(self) -> None:
        self.number: int | None = None

    def received(self) -> bool:
        return self.number is not None

    def __enter__(self) -> "StopSignal":
        self._old = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.number = number
        signal.signal(number, self._old[signal.Signals(number)])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
