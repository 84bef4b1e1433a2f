"""`consistune train`: run a recipe, or with --dry-run show what the run would cost."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from consistune.cli.options import Device, pick_device
from consistune.cli.screen import Screen
from consistune.errors import UserError, printable

if TYPE_CHECKING:
    from consistune.recipe import Recipe


def train(
    recipe: Annotated[str, Argument(help="A recipe's name or file, or the folder of a run to continue.")],
    overrides: Annotated[
        list[str] | None, Argument(metavar="[key=value]...", help="Values for any keys of the recipe.")
    ] = None,
    out: Annotated[Path | None, Option(help="The run's folder; default: runs/NAME.")] = None,
    resume: Annotated[bool, Option("--resume", help="Continue the run in that folder.")] = False,
    until: Annotated[
        int | None, Option(help="Continue the run to this number of images, also where it is finished.")
    ] = None,
    device: Device = "auto",
    dry_run: Annotated[
        bool, Option("--dry-run", help="Show what the run would cost and write; train nothing.")
    ] = False,
    memory: Annotated[
        str | None,
        Option(help="With --dry-run: also say what batch fits, e.g. 80GiB; default: the CUDA device's own."),
    ] = None,
    batch: Annotated[
        str | None,
        Option(help="auto: find by trial how many images at a time (train.microbatch) fit the CUDA device."),
    ] = None,
) -> None:
    """Train what a recipe describes: a diffusion model, or a consistency model from one."""
    from consistune.recipe import read_recipe
    from consistune.system.files import check_writable

    given = Path(recipe)
    if until is not None and not given.is_dir():
        raise UserError("a run's folder is needed", "--until", "give the run's folder, or set train.images")
    resume = resume or until is not None
    if given.is_dir():
        if not (resume or dry_run):
            what = "a run's folder is given instead of a recipe"
            raise UserError(what, recipe, "add --resume, or --until IMAGES")
        if not (given / "recipe.yaml").is_file():
            raise UserError("there is no run to continue: recipe.yaml is missing", recipe)
        out, recipe = out or given, str(given / "recipe.yaml")
    if memory is not None and not dry_run:
        raise UserError("only the dry run reads it", "--memory", "add --dry-run")
    if batch is not None:
        _check_batch(batch, resume or dry_run, device)
    folder = out or Path("runs") / Path(recipe).stem
    check_writable(folder, "--out", folder=True)
    further = [] if until is None else [f"train.images={until}"]
    resolved = read_recipe(recipe, [*(overrides or []), *further])
    if batch is not None and resolved.train.microbatch is not None:
        what = "it finds train.microbatch, which is given"
        raise UserError(what, "--batch auto", "leave one of the two out")
    if dry_run:
        _check_place(resolved, folder, resume or folder == given, until)
        _print_cost(resolved, folder, device, memory)
    else:
        _run(resolved, folder, resume, device, fit=batch is not None, extend=until is not None)


def _check_place(recipe: "Recipe", folder: Path, continued: bool, until: int | None) -> None:
    """Raises UserError as a run in this folder would; reads no checkpoint and writes nothing."""
    from consistune.recipe import to_yaml
    from consistune.training import checkpoint
    from consistune.training import folder as runs

    runs.check_place(folder, to_yaml(recipe), resume=continued, extend=until is not None)
    stored = checkpoint.paths(folder / "checkpoints")
    if until is not None and stored:
        runs.check_end(checkpoint.step_of(stored[-1]) * recipe.train.batch, until)


def _check_batch(batch: str, no_new_run: bool, device: str) -> None:
    """Raises UserError where --batch is not "auto" or could have no effect."""
    if batch != "auto":
        raise UserError(f"{batch!r} is not known", "--batch", "use auto, or write train.batch=N")
    if no_new_run:
        raise UserError("it is for a run that begins", "--batch auto", "leave it out")
    if pick_device(device).type != "cuda":
        raise UserError("only a CUDA device says when it is full", "--batch auto", "write train.microbatch=N")


def _run(recipe: "Recipe", folder: Path, resume: bool, device: str, *, fit: bool, extend: bool) -> None:
    """Train in this process, or in all processes that a launcher started.

    Exits with status 130 after Ctrl-C and 143 after SIGTERM; the state is then saved. With `fit` the
    micro-batch is what fits the device, and the run's recipe says so.
    """
    from consistune.evaluation.while_training import training_evaluation
    from consistune.models import draw_sheet
    from consistune.recipe import cost, to_yaml
    from consistune.recipe.plan import make_plan
    from consistune.system.processes import Processes
    from consistune.training import log
    from consistune.training.run import RunFolder

    processes = Processes.start(pick_device(device))
    plan = make_plan(recipe, processes.device)
    if fit:
        most = cost.fitting_microbatch(plan, processes)
        recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"microbatch": most})})
        plan = replace(plan, options=replace(plan.options, microbatch=most))
    log.check_trackers(plan.options)
    evaluated = processes.main and plan.options.evaluate_images is not None
    run = RunFolder(
        folder,
        to_yaml(recipe),
        resume=resume,
        extend=extend,
        draw=draw_sheet if plan.sheet_fault is None else None,
        evaluate=training_evaluation(plan.data.to_look_at, device=processes.device) if evaluated else None,
        main=processes.main,
    )
    trainer = plan.trainer(processes=processes)
    if resume:
        run.resume(trainer)
    else:
        for note in [
            *plan.notes,
            *([f"--batch auto: {plan.options.microbatch} images at a time"] if fit else []),
        ]:
            run.say(note)
    parameters = sum(p.numel() for p in plan.model.parameters())
    on = f"{processes.count} × {trainer.device.type}" if processes.count > 1 else str(trainer.device)
    place = shlex.quote(f"./{folder}" if str(folder).startswith("-") else str(folder))
    with (
        Screen(quiet=not processes.main) as screen,
        screen.exit_when_interrupted(f"continue with: consistune train {place} --resume"),
    ):
        for note in plan.notes:
            screen.say(note)
        screen.say(f"{folder}: {recipe.objective}, {parameters:,} parameters, on {on}")
        with screen.bar("training", trainer.options.images, trainer.images) as bar:
            for report in run.steps(trainer):
                note = f"loss {report.loss:.4f}"
                if report.nonfinite_total:
                    note += f", {report.nonfinite_total} non-finite"
                bar.advance(trainer.options.batch, note)
        screen.say(f"done: {folder / 'model'}")
    processes.close()


def _print_cost(recipe: "Recipe", folder: Path, device: str, memory: str | None) -> None:
    """Print what the run would cost and write. Raises UserError as the run would; writes nothing."""
    from rich.console import Console
    from rich.table import Table

    from consistune.recipe import cost
    from consistune.recipe.forecast import forecast
    from consistune.recipe.plan import make_plan
    from consistune.training import log

    chosen = pick_device(device)
    log.check_trackers(recipe.train)
    room = cost.memory_of(chosen) if memory is None else cost.memory_size(memory)
    plan = make_plan(recipe, chosen)
    table = Table("", "", show_header=False, box=None, pad_edge=False)
    estimate = cost.estimate(plan, chosen)
    rows = forecast(recipe, plan, estimate, folder, chosen)
    for name, value in (*cost.report(plan, estimate, folder, room), *rows):
        table.add_row(name, value)
    console = Console(soft_wrap=True)
    console.print(table)
    for note in plan.notes:
        console.print(printable(note), highlight=False, markup=False)
