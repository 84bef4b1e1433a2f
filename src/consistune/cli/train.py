"""consistune train"""

from pathlib import Path

from consistune.cli.common import Screen, pick_device
from consistune.errors import UserError
from consistune.evaluate.while_training import training_evaluation
from consistune.models import draw_sheet
from consistune.recipe import read_recipe, to_yaml
from consistune.recipe.plan import Plan, make_plan
from consistune.system.processes import Processes
from consistune.train import log
from consistune.train.run import Interrupted, Measure, RunFolder


def train(recipe_name: str, overrides: list[str], out: Path | None, resume: bool, device: str) -> None:
    """Run a recipe in a folder, on this process or on all that a launcher started.

    Raises SystemExit after a signal, when the state is saved: 130 for Ctrl-C, 143 for SIGTERM.
    """
    given = Path(recipe_name)
    if given.is_dir():
        if not resume:
            raise UserError("a run's folder is given instead of a recipe", recipe_name, "add --resume")
        if not (given / "recipe.yaml").is_file():
            raise UserError("there is no run to continue: recipe.yaml is missing", recipe_name)
        out, recipe_name = out or given, str(given / "recipe.yaml")
    recipe = read_recipe(recipe_name, overrides)
    folder = out or Path("runs") / Path(recipe_name).stem
    processes = Processes.start(pick_device(device))
    plan = make_plan(recipe, processes.device)
    log.check_trackers(plan.options)
    run = RunFolder(
        folder,
        to_yaml(recipe),
        resume=resume,
        draw=draw_sheet,
        evaluate=_evaluation(plan, processes),
        main=processes.main,
    )
    trainer = plan.trainer(processes=processes)
    if resume:
        run.resume(trainer)
    else:
        for note in plan.notes:
            run.say(note)
    parameters = sum(p.numel() for p in plan.model.parameters())
    on = f"{processes.count} × {trainer.device.type}" if processes.count > 1 else str(trainer.device)
    with Screen(quiet=not processes.main) as screen:
        for note in plan.notes:
            screen.say(note)
        screen.say(f"{folder}: {recipe.objective}, {parameters:,} parameters, on {on}")
        try:
            with screen.bar("training", trainer.options.images, trainer.images) as bar:
                for report in run.steps(trainer):
                    note = f"loss {report.loss:.4f}"
                    if report.nonfinite_total:
                        note += f", {report.nonfinite_total} non-finite"
                    bar.advance(trainer.options.batch, note)
        except Interrupted as stopped:
            screen.say(f"stopped and saved; continue with: consistune train {folder} --resume")
            raise SystemExit(stopped.status) from None
        screen.say(f"done: {folder / 'model'}")
    processes.close()


def _evaluation(plan: Plan, processes: Processes) -> Measure | None:
    """The first process's measure, where the recipe sets `train.evaluate_images`."""
    if plan.options.evaluate_images is None or not processes.main:
        return None
    return training_evaluation(plan.data, device=processes.device)
