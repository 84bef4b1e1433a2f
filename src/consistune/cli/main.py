"""`consistune`: the program, and how its errors are reported. Each command's options are in its own file."""

import errno
import signal
import sys
from collections.abc import Callable
from typing import Annotated, NoReturn

import typer
from typer import Option

import consistune
from consistune.cli import (
    analyze,
    check,
    create,
    data,
    ema,
    evaluate,
    interop,
    machine,
    play,
    recipes,
    reproduce,
    sample,
    train,
)
from consistune.cli.numbers import check_all_numbers
from consistune.cli.options import pick_device
from consistune.cli.signals import alone, release_signals, take_signals
from consistune.cli.streams import lasting
from consistune.errors import RunFailed, UserError, printable

NAME, DEBUG = "consistune", "--debug"
app = typer.Typer(
    name=NAME,
    help="Stable Consistency Tuning: from a diffusion model to a one-step generator.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
COMMANDS: dict[str, Callable[..., None]] = {
    "demo": reproduce.demo,
    "create": create.create,
    "init": recipes.init,
    "train": train.train,
    "check": check.check,
    "sample": sample.sample,
    "evaluate": evaluate.evaluate,
    "play": play.play,
    "import": interop.import_,
    "export": interop.export,
    "analyze": analyze.analyze,
    "reproduce": reproduce.reproduce,
    "bench": machine.bench,
    "doctor": machine.doctor,
}
for name, command in COMMANDS.items():
    app.command(name)(command)
app.add_typer(data.app, name="data")
app.add_typer(recipes.app, name="recipes")
app.add_typer(ema.app, name="ema")

FULL = (errno.ENOSPC, errno.EDQUOT)
"""The disk is full, or the user's share of it."""
LOST = "another process of this run has ended; start all again, a training with --resume"
"""What the processes say that are left."""
INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells expect it; 143 after SIGTERM."""


def print_version(given: bool) -> None:
    """Print the versions of consistune and PyTorch and the device that "auto" means, and exit."""
    if given:
        import torch

        device = pick_device("auto")
        name = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
        print(f"consistune {consistune.__version__}, torch {torch.__version__}, device {device}{name}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, Option(DEBUG, help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool,
        Option(
            "--version", help="Show versions and device, and exit.", is_eager=True, callback=print_version
        ),
    ] = False,
) -> None:
    """Declares the options of the program itself. `main` handles --debug, and `print_version` --version."""


def main() -> NoReturn:
    """Run the command that sys.argv gives, and exit.

    Exit status 0: done; 1: failed; 2: the user's input is wrong; 130: Ctrl-C; 143: SIGTERM. An error is one
    line on standard error; with --debug, a traceback. Words after "--" are arguments: a --debug there is one
    too.
    """
    sys.stdout, sys.stderr = lasting(sys.stdout), lasting(sys.stderr)
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    debug = DEBUG in words[:end]
    command = typer.main.get_command(app)
    check_all_numbers(command)
    line = ""
    stopped_by = take_signals()
    try:
        try:
            given = [w for w in words[:end] if w != DEBUG] + words[end:]
            status = command(given, prog_name=NAME, standalone_mode=False)
        finally:  # a second Ctrl-C from here on finds nothing left to stop
            release_signals()
        if status == INTERRUPTED:  # the parser caught Ctrl-C
            line = "stopped"
    except KeyboardInterrupt:
        status, line = INTERRUPTED, "stopped"
    except SystemExit as left:
        status = left.code
    except Exception as error:
        if stopped_by and interrupted(error):
            status, line = INTERRUPTED, "stopped"
        elif debug:
            raise
        else:
            status, line = explain(error)
    if status == INTERRUPTED and signal.SIGTERM in stopped_by:
        status = 128 + signal.SIGTERM
    if line:
        print(f"consistune: {line}", file=sys.stderr)
    sys.exit(status if isinstance(status, int) else 0)


def interrupted(error: BaseException) -> bool:
    """Whether Ctrl-C made the error: it came while that was handled, or it is a library's that quotes it.

    A file half-written that could not be closed, say; and Pydantic's errors, which have no context.
    """
    if isinstance(error, KeyboardInterrupt) or KeyboardInterrupt.__name__ in str(error):
        return True
    return error.__context__ is not None and interrupted(error.__context__)


def explain(error: Exception) -> tuple[int, str]:
    """Exit status and one line for an error."""
    if isinstance(error, UserError):
        return 2, str(error)
    if isinstance(error, RunFailed):
        return 1, printable(str(error))
    if hasattr(error, "format_message"):  # raised by typer's parser
        context = getattr(error, "ctx", None)
        program = NAME if context is None else context.command_path
        message = " ".join(error.format_message().split()).rstrip(".") or "no command given"
        return 2, printable(f"{message}{' ' if message.endswith('?') else '; '}see {program} --help")
    if not alone():  # only then, as torch is imported for it
        from consistune.system.processes import lost_process

        if lost_process(error):
            return 1, LOST
    if isinstance(error, OSError) and error.errno in FULL:
        return 1, f"the disk is full: {error.filename or 'writing failed'}; free some space and run again"
    if isinstance(error, OSError) and error.filename:
        return 2 if error.errno == errno.ENAMETOOLONG else 1, printable(f"{error.filename}: {error.strerror}")
    line = printable(" ".join(str(error).split()))
    return 1, f"failed: {type(error).__name__}: {line} (--debug shows where)"
