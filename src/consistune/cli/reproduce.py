"""`consistune demo` and `consistune reproduce`: trainings from scratch, measured and shown on a page."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

from typer import Argument, Option

from consistune.cli.options import Device, check_choice, pick_device
from consistune.cli.screen import Screen
from consistune.errors import UserError

if TYPE_CHECKING:
    from consistune.reproduce.study import Study

LAST = ("table-cifar10", "table-imagenet64")
"""Made last, because they quote the results of the other experiments."""


def reproduce(
    name: Annotated[str | None, Argument(help="An experiment; --list shows their names.")] = None,
    every: Annotated[bool, Option("--all", help="Make all experiments.")] = False,
    listed: Annotated[bool, Option("--list", help="List the experiments, and exit.")] = False,
    data: Annotated[str, Option(help="digits, or a prepared folder.")] = "digits",
    scale: Annotated[
        str, Option(help="smoke (minutes), cpu (up to hours), gpu (one card), paper (as published).")
    ] = "smoke",
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
        _print_experiments()
        return
    if (name is None) != every:
        raise UserError(
            "give either one experiment or --all", "NAME", "consistune reproduce --list names them"
        )
    check_choice(scale, get_args(Scale), "--scale")
    if every and keys:
        raise UserError("not every experiment tunes a model", "--set", "give it with one experiment")
    if name is not None:
        _check_effect(name, data, unconditional, device)
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


def _check_effect(name: str, data: str, unconditional: bool, device: str) -> None:
    """Raises UserError for an option that changes nothing in an experiment without images."""
    from consistune.reproduce.run import read_experiment

    given = {
        "--data": data != "digits",
        "--unconditional": unconditional,
        "--device": device not in ("auto", "cpu"),
    }
    if not read_experiment(name).on_data:
        for option in filter(given.get, given):
            what = f"has no effect: {name} needs no images, and takes the CPU"
            raise UserError(what, option, "leave it out")


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
    check_folder(folder, "--out", RESULTS, *RECORD)
    command = f"consistune demo{' --colour' * colour} --out {shlex.quote(str(folder))} --seed {seed}"
    with Screen() as screen, screen.exit_when_interrupted(f"continue with: {command}"):
        page = Demo(folder, seed, screen, subject=EMOJI if colour else DIGITS).run()
    print(page)


def _use_one_thread() -> None:
    """Networks this small gain little from a second thread, and lose much where the cores are shared."""
    import torch

    torch.set_num_threads(1)


def _print_experiments() -> None:
    from consistune.reproduce.run import names, read_experiment

    for name in names():
        experiment = read_experiment(name)
        print(f"{name:<18} {experiment.paper.figure}: {experiment.title}")
