"""One experiment, or all of them, from the YAML to the page."""

import time
from pathlib import Path

import torch

from sct.reproduce import mdp, plane, table, trained
from sct.reproduce.results import Outcome, write
from sct.reproduce.spec import (
    Curves,
    EdgeSkipping,
    Experiment,
    Guidance,
    Mdp,
    Phases,
    Samples,
    Scale,
    Table,
    Unify,
    read_experiment,
)
from sct.reproduce.study import Study
from sct.stages import Screen


def reproduce(
    name: str,
    out: Path,
    data: str,
    scale: Scale,
    screen: Screen,
    *,
    seeds: int | None = None,
    device: torch.device | str = "cpu",
    overrides: tuple[str, ...] = (),
) -> Path:
    """Make one experiment; its page's path. What is there already is taken, what was stopped goes on.

    Raises UserError for unknown names, data or scales; train.run.Interrupted after a signal.
    """
    experiment = read_experiment(name)
    study = Study(out, data, scale, screen, seeds=seeds, device=device, overrides=overrides)
    began = time.perf_counter()
    screen.say(f"{name}: {experiment.title}")
    outcome = found(study, experiment)
    facts = {
        "command": f"sct reproduce {name} --data {data} --scale {scale}"
        + (f" --seeds {seeds}" if seeds else ""),
        "data": study.name,
        "scale": scale,
        "samples": study.budget.samples,
        "minutes": (time.perf_counter() - began) / 60 if outcome.minutes is None else outcome.minutes,
    }
    return write(study.folder / name, name, experiment, outcome, facts)


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
