"""consistune reproduce"""

from pathlib import Path
from typing import cast, get_args

import torch

from consistune.cli.common import Screen, pick_device
from consistune.errors import UserError
from consistune.reproduce.run import names, read_experiment, reproduce
from consistune.reproduce.spec import Scale
from consistune.reproduce.study import Study
from consistune.train.run import Interrupted

LAST = ("table-cifar10", "table-imagenet64")
"""They quote what the others found."""


def run(
    name: str | None,
    every: bool,
    listed: bool,
    data: str,
    scale: str,
    out: Path,
    seeds: int | None,
    unconditional: bool,
    keys: tuple[str, ...],
    device: str,
) -> None:
    """Make one experiment or all; print each one's page. Raises SystemExit after a signal."""
    if listed:
        for known in names():
            experiment = read_experiment(known)
            print(f"{known:<18} {experiment.paper.figure}: {experiment.title}")
        return
    if (name is None) != every:
        raise UserError(
            "give either one experiment or --all", "NAME", "consistune reproduce --list names them"
        )
    if scale not in get_args(Scale):
        raise UserError(f"{scale!r} is no scale", "--scale", f"use {', '.join(get_args(Scale))}")
    if every and keys:
        raise UserError("not every experiment tunes a model", "--set", "give it with one experiment")
    if seeds is not None and seeds < 1:
        raise UserError(f"{seeds} seeds are none", "--seeds", "give at least 1")
    on = pick_device(device)
    if on.type == "cpu":
        # Networks this small gain little from a second thread, and lose much where the cores are shared.
        torch.set_num_threads(1)
    wanted = sorted(names(), key=LAST.__contains__) if name is None else [name]
    with Screen() as screen:
        try:
            study = Study(
                out,
                data,
                cast(Scale, scale),
                screen,
                seeds=seeds,
                device=on,
                unconditional=unconditional,
                student=keys,
            )
            for each in wanted:
                screen.say(str(reproduce(each, study)))
        except Interrupted as stopped:
            screen.say("stopped and saved; give the same command to continue")
            raise SystemExit(stopped.status) from None
