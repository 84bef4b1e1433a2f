"""The numbers of a run, written every `log_images` to metrics.jsonl and to the trackers."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from consistune.errors import UserError
from consistune.system.host import peak_bytes
from consistune.training.loop import StepReport, Trainer
from consistune.training.loss_by_time import means
from consistune.training.options import TrainOptions

GIB = 2**30


class Telemetry:
    """Writes loss, learning rate, gradient norm, speed, memory, and the loss by noise level."""

    def __init__(
        self,
        trainer: Trainer,
        log: Callable[[dict[str, Any]], None],
        trackers: list[Any],
        warn: Callable[[str], None],
    ) -> None:
        """`trackers`: those that fail are removed from the list, and `warn` gets a line."""
        self.trainer, self.log, self.trackers, self.warn = trainer, log, trackers, warn
        self.last_time, self.last_images = time.perf_counter(), trainer.images

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Time in the block is no time of training: measuring, and writing models and checkpoints."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.last_time += time.perf_counter() - began

    def write(self, report: StepReport) -> None:
        """Write a record; speed and loss by noise level are those since the last one."""
        now = time.perf_counter()
        speed = (report.images - self.last_images) / (now - self.last_time)
        self.last_time, self.last_images = now, report.images
        self.record(
            self.trainer,
            {
                "loss": report.loss,
                "learning_rate": report.learning_rate,
                "gradient_norm": report.gradient_norm,
                "nonfinite_total": report.nonfinite_total,
                "images_per_second": speed,
                "peak_memory_gib": peak_bytes(self.trainer.device) / GIB,
                **{f"loss/{name}": value for name, value in means(self.trainer.by_time).items()},
            },
        )
        self.trainer.by_time.zero_()

    def record(self, trainer: Trainer, scalars: dict[str, float]) -> None:
        """Write numbers that belong to this point of training."""
        self.log({"images": trainer.images, "step": trainer.step, **scalars})
        named = {name if "/" in name else f"train/{name}": value for name, value in scalars.items()}
        self.trackers[:] = [
            t for t in self.trackers if _worked(t, self.warn, t.log, named, step=trainer.images)
        ]


def _worked(
    tracker: Any, warn: Callable[[str], None], action: Callable[..., Any], *args: Any, **keys: Any
) -> bool:
    """Whether a tracker could do that. It is only for looking: where it fails, the run goes on without it."""
    try:
        action(*args, **keys)
    except Exception as error:  # whatever a tracker fails for, it must not end the training
        warn(f"tracker {tracker.name}: {type(error).__name__}: {error}; the run goes on without it")
        return False
    return True


EXTRAS = {"wandb": "wandb"}


def check_trackers(options: TrainOptions) -> None:
    """Raises UserError for a tracker whose package is not installed."""
    for name in options.trackers:
        if find_spec(name) is None:
            raise UserError(
                f"{name} is not installed",
                "train.trackers",
                f'pip install "consistune[{EXTRAS.get(name, name)}]"',
            )


@contextmanager
def opened_trackers(
    options: TrainOptions, folder: Path, images: int, main: bool, warn: Callable[[str], None]
) -> Iterator[list[Any]]:
    """The open trackers of a run that has seen `images` images; none but on the `main` process.

    A tracker that cannot be opened is left out, and `warn` gets a line.
    """
    check_trackers(options)
    trackers: list[Any] = []
    for name in options.trackers if main else ():
        try:
            tracker = _tracker(name, folder, images)
            tracker.start()
            trackers.append(tracker)
        except Exception as error:  # no network, a folder that cannot be written: the run does not need it
            warn(f"tracker {name}: {type(error).__name__}: {error}; the run goes on without it")
    try:
        yield trackers
    finally:
        for tracker in trackers:
            _worked(tracker, warn, tracker.finish)


def _tracker(name: str, folder: Path, images: int) -> Any:
    # Imported here because it takes a second, and only training needs it.
    from accelerate.tracking import TensorBoardTracker, WandBTracker

    if name == "tensorboard":
        return TensorBoardTracker("tensorboard", folder, purge_step=images)
    # The id follows from the folder, so that a continued run continues its curves.
    identity = uuid5(NAMESPACE_URL, folder.resolve().as_uri()).hex
    return WandBTracker("consistune", name=folder.name, id=identity, resume="allow", dir=str(folder))
