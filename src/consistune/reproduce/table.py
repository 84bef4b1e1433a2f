"""Tables 2 and 3: published figures, each with its source, beside ours."""

import json
from functools import partial

from consistune.reproduce.results import Outcome, Row
from consistune.reproduce.spec import Published, RunSpec, Table
from consistune.reproduce.study import Run, Study
from consistune.train.lock import shared


def beside_published(study: Study, spec: Table) -> Outcome:
    """The table. Ours are trained where the study's data are the table's; elsewhere the rows stay open.

    What the study's own data gave in `convergence` is listed below, named by its data: for the comparison of
    methods, not with the published figures.
    """
    here = study.name == spec.family
    runs = _runs(study, spec) if here else {}
    rows: list[Row] = []
    digests: dict[str, str] = {}
    images = 0
    for place, published in enumerate(spec.rows):
        row: Row = {
            "method": published.method,
            "evaluations": published.evaluations,
            "iterations": published.iterations,
            "published": published.value,
            "source": published.source,
        }
        ours = [run for (number, _), run in runs.items() if number == place]
        for run in ours:
            rows.append(row | {"seed": run.seed, "state": "made here"} | _ours(study, published, run))
            digests[published.method], images = run.digest, max(images, run.images)
        if not ours:
            rows.append(row | {"state": "open" if published.recipe else "published only"})
    rows += _elsewhere(study)
    notes = [] if here else [f"Open rows need: {spec.needs}."]
    return Outcome(rows, rows, recipes=digests, images=images, notes=notes)


def _runs(study: Study, spec: Table) -> dict[tuple[int, int], Run]:
    """Those of every seed that a row's recipe asks for, by the row's place and the seed."""
    specs = {
        place: RunSpec(recipe=published.recipe, set=published.set)
        for place, published in enumerate(spec.rows)
        if published.recipe is not None
    }
    for wanted in specs.values():
        study.check(wanted)
    jobs = {
        (place, seed): partial(study.run, spec.rows[place].method, wanted, seed)
        for place, wanted in specs.items()
        for seed in study.seeds
    }
    return shared(jobs, study.screen.say)


def _ours(study: Study, published: Published, run: Run) -> Row:
    found, setup = run.curve[-1][f"steps={published.evaluations}"], study.suite.setup
    distance = found["frechet_train"] * float(setup.reference.covariance.trace()) / 100
    hours = {"gpu_hours" if str(study.device).startswith("cuda") else "cpu_hours": run.minutes / 60}
    return {"ours": distance, "measure": setup.extractor.name, "images": run.images, **hours}


def _elsewhere(study: Study) -> list[Row]:
    """The ends of this study's convergence, if that was made."""
    path = study.results("convergence") / "data.json"
    if not path.exists():
        return []
    summary = json.loads(path.read_text(encoding="utf-8"))["summary"]
    end = max(line["images"] for line in summary)
    return [
        {
            "method": f"{line['run']} on {study.title}",
            "evaluations": int(line["sampler"].removeprefix("steps=")),
            "images": end,
            "ours": line["frechet_train"],
            "ours_std": line["frechet_train_std"],
            "measure": "Fréchet distance, % of the features' variance; not FID",
            "state": "made here",
        }
        for line in summary
        if line["images"] == end
    ]
