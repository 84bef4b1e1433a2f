"""Recipes: what words they know and how they become objects (`words`), and how they are read (`reading`)."""

from consistune.recipe.reading import read_recipe, recipe_path, shipped_recipes, to_yaml, validate
from consistune.recipe.words import Recipe, Section, build, register
from consistune.recipe.yaml_text import parse_yaml

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
