"""`consistune …` in the test's own process, through `main`: what a user sees, without a process to start."""

import signal
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from subprocess import CompletedProcess
from unittest.mock import patch

from consistune.cli.main import main

STOPS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGALRM") if hasattr(signal, name)]
"""Signals that `main` handles; Windows has no SIGALRM."""


def run_main(*words: object, cwd: Path = Path()) -> CompletedProcess[str]:
    """Exit status, standard output and standard error of `consistune WORDS …` in the folder `cwd`."""
    arguments, out, err = ["consistune", *map(str, words)], StringIO(), StringIO()
    handlers = {number: signal.getsignal(number) for number in STOPS}
    with patch.object(sys, "argv", arguments), chdir(cwd), redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as left:
            return CompletedProcess(arguments, int(left.code or 0), out.getvalue(), err.getvalue())
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
