"""What several commands take: their common options, and how the text of an option is read.

The modules of `cli` import only typer, rich and the standard library at the top, and the rest inside their
functions: `consistune --help` and `consistune COMMAND --help` then need no PyTorch.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from consistune.errors import UserError, nearest

if TYPE_CHECKING:
    import torch

Device = Annotated[str, Option(help="cpu, cuda, cuda:N, mps, xpu, or auto: CUDA if available, else the CPU.")]
BatchSize = Annotated[int, Option(help="Number of images per batch.")]
ModelFolder = Annotated[
    Path, Argument(help="A model's folder, a run's folder, or a built-in model's name (emoji64, mnist10k).")
]
MiddleTimes = Annotated[
    str | None, Option(help="Noise levels t of the steps after the first, e.g. 2,0.5; default: the model's.")
]
Eta = Annotated[float | None, Option(help="Edge skipping of phased models, from 0 to 1; default: 1.")]
GuidanceWeight = Annotated[float, Option(help="Weight ω of the guidance; 1 means no guidance.")]
GuidanceInterval = Annotated[
    str | None, Option(help="LOW,HIGH: guide only where LOW < t <= HIGH; default: everywhere.")
]
WorseModel = Annotated[
    Path | None, Option(help="A worse model to guide by; default: the model itself without labels.")
]

RawLatents = Annotated[
    bool, Option("--latents", help="Of a model of latents: write the latents (.npz), not pictures.")
]


def pick_device(name: str) -> "torch.device":
    """The device of `--device` (`system.host.pick_device`, which imports PyTorch)."""
    from consistune.system import host

    return host.pick_device(name, "--device")


LARGEST = 1 << 62
"""Seeds and other integers in a list are below."""


def parse_ranges(text: str, option: str) -> list[range]:
    """ "0-3,7" → [range(0, 4), range(7, 8)]. Raises UserError, which names the option."""
    ranges: list[range] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        try:
            low = int(first)
            high = int(last) if dash else low
        except ValueError:
            raise UserError(
                f"{text[:60]!r} is not a list of integers", option, "write 0-63 or 1,5,8-11"
            ) from None
        if not 0 <= low < LARGEST > high >= 0:
            raise UserError(f"{part.strip()} is out of range", option, f"use numbers below {LARGEST:,}")
        if high < low:
            raise UserError(f"the range {part.strip()} is empty", option, "write the smaller number first")
        ranges.append(range(low, high + 1))
    if sum(part.stop - part.start for part in ranges) >= LARGEST:
        raise UserError(f"these are {LARGEST:,} numbers or more", option, "write fewer")
    return ranges


def parse_times(text: str | None, option: str) -> tuple[float, ...] | None:
    """ "2,0.5" → (2.0, 0.5). Raises UserError, which names the option."""
    if text is None:
        return None
    try:
        times = tuple(float(part) for part in text.split(","))
    except ValueError:
        times = ()
    if not times or any(math.isnan(t) for t in times):
        raise UserError(f"{text[:60]!r} is not a list of times", option, "write 0.8 or 2,0.5")
    return times


def check_choice(value: str | None, choices: Sequence[str], option: str) -> None:
    """Raises UserError unless the value is one of the choices, or None (the option was not given)."""
    if value is not None and value not in choices:
        hint = nearest(value, choices)
        raise UserError(f"{value!r} is not known", option, f"{hint}use one of {', '.join(choices)}")


def check_no_effect(given: Mapping[str, object], without: str, remedy: str) -> None:
    """Raises UserError for the first of these options that was given: it needs another one."""
    for option, value in given.items():
        if value is not None and value is not False:
            raise UserError(f"has no effect without {without}", option, f"{remedy}, or leave it out")
