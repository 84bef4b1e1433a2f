"""The demo: from the embedded digits to two one-step generators, compared and shown.

Every stage leaves its result in the folder; run again, the demo takes what is there and goes on.
"""

import json
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from consistune.analyze import target_variance
from consistune.data.images import DataSplit, digits
from consistune.metrics.scores import score_suite, scores
from consistune.metrics.suite import Suite
from consistune.models import default_sampler, draw_sheet, sample
from consistune.nn import store
from consistune.nn.precond import Preconditioned
from consistune.pages.demo import demo_page
from consistune.pages.plots import SampleGrids
from consistune.recipe import read_recipe
from consistune.reproduce.training import curve, named, trained, with_points
from consistune.system.files import write_atomically
from consistune.system.progress import Screen

SAMPLES = 5000
CURVE_POINTS = 8
VARIANCE_TIMES = (0.2, 0.3, 0.5, 0.8, 1.2, 2.0, 3.0, 5.0, 10.0, 20.0, 80.0)
"""Below 0.2 the posterior of a digit is one-hot: all targets are the image itself."""
SHOWN = 60
METHODS = {"ect": "ECT", "sct": "SCT"}


@dataclass(frozen=True)
class Row:
    """One line of the report's table: a model, a sampler, its measures."""

    name: str
    evaluations: int
    seconds_an_image: float
    frechet_train: float
    frechet_held_out: float | None
    accuracy: float | None
    memorisation: float | None


class Demo:
    """The stages of the demo in one folder."""

    def __init__(self, out: Path, seed: int, screen: Screen, overrides: tuple[str, ...] = ()) -> None:
        self.out, self.seed, self.screen, self.overrides = out, seed, screen, overrides
        self.data: DataSplit = digits()
        self.labels = torch.arange(SAMPLES) % len(self.data.train.class_names)
        out.mkdir(parents=True, exist_ok=True)

    def train(self, name: str, recipe_name: str, suite: Suite | None, *keys: str) -> Path:
        """A run in the folder `name`; with a suite its curve has CURVE_POINTS points."""
        recipe = read_recipe(recipe_name, [*keys, f"train.seed={self.seed}", *self.overrides])
        if suite is not None:
            recipe = with_points(recipe, CURVE_POINTS)

        def evaluate(model: Preconditioned, suite: Suite) -> dict[str, float]:
            drawn = {f"steps_{n}": sample(model, range(SAMPLES), n, self.labels) for n in (1, 2)}
            return named({key: scores(suite, images, self.labels) for key, images in drawn.items()})

        return trained(
            self.out / name,
            recipe,
            self.screen,
            name=name,
            evaluate=None if suite is None else partial(evaluate, suite=suite),
            draw=draw_sheet,
        )

    def row(self, suite: Suite, name: str, model: Preconditioned, steps: int) -> Row:
        """Draw, time and measure SAMPLES images, the same noise for every row."""
        sampler = default_sampler(model, steps)
        began = time.perf_counter()
        images = sample(model, range(SAMPLES), condition=self.labels, sampler=sampler)
        seconds = (time.perf_counter() - began) / SAMPLES
        evaluations = int(sampler.evaluations)  # type: ignore[attr-defined]
        return Row(name, evaluations, seconds, **asdict(scores(suite, images, self.labels)))

    def run(self) -> Path:
        """All stages, then the page. Raises train.run.Interrupted after a signal, when the state is saved."""
        began = time.perf_counter()
        fresh = not (self.out / "teacher").exists()
        held_out = self.data.need_held_out("the demo")
        suite = score_suite(self.data, "classifier")
        real = scores(suite, held_out.images, held_out.labels)
        self.screen.say(f"classifier: {real.accuracy:.1%} of the held-out digits right")
        teacher_folder = self.train("teacher", "digits-edm", None)
        folders = {
            key: self.train(key, f"digits-{key}", suite, f"start_from={teacher_folder / 'model'}")
            for key in METHODS
        }
        models = {key: store.load(folder) for key, folder in folders.items()}
        teacher = store.load(teacher_folder)
        jobs = [("EDM teacher", teacher, 18), ("EDM teacher, forced to one step", teacher, 1)]
        jobs += [(METHODS[key], models[key], steps) for key in METHODS for steps in (1, 2)]
        rows, pictures = [], {}
        with self.screen.bar("measuring", len(jobs) * SAMPLES) as bar:
            for name, model, steps in jobs:
                row = self.row(suite, name, model, steps)
                rows.append(asdict(row))
                key = f"{name}, {row.evaluations} evaluation{'s' if row.evaluations > 1 else ''}"
                pictures[key] = sample(model, range(SHOWN), steps, self.labels[:SHOWN])
                bar.advance(SAMPLES, name)
        results = {
            "seed": self.seed,
            "folder": str(self.out),
            "samples": SAMPLES,
            "classifier_accuracy": real.accuracy,
            "real": asdict(real),
            "rows": rows,
            "curves": {key: curve(folder) for key, folder in folders.items()},
            "target_variance": self.target_variance(),
            "minutes": (time.perf_counter() - began) / 60 if fresh else None,
        }
        write_atomically(self.out / "results.json", json.dumps(results, indent=1))
        shown = {name: x for name, x in pictures.items() if "forced" not in name and "2 eval" not in name}
        write_atomically(self.out / "overview.png", SampleGrids(shown, columns=10).png())
        page = self.out / "report.html"
        write_atomically(page, demo_page({**results, "pictures": pictures}))
        return page

    def target_variance(self) -> list[dict[str, Any]]:
        """How far each estimator's target is from the exact posterior mean, against t."""
        train = self.data.train
        rows = target_variance(train.images, train.labels, VARIANCE_TIMES, queries=512)
        return [asdict(row) for row in rows]
