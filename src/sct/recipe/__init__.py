"""Recipes: what words they know (`parts`), how they are read (`reading`) and become objects (`building`)."""

from sct.recipe.building import build
from sct.recipe.parts import ConsistencyRecipe, DiffusionRecipe, Recipe, Section
from sct.recipe.reading import parse_yaml, read_recipe, recipe_path, to_yaml, validate

__all__ = [
    "ConsistencyRecipe",
    "DiffusionRecipe",
    "Recipe",
    "Section",
    "build",
    "parse_yaml",
    "read_recipe",
    "recipe_path",
    "to_yaml",
    "validate",
]
