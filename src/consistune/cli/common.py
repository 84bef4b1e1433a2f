"""What several commands share: devices, lists of numbers, progress bars."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from consistune.errors import UserError

console = Console(stderr=True)


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto" is the card where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"{name!r} is not a device", "--device", "use cpu, cuda or auto") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("no CUDA device can be used", f"--device {name}", "use --device cpu")
    return device


def parse_integers(text: str, option: str) -> list[int]:
    """ "0-3,7" → [0, 1, 2, 3, 7]."""
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        try:
            low = int(first)
            high = int(last) if dash else low
        except ValueError:
            raise UserError(f"{text!r} is not a list of numbers", option, "write 0-63 or 1,5,8-11") from None
        if high < low:
            raise UserError(f"the range {part.strip()} is empty", option, "write the smaller number first")
        numbers.extend(range(low, high + 1))
    return numbers


def parse_times(text: str | None, option: str) -> tuple[float, ...] | None:
    """ "2,0.5" → (2.0, 0.5)."""
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"{text!r} is not a list of times", option, "write 0.8 or 2,0.5") from None


class SpeedColumn(ProgressColumn):
    """Images a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f}/s", style="cyan")


class Bar:
    """One line of progress; `advance` moves it and may add a note."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task
        self.moved = False

    def advance(self, amount: int, note: str | None = None) -> None:
        self.moved = True
        self._progress.advance(self._task, amount)
        if note is not None:
            self._progress.update(self._task, note=note)


class Screen:
    """Progress bars with throughput and time left, and lines of text above them."""

    def __init__(self, quiet: bool = False) -> None:
        """`quiet` shows nothing: of several processes one speaks."""
        self._progress = Progress(
            TextColumn("{task.description:<22}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %"),
            SpeedColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[note]}", style="dim"),
            console=Console(quiet=True) if quiet else console,
            disable=quiet,
        )

    def __enter__(self) -> "Screen":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        self._progress.console.print(text, highlight=False, soft_wrap=True)

    @contextmanager
    def bar(self, description: str, total: int, done: int = 0) -> Iterator[Bar]:
        """A bar for as long as the job is at it; one that never moved is taken away."""
        task = self._progress.add_task(description, total=total, completed=done, note="")
        bar = Bar(self._progress, task)
        try:
            yield bar
        finally:
            if not bar.moved:
                self._progress.remove_task(task)
