"""The experiments that train models on images: figures 3 to 6, and the samples."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import torch

from consistune.analyze.measures import target_variance
from consistune.analyze.worlds import Empirical
from consistune.core.estimators import NoiseEstimator
from consistune.core.noise import EDM
from consistune.core.sampling import Multistep
from consistune.models import default_sampler, sample
from consistune.pages.plots import Axis, Plot
from consistune.recipe import build
from consistune.reproduce.experiment import Experiment
from consistune.reproduce.judge import MEASURES
from consistune.reproduce.results import Outcome, Row, over_seeds, series
from consistune.reproduce.runs import Run
from consistune.reproduce.spec import Positive, RunSpec
from consistune.reproduce.study import Study

IMAGES = Axis("thousand images seen")
DISTANCE = Axis("Fréchet distance, %", log=True)
VARIANCE_TIMES = (0.2, 0.3, 0.5, 0.8, 1.2, 2.0, 3.0, 5.0, 10.0, 20.0, 80.0)
"""Where there is variance to reduce: below 0.2 the posterior is one image."""


def over_runs(
    study: Study, specs: dict[str, RunSpec], measure: Callable[[Run], Iterable[Row]], by: Sequence[str]
) -> tuple[Outcome, list[Run]]:
    """Train the runs of every seed and measure rows on each; the summary has a line for each run and `by`."""
    runs = study.runs(specs)
    rows = [{"run": run.name, "seed": run.seed} | row for run in runs for row in measure(run)]
    return Outcome.of_runs(runs, rows, over_seeds(rows, ("run", *by), MEASURES)), runs


def curve_rows(run: Run) -> Iterator[Row]:
    """A row for each measured point and sampler."""
    for point in run.curve:
        images = point["images"]
        for sampler, measures in point.items():
            if sampler != "images":
                yield {"images": images, "thousands": images / 1000, "sampler": sampler} | measures


class Curves(Experiment):
    """Figures 3 and 4: distance against images seen, in one and two steps; ratios to the run `baseline`.

    With `variance`, also the error of each run's target.
    """

    kind: Literal["curves"]
    runs: dict[str, RunSpec]
    baseline: str
    variance: bool = False

    def make(self, study: Study) -> Outcome:
        outcome, _ = over_runs(study, self.runs, curve_rows, ("sampler", "images"))
        over = outcome.summary
        for steps in (1, 2):
            for key, word in (("frechet_train", "training"), ("frechet_held_out", "held-out")):
                if not all(key in line for line in over):  # a set without held-out images
                    continue
                title = f"{_steps(steps)}, to {word} images"
                of_images = series(over, "run", "images", key, sampler=f"steps={steps}")
                lines = {
                    name: ([x / 1000 for x in xs], ys, errors) for name, (xs, ys, errors) in of_images.items()
                }
                outcome.plots[f"{word}-{steps}"] = Plot(lines, IMAGES, DISTANCE, title)
        base = {(line["sampler"], line["images"]): line for line in over if line["run"] == self.baseline}
        for line in over:
            for key in ("frechet_train", "frechet_held_out"):
                if key in line:
                    line[f"{key}_ratio"] = line[key] / base[line["sampler"], line["images"]][key]
        if self.variance:
            self._add_variance(study, outcome)
        return outcome

    def _add_variance(self, study: Study, outcome: Outcome) -> None:
        """The error of each run's target against the exact posterior mean, measured on the training set."""
        recipes = {name: study.recipe(spec, 0) for name, spec in self.runs.items()}
        train = study.data.train
        conditional = all(recipe.conditional for recipe in recipes.values())
        estimators = {name: _estimator(study, recipe) for name, recipe in recipes.items()}
        world = Empirical(train.exact, train.labels if conditional else None, EDM())
        errors = [
            {"run": row.estimator, "t": row.t, "target_error": row.error, "relative": row.relative}
            for row in target_variance(world, estimators, VARIANCE_TIMES)
        ]
        outcome.rows += errors
        lines = {name: (ts, ys) for name, (ts, ys, _) in series(errors, "run", "t", "relative").items()}
        greatest = ", ".join(f"{name} {max(ys):.2f}" for name, (_, ys) in lines.items())
        outcome.notes.append(f"Greatest error of a target over one-sample's, over t from 0.2: {greatest}")
        outcome.plots["variance"] = Plot(
            lines, Axis("t", log=True), Axis("error of the target, over one-sample's"), "The targets"
        )


class EdgeSkipping(Experiment):
    """Figure 5: distance against η, over training, for each number of phases."""

    kind: Literal["edge-skipping"]
    runs: dict[str, RunSpec]

    def make(self, study: Study) -> Outcome:
        def by_eta(run: Run) -> Iterator[Row]:
            for row in curve_rows(run):
                eta = float(row.pop("sampler").removeprefix("eta="))
                yield row | {"eta": eta}

        outcome, _ = over_runs(study, self.runs, by_eta, ("images", "eta"))
        over, axis = outcome.summary, Axis("η")
        last = max(line["images"] for line in over)
        ends = [line for line in over if line["images"] == last]
        lines = series(ends, "run", "eta", "frechet_train")
        outcome.plots["eta"] = Plot(lines, axis, DISTANCE, "At the end")
        best = []
        for name in self.runs:
            title = f"{name}: over training (thousand images seen)"
            during = series(over, "images", "eta", "frechet_train", run=name)
            quarters = list(during)[-1 :: -max(len(during) // 4, 1)][::-1]
            shown = {f"{int(images) / 1000:.0f}": during[images] for images in quarters}
            outcome.plots[f"eta-{name.replace(' ', '-')}"] = Plot(shown, axis, DISTANCE, title)
            line = min((x for x in ends if x["run"] == name), key=lambda x: x["frechet_train"])
            best.append(f"{name} at η = {line['eta']:g} ({line['frechet_train']:.3g})")
        outcome.notes.append(f"Least at the end: {', '.join(best)}.")
        return outcome


class Guidance(Experiment):
    """Figure 6: distance against ω; the worse model is the averaged one at a share of the same training."""

    kind: Literal["guidance"]
    runs: dict[str, RunSpec]
    omegas: tuple[float, ...]
    snapshots: tuple[Literal["25%", "50%", "75%"], ...]
    steps: tuple[Literal[1, 2], ...]

    def make(self, study: Study) -> Outcome:
        by = ("snapshot", "steps", "omega")
        outcome, _ = over_runs(study, self.runs, partial(self._measure, study), by)
        labelled = [line | {"label": f"{line['run']}, {line['snapshot']}"} for line in outcome.summary]
        for steps in self.steps:
            lines = series(labelled, "label", "omega", "frechet_train", steps=steps)
            title = f"{_steps(steps)}, by snapshot"
            outcome.plots[f"omega-{steps}"] = Plot(lines, Axis("ω"), DISTANCE, title)
        return outcome

    def _measure(self, study: Study, run: Run) -> Iterator[Row]:
        model = run.model(study.device)
        worse = {share: run.snapshot(share, study.device) for share in self.snapshots}
        for share, steps, omega in itertools.product(self.snapshots, self.steps, self.omegas):
            sampler = default_sampler(model, steps)
            measure = partial(study.judge, model, sampler, guidance=omega, worse=worse[share])
            # ω = 1 is no guidance: one question for all snapshots
            by = "" if omega == 1 else f" by {share}"
            measures = study.measured(run, f"steps={steps}, omega={omega:g}{by}", measure)
            yield {"snapshot": share, "steps": steps, "omega": omega} | measures


class Samples(Experiment):
    """`columns` one-step images of each of the first `rows` classes, from the same noise for every run."""

    kind: Literal["samples"]
    runs: dict[str, RunSpec]
    rows: Positive
    columns: Positive

    def make(self, study: Study) -> Outcome:
        def at_the_end(run: Run) -> list[Row]:
            last = run.curve[-1]
            return [{"images": last["images"], **last["steps=1"]}]

        outcome, runs = over_runs(study, self.runs, at_the_end, ("images",))
        outcome.columns = self.columns
        train = study.data.train
        labels = torch.arange(min(len(train.class_names), self.rows)).repeat_interleave(self.columns)
        of_class = [(train.labels == label).nonzero()[: self.columns, 0] for label in labels[:: self.columns]]
        outcome.pictures["training images"] = train.images[torch.cat(of_class)]
        for run in runs:
            if run.seed == study.seeds[0]:
                model = run.model(study.device)
                condition = labels if model.num_classes else None
                images = sample(model, range(len(labels)), condition=condition, sampler=Multistep(()))
                outcome.pictures[f"{run.name}, one step, seeds 0 to {len(labels) - 1}"] = images
        return outcome


def _steps(number: int) -> str:
    return f"{number} step{'s' * (number - 1)}"


def _estimator(study: Study, recipe: Any) -> NoiseEstimator:
    """The recipe's estimator over the study's training images."""

    def reference(word: str, **_: Any) -> Any:
        return None if word == "batch" else study.data.train.reference(recipe.conditional)

    words = {"reference": reference}
    return build(recipe.estimator, "estimator", words=words, context={}, schedule=EDM(), mirrored=False)
