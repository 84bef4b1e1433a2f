"""TensorBoard and Weights & Biases, through accelerate's trackers."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from sct.errors import UserError
from sct.train.options import TrainOptions

EXTRAS = {"wandb": "wandb"}


def check(options: TrainOptions) -> None:
    """Raises UserError for a tracker whose package is not installed."""
    for name in options.trackers:
        if find_spec(name) is None:
            raise UserError(
                f"{name} is not installed", "train.trackers", f"pip install 'sct[{EXTRAS.get(name, name)}]'"
            )


@contextmanager
def opened(options: TrainOptions, folder: Path, images: int, main: bool) -> Iterator[list[Any]]:
    """The trackers of a run that has seen so many images; the first process's alone; closed at the end."""
    check(options)
    # Imported here: it takes a second, and only training needs it.
    from accelerate.tracking import TensorBoardTracker, WandBTracker

    trackers: list[Any] = []
    for name in options.trackers if main else ():
        if name == "tensorboard":
            trackers.append(TensorBoardTracker("tensorboard", folder, purge_step=images))
        else:
            # The folder names the run there too, so that a continued one goes on in the same curves.
            identity = uuid5(NAMESPACE_URL, folder.resolve().as_uri()).hex
            trackers.append(
                WandBTracker("sct", name=folder.name, id=identity, resume="allow", dir=str(folder))
            )
    try:
        for tracker in trackers:
            tracker.start()
        yield trackers
    finally:
        for tracker in trackers:
            tracker.finish()
