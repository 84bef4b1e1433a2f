"""A sampler from the options of `sample` and `evaluate`; an option that would have no effect is refused."""

import itertools
from collections.abc import Sequence

from consistune.core.sampling import Sampler
from consistune.errors import UserError
from consistune.models import StepsDoNotFit, default_sampler
from consistune.nn.precond import Preconditioned

LATEST = 80.0
"""The time from which samplers start."""


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
    if any(not 0 < t < LATEST for t in mid_t) or any(b >= a for a, b in itertools.pairwise(mid_t)):
        given = ",".join(f"{t:g}" for t in mid_t)
        raise UserError(f"{given} is not allowed", where, f"write falling times between 0 and {LATEST:g}")
    if card.lowest is not None and min(mid_t, default=LATEST) < card.lowest:
        what = f"the model learned no noise level below {card.lowest:g}"
        raise UserError(what, where, f"give times of {card.lowest:g} and more")
    if (steps or 1) != len(mid_t) + 1:
        what = f"{len(mid_t)} times belong to {len(mid_t) + 1} steps, not to {steps or 1}"
        raise UserError(what, where, f"add --steps {len(mid_t) + 1}, or leave it out")


def check_guidance(
    model: Preconditioned, worse: Preconditioned | None, omega: float, option: str, searched: bool = False
) -> None:
    """Raises UserError where there is nothing to guide by, or where a worse model would not be used."""
    if omega == 1.0 and not searched:
        if worse is not None:
            raise UserError(f"has no effect with {option} 1", "--worse", f"give {option}, for example 1.5")
        return
    if worse is None:
        if not model.num_classes:
            raise UserError("an unconditional model has no unlabelled branch", option, "give --worse FOLDER")
        if model.card.label_dropout == 0:
            what = "the model's unlabelled branch is not trained (train.label_dropout was 0)"
            raise UserError(what, option, "give --worse FOLDER, or train with train.label_dropout=0.1")
        return
    for name, own, other in (
        ("images", list(model.image_shape), list(worse.image_shape)),
        ("classes", model.num_classes, worse.num_classes),
        ("data", model.card.data_sha256, worse.card.data_sha256),
    ):
        if own != other and None not in (own, other):
            what = f"the worse model has other {name}"
            if name != "data":
                what += f": {other}, the model has {own}"
            raise UserError(what, "--worse", "give a model of the same data")
