"""Tables 2 and 3: published figures, each with its source, beside ours."""

from typing import Literal

from consistune.errors import UserError
from consistune.reproduce.experiment import Experiment
from consistune.reproduce.results import Outcome, Row
from consistune.reproduce.runs import Run
from consistune.reproduce.spec import Positive, RunSpec, Strict
from consistune.reproduce.study import Study
from consistune.system.files import read_json


class Published(Strict):
    """A row of the paper's table or of another paper's, with its source; `recipe` makes ours."""

    method: str
    evaluations: Positive
    value: float
    source: str
    iterations: Positive | None = None
    recipe: str | None = None
    set: tuple[str, ...] = ()


class Table(Experiment):
    """Published figures beside ours. `data` names the data set of the figures, `needs` what ours need.

    Ours are trained where the study's data are the table's; elsewhere those rows stay open. What the study's
    own data gave in `convergence` is listed below, named by its data: it compares the methods, and is not to
    be compared with the published figures.
    """

    kind: Literal["table"]
    data: str
    needs: str
    rows: tuple[Published, ...]

    def make(self, study: Study) -> Outcome:
        specs = {
            str(number): RunSpec(recipe=published.recipe, set=published.set)
            for number, published in enumerate(self.rows)
            if published.recipe is not None and study.name == self.data
        }
        runs = study.runs(specs)
        outcome = Outcome([], [])
        for number, published in enumerate(self.rows):
            row: Row = {
                "method": published.method,
                "evaluations": published.evaluations,
                "iterations": published.iterations,
                "published": published.value,
                "source": published.source,
            }
            ours = [run for run in runs if run.name == str(number)]
            for run in ours:
                measures = _ours(study, published, run)
                outcome.rows.append(row | {"seed": run.seed, "state": "made here"} | measures)
                outcome.recipes[published.method] = run.digest
                outcome.images = max(outcome.images, run.images)
            if not ours:
                outcome.rows.append(row | {"state": "open" if published.recipe else "published only"})
        outcome.rows += _on_this_data(study)
        outcome.summary = outcome.rows
        if study.name != self.data:
            outcome.notes.append(f"Open rows need: {self.needs}.")
        return outcome


def _ours(study: Study, published: Published, run: Run) -> Row:
    setup = study.judge.suite.setup
    relative = run.curve[-1][f"steps={published.evaluations}"]["frechet_train"]
    hours = {"gpu_hours" if str(study.device).startswith("cuda") else "cpu_hours": run.minutes / 60}
    distance = relative * float(setup.reference.covariance.trace()) / 100
    return {"ours": distance, "measure": setup.extractor.name, "images": run.images, **hours}


def _on_this_data(study: Study) -> list[Row]:
    """The ends of this study's convergence, if that was made."""
    path = study.results("convergence") / "data.json"
    if not path.exists():
        return []
    summary = read_json(path).get("summary")
    if not summary:
        raise UserError("is damaged", str(path), "reproduce convergence again")
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
