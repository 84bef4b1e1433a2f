"""The recipes that come with the package, listed and explained, and new ones written for own data."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from consistune.data.images import SETS
from consistune.recipe.keys import explanations
from consistune.recipe.reading import SHIPPED, read_recipe, recipe_path, shipped_recipes
from consistune.recipe.words import Recipe, Section

RUN_WHOLE = {
    *(f"digits-{method}" for method in ("edm", "ect", "sct", "sct-phased", "cd", "cm", "ict")),
    *(f"digits-{method}" for method in ("cmt", "cmt-ect", "best", "tcm", "sct-continuous", "scd")),
    *(f"emoji64-latent-{method}" for method in ("edm", "ect", "sct", "meanflow", "best", "tcm")),
    *(f"cifar10-jpeg-{method}" for method in ("edm", "ect", "sct", "meanflow", "best", "tcm")),
}
"""The recipes that were run to their end (docs/recipes.md says where)."""
RUN_SHORT = {
    *(f"mnist10k-{method}" for method in ("edm", "ect", "sct", "sct-adaptive", "best")),
    *(f"mnist10k-{method}" for method in ("cmt", "cmt-ect", "tcm", "meanflow", "imf", "sct-continuous")),
    *(f"digits-{method}" for method in ("meanflow", "imf", "unlabelled-best")),
}
"""Those that were run with fewer images (docs/recipes.md)."""


def summary(name: str) -> str:
    """The first sentence of a shipped recipe's comment."""
    lines = (SHIPPED / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    comment: list[str] = []
    for line in lines:
        if not line.startswith("#"):
            break
        comment.append(line.lstrip("# "))
    return re.split(r"\.\s|\.$", " ".join(comment))[0]


def needs(recipe: Recipe) -> list[str]:
    """The data and weights that a recipe names and that are not there."""
    teacher = getattr(getattr(recipe, "estimator", None), "model", None)
    paths = [None if recipe.data in SETS else recipe.data, recipe.start_from, teacher]
    missing = [path for path in paths if path is not None and not Path(path).exists()]
    return list(dict.fromkeys(missing))


def listed() -> Iterator[tuple[str, str, str, list[str]]]:
    """(name, summary, what was run, what is missing) of every shipped recipe."""
    for name in shipped_recipes():
        run = "run whole" if name in RUN_WHOLE else "run in short" if name in RUN_SHORT else "one step run"
        yield name, summary(name), run, needs(read_recipe(name))


def explained(name: str, overrides: tuple[str, ...] = ()) -> str:
    """A recipe as YAML with every default written out, and the meaning of each key."""
    return "\n".join(_lines(read_recipe(name, overrides), "")) + "\n"


def _lines(part: Section, indent: str) -> Iterator[str]:
    known = explanations(type(part))
    for name in type(part).model_fields:
        value = getattr(part, name)
        if isinstance(value, Section):
            yield f"{indent}{name}:"
            yield from _lines(value, indent + "  ")
            continue
        plain = part.model_dump(mode="json")[name]
        text = yaml.safe_dump(plain, default_flow_style=True, width=10**6, allow_unicode=True)
        line = f"{indent}{name}: {text.removesuffix('...' + chr(10)).strip()}"
        yield f"{line:<40}  # {known[name]}" if known.get(name) else line


def new_recipes(
    name: str, data: str, family: str, method: str, network: dict[str, Any], conditional: bool
) -> dict[str, str]:
    """Two commented recipes for own data, file name → text: the teacher's, then the tuned model's.

    They extend FAMILY-edm and FAMILY-METHOD, whose lengths they write out.
    """
    base = recipe_path(f"{family}-{method}").stem
    long, short = read_recipe(f"{family}-edm").train.images, read_recipe(base)
    stage = short.pairs.gap.every_images
    reference = "class" if conditional else "all"
    estimator = f"estimator: {{reference: {reference}}}{' ' * 29}# the images that a target averages over\n"
    section = yaml.safe_dump(network, default_flow_style=True, sort_keys=False, width=10**6).strip()
    data = yaml.safe_dump(data, allow_unicode=True, width=10**6).removesuffix("...\n").strip()
    teacher = f"""# The teacher: a diffusion model (EDM). First: consistune train {name}-teacher.yaml
extends: {f"{family}-edm":<49}# consistune recipes show {family}-edm
data: {data}
conditional: {str(conditional).lower():<45}# whether the network is told the class
network: {section}
train: {{images: {f"{long:_}}}":<42}# training images to see; more is better
"""
    tuned = f"""# The one-step model, tuned from the teacher. Then: consistune train {name}.yaml
extends: {base:<49}# consistune recipes show {base}
data: {data}
conditional: {str(conditional).lower():<45}# as the teacher's
start_from: runs/{name}-teacher/model
pairs: {{gap: {{every_images: {f"{stage:_}}}}}":<31}# the length of a stage
{estimator if method == "sct" else ""}train: {{images: {short.train.images:_}}}
"""
    return {f"{name}-teacher.yaml": teacher, f"{name}.yaml": tuned}
