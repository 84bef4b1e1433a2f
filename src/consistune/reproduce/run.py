"""One experiment, from its YAML to its page."""

import time
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter

from consistune.errors import UserError
from consistune.reproduce.experiment import Experiment
from consistune.reproduce.mdp import Mdp
from consistune.reproduce.plane import Phases, Unify
from consistune.reproduce.results import RECORD, write
from consistune.reproduce.spec import checked
from consistune.reproduce.study import Study
from consistune.reproduce.table import Table
from consistune.reproduce.trained import Curves, EdgeSkipping, Guidance, Samples
from consistune.system.files import partial_of, remove_partial
from consistune.system.own import check_folder

SHIPPED = Path(__file__).parents[1] / "experiments"
Kinds = Curves | EdgeSkipping | Guidance | Samples | Mdp | Unify | Phases | Table
"""Every kind of experiment. A new kind is a class in a file of its own, and a word here."""
_KINDS: TypeAdapter[Kinds] = TypeAdapter(Annotated[Kinds, Field(discriminator="kind")])


def names() -> list[str]:
    """The names of the experiments in the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def read_experiment(name: str) -> Experiment:
    """Raises UserError for an unknown name, and with the key for a mistake in the file."""
    path = SHIPPED / f"{name}.yaml"
    if not path.is_file():
        raise UserError(f"no such experiment: {name!r}", "NAME", f"give one of: {', '.join(names())}")
    experiment: Experiment = checked(_KINDS, path)
    return experiment


def check_results(folder: Path) -> None:
    """Raises UserError where an experiment's results would lie among files that are not an experiment's."""
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    there = [name for name in names if partial_of(name) != RECORD[0]]  # a killed program left it
    check_folder(folder, "--out", there, *RECORD)


def reproduce(name: str, study: Study) -> Path:
    """Make one experiment; returns the path of its page. Finished runs are taken, stopped runs continued.

    Raises UserError for an unknown name, for what the data do not have, for --set where no model is tuned,
    and where the results would replace another's files; training.run.Interrupted after a signal.
    """
    experiment = read_experiment(name)
    if study.student and not experiment.tunes:
        raise UserError(f"{name} tunes no model on data", "--set", "leave it out")
    check_results(study.results(name))
    remove_partial(study.results(name), (RECORD[0],))
    study.screen.say(f"{name}: {experiment.title}")
    began = time.perf_counter()
    outcome = experiment.make(study)
    facts = {
        "command": f"consistune reproduce {name} {study.command}",
        "data": study.title if experiment.on_data else "mixture",
        "scale": study.scale,
        "samples": study.settings.samples,
        "minutes": (time.perf_counter() - began) / 60 if outcome.minutes is None else outcome.minutes,
    }
    return write(study.results(name), name, experiment, outcome, facts)
