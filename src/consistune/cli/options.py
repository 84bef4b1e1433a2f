"""What several commands take: their common options, and how the text of an option is read.

The modules of `cli` import only typer, rich and the standard library at the top, and the rest inside their
functions: `consistune --help` and `consistune COMMAND --help` then need no PyTorch.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from consistune.errors import UserError

if TYPE_CHECKING:
    import torch

Device = Annotated[str, Option(help="cpu, cuda, cuda:N, mps, xpu, or auto: CUDA if available, else the CPU.")]
BatchSize = Annotated[int, Option(help="Number of images per batch.")]
ModelFolder = Annotated[Path, Argument(help="A model's folder or a run's folder.")]
MiddleTimes = Annotated[
    str | None, Option(help="Noise levels t of the steps after the first, e.g. 2,0.5; default: the model's.")
]
Eta = Annotated[float, Option(help="Edge skipping of phased models, from 0 to 1.")]
GuidanceWeight = Annotated[float, Option(help="Weight ω of the guidance; 1 means no guidance.")]
WorseModel = Annotated[
    Path | None, Option(help="A worse model to guide by; default: the model itself without labels.")
]


def pick_device(name: str) -> "torch.device":
    """The device of that name; "auto" is CUDA if a device is available, and the CPU otherwise.

    Raises UserError for an unknown name, and for CUDA without a CUDA device.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"{name!r} is not a device", "--device", "use cpu, cuda or auto") from error
    there = {"cuda": torch.cuda, "mps": torch.backends.mps, "xpu": torch.xpu}
    if device.type in there and not there[device.type].is_available():
        what = f"no {device.type.upper()} device is available"
        raise UserError(what, f"--device {name}", "use --device cpu")
    return device


def parse_integers(text: str, option: str) -> list[int]:
    """ "0-3,7" → [0, 1, 2, 3, 7]. Raises UserError, which names the option."""
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        try:
            low = int(first)
            high = int(last) if dash else low
        except ValueError:
            raise UserError(f"{text!r} is not a list of integers", option, "write 0-63 or 1,5,8-11") from None
        if high < low:
            raise UserError(f"the range {part.strip()} is empty", option, "write the smaller number first")
        numbers.extend(range(low, high + 1))
    return numbers


def parse_times(text: str | None, option: str) -> tuple[float, ...] | None:
    """ "2,0.5" → (2.0, 0.5). Raises UserError, which names the option."""
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"{text!r} is not a list of times", option, "write 0.8 or 2,0.5") from None


def check_choice(value: str | None, choices: Iterable[str], option: str) -> None:
    """Raises UserError unless the value is one of the choices, or None (the option was not given)."""
    if value is not None and value not in choices:
        raise UserError(f"{value!r} is not known", option, f"use one of {', '.join(choices)}")


def check_at_least(least: int, value: int | None, option: str) -> None:
    """Raises UserError if the value is smaller; None (the option was not given) passes."""
    if value is not None and value < least:
        raise UserError(f"{value} is too small", option, f"use at least {least}")
