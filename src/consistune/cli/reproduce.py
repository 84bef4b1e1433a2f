"""`consistune demo` and `consistune reproduce`: trainings from scratch, measured and shown on a page."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

from typer import Argument, Option

from consistune.cli.create import check_name
from consistune.cli.options import Device, check_choice, pick_device
from consistune.cli.screen import Screen
from consistune.errors import UserError

if TYPE_CHECKING:
    from consistune.reproduce.study import Study

DATA, SCALE = "digits", "smoke"
LAST = ("table-cifar10", "table-imagenet64")
"""Made last, because they quote the results of the other experiments."""


def reproduce(
    name: Annotated[str | None, Argument(help="An experiment; --list shows their names.")] = None,
    every: Annotated[bool, Option("--all", help="Make all experiments.")] = False,
    listed: Annotated[bool, Option("--list", help="List the experiments, and exit.")] = False,
    data: Annotated[str, Option(help="digits, or a prepared folder.")] = DATA,
    scale: Annotated[
        str, Option(help="smoke (minutes), cpu (up to hours), gpu (one GPU), paper (as published).")
    ] = SCALE,
    out: Annotated[Path, Option(help="The folder for all results.")] = Path("runs/reproduce"),
    seeds: Annotated[int | None, Option(help="Number of seeds; default: the scale's.")] = None,
    unconditional: Annotated[
        bool, Option(help="Train without labels, as the paper does on CIFAR-10.")
    ] = False,
    keys: Annotated[
        list[str] | None,
        Option("--set", metavar="KEY=VALUE", help="A recipe key for all tuned models; repeatable."),
    ] = None,
    device: Device = "auto",
) -> None:
    """Make the paper's figures and tables from scratch.

    After an interruption, the same command continues; several at once share the trainings.
    """
    from consistune.reproduce.run import names
    from consistune.reproduce.spec import Scale
    from consistune.reproduce.study import Study
    from consistune.system.files import check_writable

    if listed:
        changed = {"--data": data != DATA, "--scale": scale != SCALE, "--seeds": seeds is not None}
        given = {"NAME": name, "--all": every, "--unconditional": unconditional, "--set": keys}
        _print_experiments({**given, **changed})
        return
    if (name is None) != every:
        raise UserError(
            "give either one experiment or --all", "NAME", "consistune reproduce --list names them"
        )
    check_choice(scale, get_args(Scale), "--scale")
    if every and keys:
        raise UserError("not every experiment tunes a model", "--set", "give it with one experiment")
    if name is not None:
        on_card = device not in ("auto", "cpu")
        _check_images(name, {"--data": data != DATA, "--unconditional": unconditional, "--device": on_card})
    check_name(out, "--out")
    check_writable(out, "--out", folder=True)
    chosen = pick_device(device)
    if chosen.type == "cpu":
        _use_one_thread()
    with Screen() as screen, screen.exit_when_interrupted("give the same command to continue"):
        study = Study(
            out,
            data,
            cast(Scale, scale),
            screen,
            seeds=seeds,
            device=chosen,
            unconditional=unconditional,
            student=tuple(keys or ()),
        )
        _make(sorted(names(), key=LAST.__contains__) if name is None else [name], study)


def _make(experiments: list[str], study: "Study") -> None:
    """Make experiments; where one of their folders is another's, none is begun."""
    from consistune.reproduce.run import check_results
    from consistune.reproduce.run import reproduce as make

    for name in experiments:
        check_results(study.results(name))
    for name in experiments:
        study.screen.say(str(make(name, study)))


def _check_effect(given: Mapping[str, object], why: str) -> None:
    """Raises UserError for the first of these options that was given: it changes nothing."""
    for option in filter(given.get, given):
        raise UserError(f"has no effect{why}", option, "leave it out")


def _check_images(name: str, given: Mapping[str, object]) -> None:
    """Raises UserError for an option that changes nothing in an experiment without images."""
    from consistune.reproduce.run import read_experiment

    if not read_experiment(name).on_data:
        _check_effect(given, f": {name} needs no images, and takes the CPU")


def demo(
    colour: Annotated[
        bool, Option("--colour", help="Emoji of 64×64 in colour, through latents, in place of digits.")
    ] = False,
    out: Annotated[
        Path | None, Option(help="The folder for all results; default: runs/demo, runs/demo-colour.")
    ] = None,
    seed: Annotated[int, Option(help="Seed of all three trainings.")] = 0,
) -> None:
    """Pretrain on scikit-learn's digits, tune with ECT and SCT, sample, measure, and write a report.

    After an interruption, the same command continues.
    """
    from consistune.reproduce.demo import DIGITS, EMOJI, RECORD, RESULTS, Demo
    from consistune.system.own import check_folder

    if not colour:
        _use_one_thread()
    folder = out or Path("runs/demo-colour" if colour else "runs/demo")
    check_name(folder, "--out")
    check_folder(folder, "--out", RESULTS, *RECORD)
    command = f"consistune demo{' --colour' * colour} --out {shlex.quote(str(folder))} --seed {seed}"
    with Screen() as screen, screen.exit_when_interrupted(f"continue with: {command}"):
        page = Demo(folder, seed, screen, subject=EMOJI if colour else DIGITS).run()
    print(page)


def _use_one_thread() -> None:
    """Networks this small gain little from a second thread, and lose much where the cores are shared."""
    import torch

    torch.set_num_threads(1)


def _print_experiments(given: Mapping[str, object]) -> None:
    """List the experiments. Raises UserError for an option beside --list."""
    from consistune.reproduce.run import names, read_experiment

    _check_effect(given, " with --list")
    for name in names():
        experiment = read_experiment(name)
        print(f"{name:<18} {experiment.paper.figure}: {experiment.title}")
