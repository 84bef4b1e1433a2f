"""One experiment, or all of them, from the YAML to the page."""

import time
from pathlib import Path

from consistune.errors import UserError
from consistune.reproduce import mdp, plane, table, trained
from consistune.reproduce.results import Outcome, write
from consistune.reproduce.spec import (
    Curves,
    EdgeSkipping,
    Experiment,
    Guidance,
    Mdp,
    Phases,
    Samples,
    Table,
    Unify,
    read_experiment,
)
from consistune.reproduce.study import Study


def reproduce(name: str, study: Study) -> Path:
    """Make one experiment; its page's path. What is there already is taken, what was stopped goes on.

    Raises UserError for an unknown name, what the data do not have, or keys for an experiment that tunes no
    model; train.run.Interrupted after a signal.
    """
    experiment = read_experiment(name)
    if study.student and isinstance(experiment, Unify | Phases | Mdp):
        raise UserError(f"{name} tunes no model on data", "--set", "leave it out")
    study.screen.say(f"{name}: {experiment.title}")
    began = time.perf_counter()
    outcome = found(study, experiment)
    facts = {
        "command": f"consistune reproduce {name} {study.command}",
        "data": "mixture" if isinstance(experiment, Unify | Phases) else study.title,
        "scale": study.scale,
        "samples": study.budget.samples,
        "minutes": (time.perf_counter() - began) / 60 if outcome.minutes is None else outcome.minutes,
    }
    return write(study.results(name), name, experiment, outcome, facts)


def found(study: Study, experiment: Experiment) -> Outcome:
    """Whatever the kind of experiment says is done."""
    match experiment:
        case Curves():
            return trained.curves(study, experiment)
        case EdgeSkipping():
            return trained.edge_skipping(study, experiment)
        case Guidance():
            return trained.guidance(study, experiment)
        case Samples():
            return trained.samples(study, experiment)
        case Mdp():
            return mdp.along_t(study, experiment)
        case Unify():
            return plane.unify(study, experiment)
        case Phases():
            return plane.phases(study, experiment)
        case Table():
            return table.beside_published(study, experiment)
