"""`consistune recipes` and `consistune init`: which recipes there are, what their keys mean, and new ones."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from consistune.cli.options import check_choice
from consistune.errors import UserError

app = typer.Typer(help="List the recipes of the package, or explain one.")
METHODS = ("sct", "ect")


@app.callback(invoke_without_command=True)
def default(context: typer.Context) -> None:
    """List the recipes of the package, or explain one: recipes show NAME."""
    if context.invoked_subcommand is None:
        list_()


@app.command("list")
def list_() -> None:
    """One line for each recipe: what it is, what was run of it, what it needs that is not there."""
    from consistune.recipe.catalogue import listed

    for name, what, run, missing in listed():
        needs = f" (needs {', '.join(missing)})" if missing else ""
        print(f"{name:<20} {run:<14} {what}{needs}")


@app.command("show")
def show(
    name: Annotated[str, Argument(help="A recipe's name or file.")],
    overrides: Annotated[
        list[str] | None, Argument(metavar="[key=value]...", help="Values for any keys of the recipe.")
    ] = None,
) -> None:
    """A recipe with every default written out, and a word of meaning for its keys."""
    from consistune.recipe.catalogue import explained

    print(explained(name, tuple(overrides or ())), end="")


def init(
    name: Annotated[str, Argument(help="A name for the recipes: NAME.yaml and NAME-teacher.yaml.")],
    data: Annotated[str, Option(help="A prepared folder, or digits.")],
    method: Annotated[str, Option(help="sct or ect.")] = "sct",
) -> None:
    """Write two commented recipes for own data: a teacher, and the model that is tuned from it."""
    from consistune.create import check_images, network
    from consistune.data.images import load_data
    from consistune.recipe.catalogue import new_recipes
    from consistune.system.files import write_atomically

    check_choice(method, METHODS, "--method")
    if Path(name).name != name or not name.replace("-", "").replace("_", "").isalnum():
        raise UserError(f"{name!r} is no name for a recipe", "NAME", "use letters, digits, - and _")
    split = load_data(data)
    conditional = len(split.train.class_names) > 1
    check_images(split, conditional)
    space = "mnist10k" if split.train.latents is None else "emoji64-latent"
    recipes = new_recipes(name, data, space, method, network(split.train.image_shape), conditional)
    there = [file for file in recipes if Path(file).exists()]
    broken_off = len(there) < len(recipes) and all(_holds(Path(file), recipes[file]) for file in there)
    if there and not broken_off:
        raise UserError("is already there", there[0], "choose another name, or move it away")
    for file, text in recipes.items():
        write_atomically(Path(file), text)
        print(file)


def _holds(path: Path, text: str) -> bool:
    """Whether a file was written whole by an earlier call, which may have ended before the other file."""
    return path.is_file() and path.read_bytes() == text.encode()
