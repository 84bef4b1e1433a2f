"""How a model is sampled: the sampler that fits its card, and the arguments of `models.sample`, checked."""

import math
import operator
from collections.abc import Iterable
from itertools import pairwise
from numbers import Real
from typing import SupportsFloat

from consistune.core.noise import EDM
from consistune.core.objectives import learned
from consistune.core.rng import Between
from consistune.core.sampling import ODE, Multistep, PhasedSteps, Sampler
from consistune.core.types import Denoiser
from consistune.errors import UserError
from consistune.nn.precond import LOWEST, Preconditioned

DIFFUSION_STEPS = 18
"""Heun steps of a diffusion model by default: 35 network evaluations, EDM's choice for CIFAR-10."""


class StepsDoNotFit(UserError, ValueError):
    """A model cannot be sampled in so many steps, or does not say in how many."""


def default_sampler(
    model: Preconditioned, steps: int | None, mid_t: Iterable[float] | None = None, eta: float = 1.0
) -> Sampler:
    """The sampler that fits a model's card, in a number of steps (None: the model's own number).

    A diffusion model is sampled by Heun's method, over the noise levels that it is meant for, 0.002 … 80 at
    most. A phased model jumps from edge to edge, with the share η of edge-skipping. A model that learned
    jumps between any times jumps to each noise level of `mid_t`. Any other model takes one step, and for each
    further step returns to a noise level of `mid_t` (None: the card's).

    Raises StepsDoNotFit, also for steps=None where the card names no objective; ValueError for other times.
    """
    card = model.card
    if mid_t is not None and (card.is_diffusion or card.edges):
        raise StepsDoNotFit("the model takes no times between its steps: leave mid_t out")
    if steps is not None:
        steps = _whole(steps)
    if card.is_diffusion:
        count = DIFFUSION_STEPS if steps is None else steps
        return ODE(count, low=max(ODE.low, model.sigma_min), high=model.start)
    if card.edges:
        phases = len(card.edges) + 1
        if steps not in (None, 1, phases):
            raise StepsDoNotFit(f"this model has {phases} phases: steps must be 1 or {phases}")
        return PhasedSteps(card.edges, eta=0.0 if steps == 1 else eta)
    if steps is not None and steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if steps is None and card.objective is None:
        raise StepsDoNotFit("the model's card does not say how it is sampled: give steps or a sampler")
    middle = card.mid_t if mid_t is None else _times(mid_t)
    needed = (steps or 1) - 1
    if len(middle) < needed or (mid_t is not None and len(middle) > needed):
        raise StepsDoNotFit(
            f"{needed + 1} steps need {needed} times between; {len(middle)} known: give mid_t"
            if len(middle) < needed
            else f"{len(middle)} times between belong to {len(middle) + 1} steps, not to {needed + 1}"
        )
    middle = middle[:needed]
    if any(not 0 < t < model.start for t in middle) or any(b >= a for a, b in pairwise(middle)):
        raise ValueError(f"mid_t must fall between {model.start:g} and 0, got {list(middle)}")
    if min(middle, default=math.inf) < (lowest := lowest_time(model)):
        raise StepsDoNotFit(f"the model learned no noise level below {lowest:g}: give a higher mid_t")
    if card.jumps or (model.two_times and card.objective is None):
        return PhasedSteps(middle[::-1])
    return Multistep(middle, t_max=None if model.start == EDM().t_max else model.start)


def lowest_time(model: Preconditioned) -> float:
    """The noise level down to which a model of few steps is sampled: what it learned, and EDM's 0.002."""
    return max(model.card.lowest or 0.0, model.sigma_min, LOWEST)


def _whole(steps: object) -> int:
    """A number of steps. Raises ValueError where it is no integer."""
    try:
        if not isinstance(steps, bool):
            return operator.index(steps)  # type: ignore[arg-type]
    except TypeError:
        pass
    raise ValueError(f"steps is {steps!r:.60}: give an integer from 1 on")


def _times(mid_t: object) -> tuple[float, ...]:
    """The noise levels between steps. Raises ValueError where they are no numbers."""
    times = tuple(mid_t) if isinstance(mid_t, Iterable) else (None,)
    if not all(isinstance(t, SupportsFloat) for t in times):
        raise ValueError(f"mid_t is {mid_t!r:.60}: give a list of noise levels, for example [0.8]")
    return times


def check_guidance(
    model: Preconditioned, worse: Preconditioned | None, omega: float, option: str, searched: bool = False
) -> None:
    """Raises UserError where there is nothing to guide by, or where a worse model would not be used.

    option: what ω is called, of a command ("--guidance") or in Python.
    """
    other_option = "--worse" if option.startswith("--") else "worse"
    give = f"give {other_option}{' FOLDER' if option.startswith('--') else ''}"
    if omega == 1.0 and not searched:
        if worse is not None:
            raise UserError(f"has no effect with {option} 1", other_option, f"give {option}, for example 1.5")
        return
    if worse is None:
        if not model.num_classes:
            raise UserError("an unconditional model has no unlabelled branch", option, give)
        if model.card.label_dropout == 0:
            what = "the model's unlabelled branch is not trained (train.label_dropout was 0)"
            raise UserError(what, option, f"{give}, or train with train.label_dropout=0.1")
        return
    for name, own, other in (
        ("images", list(model.image_shape), list(worse.image_shape)),
        ("classes", model.num_classes, worse.num_classes),
        ("data", model.card.data_sha256, worse.card.data_sha256),
        ("phases", list(model.card.edges), list(worse.card.edges)),
        ("kind", _kind(model), _kind(worse)),
    ):
        if own != other and None not in (own, other):
            what = f"the worse model has other {name}"
            if name != "data":
                what += f": {other}, the model has {own}"
            raise UserError(what, other_option, "give a model of the same data and kind")


def _kind(model: Preconditioned) -> str | None:
    """What the model learned; None where its card does not say."""
    return None if model.card.objective is None else learned(model.card.to_json())


def check_options(sampler: Sampler | None, default: bool, eta: float, batch: int) -> None:
    """Raises UserError for a sampler beside the default one's settings, a class, and odd numbers."""
    if isinstance(sampler, type):
        raise UserError(f"{sampler.__name__} is a class", "sampler", f"give {sampler.__name__}(…)")
    if sampler is not None and not default:
        what = "steps, mid_t and eta belong to the default sampler: give them or a sampler"
        raise UserError(what, "sampler")
    if not _is_real(eta) or not 0 <= eta <= 1:
        raise UserError(f"{eta!r} is no share", "eta", "give a number from 0 to 1")
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise UserError(f"{batch!r} is no number of images", "batch", "give an integer from 1 on")


def check_guided(
    model: Preconditioned, worse: Denoiser | None, omega: float, interval: tuple[float, float]
) -> None:
    """Raises UserError for guidance that the model does not have, and for an interval that is none."""
    if not _is_real(omega) or not math.isfinite(omega):
        raise UserError(f"{omega!r} is no weight", "guidance", "give a number, for example 1.5")
    ends = tuple(interval) if isinstance(interval, Iterable) else ()
    if len(ends) != 2 or not all(map(_is_real, ends)) or not 0 <= ends[0] < ends[1]:
        raise UserError(f"{interval!r} is no interval", "guidance_interval", "give (low, high)")
    if omega == 1.0 and ends != (0.0, math.inf):
        raise UserError("has no effect without guidance", "guidance_interval", "give guidance too")
    if worse is not None and not callable(worse):
        raise UserError(f"{worse!r:.60} is no model", "worse", "give one of consistune.load")
    if omega != 1.0 and (worse is None or isinstance(worse, Preconditioned)):
        check_guidance(model, worse, omega, "guidance")


def listed_seeds(model: object, seeds: Iterable[int | Between]) -> list[int | Between]:
    """The seeds of a call of `sample`. Raises UserError where they are none, or the model is none."""
    if not isinstance(model, Preconditioned):
        what = f"{type(model).__name__} is no model"
        raise UserError(what, "model", "give one of consistune.load, train or tune")
    try:
        found = [_checked(seed) if isinstance(seed, Between) else operator.index(seed) for seed in seeds]
    except TypeError as error:
        raise UserError(f"{seeds!r:.60} are no integers", "seeds", "give range(16), or [3, 5]") from error
    ends = [
        end for seed in found for end in ((seed,) if isinstance(seed, int) else (seed.first, seed.second))
    ]
    beyond = next((end for end in ends if not -(2**63) <= end < 2**63), None)
    if beyond is not None:
        raise UserError(f"{beyond} has more than 64 bits", "seeds", "give smaller integers")
    return found


def _checked(seed: Between) -> Between:
    """The two seeds as integers. Raises TypeError where they are none, UserError for another share."""
    if not _is_real(seed.share) or not 0 <= seed.share <= 1:
        raise UserError(f"{seed.share!r} is no share", "seeds", "give Between a number from 0 to 1")
    return Between(operator.index(seed.first), operator.index(seed.second), seed.share)


def _is_real(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
