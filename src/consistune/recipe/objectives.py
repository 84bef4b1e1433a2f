"""The objectives of recipes: functions whose arguments are an objective's keys, and which build it.

An objective whose recipe keys are its constructor's arguments needs no function: its class is in the table.
"""

from dataclasses import dataclass
from functools import partial
from inspect import isclass
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import Field

from consistune.core.estimators import Blend, NoiseEstimator, OneSample, ScoreIdentity
from consistune.core.noise import NoiseSchedule
from consistune.core.objectives import (
    AdaptiveHuber,
    Consistency,
    Denoising,
    Distance,
    Huber,
    InverseGap,
    Learns,
    SNRPlus,
    Trajectory,
    Truncated,
    Weight,
)
from consistune.core.solve import Method
from consistune.core.times import LogNormal, TimePairs, TruncatedPairs
from consistune.core.types import Denoiser
from consistune.errors import UserError
from consistune.nn.edm2 import EDM2Precond
from consistune.nn.precond import Preconditioned
from consistune.train.augment import LABELS, augment_batch
from consistune.train.ema import Online, Target

FLOW_MAP_KEYS: dict[str, tuple[Any, Any]] = {
    "target": (Target, Online()),
    "mid_t": (tuple[Annotated[float, Field(gt=0)], ...], (0.821,)),
}
"""Further keys, with their types and defaults, of every objective that learns a flow map: the network that
gives the target, and the times of the steps after the first when the model is sampled."""


def learns(make: Any) -> Learns:
    """What the models of an objective learn. make: its class, or a function annotated to return it."""
    built: Any = make if isclass(make) else get_type_hints(make)["return"]
    learned: Learns = built.learns
    return learned


def diffusion(
    schedule: NoiseSchedule,
    student: Preconditioned,
    law: LogNormal = LogNormal(-1.2, 1.2),
    weight: Weight = SNRPlus(),
    uncertainty: bool = False,
    augment: Annotated[float, Field(ge=0, le=1)] = 0.0,
) -> Denoising:
    """Pretraining: a denoiser.

    uncertainty: the loss is weighted by the learned log-variance u(σ) of `precond: {kind: edm2}` (EDM2's
    eq. 21); elsewhere that head is left out of the model. augment: EDM's augmentation of the images, each of
    its transforms with this probability (`train.augment`); the network needs augment_dim: 9.
    """
    known = getattr(student.network, "augment_dim", 0)
    if augment > 0 and known != LABELS:
        raise UserError(
            f"the network takes {known} augmentation labels, EDM's augmentation gives {LABELS}",
            "augment",
            f"use a network with augment_dim: {LABELS}, or leave augment out",
        )
    if uncertainty and not isinstance(student, EDM2Precond):
        raise UserError(
            f"{student.kind!r} learns no log-variance", "uncertainty", "use precond: {kind: edm2}"
        )
    head: Any = student
    return Denoising(
        schedule,
        law,
        weight,
        (lambda t: head.log_variance(schedule.noise_to_signal(t)).flatten()) if uncertainty else None,
        partial(augment_batch, probability=augment) if augment > 0 else None,
    )


@dataclass(frozen=True)
class Loss:
    """How f_θ(x_t) is compared with its target, and how the solver steps from t to r."""

    distance: Distance = Huber()
    weight: Weight = InverseGap()
    steps: Annotated[int, Field(ge=1)] = 1
    method: Method = "euler"


def consistency(
    schedule: NoiseSchedule, pairs: TimePairs, estimator: NoiseEstimator, loss: Loss = Loss()
) -> Consistency:
    """Tuning: a consistency model."""
    _check(loss, estimator)
    return Consistency(schedule, pairs, estimator, loss.distance, loss.weight, loss.steps, loss.method)


def truncated(
    schedule: NoiseSchedule,
    pairs: TruncatedPairs,
    estimator: NoiseEstimator,
    below: Denoiser,
    boundary_weight: float = 0.1,
    loss: Loss = Loss(),
) -> Truncated:
    """Stage 2 of TCM: a consistency model above t′, over the frozen model `below` of stage 1."""
    _check(loss, estimator)
    return Truncated(
        schedule,
        estimator=estimator,
        distance=loss.distance,
        weight=loss.weight,
        steps=loss.steps,
        method=loss.method,
        pairs=pairs,
        below=below,
        boundary_weight=boundary_weight,
    )


def trajectory(
    schedule: NoiseSchedule,
    estimator: NoiseEstimator,
    distance: Distance = Huber(),
    steps: Annotated[int, Field(ge=1)] = 16,
    order: Literal[1, 2, 3] = 3,
    low: float = 0.002,
    high: float = 80.0,
) -> Trajectory:
    """Mid-training (CMT): the points of the estimator's trajectories onto their ends."""
    if isinstance(distance, AdaptiveHuber):
        what = "the radius follows a step from t to r, and a trajectory's end has none"
        raise UserError(what, "distance", "use kind: huber, squared-l2 or lpips")
    if estimator.local:
        what = "a one-sample estimate, alone or in a blend, is valid only at x_t"
        raise UserError(what, "estimator", "use kind: teacher or score-identity")
    return Trajectory(schedule, estimator, distance, steps, order, low, high)


def _check(loss: Loss, estimator: NoiseEstimator) -> None:
    """Raises UserError for a distance or solver steps that the estimator cannot have."""
    if isinstance(loss.distance, AdaptiveHuber):
        _check_scatter(loss.distance, estimator)
    if estimator.local and (loss.steps > 1 or loss.method == "heun"):
        raise UserError(
            "a one-sample estimate, alone or in a blend, is valid only at x_t",
            "loss.steps, loss.method",
            "use steps: 1 and method: euler, or another estimator",
        )


def _check_scatter(distance: AdaptiveHuber, estimator: NoiseEstimator) -> None:
    """Raises UserError where the estimate has no scatter, or none that the distance can read."""
    where = "loss.distance.scatter"
    inner = estimator.estimator if isinstance(estimator, Blend) else estimator
    of_one = isinstance(inner, ScoreIdentity) and inner.size == 1 and not inner.mirrored
    if isinstance(inner, OneSample) or of_one:
        what = "a one-sample estimate has no scatter, so the radius would be 0 for every sample"
        raise UserError(what, where, "use kind: huber, or another estimator")
    if distance.scatter == "posterior" and not estimator.knows_posterior:
        what = "the estimator knows no posterior"
        raise UserError(what, where, "use scatter: own or measured, or estimator: {kind: score-identity}")
