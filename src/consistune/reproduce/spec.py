"""What an experiment's YAML, and scales.yaml, may say, checked strictly."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from consistune.errors import UserError
from consistune.recipe import parse_yaml

SCALES = Path(__file__).parent / "scales.yaml"
Scale = Literal["smoke", "cpu", "gpu", "paper"]
Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Paper(Strict):
    """What is reproduced: its place in the paper, and what the paper says there."""

    figure: str
    claim: str


class Description(Strict):
    """What every experiment's YAML says of it."""

    title: str
    paper: Paper
    about: str


class RunSpec(Strict):
    """A training: its recipe, and what is changed in it.

    Attributes:
        recipe: a role of the data set (`DataSettings.recipes`), or a recipe's name.
        set: overrides, key=value.
        phases: number of phases, spaced on EDM's grid, that the recipe's time pairs are cut into.
        etas: edge-skipping factors that a phased model is sampled with; without them any model is sampled in
            1 and 2 steps.
        all_averages: measure every average of `train.ema`, not the first alone.
    """

    recipe: str
    set: tuple[str, ...] = ()
    phases: Positive | None = None
    etas: tuple[Share, ...] = ()
    all_averages: bool = False


class ScaleSettings(Strict):
    """A scale on a data set: seeds, samples of a measurement, points of a curve, overrides of the recipes."""

    seeds: Positive
    samples: Annotated[int, Field(ge=2)]
    points: Positive
    teacher: tuple[str, ...] = ()
    student: tuple[str, ...] = ()


class DataSettings(Strict):
    """A data set: the recipe for each role, the features that samples are measured by, the scales."""

    recipes: dict[str, str]
    features: str | None = None
    scales: dict[Scale, ScaleSettings]


_DATA_SETS: TypeAdapter[dict[str, DataSettings]] = TypeAdapter(dict[str, DataSettings])


def read_data_sets(path: Path = SCALES) -> dict[str, DataSettings]:
    """Raises UserError with the key for a mistake in the file."""
    return checked(_DATA_SETS, path)


def settings_of(data: str) -> tuple[str, DataSettings]:
    """The name and settings of a data set, given by its name or its folder. Raises UserError for others."""
    known = read_data_sets()
    name = Path(data).name
    if name not in known:
        remedy = f"name the folder as one of: {', '.join(known)}"
        raise UserError(f"no experiment knows {name!r}", "--data", remedy)
    return name, known[name]


def at_scale(scales: dict[Any, Any], scale: str, where: str) -> Any:
    """A scale's settings. Raises UserError, naming the scales there are."""
    if scale not in scales:
        raise UserError(f"{where} has no scale {scale!r}", "--scale", f"use one of: {', '.join(scales)}")
    return scales[scale]


def checked(adapter: TypeAdapter[Any], path: Path) -> Any:
    """A YAML file as an adapter's type. Raises UserError with the key for a mistake."""
    try:
        # Through JSON, where a list may stand for a tuple although the models are strict.
        return adapter.validate_json(json.dumps(parse_yaml(path.read_text(encoding="utf-8"), str(path))))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        keys = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{keys}: {first['msg'][0].lower()}{first['msg'][1:]}", str(path)) from error
