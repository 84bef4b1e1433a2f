"""`consistune`, and `python -m consistune`: the command line; a signal is a clean line from the start."""

import os
import signal
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def _nothing(number: int, frame: FrameType | None) -> None:
    """The program is ending."""
    del number, frame


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    """Nothing is open yet: leave at once, without the traceback of whatever was being imported."""
    del frame
    for other in SIGNALS:  # a second signal would print the line again
        signal.signal(other, _nothing)
    os.write(2, b"consistune: stopped\n")
    os._exit(128 + number)


def main() -> NoReturn:
    """Run the command that sys.argv gives, and exit (`cli.main`)."""
    for number in SIGNALS:
        signal.signal(number, _stop)
    from consistune.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
