"""consistune train --dry-run"""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from consistune.cli.common import pick_device
from consistune.recipe import cost as dryrun
from consistune.recipe import read_recipe
from consistune.recipe.plan import make_plan


def dry_run(recipe_name: str, overrides: list[str], out: Path | None, device: str) -> None:
    """Say what the run would take and write; nothing is written. Raises UserError as the run would.

    A run's folder stands for the recipe that it keeps.
    """
    given = Path(recipe_name)
    recipe = read_recipe(str(given / "recipe.yaml") if given.is_dir() else recipe_name, overrides)
    place = pick_device(device)
    plan = make_plan(recipe, place)
    found = dryrun.estimate(plan, place)
    table = Table("", "", show_header=False, box=None, pad_edge=False)
    for name, value in dryrun.report(plan, found, out or Path("runs") / Path(recipe_name).stem):
        table.add_row(name, value)
    console = Console(soft_wrap=True)
    console.print(table)
    for note in plan.notes:
        console.print(note, highlight=False)
