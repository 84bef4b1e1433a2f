"""The demo: from the embedded digits, or emoji, to two one-step generators, compared on a page.

Every stage leaves its result in the folder; run again, the demo takes what is there and continues.
"""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from consistune.analyze.measures import named_estimators, target_variance
from consistune.analyze.worlds import Empirical
from consistune.core.noise import EDM
from consistune.core.sampling import Sampler
from consistune.data.images import DataSplit, digits, load_data
from consistune.data.prepare.latents import LatentOptions, prepare_latents
from consistune.data.prepare.run import PrepareOptions
from consistune.data.prepare.split import Split
from consistune.data.prepared import is_prepared
from consistune.errors import UserError
from consistune.models import BOX, default_sampler, draw_sheet
from consistune.nn import store
from consistune.nn.precond import Preconditioned
from consistune.pages.demo import demo_page
from consistune.pages.page import counted
from consistune.pages.plots import SampleGrids
from consistune.recipe import Recipe, read_recipe
from consistune.reproduce.judge import Judge
from consistune.reproduce.results import Row
from consistune.reproduce.runs import check_run, read_curve, train_run, with_points
from consistune.reproduce.study import update_paths, with_teacher
from consistune.reproduce.trained import VARIANCE_TIMES
from consistune.system.files import remove_partial, write_atomically
from consistune.system.progress import Screen

SHOWN = 60
METHODS = {"ect": "ECT", "sct": "SCT"}


@dataclass(frozen=True)
class Subject:
    """What a demo learns, and at what length.

    Attributes:
        family: of the recipes FAMILY-edm, FAMILY-ect, FAMILY-sct.
        samples, points: of each measurement, and measurements while tuning.
        queries: noisy images at each noise level where the target's variance is measured.
        teacher, tuned: keys of the recipes.
    """

    family: str
    samples: int
    points: int
    queries: int
    teacher: tuple[str, ...] = ()
    tuned: tuple[str, ...] = ()


DIGITS = Subject("digits", samples=5000, points=8, queries=512)
EMOJI = Subject(
    "emoji64-latent",
    samples=500,
    points=4,
    queries=128,
    teacher=("train.images=100_000",),
    tuned=("train.images=30_000", "pairs.gap.every_images=6_000"),
)
"""Pictures in colour, in fewer training images than the recipes', for two CPU cores."""
PICTURES, HELD_OUT = BOX / "emoji.zip", 0.05

RESULTS = ("results.json", "overview.png", "report.html")
RECORD = ("results.json", ("subject", "seed", "folder"))
"""The file by which a folder is known to hold a demo's results, and some of its keys."""


class Demo:
    """The stages of the demo in one folder: the runs teacher/, ect/ and sct/, then results and the page."""

    def __init__(
        self,
        out: Path,
        seed: int,
        screen: Screen,
        overrides: tuple[str, ...] = (),
        subject: Subject = DIGITS,
    ) -> None:
        self.out, self.seed, self.screen, self.overrides = out, seed, screen, overrides
        self.subject, self.samples = subject, subject.samples
        self.data_name = "digits" if subject is DIGITS else str(out / "data")
        self.recipes = self._recipes()
        for name, recipe in self.recipes.items():
            update_paths(out / name, recipe)
            check_run(out / name, recipe)
        out.mkdir(parents=True, exist_ok=True)
        remove_partial(out, RESULTS)
        if subject is not DIGITS:
            _prepare_emoji(out / "data", screen)
        self.data: DataSplit = digits() if subject is DIGITS else load_data(self.data_name)
        self.judge = self._judge()

    def run(self) -> Path:
        """All stages, then the page. Raises Interrupted after a signal, when the state is saved."""
        began = time.perf_counter()
        fresh = not (self.out / "teacher").exists()
        held_out = self.data.to_look_at.need_held_out("the demo")
        real = self.judge.of_images(held_out.images, held_out.labels)
        if real["accuracy"] is not None:
            self.screen.say(f"classifier: {real['accuracy']:.1%} of the held-out images right")
        folders = self._train()
        rows, pictures = self._compare({key: store.load(folder) for key, folder in folders.items()})
        train = self.data.train
        images = train.exact
        world = Empirical(images, train.labels, EDM())
        estimators = named_estimators(images, train.labels, EDM())
        variance = target_variance(world, estimators, VARIANCE_TIMES, queries=self.subject.queries)
        results = {
            "subject": self.subject.family,
            "seed": self.seed,
            "folder": str(self.out),
            "features": self.judge.suite.setup.extractor.name,
            "training_images": len(self.data.to_look_at.train),
            "samples": self.samples,
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

    def _judge(self) -> Judge:
        """Digits are measured by a classifier of theirs, emoji by the extractor that fits, if it is there."""
        pictures, samples = self.data.to_look_at, self.samples
        if self.data.train.latents is None:
            return Judge(pictures, samples, "classifier", self.screen)
        judge = Judge(pictures, samples, None, self.screen)
        try:
            judge.suite  # noqa: B018  # loads the extractor
        except UserError as error:
            self.screen.say(f"{error}; until then a small classifier of the pictures measures")
            return Judge(pictures, samples, "classifier", self.screen)
        return judge

    def _train(self) -> dict[str, Path]:
        """The three runs. The students' curves have `points` points in one and in two steps."""

        def samplers(model: Preconditioned) -> dict[str, Sampler]:
            return {f"steps_{steps}": default_sampler(model, steps) for steps in (1, 2)}

        folders = {}
        for name, recipe in self.recipes.items():
            evaluate = self.judge.for_log(samplers) if name in METHODS else None
            folders[name] = train_run(
                self.out / name, recipe, self.screen, evaluate=evaluate, draw=draw_sheet
            )
        return folders

    def _recipes(self) -> dict[str, Recipe]:
        """The recipes of the three runs, which are made in this order."""

        def recipe(kind: str, keys: tuple[str, ...]) -> Recipe:
            keys = (f"train.seed={self.seed}", *keys, *self.overrides)
            return read_recipe(f"{self.subject.family}-{kind}", keys).model_copy(
                update={"data": self.data_name}
            )

        recipes = {"teacher": recipe("edm", self.subject.teacher)}
        for method in METHODS:
            tuned = with_points(recipe(method, self.subject.tuned), self.subject.points)
            recipes[method] = with_teacher(tuned, str(self.out / "teacher" / "model"))
        return recipes

    def _compare(self, models: dict[str, Preconditioned]) -> tuple[list[Row], dict[str, Tensor]]:
        """The rows of the page's table, and images of the same noise for each."""
        jobs = [("EDM teacher", "teacher", 18), ("EDM teacher, forced to one step", "teacher", 1)]
        jobs += [(METHODS[key], key, steps) for key in METHODS for steps in (1, 2)]
        rows: list[Row] = []
        pictures = {}
        with self.screen.bar("measuring", len(jobs) * self.samples) as bar:
            for name, key, steps in jobs:
                sampler = default_sampler(models[key], steps)
                began = time.perf_counter()
                images = self.judge.draw(models[key], sampler)
                seconds = (time.perf_counter() - began) / self.samples
                row = {"name": name, "evaluations": sampler.evaluations, "seconds_an_image": seconds}
                rows.append(row | self.judge.of_images(images, self.judge.labels))
                title = f"{name}, {counted(sampler.evaluations, 'evaluation')}"
                pictures[title] = images[:SHOWN]
                bar.advance(self.samples, name)
        return rows, pictures


def _prepare_emoji(dest: Path, screen: Screen) -> None:
    """Make the emoji of the package latents in the folder `dest`, at the first call."""
    if not is_prepared(dest):
        screen.say("encoding the emoji with taef2")
        split = Split(HELD_OUT, by="group")
        prepare_latents(PICTURES, dest, PrepareOptions(split=split), LatentOptions())
