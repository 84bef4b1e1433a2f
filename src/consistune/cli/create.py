"""`consistune create`: from a folder of images to a model of one step and a page."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option, confirm

from consistune.cli.options import Device, pick_device
from consistune.cli.screen import Screen
from consistune.errors import UserError

if TYPE_CHECKING:
    from consistune.create import Job
    from consistune.data.images import DataSplit

UNITS = {"": 60, "m": 60, "h": 3600, "s": 1}
HELD_OUT = 0.1
SIDE = 32
"""Of the images where the user says nothing: what two CPU cores learn in half an hour."""


def create(
    data: Annotated[Path, Argument(help="A folder, ZIP, … of images, or a prepared set.")],
    out: Annotated[Path | None, Option(help="The folder for everything; default: runs/NAME.")] = None,
    time: Annotated[str, Option(help="How long it may take: 30m, 2h.")] = "45m",
    size: Annotated[
        int | None, Option(help="Side of the square images, a multiple of 8; default: 32.")
    ] = None,
    labels: Annotated[
        bool | None, Option("--labels/--no-labels", help="Learn the classes; default: if there are some.")
    ] = None,
    yes: Annotated[bool, Option("--yes", help="Begin without a question.")] = False,
    device: Device = "auto",
) -> None:
    """Make a one-step model of your own images: prepare, train, tune, measure, write a page.

    After an interruption, the same command continues.
    """
    from consistune.create import Job

    seconds = parse_duration(time, "--time")
    name = data.name.split(".")[0] or "images"
    folder = out or Path("runs") / name
    with Screen() as screen, screen.exit_when_interrupted("give the same command to continue"):
        split, path = _prepared(data, folder, size, screen)
        job = Job(folder, split, path, screen, pick_device(device))
        if not job.planned:
            conditional = len(split.train.class_names) > 1 if labels is None else labels
            _show_plan(job, seconds, conditional, screen)
            screen.stop()
            if not yes and not confirm("Begin?", default=True):
                raise SystemExit(0)
            screen.start()
        page = job.run()
    print(page)


def parse_duration(text: str, option: str) -> float:
    """ "90", "30m", "2h" → seconds; a number without a unit is minutes. Raises UserError."""
    match = re.fullmatch(r"(\d{1,6}(?:\.\d+)?)\s*([smh]?)", text.strip())
    seconds = float(match[1]) * UNITS[match[2]] if match else 0.0
    if seconds <= 0:
        raise UserError(f"{text!r} is not a duration", option, "write 30m or 2h")
    return seconds


def _prepared(source: Path, folder: Path, size: int | None, screen: Screen) -> tuple["DataSplit", str]:
    """The images of a source, prepared in the job's folder, and that folder; a prepared set as it is."""
    from contextlib import ExitStack

    from consistune.cli.data_view import PreparationProgress, counts, print_outcome
    from consistune.data.images import SETS, load_data
    from consistune.data.prepare import pool
    from consistune.data.prepare import run as preparation
    from consistune.data.prepare.split import Split
    from consistune.data.prepare.survey import ImageOptions
    from consistune.data.prepared import Meta, is_prepared, read_meta

    if str(source) in SETS or is_prepared(source):
        if size is not None:
            raise UserError("is prepared already", str(source), "leave --size out, or give its source")
        return load_data(str(source)), str(source)
    prepared = folder / "data"
    if not is_prepared(prepared):
        images = ImageOptions(size=SIDE if size is None else size)
        with ExitStack() as stack:
            shown = PreparationProgress(screen, stack)

            def prepare(held_out: float) -> Meta:
                split = Split(fraction=held_out)
                options = preparation.PrepareOptions(images=images, split=split, workers=pool.cores())
                return preparation.prepare(source, prepared, options, shown)

            try:
                meta = prepare(HELD_OUT)
            except UserError as error:
                if error.where != "--held-out" or "test set of its own" not in error.what:
                    raise
                meta = prepare(0.0)
        print_outcome(meta, prepared)
    else:
        screen.say(counts(read_meta(prepared)))
    return load_data(str(prepared)), str(prepared)


def _show_plan(job: "Job", seconds: float, conditional: bool, screen: Screen) -> None:
    from consistune.create import Look

    look = Look.at(job.data.train)
    forecast = job.plan(seconds, conditional)
    if look.duplicates:
        screen.say(f"note: {look.duplicates:,} images are equal to another one")
    screen.say(
        f"plan: a teacher on {forecast.teacher_images:,} training images, "
        f"{forecast.teacher_rate:,.0f} a second; tuned on {forecast.tuned_images:,}, "
        f"{forecast.tuned_rate:,.0f} a second; {'with' if conditional else 'without'} labels; "
        f"on {job.device}; about {forecast.minutes:.0f} minutes in all"
    )
    screen.say(f"the recipes are {job.out}/teacher.yaml and tuned.yaml")
