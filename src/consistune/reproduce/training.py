"""A training as one stage of a larger job: begun, continued, or found finished; its curve kept in its log."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from consistune.data.images import load_data
from consistune.errors import UserError
from consistune.metrics.scores import Scores
from consistune.nn import store
from consistune.nn.precond import Preconditioned
from consistune.recipe import Recipe, to_yaml
from consistune.recipe.plan import make_plan
from consistune.system.progress import Screen
from consistune.train.metrics_file import EVALUATION, MetricsFile
from consistune.train.run import RunFolder


def with_points(recipe: Recipe, points: int) -> Recipe:
    """The recipe, measured at so many points of its way."""
    train: Any = recipe.train
    every = max(train.images // points, train.batch)
    return recipe.model_copy(update={"train": train.model_copy(update={"evaluate_images": every})})


def trained(
    folder: Path,
    recipe: Recipe,
    screen: Screen,
    *,
    name: str,
    evaluate: Callable[[Preconditioned], dict[str, float]] | None = None,
    draw: Callable[[Preconditioned, Path], None] | None = None,
    device: torch.device | str = "cpu",
) -> Path:
    """The folder with the finished run of a recipe. Raises train.run.Interrupted after a signal.

    Raises UserError where a run of another recipe, or of other images, lies there.
    """
    text = to_yaml(recipe)
    saved = folder / "recipe.yaml"
    if (folder / "model").is_dir() and saved.read_text(encoding="utf-8") == text:
        _same_images(folder, recipe)
        screen.say(f"{name}: found finished in {folder}")
        return folder
    trainer = make_plan(recipe, device).trainer(device)  # first: what cannot be planned leaves no folder
    resume = saved.exists()  # only now: planning takes seconds, and another program may have begun the run
    run = RunFolder(folder, text, resume=resume, draw=draw, evaluate=evaluate)
    if resume:
        run.resume(trainer)
    with screen.bar(name, trainer.options.images, trainer.images) as bar:
        for report in run.steps(trainer):
            bar.advance(trainer.options.batch, f"loss {report.loss:.4f}")
    return folder


def _same_images(folder: Path, recipe: Recipe) -> None:
    known = json.loads((folder / "model" / store.CONFIG).read_text(encoding="utf-8"))["meta"]
    if known.get("data_sha256") != load_data(recipe.data).train.fingerprint:
        raise UserError(
            f"was trained on other images than {recipe.data} has now",
            str(folder),
            "bring those back, choose another --out, or remove the folder",
        )


def named(measures: dict[str, Scores]) -> dict[str, float]:
    """Measures of several samplers as one line of a log: "SAMPLER/MEASURE" → number."""
    return {
        f"{sampler}/{key}": value
        for sampler, found in measures.items()
        for key, value in asdict(found).items()
        if value is not None
    }


def curve(folder: Path) -> list[dict[str, Any]]:
    """A run's measured points, in order: {"images": …, SAMPLER: {MEASURE: …}}; see `named`."""
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
