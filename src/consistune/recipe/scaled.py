"""A recipe of the package for other data and another length of training."""

import json
from collections.abc import Mapping
from typing import Any

from consistune.recipe.reading import assign, read_recipe, validate
from consistune.recipe.words import Recipe
from consistune.training.ema import HalfLife
from consistune.training.options import DURATIONS


def scaled_recipe(
    name: str, data: str, conditional: bool, images: int, settings: Mapping[str, Any]
) -> Recipe:
    """The recipe `name` for other data, without weights to start from, with its durations scaled to `images`.

    A decay per step becomes the half-life in images that it is at the recipe's batch, scaled alike.
    References are all images, or those of the class where the recipe is conditional. `settings`: keys that
    are set last.

    Raises UserError as `read_recipe` and `validate` do.
    """
    recipe: dict[str, Any] = json.loads(read_recipe(name).model_dump_json())
    train = recipe["train"]
    scale = images / train["images"]
    _scale(recipe, scale)
    train |= {"images": images, "ema": [_scaled_average(own, train["batch"], scale) for own in train["ema"]]}
    recipe |= {"data": data, "conditional": conditional, "start_from": None, "dropout": None}
    estimator = recipe.get("estimator", {})
    if estimator.get("reference") in ("class", "all"):
        estimator["reference"] = "class" if conditional else "all"
    for key, value in settings.items():
        assign(recipe, key.split("."), value, key)
    return validate(recipe, f"recipe {name}")


def _scaled_average(average: Any, batch: int, scale: float) -> Any:
    """A power function follows the length by itself; a half-life is scaled as a duration."""
    if isinstance(average, dict):
        half_life = average.get("kind") == "half-life"
        return {**average, "images": max(1, round(average["images"] * scale))} if half_life else average
    return {"kind": "half-life", "images": max(1, round(HalfLife.of_decay(average, batch) * scale))}


def _scale(section: dict[str, Any], scale: float) -> None:
    """Multiply every duration of a recipe's sections, in place."""
    for key, value in section.items():
        if isinstance(value, dict):
            _scale(value, scale)
        elif key in DURATIONS and value:
            section[key] = max(1, round(value * scale))
