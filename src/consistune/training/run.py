"""A training in a run's folder (`training.folder`): logs, snapshots, checkpoints, and going on after an end.

Of several processes only the first writes. Whatever a step leaves behind is on disk before the step's
checkpoint. A run that is continued from a checkpoint therefore repeats everything that was not finished when
it was killed. The first checkpoint is that of the start: a run without a sound one has lost something.

The folder's lock is held from the moment in which a run is begun or continued until its last file is there.
"""

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from consistune.errors import UserError
from consistune.nn import store
from consistune.nn.precond import Preconditioned
from consistune.system.files import write_atomically
from consistune.training import checkpoint, folder, latest, log, posthoc
from consistune.training.check import Watch
from consistune.training.ema import PowerFunction
from consistune.training.interrupt import Interrupted, StopSignal
from consistune.training.lock import folder_lock
from consistune.training.log import Telemetry
from consistune.training.loop import StepReport, Trainer, TrainingDiverged, crosses, require_sound
from consistune.training.metrics_file import EVALUATION, MetricsFile
from consistune.training.options import share_name

__all__ = ["Interrupted", "RunFolder"]
Measure = Callable[[Preconditioned], dict[str, float]]
PICTURE = "picture"
"""The key of a checkpoint: whether a picture of samples belongs to it."""


class RunFolder:
    """A run's folder, kept up to date while a trainer steps."""

    def __init__(
        self,
        path: Path,
        recipe_text: str,
        *,
        resume: bool,
        extend: bool = False,
        draw: Callable[[Preconditioned, Path], None] | None = None,
        evaluate: Measure | None = None,
        main: bool = True,
        between_steps: bool = True,
    ) -> None:
        """Create the folder, or reopen it with `resume`.

        Args:
            extend: with `resume`, the recipe may name another train.images, which the folder's recipe then
                gets. What is scheduled by train.images follows the new end.
            draw: writes a picture of a model's samples; called with every checkpoint.
            evaluate: measures the averaged model every `evaluate_images`: numbers by name for the log. The
                model for which the first of them is smallest is kept in best/.
            main: False for all but the first of several processes; these only read.
            between_steps: as for `StopSignal`.

        Raises UserError where a run is there already, or with `resume` none, or one of another recipe; Busy
        where another program trains in the folder.
        """
        self.path, self.draw, self.evaluate, self.main = path, draw, evaluate, main
        self.between_steps = between_steps
        self.checkpoints = path / "checkpoints"
        self.metrics = MetricsFile(path)
        self._held: ExitStack | None = None
        self._watch: Watch | None = None
        self._picture_due = False
        if resume:
            folder.check_continuation(path, recipe_text, extend)
        self.extended = recipe_text if extend else None
        if main:
            self._lock()
        if main and not resume:
            with self._released_on_error():
                folder.create(path, recipe_text)

    @classmethod
    def opened(cls, path: Path, recipe_text: str, trainer: Trainer, **options: Any) -> "RunFolder":
        """The run of a recipe in a folder for one process: continued where it was begun, else a new one."""
        resume = (path / folder.RECIPE).exists()
        run = cls(path, recipe_text, resume=resume, **options)
        if resume:
            run.resume(trainer)
        return run

    def say(self, message: str) -> None:
        """Add a line to log.txt."""
        if self.main:
            with (self.path / "log.txt").open("a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {message}\n")

    def warn(self, message: str) -> None:
        """Add a warning to log.txt, and show it."""
        self.say(f"warning: {message}")
        if self.main:
            with suppress(OSError):  # a terminal that is gone, or a full disk behind it
                print(f"warning: {message}", file=sys.stderr)

    def resume(self, trainer: Trainer) -> None:
        """Load the newest sound checkpoint, and remove the records that were written after it.

        A run that was killed before it wrote anything starts from the beginning. The number of processes may
        have changed.

        Raises UserError where the folder shows progress and has no sound checkpoint, or only that of the
        start; it then stays as it is.
        """
        if self.main:
            self._lock()
        with self._released_on_error():
            self._resume(trainer)
        self.say(f"continued at {trainer.images:,} images, on {trainer.processes.count} process(es)")

    def _resume(self, trainer: Trainer) -> None:
        if self.main:
            folder.remove_partial_files(self.path)
        if not self._load_checkpoint(trainer):
            self._check_not_begun(trainer, folder.progress, "no checkpoint is sound, and the run had begun")
        elif not trainer.step:
            what = "only the checkpoint of the start is sound, and the run had gone on"
            self._check_not_begun(trainer, folder.stored_later, what)
        if self.extended is not None:
            folder.check_end(trainer.images, trainer.options.images)
        if self.main:
            folder.rename_snapshots(self.path, trainer.options.images)
            if self.extended is not None:
                write_atomically(self.path / folder.RECIPE, self.extended)
            self.metrics.truncate(trainer.images)
        trainer.processes.wait()

    def _check_not_begun(self, trainer: Trainer, sign: Callable[[Path], str], what: str) -> None:
        """Raises UserError where the folder has a sign that a run, which would begin at 0, had gone on."""
        lost = sign(self.path) if self.main else ""
        if not trainer.processes.agree(-len(lost)) or lost:
            raise UserError(
                f"{what}: {lost or 'see the first process'}",
                str(self.checkpoints),
                f"begin another run with --out, or with start_from={self.path}/model where that is there",
            )

    def steps(self, trainer: Trainer) -> Iterator[StepReport]:
        """The trainer's steps, with logs, snapshots and checkpoints; the finished model at the end.

        Raises Interrupted after a signal, when the state is saved; TrainingDiverged when going back to a
        checkpoint did not help, or there is none.
        """
        self.soundness = trainer.soundness()
        if self.main:
            self._lock()
            with self._released_on_error():
                self._check_destinations(trainer)
        held, self._held = self._held, None
        with (
            held or nullcontext(),
            log.opened_trackers(trainer.options, self.path, trainer.images, self.main, self.warn) as trackers,
            StopSignal(self.warn, self.between_steps) as stop,
        ):
            self._begin_watch(trainer)
            if trainer.step == 0:
                self._save_checkpoint(trainer, picture=False)
            elif self._picture_due:  # a kill may have come between the checkpoint and its picture
                self._save_samples(trainer)
            while True:
                telemetry = Telemetry(trainer, self._append_metrics, trackers, self.warn)
                try:
                    yield from self._steps_until_divergence(trainer, stop, telemetry)
                    break
                except TrainingDiverged as error:
                    self._roll_back(trainer, error)
            self._save_checkpoint(trainer, picture=True)
            self._save_samples(trainer)
            self.say(f"done: {trainer.images:,} images, {trainer.nonfinite_total} non-finite steps")
            self._save_model(trainer, self.path / "model")  # last: who finds it takes the run for finished

    def _lock(self) -> None:
        """Hold the folder's lock, for all processes of one program, until `steps` ends."""
        if self._held is None:
            held = ExitStack()
            held.enter_context(folder_lock(self.path, self.warn))
            self._held = held

    @contextmanager
    def _released_on_error(self) -> Iterator[None]:
        """Give the lock back where the block fails."""
        try:
            yield
        except BaseException:
            if self._held is not None:
                self._held.close()
                self._held = None
            raise

    def _check_destinations(self, trainer: Trainer) -> None:
        """Raises UserError where a model that is still to come would replace what is no model of ours."""
        options = trainer.options
        coming = [share for share in options.snapshots if share * options.images > trainer.images]
        store.check_destination(self.path / "model")
        if self.evaluate is not None:
            store.check_destination(self.path / "best")
        for share in coming:
            store.check_destination(self.path / "snapshots" / share_name(share))

    def _append_metrics(self, record: dict[str, float]) -> None:
        if self.main:
            self.metrics.append(record)
        if self._watch is not None:
            self._watch.look(int(record["images"]))

    def _begin_watch(self, trainer: Trainer) -> None:
        """Compare the log with the recipe's expected curves as it grows (`training.check`)."""
        if self.main and (self.path / folder.RECIPE).is_file():
            self._watch = Watch(self.path, trainer.model.card.data_sha256, self.warn)

    def _steps_until_divergence(
        self, trainer: Trainer, stop: StopSignal, telemetry: Telemetry
    ) -> Iterator[StepReport]:
        options, checkpoint_due = trainer.options, False
        for report in trainer.steps(stop.received):
            self.soundness.follow(report.loss)
            before, finished = report.images - options.batch, report.images >= options.images
            due = partial(crosses, before, report.images)
            if due(options.log_images):
                telemetry.write(report)
            shares = [s for s in options.snapshots if before < s * options.images <= report.images]
            averages_due = due(options.ema_snapshot_images) or bool(options.ema_snapshot_images and finished)
            checkpoint_due = checkpoint_due or due(options.checkpoint_images)
            measure_due = due(options.evaluate_images)
            if due(options.log_images) or shares or averages_due or checkpoint_due or measure_due or finished:
                require_sound(self.soundness, report, finished)
            with telemetry.apart():
                for share in shares:
                    self._save_model(trainer, self.path / "snapshots" / share_name(share))
                if averages_due:
                    self._save_average_snapshots(trainer)
                if measure_due:
                    with stop.during("this measurement, and the step,"):
                        self._evaluate(trainer, telemetry)
                if checkpoint_due and report.finite:  # the state in the middle of a divergence is not saved
                    self._save_checkpoint(trainer, picture=True)
                    self._save_samples(trainer)
                    checkpoint_due = False
            with stop.resting():
                yield report
            if report.stopping and not finished:
                require_sound(self.soundness, report)
                where = self._save_stopped(trainer)
                raise Interrupted(stop.number, f"{where}, saved in {self.path}; the same call continues")

    def leave(self, trainer: Trainer) -> None:
        """Save the state between two steps, where nobody asks for the next; one that is not sound is not."""
        fault = self.soundness.fault()
        if fault is None:
            self._save_stopped(trainer)
        else:
            self.warn(f"the state at {trainer.images:,} images is not saved: {fault}")

    def _save_stopped(self, trainer: Trainer) -> str:
        """Save the state; returns the log's line."""
        self._save_checkpoint(trainer, picture=False)
        line = f"stopped at {trainer.images:,} images"
        self.say(line)
        return line

    def _roll_back(self, trainer: Trainer, error: TrainingDiverged) -> None:
        """Return to the last good checkpoint, to go on from there with other noise."""
        rollbacks, nonfinite = trainer.rollbacks + 1, trainer.nonfinite_total
        if rollbacks > trainer.options.max_rollbacks:
            self._give_up(error, f"after {rollbacks - 1} returns to a checkpoint")
        if not self._load_checkpoint(trainer):
            self._give_up(error, "and there is no checkpoint to return to")
        if self.main:
            self.metrics.truncate(trainer.images)
        trainer.processes.wait()
        trainer.rollbacks, trainer.nonfinite_total = rollbacks, nonfinite
        self.soundness.went_back()
        self.warn(f"{error}; went back to {trainer.images:,} images, to go on with other noise")

    def _give_up(self, error: TrainingDiverged, why: str) -> NoReturn:
        """End the run: say, in log.txt too, what its last sound checkpoint is, and what to try."""
        stored = checkpoint.paths(self.checkpoints)
        last = f"the last sound checkpoint is {stored[-1].name}" if stored else "no checkpoint is there"
        message = f"{error}, {why}; {last}; try a lower optimizer.lr, or train.clip_norm"
        self.say(f"error: {message}")
        raise TrainingDiverged(message) from error

    def _load_checkpoint(self, trainer: Trainer) -> bool:
        """Put the trainer where the newest sound checkpoint was; False where there is none."""
        state, damaged = checkpoint.load_newest(self.checkpoints)
        for path in damaged:
            self.warn(f"{path.name} is damaged and was passed over")
        if damaged and state is not None:
            self.warn(f"goes on from the checkpoint of step {state['step']} instead")
        if not trainer.processes.agree(-1 if state is None else state["step"]):
            raise UserError(
                "the processes see different checkpoints",
                str(self.checkpoints),
                "use a folder that all share",
            )
        if state is not None:
            trainer.load_state_dict(state)
            self._picture_due = bool(state.get(PICTURE, False))
        return state is not None

    # What follows gathers sharded weights, so that all processes have to call it; the first one writes.

    def _save_checkpoint(self, trainer: Trainer, picture: bool) -> None:
        """picture: a picture of samples belongs to it, and is drawn afterwards."""
        state = trainer.state_dict()
        state |= {latest.CONFIG: store.describe(trainer.model), PICTURE: picture}
        if self.main:
            checkpoint.save(self.checkpoints, state, trainer.options.keep)
        trainer.processes.wait()

    def _save_samples(self, trainer: Trainer) -> None:
        if self.draw is not None:
            model = trainer.averaged
            if self.main:
                try:
                    self.draw(model, self.path / "samples" / f"{trainer.images:012d}.png")
                except Exception as error:  # whatever a picture fails for, it must not end the training
                    self.warn(f"no picture of samples: {error}")

    def _save_model(self, trainer: Trainer, destination: Path) -> None:
        model = trainer.averaged
        if self.main:
            store.save(model, destination)
        trainer.processes.wait()

    def _save_average_snapshots(self, trainer: Trainer) -> None:
        """Save every power-function average for `posthoc`."""
        for ema in trainer.averages:
            if isinstance(ema.average, PowerFunction):
                model, precision = trainer.averaged_by(ema), trainer.options.ema_snapshot_precision
                if self.main:
                    posthoc.save_snapshot(self.path, ema.average, model, trainer.images, precision)
        trainer.processes.wait()

    def _evaluate(self, trainer: Trainer, telemetry: Telemetry) -> None:
        """Log the measure of the averaged model, and keep the model if it is the best."""
        model = trainer.averaged
        if self.main and self.evaluate is not None:
            try:
                measured = self.evaluate(model)
            except Exception as error:  # whatever a measure fails for, it must not end the training
                self.warn(f"not measured at {trainer.images:,} images: {error}")
            else:
                self._keep_if_best(trainer, telemetry, model, measured)
        trainer.processes.wait()

    def _keep_if_best(
        self, trainer: Trainer, telemetry: Telemetry, model: Preconditioned, measured: dict[str, float]
    ) -> None:
        values = {EVALUATION + name: float(value) for name, value in measured.items()}
        first = next(iter(values))
        earlier = [
            record[first] for record in self.metrics.records() if math.isfinite(record.get(first, math.nan))
        ]
        telemetry.record(trainer, values)
        if values[first] < min(earlier, default=math.inf):
            try:
                store.save(model, self.path / "best")
            except UserError as error:  # something came into the folder; it must not end the training
                self.warn(f"the best model is not kept: {error}")
