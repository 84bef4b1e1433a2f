"""Recipes: what words they know and how they become objects (`words`), and how they are read (`reading`)."""

from consistune.recipe.reading import parse_yaml, read_recipe, recipe_path, shipped_recipes, to_yaml, validate
from consistune.recipe.words import Recipe, Section, build, register

__all__ = [
    "Recipe",
    "Section",
    "build",
    "parse_yaml",
    "read_recipe",
    "recipe_path",
    "register",
    "shipped_recipes",
    "to_yaml",
    "validate",
]
