"""The values that options may have: every option of every command is checked here.

A number lies in its range, and no option takes the next one as its value.
"""

import math
import sys
from pathlib import Path
from typing import Any

from consistune.errors import UserError
from consistune.system.numbers import is_number

Range = tuple[float, float]
ANY: Range = (0, (1 << 62) - 1)
"""Of an integer option that is not named below; other numbers are finite."""
RANGES: dict[str, Range] = {
    "--batch": (1, 1 << 20),
    "--samples": (4, 10**8),
    "--search-samples": (4, 10**8),
    "--seeds": (1, 1000),
    "--steps": (1, 10_000),
    "--queries": (2, 10**6),
    "--workers": (1, 1024),
    "--threads": (1, 1024),
    "--port": (1, 65535),
    "--at": (1, 10**12),
    "--eta": (0, 1),
    "--guidance": (-100, 100),
    "--omega": (-100, 100),
    "--held-out": (0, 1),
}
"""Option → the least and the largest number."""


def check_number(name: str, value: float) -> None:
    """Raises UserError, which names the option, for a number out of its range."""
    least, most = RANGES.get(name, ANY if isinstance(value, int) else (-math.inf, math.inf))
    if not math.isfinite(value):
        raise UserError(f"{value} is no finite number", name, "write a number, for example 1.5")
    if value < least:
        raise UserError(f"{value} is too small", name, f"use at least {least:,}")
    if value > most:
        raise UserError(f"{value} is too large", name, f"use at most {most:,}")


def check_all_numbers(command: Any) -> None:
    """Let every numeric option of a command of the parser, and of those below it, be checked."""
    for parameter in command.params:
        if parameter.callback is None:
            parameter.callback = _checked
    for below in getattr(command, "commands", {}).values():
        check_all_numbers(below)


def _checked(context: Any, parameter: Any, value: Any) -> Any:
    del context
    name = parameter.opts[0]
    if is_number(value):
        check_number(name, value)
    if value == Path() and any(word in ("", f"{name}=") for word in sys.argv):  # else it was "."
        raise UserError("is empty", name, 'write a path; "." is the current folder')
    if parameter.param_type_name == "option" and str(value).startswith("--"):
        raise UserError(f"has no value: {value} is an option itself", name, f"or write ./{value}")
    return value
