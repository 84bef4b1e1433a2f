"""The demo: from the embedded digits to two one-step generators, compared on a page.

Every stage leaves its result in the folder; run again, the demo takes what is there and continues.
"""

import json
import time
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from consistune.analyze.measures import named_estimators, target_variance
from consistune.analyze.worlds import Empirical
from consistune.core.noise import EDM
from consistune.core.sampling import Sampler
from consistune.data.images import DataSplit, digits
from consistune.models import default_sampler, draw_sheet
from consistune.nn import store
from consistune.nn.precond import Preconditioned
from consistune.pages.demo import demo_page
from consistune.pages.page import counted
from consistune.pages.plots import SampleGrids
from consistune.recipe import read_recipe
from consistune.reproduce.judge import Judge
from consistune.reproduce.results import Row
from consistune.reproduce.runs import read_curve, train_run, with_points
from consistune.reproduce.trained import VARIANCE_TIMES
from consistune.system.files import write_atomically
from consistune.system.progress import Screen

SAMPLES = 5000
CURVE_POINTS = 8
SHOWN = 60
METHODS = {"ect": "ECT", "sct": "SCT"}


class Demo:
    """The stages of the demo in one folder: the runs teacher/, ect/ and sct/, then results and the page."""

    def __init__(self, out: Path, seed: int, screen: Screen, overrides: tuple[str, ...] = ()) -> None:
        self.out, self.seed, self.screen, self.overrides = out, seed, screen, overrides
        self.data: DataSplit = digits()
        self.judge = Judge(self.data, SAMPLES, "classifier", screen)
        out.mkdir(parents=True, exist_ok=True)

    def run(self) -> Path:
        """All stages, then the page. Raises Interrupted after a signal, when the state is saved."""
        began = time.perf_counter()
        fresh = not (self.out / "teacher").exists()
        held_out = self.data.need_held_out("the demo")
        real = self.judge.of_images(held_out.images, held_out.labels)
        self.judge.screen.say(f"classifier: {real['accuracy']:.1%} of the held-out digits right")
        folders = self._train()
        rows, pictures = self._compare({key: store.load(folder) for key, folder in folders.items()})
        train = self.data.train
        world = Empirical(train.images, train.labels, EDM())
        estimators = named_estimators(train.images, train.labels, EDM())
        variance = target_variance(world, estimators, VARIANCE_TIMES, queries=512)
        results = {
            "seed": self.seed,
            "folder": str(self.out),
            "samples": SAMPLES,
            "classifier_accuracy": real["accuracy"],
            "real": real,
            "rows": rows,
            "curves": {key: read_curve(folders[key]) for key in METHODS},
            "target_variance": [asdict(row) for row in variance],
            "minutes": (time.perf_counter() - began) / 60 if fresh else None,
        }
        write_atomically(self.out / "results.json", json.dumps(results, indent=1))
        shown = {name: x for name, x in pictures.items() if "forced" not in name and "2 eval" not in name}
        write_atomically(self.out / "overview.png", SampleGrids(shown, columns=10).png())
        page = self.out / "report.html"
        write_atomically(page, demo_page({**results, "pictures": pictures}))
        return page

    def _train(self) -> dict[str, Path]:
        """The three runs. The students' curves have CURVE_POINTS points in one and in two steps."""

        def samplers(model: Preconditioned) -> dict[str, Sampler]:
            return {f"steps_{steps}": default_sampler(model, steps) for steps in (1, 2)}

        keys = (f"train.seed={self.seed}", *self.overrides)
        folders = {"teacher": self.out / "teacher"}
        teacher = read_recipe("digits-edm", keys)
        train_run(folders["teacher"], teacher, self.screen, draw=draw_sheet)
        for method in METHODS:
            start = f"start_from={folders['teacher'] / 'model'}"
            recipe = with_points(read_recipe(f"digits-{method}", [start, *keys]), CURVE_POINTS)
            evaluate = self.judge.for_log(samplers)
            folders[method] = train_run(
                self.out / method, recipe, self.screen, evaluate=evaluate, draw=draw_sheet
            )
        return folders

    def _compare(self, models: dict[str, Preconditioned]) -> tuple[list[Row], dict[str, Tensor]]:
        """The rows of the page's table, and images of the same noise for each."""
        jobs = [("EDM teacher", "teacher", 18), ("EDM teacher, forced to one step", "teacher", 1)]
        jobs += [(METHODS[key], key, steps) for key in METHODS for steps in (1, 2)]
        rows: list[Row] = []
        pictures = {}
        with self.screen.bar("measuring", len(jobs) * SAMPLES) as bar:
            for name, key, steps in jobs:
                sampler = default_sampler(models[key], steps)
                began = time.perf_counter()
                images = self.judge.draw(models[key], sampler)
                seconds = (time.perf_counter() - began) / SAMPLES
                evaluations = int(sampler.evaluations)  # type: ignore[attr-defined]
                row = {"name": name, "evaluations": evaluations, "seconds_an_image": seconds}
                rows.append(row | self.judge.of_images(images, self.judge.labels))
                title = f"{name}, {counted(evaluations, 'evaluation')}"
                pictures[title] = images[:SHOWN]
                bar.advance(SAMPLES, name)
        return rows, pictures
