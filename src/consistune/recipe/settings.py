"""Keys of a recipe from Python: given one by one or as sections, some as arguments, NumPy's numbers too."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from consistune.core.objectives import Objective
from consistune.errors import UserError

NOT_OBJECTIVES = ("pairs", "estimator", "loss", "schedule")
"""Keys of which an objective from Python has its own."""
KEYS = {"images": "train.images", "batch": "train.batch", "seed": "train.seed", "lr": "optimizer.lr"}
"""The keys that are arguments."""


def with_arguments(
    settings: Mapping[str, Any] | None,
    arguments: Mapping[str, Any],
    objective: Objective | None,
    out: Path | None,
) -> dict[str, Any]:
    """The keys of settings and arguments, in the order in which they are set; those of `train` one by one.

    Args:
        arguments: those that are given, by their names in `KEYS`.

    Raises UserError for settings that are no keys, that an argument has, or that would have no effect.
    """
    found = {} if settings is None else _flat(settings)
    given = {KEYS[name]: plain(value, name) for name, value in arguments.items()}
    optimizer = found.get("optimizer")
    inside = [f"optimizer.{key}" for key in optimizer] if isinstance(optimizer, dict) else []
    for key in (*found, *inside):
        where, section = f"settings[{key!r}]", key.split(".")[0]
        if key in given:
            name = next(name for name in KEYS if KEYS[name] == key)
            raise UserError(f"is the argument {name}", where, f"give {name} alone")
        if objective is not None and section in NOT_OBJECTIVES:
            raise UserError("has no effect: the objective has its own", where, "leave it out")
        if objective is not None and section == "target" and not objective.uses_target:
            what = "has no effect: the objective asks no target network"
            raise UserError(what, where, "leave it out")
        if key == "train.evaluate_images" and out is None:
            raise UserError("has no effect without a folder", where, "give out")
    return found | given


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Plain settings, those of `train` one by one: the section's other keys are arguments."""
    if not isinstance(settings, Mapping) or not all(isinstance(key, str) for key in settings):
        raise UserError(f"{settings!r:.60} is no mapping of keys", "settings", 'give {"train.ema": [0.999]}')
    found = {key: plain(value, f"settings[{key!r}]") for key, value in settings.items()}
    train = found.get("train")
    if not isinstance(train, dict):
        return found
    del found["train"]
    return {f"train.{key}": value for key, value in train.items()} | found


def plain(value: Any, where: str) -> Any:
    """A value as a recipe has it: numbers and arrays of NumPy and torch become Python's.

    Raises UserError for what no recipe can hold.
    """
    if isinstance(value, Mapping):
        return {key: plain(inner, where) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner, where) for inner in value]
    found = value.tolist() if hasattr(value, "tolist") else value
    try:
        json.dumps(found)
    except (TypeError, ValueError) as error:
        what = f"{type(value).__name__} is no value of a recipe"
        raise UserError(what, where, "give numbers, words, lists or mappings") from error
    return found


def names_frozen(settings: Mapping[str, Any]) -> bool:
    """Whether the settings name a frozen model, in whose place the given one would stand otherwise."""
    parts = {key: value for key, value in settings.items() if key.split(".")[0] in ("estimator", "below")}
    return any(_is_frozen(key, value) for key, value in parts.items())


def _is_frozen(key: str, value: Any) -> bool:
    """Whether a key, perhaps dotted, or one inside its value names a frozen model."""
    if isinstance(value, Mapping):
        return any(_is_frozen(name, inner) for name, inner in value.items())
    return key.rpartition(".")[2] in ("model", "below")
