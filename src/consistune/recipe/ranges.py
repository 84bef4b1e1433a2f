"""The numbers that a recipe's keys may have, checked before anything is built or allocated.

A class checks what its arguments need to fit each other; here stands what no machine or no method can take.
"""

from collections.abc import Iterator
from typing import Any

from torch import nn

from consistune.errors import UserError
from consistune.recipe.words import Section
from consistune.recipe.yaml_text import shortened
from consistune.system.host import memory_bytes
from consistune.system.numbers import is_number

Range = tuple[float, float]
COUNT: Range = (0, 1 << 20)
"""An integer whose key is not named below."""
IMAGES: Range = (0, 10**12)
SEED: Range = (0, (1 << 63) - 1)
REAL: Range = (0, 3e38)
"""A number whose key is not named below: not negative, and within fp32."""
SHARE: Range = (0, 1)
EARLIEST, LATEST = 0.002, 80.0
"""The ratios of noise to signal between which samplers work: a law must reach into them."""
SCALE: Range = (1e-6, 1e6)
WIDTH: Range = (1, 1 << 16)
RANGES: dict[str, Range] = {
    **dict.fromkeys(
        ("width", "model_channels", "embedding", "expansion", "patch", "channels_per_head"), WIDTH
    ),
    **dict.fromkeys(("channel_mult", "channel_mult_emb", "channel_mult_noise", "out_channels"), WIDTH),
    **dict.fromkeys(("blocks", "num_blocks"), (1, 1000)),
    **dict.fromkeys(("dropout", "label_dropout", "augment", "mu", "mu_0"), SHARE),
    **dict.fromkeys(("label_balance", "concat_balance", "res_balance", "attn_balance"), SHARE),
    **dict.fromkeys(
        ("sigma_data", "sigma_max", "clip_act", "clip_norm", "fourier_scale", "ramp_up", "edges"),
        SCALE,
    ),
    **dict.fromkeys(("mid_t", "scale", "rho", "noise_gain", "stages_per_halving"), SCALE),
    **dict.fromkeys(("s0", "s1", "n", "M", "steps"), (1, 1 << 20)),
    **dict.fromkeys(("total_images", "reference_images"), (1, 10**12)),
    "low": (0, LATEST),
    "high": (EARLIEST, 1e6),
    "q": (1, 1e6),
    "max_ratio": (1e-6, 1),
    **dict.fromkeys(("t_min", "t_max", "noise_scale", "beta_d", "beta_min"), SCALE),
    **dict.fromkeys(("std", "r_std"), (1e-6, 100)),
    "mean": (-10, 10),
    "r_mean": (-10, 10),
    "guidance": (-1e3, 1e3),
}
"""Key → the least and the largest number."""


def check_numbers(recipe: Section, where: str) -> None:
    """Raises UserError for a number out of its key's range."""
    for name, value in numbers(recipe):
        key = name.rpartition(".")[2]
        if key in RANGES:
            least, most = RANGES[key]
        elif isinstance(value, float):
            least, most = REAL
        else:
            least, most = SEED if key.endswith("seed") else IMAGES if key.endswith("images") else COUNT
        if not least <= value <= most:
            what = f"{name}={shortened(value)} is out of range"
            raise UserError(what, where, f"use a number from {least:,} to {most:,}")


def numbers(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Every number of a recipe, with its dotted key."""
    if isinstance(value, Section):
        for key in type(value).model_fields:
            yield from numbers(getattr(value, key), f"{name}.{key}".lstrip("."))
    elif isinstance(value, tuple | list):
        for item in value:
            yield from numbers(item, name)
    elif is_number(value):
        yield name, value


def check_memory(what: str, bytes_needed: int, where: str) -> None:
    """Raises UserError where the machine's memory is smaller."""
    memory = memory_bytes()
    if bytes_needed > memory:
        needed, there = (f"{n / 2**30:,.0f} GiB" for n in (bytes_needed, memory))
        raise UserError(f"{what} needs {needed} of memory, this machine has {there}", where, "use less")


def weight_bytes(model: nn.Module) -> int:
    """Bytes of the weights; of a model on the "meta" device, those it would need."""
    return sum(value.nbytes for value in model.state_dict().values())
