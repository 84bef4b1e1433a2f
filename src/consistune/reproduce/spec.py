"""What an experiment's YAML says, checked strictly; and what a scale means on each data set."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from consistune.errors import UserError
from consistune.recipe import parse_yaml

SHIPPED = Path(__file__).parents[1] / "experiments"
BUDGETS = Path(__file__).parent / "budgets.yaml"
Scale = Literal["smoke", "cpu", "gpu", "paper"]
Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Paper(Strict):
    """What is reproduced: its place in the paper, and what the paper says there."""

    figure: str
    claim: str


class Common(Strict):
    title: str
    paper: Paper
    about: str


class RunSpec(Strict):
    """A training: the role of its recipe (`Family.recipes`), and what is changed in it.

    Attributes:
        set: overrides, key=value.
        phases: the recipe's pairs are cut into so many phases, spaced on EDM's grid.
        etas: edge-skipping factors with which a phased model is sampled; a plain one is in 1 and 2 steps.
    """

    recipe: str
    set: tuple[str, ...] = ()
    phases: Positive | None = None
    etas: tuple[Share, ...] = ()


class Curves(Common):
    """Distance against images seen; `baseline` is the run that ratios are taken to."""

    kind: Literal["curves"]
    runs: dict[str, RunSpec]
    baseline: str
    variance: bool = False


class EdgeSkipping(Common):
    kind: Literal["edge-skipping"]
    runs: dict[str, RunSpec]


class Guidance(Common):
    """f_bad is the averaged model at these shares of the same training."""

    kind: Literal["guidance"]
    runs: dict[str, RunSpec]
    omegas: tuple[float, ...]
    snapshots: tuple[Literal["25%", "50%", "75%"], ...]
    steps: tuple[Literal[1, 2], ...]


class Samples(Common):
    """So many images of each class, of at most so many classes, the first ones."""

    kind: Literal["samples"]
    runs: dict[str, RunSpec]
    rows: Positive
    columns: Positive


class MdpBudget(Strict):
    """Steps of the mixture's diffusion model; batches of four x_t and repeats of all else at each; seeds."""

    steps: Positive
    batches: Positive
    repeats: Annotated[int, Field(ge=2)]
    seeds: Positive


class Mdp(Common):
    """Errors of the reward estimates along t."""

    kind: Literal["mdp"]
    times: tuple[float, ...]
    teacher: str
    scales: dict[Scale, MdpBudget]


class PlaneBudget(Strict):
    """A 2-D training: steps of the consistency model (its teacher has twice as many), and seeds."""

    steps: Positive
    seeds: Positive


class Unify(Common):
    kind: Literal["unify"]
    times: tuple[float, ...]
    gap: Share
    references: tuple[Positive, ...]
    draws: Positive
    scales: dict[Scale, PlaneBudget]


class Phases(Common):
    kind: Literal["phases"]
    phases: tuple[Positive, ...]
    etas: tuple[Share, ...]
    paths: Positive
    scales: dict[Scale, PlaneBudget]


class Published(Strict):
    """A row of the paper's table, or of another's, with its source; `recipe` makes ours."""

    method: str
    evaluations: Positive
    value: float
    source: str
    iterations: Positive | None = None
    recipe: str | None = None
    set: tuple[str, ...] = ()


class Table(Common):
    """Published figures beside ours; `family` is the data set that the figures are of."""

    kind: Literal["table"]
    family: str
    needs: str
    rows: tuple[Published, ...]


Experiment = Curves | EdgeSkipping | Guidance | Samples | Mdp | Unify | Phases | Table
_EXPERIMENT: TypeAdapter[Experiment] = TypeAdapter(Annotated[Experiment, Field(discriminator="kind")])


class Budget(Strict):
    """What a scale means on a data set: seeds, samples a measure, points of a curve, overrides."""

    seeds: Positive
    samples: Annotated[int, Field(ge=2)]
    points: Positive
    teacher: tuple[str, ...] = ()
    student: tuple[str, ...] = ()


class Family(Strict):
    """A data set: the recipes that stand for each role, the features it is measured by, its scales."""

    recipes: dict[str, str]
    features: str | None = None
    scales: dict[Scale, Budget]


_FAMILIES: TypeAdapter[dict[str, Family]] = TypeAdapter(dict[str, Family])


def names() -> list[str]:
    """Of the experiments that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def read_experiment(name: str) -> Experiment:
    """Raises UserError for an unknown name, and with the key for a mistake in the file."""
    path = SHIPPED / f"{name}.yaml"
    if not path.is_file():
        raise UserError(f"no such experiment: {name!r}", "NAME", f"give one of: {', '.join(names())}")
    return _checked(_EXPERIMENT, path)


def read_families(path: Path = BUDGETS) -> dict[str, Family]:
    return _checked(_FAMILIES, path)


def family_of(data: str) -> tuple[str, Family]:
    """The settings for a data set, known by its name or its folder's. Raises UserError for others."""
    families = read_families()
    name = Path(data).name
    if name not in families:
        known = ", ".join(families)
        raise UserError(f"no experiment knows {name!r}", "--data", f"name the folder as one of: {known}")
    return name, families[name]


def at_scale(scales: dict[Any, Any], scale: str, where: str) -> Any:
    """A scale's settings. Raises UserError, naming the scales there are."""
    if scale not in scales:
        raise UserError(f"{where} has no scale {scale!r}", "--scale", f"use one of: {', '.join(scales)}")
    return scales[scale]


def _checked(adapter: TypeAdapter[Any], path: Path) -> Any:
    try:
        # Through JSON, where a list may stand for a tuple without strictness being given up.
        return adapter.validate_json(json.dumps(parse_yaml(path.read_text(encoding="utf-8"), str(path))))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        keys = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{keys}: {first['msg'][0].lower()}{first['msg'][1:]}", str(path)) from error
