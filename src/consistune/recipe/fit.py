"""What an objective does not go with: keys of the training, and models that stand for a teacher."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from consistune.core.derivative import derivative
from consistune.core.estimators import Blend
from consistune.core.intervals import LogitNormal
from consistune.core.noise import RectifiedFlow
from consistune.core.objectives import ContinuousConsistency, MeanVelocity, Objective, Trajectory, learned
from consistune.core.times import TruncatedPairs
from consistune.errors import UserError
from consistune.nn.module import ModuleNetwork
from consistune.nn.precond import Preconditioned
from consistune.recipe.ranges import LATEST
from consistune.recipe.words import Recipe
from consistune.training.options import TrainOptions
from consistune.training.precision import UntilRatio

LEVELS = (0.02, 0.3, 1.0, 4.0, 40.0)
"""Noise levels at which a derivative is tried."""
RARE = 1e-9
"""The share of a law, at each end, that is too rare for a run to draw."""


def check_objective(recipe: Recipe, objective: Objective, options: TrainOptions) -> None:
    """Raises UserError for keys that the objective does not allow."""
    middle = getattr(recipe, "mid_t", ())
    if any(t >= LATEST for t in middle) or any(b >= a for a, b in pairwise(middle)):
        what = "times between the steps must fall from one to the next"
        raise UserError(what, f"mid_t={list(middle)}", f"give falling times below {LATEST:g}")
    if any(t < objective.lowest_time for t in middle):
        what = f"the model learns no t below {objective.lowest_time:g}"
        raise UserError(what, f"mid_t={list(middle)}", "give later times")
    if objective.needs_unlabelled and options.label_dropout == 0:
        raise UserError(
            "guidance in training asks the model without labels, which nothing trains",
            "train.label_dropout",
            "give a share of the images, such as 0.1",
        )
    if objective.differentiates and options.shard:
        what = f"{recipe.objective} takes derivatives, for which no network is split"
        raise UserError(what, "train.shard", "leave it out")
    if isinstance(options.precision, UntilRatio) and not hasattr(objective, "pairs"):
        what = "the objective has no pairs of times, so that no ratio is reached"
        raise UserError(what, "train.precision.until_ratio", "give one precision")
    _check_batch(objective, options)
    _check_blend(objective)
    _check_times(objective)


def _check_batch(objective: Objective, options: TrainOptions) -> None:
    """Raises UserError where a batch is too small for what the objective draws."""
    if isinstance(objective, Trajectory) and objective.steps > options.batch:
        what = (
            f"a batch holds the first {options.batch} points of a trajectory, and {objective.steps} are there"
        )
        raise UserError(what, "steps", f"use steps: {options.batch} or less, or a larger train.batch")
    pairs = getattr(objective, "pairs", None)
    if isinstance(pairs, TruncatedPairs) and math.floor(pairs.share * options.batch) == 0:
        what = f"of {options.batch} images none sits at the boundary, which ties the model to `below`"
        raise UserError(what, "pairs.share", "use a larger share, or a larger train.batch")


def _check_blend(objective: Objective) -> None:
    """Raises UserError for a blend that is one-sample noise in every step."""
    if not isinstance(getattr(objective, "estimator", None), Blend):
        return
    remedy = "use the estimator inside the blend, or kind: one-sample"
    if isinstance(objective, ContinuousConsistency) and objective.warmup_images == 0:
        raise UserError("without a warm-up a blend is one-sample noise", "estimator", remedy)
    intervals = getattr(objective, "intervals", None)
    if isinstance(intervals, LogitNormal) and intervals.equal == 1:
        raise UserError("where r = t a blend is one-sample noise", "estimator", remedy)


def _check_times(objective: Objective) -> None:
    """Raises UserError for a law whose times have no noise, no signal, or no finite ratio of the two."""
    if isinstance(objective, ContinuousConsistency):
        key, ratios = "law", objective.law.quantile(torch.tensor([RARE, 1 - RARE], dtype=torch.float64))
    elif isinstance(objective, MeanVelocity) and isinstance(objective.intervals, LogitNormal):
        ends = torch.special.ndtri(torch.tensor([RARE, 1 - RARE], dtype=torch.float64))
        share, _ = replace(objective.intervals, order="clamp").times(ends, ends, torch.ones_like(ends))
        key, ratios = "intervals", RectifiedFlow().noise_to_signal(share)
    elif isinstance(objective, Trajectory):
        key, ratios = "low, high", torch.tensor([objective.low, objective.high])
    else:
        return
    t = objective.schedule.time_at(ratios.float())
    sound = torch.isfinite(t) & (t > 0) & (objective.schedule.alpha(t) > 0)
    if not bool(sound.all()):
        low, high = ratios.tolist()
        what = f"noise-to-signal ratios from {low:.3g} to {high:.3g} reach beyond the noise schedule"
        raise UserError(what, key, "give a narrower law, or its lowest and highest value")


def check_derivative(model: Preconditioned, objective: Objective) -> None:
    """Raises UserError where the objective differentiates a model that does not allow it.

    That is one whose preconditioning rounds the noise level, and a network that is not ours without a forward
    derivative, or that rounds or detaches the noise level: found by passes over a few images. Finite
    differences pass networks without a derivative, and those that detach.
    """
    if not objective.differentiates:
        return
    device = next(model.parameters()).device
    sigma = torch.tensor(LEVELS, device=device)
    x = torch.ones(len(sigma), *model.image_shape, device=device)
    without = "use an objective without derivatives, such as consistency"
    if not _follows(model, lambda level: model.scalings(level).c_noise, sigma):
        what = f"{model.kind!r} rounds the noise level, along which the objective takes a derivative"
        raise UserError(what, "precond", f"{without}, or another preconditioning")
    difference = getattr(objective, "difference", None)
    if not isinstance(model.network, ModuleNetwork):
        return
    finite = "set difference=1e-3, which takes finite differences"
    remedy = finite if hasattr(objective, "difference") else without
    labels = torch.zeros(len(sigma), dtype=torch.long, device=device) if model.num_classes else None
    one_hot, training = model.one_hot(labels, len(sigma), sigma), model.training
    level = model.scalings(sigma).c_noise
    try:
        with torch.random.fork_rng(devices=[]):
            if difference is None:
                derivative(model.train(), lambda *at: model(*at, labels), (x, sigma), (x, sigma))
            smooth = _follows(model.eval(), lambda at: model.network(x, at, one_hot), level, difference)
    except RuntimeError as error:
        what = f"the network has no forward derivative ({str(error).splitlines()[0]})"
        raise UserError(what, "network", remedy) from error
    finally:
        model.train(training)
    if not smooth:
        what = "the network rounds or detaches the noise level, along which the objective takes a derivative"
        raise UserError(what, "network", f"{without}, or a network that follows it")


@torch.no_grad()
def _follows(
    model: Preconditioned,
    function: Callable[[Tensor], Tensor],
    level: Tensor,
    difference: float | None = None,
) -> bool:
    """Whether a function that changes along the levels has a derivative there, or a small difference."""
    value = function(level)
    changes = bool((function(level.roll(1)) != value).any())
    if difference is not None:
        return bool((function(level + difference / 4) != value).any()) or not changes
    _, slope = derivative(model, function, (level,), (torch.ones_like(level),))
    return bool((slope != 0).any()) or not changes


def check_flow_map(model: Preconditioned, path: str, key: str) -> None:
    """Raises UserError for a frozen model that does not reach the trajectory's end from every time."""
    card = model.card
    if card.edges or learned(card.to_json()) == "denoiser":
        kind = "a phased model" if card.edges else "a diffusion model"
        raise UserError(f"{path} is {kind}", key, "give a consistency model of one phase")
    if card.objective == "truncated":
        what = f"{path} is a model of TCM's second stage, which learned no times below the boundary"
        raise UserError(what, key, "give the consistency model of the first stage")


def check_teacher(model: Preconditioned, path: str, key: str, guidance: float) -> None:
    """Raises UserError for a teacher that gives no velocity, because it learned where trajectories end; and
    for a guided one without labels, or whose unlabelled branch nothing trained."""
    card = model.card
    if card.objective is not None and learned(card.to_json()) == "flow-map":
        what = f"{path} is a few-step model, which says where a trajectory ends and not its direction"
        raise UserError(what, key, "give the diffusion model that it was tuned from")
    if guidance == 1:
        return
    where = f"{key.removesuffix('.model')}.guidance"
    if model.num_classes == 0:
        raise UserError("the teacher takes no labels to guide it with", where, "leave guidance out")
    if card.label_dropout == 0:
        what = "the teacher's unlabelled branch is not trained (train.label_dropout was 0)"
        raise UserError(what, where, "leave guidance out, or train a teacher with train.label_dropout=0.1")
