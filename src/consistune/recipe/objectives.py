"""The objectives of recipes: functions whose arguments are an objective's keys, and which build it.

An objective whose recipe keys are its constructor's arguments needs no function: its class is in the table.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from inspect import isclass
from typing import Annotated, Any, Literal, cast, get_type_hints

from pydantic import Field
from torch import Tensor

from consistune.core.estimators import Blend, NoiseEstimator, OneSample, ScoreIdentity
from consistune.core.intervals import Intervals, LogitNormal
from consistune.core.laws import LogNormal
from consistune.core.noise import NoiseSchedule
from consistune.core.objectives import (
    AdaptiveHuber,
    AdaptivePower,
    Consistency,
    ContinuousConsistency,
    Denoising,
    Distance,
    Huber,
    ImprovedMeanVelocity,
    InverseGap,
    MeanVelocity,
    Mixture,
    Objective,
    Scale,
    SNRPlus,
    Trajectory,
    Truncated,
    Weight,
)
from consistune.core.solve import Method
from consistune.core.times import TimePairs, TruncatedPairs
from consistune.core.types import Denoiser
from consistune.errors import UserError
from consistune.nn.edm2 import EDM2Precond
from consistune.nn.precond import Preconditioned
from consistune.training.augment import LABELS, augment_batch
from consistune.training.ema import Online, Target

FLOW_MAP_KEYS: dict[str, tuple[Any, Any]] = {
    "target": (Target, Online()),
    "mid_t": (tuple[Annotated[float, Field(gt=0)], ...], (0.821,)),
}
"""Further keys, with their types and defaults: of an objective that uses a target network, which one; of one
that learns a flow map, the times of the steps after the first when the model is sampled."""


def objective_class(make: Any) -> type[Objective]:
    """make: an objective's class, or a function annotated to return it."""
    return cast(type[Objective], make if isclass(make) else get_type_hints(make)["return"])


def further_keys(make: Any) -> dict[str, tuple[Any, Any]]:
    """Those of FLOW_MAP_KEYS that an objective has."""
    built = objective_class(make)
    has = {"target": built.uses_target, "mid_t": True}
    return {name: key for name, key in FLOW_MAP_KEYS.items() if built.learns != "denoiser" and has[name]}


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
    its transforms with this probability (`training.augment`); the network needs augment_dim: 9.
    """
    known = getattr(student.network, "augment_dim", 0)
    if augment > 0 and known != LABELS:
        raise UserError(
            f"the network takes {known} augmentation labels, EDM's augmentation gives {LABELS}",
            "augment",
            f"use a network with augment_dim: {LABELS}, or leave augment out",
        )
    return Denoising(
        schedule,
        law,
        weight,
        log_variance(schedule, student) if uncertainty else None,
        partial(augment_batch, probability=augment) if augment > 0 else None,
    )


def log_variance(schedule: NoiseSchedule, student: Preconditioned) -> Callable[[Tensor], Tensor]:
    """u(t) [B] of the student's head. Raises UserError where it has none."""
    if not isinstance(student, EDM2Precond):
        raise UserError(
            f"{student.kind!r} learns no log-variance", "uncertainty", "use precond: {kind: edm2}"
        )
    if student.logvar_channels == 0:
        what = "the preconditioning has no head for a log-variance (logvar_channels is 0)"
        raise UserError(what, "uncertainty", "use precond: {kind: edm2, logvar_channels: 128}")
    head: Any = student
    return lambda t: head.log_variance(schedule.noise_to_signal(t)).flatten()


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


def _is_one_sample(estimator: NoiseEstimator) -> bool:
    """Whether the estimate is the sample itself, alone or in a blend with itself."""
    inner = estimator.estimator if isinstance(estimator, Blend) else estimator
    of_one = isinstance(inner, ScoreIdentity) and inner.size == 1 and not inner.mirrored
    return isinstance(inner, OneSample) or of_one


def _check_scatter(distance: AdaptiveHuber, estimator: NoiseEstimator) -> None:
    """Raises UserError where the estimate has no scatter, or none that the distance can read."""
    where = "loss.distance.scatter"
    if _is_one_sample(estimator):
        what = "a one-sample estimate has no scatter, so the radius would be 0 for every sample"
        raise UserError(what, where, "use kind: huber, or another estimator")
    if distance.scatter == "posterior" and not estimator.knows_posterior:
        what = "the estimator knows no posterior"
        raise UserError(what, where, "use scatter: own or measured, or estimator: {kind: score-identity}")


def continuous(
    schedule: NoiseSchedule,
    student: Preconditioned,
    estimator: NoiseEstimator,
    law: LogNormal = LogNormal(-1.0, 1.4, 0.002, 80.0),
    weight: Weight = InverseGap(),
    uncertainty: bool = False,
    warmup_images: Annotated[int, Field(ge=0)] = 5_120_000,
    c: Annotated[float, Field(gt=0)] = 0.1,
    per_root_dim: bool = True,
    sigma_data: Annotated[float, Field(gt=0)] = 0.5,
    difference: Annotated[float, Field(gt=0, lt=1)] | None = None,
) -> ContinuousConsistency:
    """Tuning in continuous time (sCM): a consistency model.

    uncertainty: the learned weight e^−u(t), by the head of `precond: {kind: edm2}`. The others:
    `core.objectives.continuous`.
    """
    head = log_variance(schedule, student) if uncertainty else None
    settings = (warmup_images, c, per_root_dim, sigma_data, difference)
    return ContinuousConsistency(schedule, estimator, law, weight, head, *settings)


def mean_velocity(
    schedule: NoiseSchedule,
    student: Preconditioned,
    estimator: NoiseEstimator,
    intervals: Intervals = LogitNormal(),
    scale: Scale = AdaptivePower(),
    guidance: Mixture = Mixture(),
    improved: bool = False,
) -> MeanVelocity:
    """MeanFlow: a two-time network, whose jumps are sampled. improved: iMF's direction of du/dt."""
    if not guidance.idle and student.num_classes == 0:
        raise UserError(
            "the model takes no labels, so there is nothing to guide it with",
            "guidance",
            "leave guidance out, or use conditional: true",
        )
    if guidance.idle and (guidance.low > 0 or guidance.high is not None):
        what = "low and high have no effect with omega = 1 and kappa = 0"
        raise UserError(what, "guidance", "leave them out, or give omega")
    if isinstance(scale, AdaptivePower) and scale.scatter == "own" and _is_one_sample(estimator):
        what = "a one-sample estimate is the sample's own velocity, so scatter: own changes nothing"
        raise UserError(what, "scale.scatter", "leave it out, or use another estimator")
    made = ImprovedMeanVelocity if improved else MeanVelocity
    return made(schedule, estimator, intervals, scale, guidance)
