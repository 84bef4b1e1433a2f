"""`consistune create`: from a folder of images to a model of one step and a page."""

import json
import os
import re
import stat
import sys
import time as clock
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Abort, Argument, Option, confirm

from consistune.cli.options import Device, pick_device
from consistune.cli.screen import Screen
from consistune.errors import UserError

if TYPE_CHECKING:
    import torch

    from consistune.create import Job, Plan
    from consistune.data.images import DataSplit
    from consistune.data.prepare.survey import Survey

UNITS = {"": 60, "m": 60, "h": 3600, "s": 1}
HELD_OUT = 0.1
LEFT_OUT = 10
"""At most one image in so many may be left out."""
SETTINGS = "create.json"
NAMES = ("data", "teacher.yaml", "tuned.yaml", "teacher", "tuned", "results.json", "report.html")
"""What a job writes beside SETTINGS."""
KEYS = {"DATA", "--size", "--latents", "--flip", "autoencoder"}
"""In every SETTINGS."""


def create(
    data: Annotated[Path, Argument(help="A folder, ZIP, … of images, or a prepared set.")],
    out: Annotated[Path | None, Option(help="The folder for everything; default: runs/NAME.")] = None,
    time: Annotated[str, Option(help="How long it may take: 30m, 2h.")] = "45m",
    size: Annotated[
        int | None,
        Option(help="Side of the square images, a multiple of 8 (latents: of 16); default: 32 (64)."),
    ] = None,
    labels: Annotated[
        bool | None, Option("--labels/--no-labels", help="Learn the classes; default: if there are some.")
    ] = None,
    latents: Annotated[
        str,
        Option(
            help="Learn an autoencoder's latents: taef2, or as in data prepare; none: pixels; auto: taef2 "
            "for images in colour of 48 pixels and more, or where the time is too short for pixels."
        ),
    ] = "auto",
    flip: Annotated[bool, Option("--flip", help="Learn the mirrored images too.")] = False,
    yes: Annotated[bool, Option("--yes", help="Begin without a question.")] = False,
    device: Device = "auto",
) -> None:
    """Make a one-step model of your own images: prepare, train, tune, measure, write a page.

    After an interruption, the same command continues.
    """
    from consistune.create import Job

    began, seconds, place = clock.monotonic(), parse_duration(time, "--time"), pick_device(device)
    folder = out or Path("runs") / (data.name.split(".")[0] or "images")
    check_places(folder, data)
    given = {"DATA": str(data.resolve()), "--size": size, "--latents": latents, "--flip": flip}
    length = {"--time": time, "--labels": labels}
    with _alone(folder, given | length) as (screen, before):
        begun = "--time" in before
        if not (yes or begun):
            _check_terminal()
        images = _Images(data, folder, size, flip, labels, screen)
        before = before if begun else images.of_these(before)
        chosen: dict[str, Any] = before or given | images.choose(latents, seconds, place)
        check_size(size, 8 if chosen["autoencoder"] is None else 16)
        _record(folder, chosen)
        try:
            split, path = images.load(chosen["autoencoder"], place)
        except UserError:
            if not before:  # nothing was prepared by these settings
                (folder / SETTINGS).unlink()
            raise
        job = Job(folder, split, path, screen, place, flip and split.train.latents is None, str(data))
        if not (begun and job.planned):
            conditional = len(split.train.class_names) > 1 if labels is None else labels
            plan = job.plan(seconds, conditional, clock.monotonic() - began)
            _show_plan(job, plan, screen, yes)
            _record(folder, chosen | length)
            job.begin(plan)
        page = job.run()
    print(page)


def _ask(screen: Screen, yes: bool) -> None:
    """Ask whether to begin, unless `yes`; a no ends the program."""
    screen.stop()
    try:
        if not yes and not confirm("Begin?", default=True):
            raise SystemExit(0)
    except Abort as error:
        if not isinstance(error.__context__, EOFError):  # Ctrl-C
            raise
        raise UserError("no answer came", "Begin?", "give --yes") from error
    screen.start()


def _check_terminal() -> None:
    """Raises UserError where no question can be asked: standard input is closed, or is /dev/null."""
    try:
        silent = not sys.stdin.isatty() and stat.S_ISCHR(os.fstat(sys.stdin.fileno()).st_mode)
    except (AttributeError, OSError, ValueError):  # closed, or no file
        silent = sys.stdin is None or sys.stdin.closed
    if silent:
        raise UserError("there is no terminal to ask on before the training begins", "--yes", "give it")


def parse_duration(text: str, option: str) -> float:
    """ "90", "30m", "2h" → seconds; a number without a unit is minutes. Raises UserError."""
    match = re.fullmatch(r"(\d{1,6}(?:\.\d+)?)\s*([smh]?)", text.strip())
    seconds = float(match[1]) * UNITS[match[2]] if match else 0.0
    if seconds <= 0:
        raise UserError(f"{text!r} is not a duration", option, "write 30m or 2h")
    return seconds


def check_outside(folder: Path, data: Path) -> None:
    """Raises UserError where the results would lie among the images, and be taken for images later."""
    inside, source = folder.resolve(), data.resolve()
    if source.is_dir() and source in (inside, *inside.parents):
        raise UserError(f"{str(folder)!a} lies in the images' folder", "--out", f"give --out {source}-model")


def check_places(folder: Path, data: Path) -> None:
    """Raises UserError as `check_name` and `check_outside` do."""
    check_name(data, "DATA")
    check_name(folder, "--out")
    check_outside(folder, data)


def check_name(path: Path, option: str) -> None:
    """Raises UserError for a name that is no text, which a recipe cannot hold."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{str(path)!a} is no name in UTF-8", option, "give another name") from error


def check_size(size: int | None, multiple: int) -> None:
    """Raises UserError for a side that the networks here do not take."""
    if size is not None and (size < multiple or size % multiple):
        nearest = max(multiple, size // multiple * multiple)
        raise UserError(f"{size} is no multiple of {multiple}", "--size", f"give --size {nearest}")


def _recorded(folder: Path, given: dict[str, Any]) -> dict[str, Any]:
    """What an earlier call was given and chose in this folder; {} where there was none.

    Raises UserError where it was given something else, and where nothing can be written.
    """
    from consistune.system.own import check_folder

    path = folder / SETTINGS
    check_folder(folder, "--out", () if path.exists() else NAMES, SETTINGS, ())
    before: Any = {}
    if path.exists():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            before = None
        if isinstance(before, dict) and not KEYS & before.keys():
            what = "is already there, and is not of this command"
            raise UserError(what, str(path), "choose another --out, or move it away")
        known = isinstance(before, dict) and before.keys() >= KEYS
        if not known or not isinstance(before["autoencoder"], str | None):
            raise UserError("is damaged", str(path), "remove it and data/ beside it, or choose another --out")
    for option, value in given.items():
        if option in before and before[option] != value:
            what = f"was begun with {option} {before[option]}, now {value} is given"
            raise UserError(what, str(folder), "give the same to continue, or choose another --out")
    return before


@contextmanager
def _alone(folder: Path, given: dict[str, Any]) -> Iterator[tuple[Screen, dict[str, Any]]]:
    """The screen, and `_recorded`, while the lock of a job's folder is held.

    Where the block ends without a record, the folder is as it was. Raises UserError as `_recorded`, before
    anything is written, and where another program has the lock.
    """
    from consistune.system.files import remove_partial
    from consistune.training.lock import LOCK, folder_lock

    _recorded(folder, given)
    lock, new = folder / LOCK, [place for place in (folder, *folder.parents) if not place.exists()]
    own = not lock.exists()
    folder.mkdir(parents=True, exist_ok=True)
    with (
        Screen() as screen,
        screen.exit_when_interrupted("give the same command to continue"),
        folder_lock(folder, screen.say),
    ):
        remove_partial(folder, (SETTINGS, *NAMES))
        try:
            yield screen, _recorded(folder, given)
        finally:
            if own and not (folder / SETTINGS).exists():
                with suppress(OSError):  # Windows keeps a file that is open, and a folder may not be empty
                    lock.unlink()
                    for place in new:
                        place.rmdir()


def _record(folder: Path, settings: dict[str, Any]) -> None:
    from consistune.system.files import write_atomically

    write_atomically(folder / SETTINGS, json.dumps(settings, indent=1))


class _Images:
    """The images of a job: prepared in its folder, as pixels or latents; or a prepared set as it is."""

    def __init__(
        self,
        source: Path,
        folder: Path,
        size: int | None,
        flip: bool,
        labels: bool | None,
        screen: Screen,
    ) -> None:
        from consistune.data.images import SETS
        from consistune.data.prepare.survey import state_of
        from consistune.data.prepared import is_prepared

        self.source, self.dest, self.size, self.flip = source, folder / "data", size, flip
        self.labels, self.screen = labels, screen
        self.ready = is_prepared(source) or (str(source) in SETS and not source.exists())
        self.word = f"./{source}" if self.ready and str(source) in SETS and source.exists() else str(source)
        """By which `load_data` finds a prepared set: a folder goes before a built-in set of its name."""
        self.state = None if self.ready else state_of(source)

    @cached_property
    def seen(self) -> "Survey":
        from consistune.data.prepare.survey import survey

        return survey(self.source)

    def choose(self, word: str, seconds: float, device: "torch.device") -> dict[str, Any]:
        """Settings: the autoencoder to encode with, None for images as they are; and the images' state."""
        return {"autoencoder": self._autoencoder(word, seconds, device), "images": self.state}

    def _autoencoder(self, word: str, seconds: float, device: "torch.device") -> str | None:
        from consistune.create import check_sizes, choose_autoencoder
        from consistune.data.images import load_data
        from consistune.data.prepare.survey import Survey

        if not self.ready:
            sizes = self.seen.sizes
            check_sizes(sizes, len(sizes) > 1 if self.labels is None else self.labels, str(self.source))
            return choose_autoencoder(word, self.seen, self.size, seconds, device)
        train, name = load_data(self.word).train, str(self.source)
        if self.size is not None:
            raise UserError("is prepared already", name, "leave --size out, or give its source")
        if train.latents is not None and (word != "auto" or self.flip):
            option = "--flip" if word == "auto" else "--latents"
            raise UserError("is a set of latents already", name, f"leave {option} out")
        channels, *sides = train.image_shape
        seen = Survey(channels, min(sides), own_held_out=True, sizes={})
        chosen = choose_autoencoder(word, seen, min(sides), seconds, device)
        if chosen is not None and channels != 3:
            what = "holds grey pictures; autoencoders take pictures in colour"
            raise UserError(what, name, "leave --latents out")
        return chosen

    def load(self, autoencoder: str | None, device: "torch.device") -> tuple["DataSplit", str]:
        """The images, and the name by which a recipe finds them."""
        from consistune.cli.data_view import counts
        from consistune.data.images import load_data
        from consistune.data.prepared import is_prepared, read_meta

        if self.ready and autoencoder is None:
            return load_data(self.word), self.word
        if is_prepared(self.dest):
            self.screen.say(counts(read_meta(self.dest)))
        else:
            self._prepare(autoencoder, device)
        return load_data(str(self.dest)), str(self.dest)

    def of_these(self, before: dict[str, Any]) -> dict[str, Any]:
        """The settings of an earlier call; {} where the images have changed: what it prepared is removed."""
        from consistune.data.prepare.latents import remove_prepared

        if before.get("images", self.state) == self.state:
            return before
        remove_prepared(self.dest)
        self.screen.say(f"the images in {self.source} have changed: they are prepared anew")
        return {}

    def _prepare(self, autoencoder: str | None, device: "torch.device") -> None:
        from contextlib import ExitStack

        from consistune.cli.data_view import PreparationProgress, print_outcome
        from consistune.create import LATENT_SIZE, PIXEL_SIZE
        from consistune.data.prepare.latents import LatentOptions, prepare_latents
        from consistune.data.prepare.run import PrepareOptions, prepare
        from consistune.data.prepare.split import Split
        from consistune.data.prepare.survey import ImageOptions
        from consistune.system.cores import cores

        options = PrepareOptions(images=ImageOptions(mode="rgb"), workers=cores())
        if not self.ready:
            size = self.size or (PIXEL_SIZE if autoencoder is None else LATENT_SIZE)
            lonely = min(self.seen.sizes.values()) < 2  # with --no-labels
            held_out = 0.0 if self.seen.own_held_out or lonely else HELD_OUT
            split = Split(held_out, by="group" if self.seen.grouped else "image")
            missing = sum(self.seen.sizes.values()) // LEFT_OUT
            options = replace(options, images=ImageOptions(size=size), split=split, allow_missing=missing)
        with ExitStack() as stack, _without_option():
            shown = PreparationProgress(self.screen, stack)
            if autoencoder is None:
                meta = prepare(self.source, self.dest, options, shown)
            else:
                chosen = LatentOptions(autoencoder, self.flip, device=device)
                meta = prepare_latents(self.source, self.dest, options, chosen, shown, shown.encoding)
        print_outcome(meta, self.dest)


@contextmanager
def _without_option() -> Iterator[None]:
    """A refusal that tells of the option --allow-missing names the command that has it."""
    try:
        yield
    except UserError as error:
        if "--allow-missing" not in error.remedy:
            raise
        remedy = (
            f"mend or move them; or use consistune data prepare, where {error.remedy}, and create from that"
        )
        raise UserError(error.what, error.where, remedy) from error


def _show_plan(job: "Job", plan: "Plan", screen: Screen, yes: bool) -> None:
    """Say what would be done, and ask whether to begin, unless `yes`."""
    from consistune.create import Look

    look, latents = Look.at(job.data.to_look_at.train), job.data.train.latents
    if look.duplicates:
        screen.say(f"note: {look.duplicates:,} images are equal to another one")
    shape = "×".join(map(str, job.data.train.image_shape))
    screen.say(
        f"plan: {'pixels' if latents is None else f'latents of {latents.autoencoder}'}, {shape}; "
        f"a teacher on {plan.teacher.train.images:,} training images, {plan.rates[0]:,.0f} a second; "
        f"tuned on {plan.tuned.train.images:,}, {plan.rates[1]:,.0f} a second; "
        f"{'with' if plan.teacher.conditional else 'without'} labels; "
        f"on {job.device}; about {plan.minutes:.3g} minutes in all"
    )
    screen.say(f"the recipes will be {job.out}/teacher.yaml and tuned.yaml")
    _ask(screen, yes)
