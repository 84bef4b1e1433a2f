"""A sampler from the options of `sample` and `evaluate`; an option that would have no effect is refused."""

import itertools
from collections.abc import Sequence

from consistune.core.noise import EDM
from consistune.core.sampling import Sampler
from consistune.errors import UserError
from consistune.models import StepsDoNotFit, default_sampler
from consistune.models import check_guidance as check_guidance
from consistune.nn.precond import Preconditioned
from consistune.nn.sampler import lowest_time


def chosen_sampler(
    model: Preconditioned, steps: int | None, mid_t: Sequence[float] | None, eta: float | None
) -> Sampler:
    """The sampler in a number of steps; None: the option was not given, and the model's own holds.

    Raises UserError for what the model cannot take, and for an option that changes nothing.
    """
    card = model.card
    if card.edges and not card.is_diffusion:
        phases = len(card.edges) + 1
        if steps not in (None, 1, phases):
            raise UserError(f"this model has {phases} phases", f"--steps {steps}", f"use 1 or {phases}")
        if eta is not None and steps == 1:
            raise UserError("has no effect in one step", "--eta", "leave it out, or leave out --steps")
    elif eta is not None:
        raise UserError("has no effect: the model has no phases", "--eta", "leave it out")
    if mid_t is not None:
        _check_middle_times(model, steps, mid_t)
    try:
        return default_sampler(model, steps, mid_t, 1.0 if eta is None else eta)
    except StepsDoNotFit as error:
        raise UserError(str(error), "--steps") from error


def _check_middle_times(model: Preconditioned, steps: int | None, mid_t: Sequence[float]) -> None:
    where, card = "--mid-t", model.card
    if card.is_diffusion or card.edges:
        kind = "is a diffusion model" if card.is_diffusion else "steps from edge to edge"
        raise UserError(f"has no effect: the model {kind}", where, "leave it out")
    if any(not 0 < t < model.start for t in mid_t) or any(b >= a for a, b in itertools.pairwise(mid_t)):
        given = ",".join(f"{t:g}" for t in mid_t)
        remedy = f"write falling times between 0 and {model.start:g}"
        raise UserError(f"{given} is not allowed", where, remedy)
    if min(mid_t, default=model.start) < (lowest := lowest_time(model)):
        what = f"the model learned no noise level below {lowest:g}"
        raise UserError(what, where, f"give times of {lowest:g} and more")
    if (steps or 1) != len(mid_t) + 1:
        what = f"{len(mid_t)} times belong to {len(mid_t) + 1} steps, not to {steps or 1}"
        raise UserError(what, where, f"add --steps {len(mid_t) + 1}, or leave it out")


def check_interval(sampler: Sampler, interval: tuple[float, float], option: str) -> None:
    """Raises UserError for an interval of noise levels in which the sampler never asks the model."""
    levels = sampler.times(EDM())
    if levels and not any(interval[0] < level <= interval[1] for level in levels):
        asked = ", ".join(f"{level:.4g}" for level in levels[:6]) + (", …" if len(levels) > 6 else "")
        what = f"has no effect: the sampler asks the model at noise levels {asked}"
        raise UserError(what, option, "write an interval LOW,HIGH with LOW < level ≤ HIGH")
