"""A run's folder: what was asked, on what, what happened, and everything needed to go on.

recipe.yaml        the resolved recipe            metrics.jsonl   a line every log_images
environment.json   versions, hardware, command    log.txt         what the run said
checkpoints/       the newest `keep`              tensorboard/    the same scalars
snapshots/         averaged models at shares of training, for guidance
ema/               snapshots of power-function averages, for averages of other lengths (posthoc)
best/              the averaged model that measured best
samples/           images from the same noise, as training goes on
.lock              held by the program that trains here
model/             the averaged model, when the run is done

Of several processes the first alone writes. Whatever a step leaves behind is there before its checkpoint, so
that a run continued from a checkpoint does again all that was not finished when it was killed.
"""

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import yaml

import consistune
from consistune.errors import UserError
from consistune.nn import store
from consistune.nn.precond import Preconditioned
from consistune.system.files import write_atomically
from consistune.system.host import machine
from consistune.train import checkpoint, log, posthoc
from consistune.train.ema import PowerFunction
from consistune.train.interrupt import Interrupted, StopSignal
from consistune.train.lock import alone
from consistune.train.log import Telemetry
from consistune.train.loop import StepReport, Trainer, TrainingDiverged

__all__ = ["Interrupted", "RunFolder"]
Measure = Callable[[Preconditioned], dict[str, float]]
PREFIX = "evaluate/"
OF_THE_MACHINE = ("microbatch", "shard", "compile", "channels_last", "checkpointing", "trackers", "keep")
"""Keys of `train` that may change when a run is continued, on another machine for example."""


class RunFolder:
    """Creates or reopens a run's folder and keeps it up to date while a trainer steps."""

    def __init__(
        self,
        path: Path,
        recipe_text: str,
        *,
        resume: bool,
        draw: Callable[[Preconditioned, Path], None] | None = None,
        evaluate: Measure | None = None,
        main: bool = True,
    ) -> None:
        """Raises UserError where a run is there already, or none to continue, or another.

        Args:
            draw: puts samples of a model into a picture file; called with every checkpoint.
            evaluate: measures the averaged model every `evaluate_images`: names and numbers for the log. The
                model for which the first of them is smallest is kept in best/.
            main: False for all but the first of several processes, which only read.
        """
        self.path, self.draw, self.evaluate, self.main = path, draw, evaluate, main
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        saved = path / "recipe.yaml"
        if resume:
            if not saved.is_file():
                raise UserError("there is no run to continue", str(path), "start it without --resume")
            if _method(saved.read_text(encoding="utf-8")) != _method(recipe_text):
                raise UserError(
                    "the recipe differs from the one this run began with",
                    str(saved),
                    f"continue with `consistune train {path} --resume`, or choose another --out",
                )
        elif main:
            if saved.exists():
                raise UserError(
                    "a run is there already",
                    str(path),
                    "add --resume to continue it, or choose another --out",
                )
            path.mkdir(parents=True, exist_ok=True)
            write_atomically(path / "environment.json", _environment())
            write_atomically(saved, recipe_text)

    def resume(self, trainer: Trainer) -> None:
        """Load the newest sound checkpoint, and forget what was logged after it.

        A run that was killed before its first checkpoint starts again from the beginning. The number of
        processes may have changed.
        """
        with self._alone():
            if self.main:
                self._sweep()
            self._load(trainer)
        self.say(f"continued at {trainer.images:,} images, on {trainer.processes.count} process(es)")

    def _alone(self) -> AbstractContextManager[None]:
        """Of several processes of one program the first holds the lock for all."""
        return alone(self.path, self.say) if self.main else nullcontext()

    def _sweep(self) -> None:
        """Remove what a killed process had not finished writing."""
        for pattern in (".*.partial", ".*.old", ".step-*"):
            for path in self.path.rglob(pattern):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _load(self, trainer: Trainer) -> bool:
        """Put the trainer where the newest sound checkpoint was; False where there is none."""
        state, damaged = checkpoint.load_newest(self.checkpoints)
        for path in damaged:
            self.say(f"warning: {path.name} is damaged and was passed over")
        if not trainer.processes.agree(-1 if state is None else state["step"]):
            raise UserError(
                "the processes see different checkpoints",
                str(self.checkpoints),
                "use a folder that all share",
            )
        if state is not None:
            trainer.load_state_dict(state)
        if self.main:
            kept = [line for line in self._lines() if _images_in(line) <= trainer.images]
            write_atomically(self.metrics, "".join(f"{line}\n" for line in kept))
        trainer.processes.wait()
        return state is not None

    def say(self, message: str) -> None:
        """A line for log.txt."""
        if self.main:
            with (self.path / "log.txt").open("a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {message}\n")

    def log(self, record: dict[str, Any]) -> None:
        """A line for metrics.jsonl."""
        if self.main:
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")

    def steps(self, trainer: Trainer) -> Iterator[StepReport]:
        """The trainer's steps, with logs, snapshots and checkpoints; the finished model at the end.

        Raises Interrupted after a signal, when the state is saved; TrainingDiverged when going back to a
        checkpoint did not help, or there is none.
        """
        with (
            self._alone(),
            log.opened_trackers(trainer.options, self.path, trainer.images, self.main) as boards,
            StopSignal() as stop,
        ):
            while True:
                try:
                    yield from self._until_it_diverges(trainer, stop, Telemetry(trainer, self.log, boards))
                    break
                except TrainingDiverged as error:
                    self._roll_back(trainer, error)
        self._save(trainer)
        self._store(trainer, self.path / "model")
        self.say(f"done: {trainer.images:,} images, {trainer.nonfinite_total} non-finite steps")

    def _until_it_diverges(
        self, trainer: Trainer, stop: StopSignal, telemetry: Telemetry
    ) -> Iterator[StepReport]:
        options, due = trainer.options, False
        for report in trainer.steps(stop.wanted):
            before = report.images - options.batch
            if _crosses(before, report.images, options.log_images):
                telemetry.write(report)
            for share in options.snapshots:
                if before < share * options.images <= report.images:
                    self._store(trainer, self.path / "snapshots" / f"{share:.0%}")
            every = options.ema_snapshot_images
            if every and (_crosses(before, report.images, every) or report.images >= options.images):
                self._keep_averages(trainer)
            if options.evaluate_images and _crosses(before, report.images, options.evaluate_images):
                self._measure(trainer, telemetry)
            due = due or _crosses(before, report.images, options.checkpoint_images)
            if due and report.finite:  # in the middle of a divergence nothing is worth keeping
                self._save(trainer)
                due = False
            yield report
            if report.stopping and report.images < options.images:
                self._checkpoint(trainer)
                self.say(f"stopped at {report.images:,} images")
                raise Interrupted(stop.number)

    def _keep_averages(self, trainer: Trainer) -> None:
        for kept in trainer.averages:
            if isinstance(kept.average, PowerFunction):
                model, precision = trainer.averaged_by(kept), trainer.options.ema_snapshot_precision
                if self.main:
                    posthoc.keep(self.path, kept.average, model, trainer.images, precision)
        trainer.processes.wait()

    def _roll_back(self, trainer: Trainer, error: TrainingDiverged) -> None:
        """To the last good checkpoint, to go on from there with other noise."""
        rollbacks, nonfinite = trainer.rollbacks + 1, trainer.nonfinite_total
        if rollbacks > trainer.options.max_rollbacks:
            raise TrainingDiverged(f"{error}, after {rollbacks - 1} returns to a checkpoint") from error
        if not self._load(trainer):
            raise TrainingDiverged(f"{error}, and there is no checkpoint to return to") from error
        trainer.rollbacks, trainer.nonfinite_total = rollbacks, nonfinite
        self.say(f"warning: {error}; went back to {trainer.images:,} images, to go on with other noise")

    def _measure(self, trainer: Trainer, telemetry: Telemetry) -> None:
        """Log what `evaluate` says of the averaged model, and keep the best."""
        model = trainer.averaged
        if self.main and self.evaluate is not None:
            values = {PREFIX + name: float(value) for name, value in self.evaluate(model).items()}
            first = next(iter(values))
            earlier = [line[first] for line in map(json.loads, self._lines()) if first in line]
            telemetry.record(trainer, values)
            if values[first] < min(earlier, default=math.inf):
                store.save(model, self.path / "best")
        trainer.processes.wait()

    def _lines(self) -> list[str]:
        return self.metrics.read_text(encoding="utf-8").splitlines() if self.metrics.exists() else []

    def _save(self, trainer: Trainer) -> None:
        """A checkpoint, and before it a picture."""
        if self.draw is not None:
            model = trainer.averaged
            if self.main:
                self.draw(model, self.path / "samples" / f"{trainer.images:012d}.png")
        self._checkpoint(trainer)

    def _checkpoint(self, trainer: Trainer) -> None:
        state = trainer.state_dict()
        if self.main:
            checkpoint.save(self.checkpoints, state, trainer.options.keep)
        trainer.processes.wait()

    def _store(self, trainer: Trainer, folder: Path) -> None:
        model = trainer.averaged
        if self.main:
            store.save(model, folder)
        trainer.processes.wait()


def _method(recipe_text: str) -> Any:
    """A recipe without what belongs to the machine."""
    recipe = yaml.safe_load(recipe_text)
    train = {key: value for key, value in recipe.get("train", {}).items() if key not in OF_THE_MACHINE}
    return {**recipe, "train": train}


def _crosses(before: int, after: int, every: int) -> bool:
    return before // every != after // every


def _images_in(line: str) -> int:
    try:
        return int(json.loads(line)["images"])
    except (ValueError, KeyError, TypeError):
        return sys.maxsize  # a torn last line is dropped


def _environment() -> str:
    facts = {
        "consistune": consistune.__version__,
        "command": sys.argv,
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
    }
    return json.dumps(facts | machine(), indent=2) + "\n"
