"""One training in a folder: started, continued, or found finished; and what its log says."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from consistune.data.images import load_data
from consistune.errors import UserError
from consistune.nn import store
from consistune.nn.precond import Preconditioned
from consistune.recipe import Recipe, to_yaml
from consistune.recipe.plan import make_plan
from consistune.system.files import check_writable
from consistune.system.progress import Screen
from consistune.training.check import fingerprint_of
from consistune.training.folder import RECIPE, check_place
from consistune.training.metrics_file import EVALUATION, MetricsFile
from consistune.training.run import RunFolder


@dataclass(frozen=True)
class Run:
    """A finished training.

    Attributes:
        digest: hash of the resolved recipe without its seed and paths: equal for all seeds and machines.
        images: number of training images that this run saw.
        teacher: the run whose weights this one started from, where the study trained it.
    """

    name: str
    seed: int
    folder: Path
    digest: str
    images: int
    teacher: "Run | None" = None

    @property
    def minutes(self) -> float:
        """Time of training alone, without measuring and without the teacher's training, from the log."""
        minutes, before = 0.0, 0
        for record in self.log:
            minutes += (record["images"] - before) / record["images_per_second"] / 60
            before = record["images"]
        return minutes

    @property
    def log(self) -> list[dict[str, Any]]:
        """The records of training: images, loss, images_per_second, and more (`training.log`)."""
        return [each for each in MetricsFile(self.folder).records() if "images_per_second" in each]

    @property
    def curve(self) -> list[dict[str, Any]]:
        """See `read_curve`."""
        return read_curve(self.folder)

    def model(self, device: torch.device | str = "cpu") -> Preconditioned:
        """The averaged model at the end of training."""
        return store.load(self.folder / "model", device)

    def snapshot(self, share: str, device: torch.device | str = "cpu") -> Preconditioned:
        """The averaged model at a share of training: "25%"."""
        return store.load(self.folder / "snapshots" / share, device)


def train_run(
    folder: Path,
    recipe: Recipe,
    screen: Screen,
    *,
    evaluate: Callable[[Preconditioned], dict[str, float]] | None = None,
    all_averages: bool = False,
    draw: Callable[[Preconditioned, Path], None] | None = None,
    device: torch.device | str = "cpu",
) -> Path:
    """Train a recipe in a folder, or take the finished run of that recipe which is there. Returns the folder.

    Args:
        evaluate: measures a model every `train.evaluate_images`: "SAMPLER/MEASURE" → number, for the log.
        all_averages: evaluate every average of `train.ema`, not the first alone; the names of the others
            begin with "average NUMBER, ".

    Raises UserError where the folder holds a run of another recipe or of other images; Interrupted
    after a signal.
    """
    text = to_yaml(recipe)
    saved = folder / "recipe.yaml"
    if (folder / "model").is_dir() and saved.is_file() and saved.read_text(encoding="utf-8") == text:
        _check_images(folder, recipe)
        screen.say(f"{folder.name}: found finished in {folder}")
        return folder
    trainer = make_plan(recipe, device).trainer(device)  # first: a recipe that has no plan leaves no folder

    def measure(model: Preconditioned) -> dict[str, float]:
        assert evaluate is not None
        values = evaluate(model)
        for number, average in enumerate(trainer.averages[1:] if all_averages else (), 1):
            other = evaluate(trainer.averaged_by(average))
            values |= {f"average {number}, {key}": value for key, value in other.items()}
        return values

    # Opened after planning, which takes seconds: another program may have begun the run.
    run = RunFolder.opened(folder, text, trainer, draw=draw, evaluate=evaluate and measure)
    with screen.bar(folder.name, trainer.options.images, trainer.images) as bar:
        for report in run.steps(trainer):
            bar.advance(trainer.options.batch, f"loss {report.loss:.4f}")
    return folder


def check_run(folder: Path, recipe: Recipe) -> None:
    """Raises UserError where no run of the recipe could be begun or continued in a folder."""
    check_writable(folder, "--out", folder=True)
    check_place(folder, to_yaml(recipe), resume=(folder / RECIPE).exists())


def with_points(recipe: Recipe, points: int) -> Recipe:
    """The recipe with `train.evaluate_images` set so that the run is measured at that many points."""
    train: Any = recipe.train
    every = max(train.images // points, train.batch)
    return recipe.model_copy(update={"train": train.model_copy(update={"evaluate_images": every})})


def read_curve(folder: Path) -> list[dict[str, Any]]:
    """The measured points of a run, in order: {"images": …, SAMPLER: {MEASURE: …}}."""
    points = []
    for record in MetricsFile(folder).records():
        point: dict[str, Any] = {"images": record["images"]}
        for key, value in record.items():
            if key.startswith(EVALUATION):
                sampler, _, measure = key.removeprefix(EVALUATION).rpartition("/")
                point.setdefault(sampler, {})[measure] = value
        if len(point) > 1:
            points.append(point)
    return points


def _check_images(folder: Path, recipe: Recipe) -> None:
    if fingerprint_of(folder) != load_data(recipe.data).train.fingerprint:
        what = f"was trained on other images than {recipe.data} has now"
        raise UserError(what, str(folder), "bring those back, choose another --out, or remove the folder")
