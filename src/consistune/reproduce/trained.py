"""The experiments that train models on images: figures 3 to 6, and the samples."""

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from consistune.analyze import target_variance
from consistune.core.estimators import NoiseEstimator
from consistune.core.noise import EDM
from consistune.core.sampling import Multistep
from consistune.models import default_sampler, sample
from consistune.pages.plots import Axis, Plot
from consistune.recipe import Recipe, build
from consistune.reproduce.results import Outcome, Row, over_seeds, series
from consistune.reproduce.spec import Curves, EdgeSkipping, Guidance, RunSpec, Samples
from consistune.reproduce.study import Run, Study
from consistune.train.lock import shared

MEASURES = ("frechet_train", "frechet_held_out", "accuracy", "memorisation")
IMAGES = Axis("thousand images seen")
DISTANCE = Axis("Fréchet distance, %", log=True)
VARIANCE_TIMES = (0.2, 0.3, 0.5, 0.8, 1.2, 2.0, 3.0, 5.0, 10.0, 20.0, 80.0)
"""Where there is something to reduce: below, the posterior is one image."""


def runs(study: Study, specs: dict[str, RunSpec]) -> list[Run]:
    """Every run of every seed, a seed after the other, so that a stopped study has whole seeds.

    The same command, given on several cards or in several terminals, shares the work.
    """
    for spec in specs.values():
        study.check(spec)
    wanted = itertools.product(study.seeds, specs.items())
    jobs = {(seed, name): partial(study.run, name, spec, seed) for seed, (name, spec) in wanted}
    return list(shared(jobs, study.screen.say).values())


def outcome(done: list[Run], rows: list[Row], summary: list[Row]) -> Outcome:
    """An outcome with what is to be said of its runs."""
    teachers = [run.teacher for run in done if run.teacher is not None]
    return Outcome(
        rows,
        summary,
        recipes={run.name: run.digest for run in done},
        images=max(run.images for run in done),
        teacher_images=max(run.teacher_images for run in done),
        minutes=sum({run.folder: run.minutes for run in [*done, *teachers]}.values()),
    )


def curve_rows(done: list[Run]) -> list[Row]:
    """One row for each run, measured point and sampler."""
    return [
        {"run": run.name, "seed": run.seed, "images": point["images"], "thousands": point["images"] / 1000}
        | {"sampler": sampler}
        | found
        for run in done
        for point in run.curve
        for sampler, found in point.items()
        if sampler != "images"
    ]


def curves(study: Study, spec: Curves) -> Outcome:
    """Figures 3 and 4: distance against images seen, in one and two steps; ratios to the baseline."""
    done = runs(study, spec.runs)
    rows = curve_rows(done)
    over = over_seeds(rows, ("run", "sampler", "images", "thousands"), MEASURES)
    found = outcome(done, rows, _with_ratios(over, spec.baseline))
    for steps in (1, 2):
        for key, word in (("frechet_train", "training"), ("frechet_held_out", "held-out")):
            if not all(key in line for line in over):  # a set without held-out images
                continue
            chosen = series(over, "run", "thousands", key, sampler=f"steps={steps}")
            title = f"{steps} step{'s' * (steps - 1)}, to {word} images"
            found.plots[f"{word}-{steps}"] = Plot(chosen, IMAGES, DISTANCE, title)
    if spec.variance:
        found.plots["variance"] = _variance(study, spec, found)
    return found


def _with_ratios(summary: list[Row], baseline: str) -> list[Row]:
    """Each line with its mean over the baseline's at the same point."""
    base = {(r["sampler"], r["images"]): r for r in summary if r["run"] == baseline}
    lines = []
    for row in summary:
        line = {key: value for key, value in row.items() if key != "thousands"}
        for key in ("frechet_train", "frechet_held_out"):
            if key in row:
                line[f"{key}_ratio"] = row[key] / base[row["sampler"], row["images"]][key]
        lines.append(line)
    return lines


def _variance(study: Study, spec: Curves, found: Outcome) -> Plot:
    """The error of each run's target against the exact posterior mean, measured on the training set."""
    recipes = {name: study.recipe(run, 0) for name, run in spec.runs.items()}
    train = study.data.train
    conditional = all(recipe.conditional for recipe in recipes.values())
    measured = target_variance(
        train.images,
        train.labels if conditional else None,
        VARIANCE_TIMES,
        {name: _estimator(study, recipe) for name, recipe in recipes.items()},
    )
    lines: dict[str, tuple[list[float], list[float]]] = {}
    for row in measured:
        xs, ys = lines.setdefault(row.estimator, ([], []))
        xs.append(row.t)
        ys.append(row.relative)
        found.rows.append(
            {"run": row.estimator, "t": row.t, "target_error": row.error, "relative": row.relative}
        )
    worst = {name: max(ys) for name, (_, ys) in lines.items()}
    found.notes += [
        "Greatest error of a target over one-sample's, over t from 0.2: "
        + ", ".join(f"{name} {value:.2f}" for name, value in worst.items())
    ]
    return Plot(lines, Axis("t", log=True), Axis("error of the target, over one-sample's"), "The targets")


def _estimator(study: Study, recipe: Recipe) -> NoiseEstimator:
    by_class = recipe.conditional

    def reference(word: str, **_: Any) -> Any:
        return None if word == "batch" else study.data.train.reference(by_class)

    return build(
        recipe.estimator,
        "estimator",
        words={"reference": reference},
        context={},
        schedule=EDM(),
        mirrored=False,
    )


def edge_skipping(study: Study, spec: EdgeSkipping) -> Outcome:
    """Figure 5: distance against η, over training, for each number of phases."""
    done = runs(study, spec.runs)
    rows = curve_rows(done)
    for row in rows:
        row["eta"] = float(row.pop("sampler").removeprefix("eta="))
    over = over_seeds(rows, ("run", "images", "thousands", "eta"), MEASURES)
    found = outcome(done, rows, [{k: v for k, v in line.items() if k != "thousands"} for line in over])
    axis = Axis("η")
    ends = [line for line in over if line["images"] == max(row["images"] for row in rows)]
    found.plots["eta"] = Plot(series(ends, "run", "eta", "frechet_train"), axis, DISTANCE, "At the end")
    for name in spec.runs:
        title = f"{name}: over training (thousand images seen)"
        during = series(over, "thousands", "eta", "frechet_train", run=name)
        quarters = list(during)[-1 :: -max(len(during) // 4, 1)][::-1]
        shown = {f"{float(key):.0f}": during[key] for key in quarters}
        found.plots[f"eta-{name.replace(' ', '-')}"] = Plot(shown, axis, DISTANCE, title)
    best = {}
    for name in spec.runs:
        line = min((x for x in ends if x["run"] == name), key=lambda x: x["frechet_train"])
        best[name] = f"{name} at η = {line['eta']:g} ({line['frechet_train']:.3g})"
    found.notes.append(f"Least at the end: {', '.join(best.values())}.")
    return found


def guidance(study: Study, spec: Guidance) -> Outcome:
    """Figure 6: distance against ω, the worse model being an earlier one of the same training."""
    done = runs(study, spec.runs)
    rows = [row for run in done for row in _guided(study, spec, run)]
    over = over_seeds(rows, ("run", "snapshot", "steps", "omega"), MEASURES)
    result = outcome(done, rows, over)
    labelled = [line | {"label": f"{line['run']}, {line['snapshot']}"} for line in over]
    for steps in spec.steps:
        lines = series(labelled, "label", "omega", "frechet_train", steps=steps)
        title = f"{steps} step{'s' * (steps - 1)}, by snapshot"
        result.plots[f"omega-{steps}"] = Plot(lines, Axis("ω"), DISTANCE, title)
    return result


def _guided(study: Study, spec: Guidance, run: Run) -> Iterator[Row]:
    model = run.model(study.device)
    worse = {share: run.snapshot(share, study.device) for share in spec.snapshots}
    for share, steps, omega in itertools.product(spec.snapshots, spec.steps, spec.omegas):
        judge = partial(
            study.judge,
            model,
            default_sampler(model, steps),
            guidance=omega,
            worse=worse[share],
        )
        # ω = 1 is no guidance: one question for all snapshots
        by = "" if omega == 1 else f" by {share}"
        found = study.measured(run, f"steps={steps}, omega={omega:g}{by}", judge)
        yield {
            "run": run.name,
            "seed": run.seed,
            "snapshot": share,
            "steps": steps,
            "omega": omega,
        } | found


def samples(study: Study, spec: Samples) -> Outcome:
    """A class a row, one step, the same noise for every run."""
    done = runs(study, spec.runs)
    rows: list[Row] = []
    for run in done:
        last = run.curve[-1]
        rows.append({"run": run.name, "seed": run.seed, "images": last["images"], **last["steps=1"]})
    result = outcome(done, rows, over_seeds(rows, ("run", "images"), MEASURES))
    classes = min(len(study.data.train.class_names), spec.rows)
    labels = torch.arange(classes).repeat_interleave(spec.columns)
    real = study.data.train
    rows_of = [(real.labels == label).nonzero()[: spec.columns, 0] for label in range(classes)]
    result.pictures["training images"] = real.images[torch.cat(rows_of)]
    for run in done:
        if run.seed == study.seeds[0]:
            model = run.model(study.device)
            condition = labels if model.num_classes else None
            drawn = sample(model, range(len(labels)), condition=condition, sampler=Multistep(()))
            result.pictures[f"{run.name}, one step, seeds 0 to {len(labels) - 1}"] = drawn
    result.columns = spec.columns
    return result
