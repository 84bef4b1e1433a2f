"""Progress bars and lines of text on standard error."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from consistune.errors import printable
from consistune.training.interrupt import Interrupted

console = Console(stderr=True)


class SpeedColumn(ProgressColumn):
    """Images per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f}/s", style="cyan")


class Bar:
    """A progress bar; `advance` moves it and can set the note at its end."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task
        self.moved = False

    def advance(self, amount: int, note: str | None = None) -> None:
        self.moved = True
        self._progress.advance(self._task, amount)
        if note is not None:
            self._progress.update(self._task, note=note)


class Screen(Progress):
    """Progress bars with images per second and time left; lines of text above them."""

    def __init__(self, quiet: bool = False) -> None:
        """Use `quiet`, which shows nothing, in all processes of a distributed run but the first."""
        super().__init__(
            TextColumn("{task.description:<22}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %"),
            SpeedColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[note]}", style="dim"),
            console=Console(quiet=True) if quiet else console,
            disable=quiet,
        )

    def say(self, text: str) -> None:
        """Print a line of text."""
        self.console.print(printable(text), highlight=False, soft_wrap=True, markup=False)

    @contextmanager
    def bar(self, description: str, total: int, done: int = 0) -> Iterator[Bar]:
        """Show a bar while the block runs. A bar that never moved is removed at the end."""
        task = self.add_task(description, total=total, completed=done, note="")
        bar = Bar(self, task)
        try:
            yield bar
        finally:
            if not bar.moved:
                self.remove_task(task)

    @contextmanager
    def exit_when_interrupted(self, advice: str) -> Iterator[None]:
        """Exit with the signal's status (130 or 143) if a run in the block was stopped and saved."""
        try:
            yield
        except Interrupted as interrupted:
            self.say(f"stopped and saved; {advice}")
            raise SystemExit(interrupted.status) from None
