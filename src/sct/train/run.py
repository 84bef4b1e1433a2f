"""A run's folder: what was asked, on what, what happened, and everything needed to go on.

recipe.yaml        the resolved recipe            metrics.jsonl   a line every log_images
environment.json   versions, hardware, command    log.txt         what the run said
checkpoints/       the newest two                 tensorboard/    the same scalars
snapshots/         averaged models at shares of training, for guidance
ema/               snapshots of power-function averages, for averages of other lengths (posthoc)
samples/           images from the same noise, as training goes on
model/             the averaged model, when the run is done
"""

import json
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch

import sct
from sct.errors import UserError
from sct.files import write_atomically
from sct.nn import store
from sct.nn.precond import Preconditioned
from sct.train import checkpoint, posthoc
from sct.train.loop import StepReport, Trainer


class Interrupted(Exception):
    """The run was asked to stop; its state is saved."""


class StopSignal:
    """Turns the first SIGINT or SIGTERM into a wish to stop after the step; the second acts as usual."""

    def __init__(self) -> None:
        self.wanted = False

    def __enter__(self) -> "StopSignal":
        self._old = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.wanted = True
        signal.signal(number, self._old[signal.Signals(number)])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)


class RunFolder:
    """Creates or reopens a run's folder and keeps it up to date while a trainer steps."""

    def __init__(
        self,
        path: Path,
        recipe_text: str,
        *,
        resume: bool,
        draw: Callable[[Preconditioned, Path], None] | None = None,
    ) -> None:
        """`draw` puts samples of a model into a picture file; it is called with every checkpoint."""
        self.path, self.draw = path, draw
        self.checkpoints = path / "checkpoints"
        saved = path / "recipe.yaml"
        if resume:
            if not saved.is_file():
                raise UserError("there is no run to continue", str(path), "start it without --resume")
            if saved.read_text(encoding="utf-8") != recipe_text:
                raise UserError(
                    "the recipe differs from the one this run began with",
                    str(saved),
                    f"continue with `sct train {path} --resume`, or choose another --out",
                )
        else:
            if saved.exists():
                raise UserError(
                    "a run is there already",
                    str(path),
                    "add --resume to continue it, or choose another --out",
                )
            path.mkdir(parents=True, exist_ok=True)
            write_atomically(saved, recipe_text)
            write_atomically(path / "environment.json", _environment())

    def resume(self, trainer: Trainer) -> None:
        """Load the newest readable checkpoint, and forget what was logged after it.

        A run that was killed before its first checkpoint starts again from the beginning.
        """
        state, torn = checkpoint.load_newest(self.checkpoints, trainer.device)
        if state is not None:
            trainer.load_state_dict(state)
        for path in torn:
            self.say(f"warning: {path.name} cannot be read and was passed over")
        lines = self._metrics().read_text(encoding="utf-8").splitlines() if self._metrics().exists() else []
        kept = [line for line in lines if _images_in(line) <= trainer.images]
        write_atomically(self._metrics(), "".join(f"{line}\n" for line in kept))
        self.say(f"continued at {trainer.images:,} images")

    def say(self, message: str) -> None:
        """A line for log.txt."""
        with (self.path / "log.txt").open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {message}\n")

    def log(self, record: dict[str, Any]) -> None:
        """A line for metrics.jsonl."""
        with self._metrics().open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def _metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def steps(self, trainer: Trainer) -> Iterator[StepReport]:
        """The trainer's steps, with logs, snapshots and checkpoints; the finished model at the end.

        Raises Interrupted after a signal, when the state is saved.
        """
        # Imported here: it takes a second, and only training needs it.
        from torch.utils.tensorboard import SummaryWriter

        options = trainer.options
        board = SummaryWriter(str(self.path / "tensorboard"), purge_step=trainer.images)
        began, images_then = time.perf_counter(), trainer.images
        try:
            with StopSignal() as stop:
                for report in trainer.steps():
                    before = report.images - options.batch
                    if _crosses(before, report.images, options.log_images):
                        now = time.perf_counter()
                        speed = (report.images - images_then) / (now - began)
                        began, images_then = now, report.images
                        self._log_step(report, speed, board)
                    for share in options.snapshots:
                        if before < share * options.images <= report.images:
                            store.save(trainer.averaged, self.path / "snapshots" / f"{share:.0%}")
                    every = options.ema_snapshot_images
                    if every and (_crosses(before, report.images, every) or report.images >= options.images):
                        posthoc.keep(
                            self.path, trainer.averages, report.images, options.ema_snapshot_precision
                        )
                    if _crosses(before, report.images, options.checkpoint_images):
                        self._save(trainer)
                    yield report
                    if stop.wanted and report.images < options.images:
                        checkpoint.save(self.checkpoints, trainer.state_dict())
                        self.say(f"stopped at {report.images:,} images")
                        raise Interrupted
        finally:
            board.close()
        self._save(trainer)
        store.save(trainer.averaged, self.path / "model")
        self.say(f"done: {trainer.images:,} images, {trainer.nonfinite_total} non-finite steps")

    def _save(self, trainer: Trainer) -> None:
        checkpoint.save(self.checkpoints, trainer.state_dict())
        if self.draw is not None:
            self.draw(trainer.averaged, self.path / "samples" / f"{trainer.images:012d}.png")

    def _log_step(self, report: StepReport, speed: float, board: Any) -> None:
        scalars = {
            "loss": report.loss,
            "learning_rate": report.learning_rate,
            "gradient_norm": report.gradient_norm,
            "nonfinite_total": report.nonfinite_total,
            "images_per_second": speed,
        }
        self.log({"images": report.images, "step": report.step, **scalars})
        for name, value in scalars.items():
            board.add_scalar(f"train/{name}", value, report.images)


def _crosses(before: int, after: int, every: int) -> bool:
    return before // every != after // every


def _images_in(line: str) -> int:
    try:
        return int(json.loads(line)["images"])
    except (ValueError, KeyError, TypeError):
        return sys.maxsize  # a torn last line is dropped


def _environment() -> str:
    facts = {
        "sct": sct.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "processor": platform.machine(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "command": sys.argv,
    }
    return json.dumps(facts, indent=2) + "\n"
