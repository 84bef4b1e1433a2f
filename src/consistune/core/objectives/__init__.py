"""What training minimises: objectives, and the distances and weights that they are made of (METHOD §3).

An objective is a file here and a row of `recipe.words.PARTS`.
"""

from collections.abc import Mapping
from typing import cast

from consistune.core.objectives.base import Draws, Learns, Objective, gaussian_like
from consistune.core.objectives.consistency import Consistency
from consistune.core.objectives.continuous import ContinuousConsistency
from consistune.core.objectives.denoising import Denoising
from consistune.core.objectives.distances import L1, AdaptiveHuber, Distance, Huber, SquaredL2
from consistune.core.objectives.lpips import LPIPS
from consistune.core.objectives.mean_velocity import (
    AdaptivePower,
    ImprovedMeanVelocity,
    MeanVelocity,
    Mixture,
    Scale,
)
from consistune.core.objectives.trajectory import Trajectory
from consistune.core.objectives.truncated import Truncated
from consistune.core.objectives.weights import InverseCOut, InverseGap, SNRPlus, Uniform, Weight

__all__ = [
    "L1",
    "LPIPS",
    "AdaptiveHuber",
    "AdaptivePower",
    "Consistency",
    "ContinuousConsistency",
    "Denoising",
    "Distance",
    "Draws",
    "Huber",
    "ImprovedMeanVelocity",
    "InverseCOut",
    "InverseGap",
    "Learns",
    "MeanVelocity",
    "Mixture",
    "Objective",
    "SNRPlus",
    "Scale",
    "SquaredL2",
    "Trajectory",
    "Truncated",
    "Uniform",
    "Weight",
    "gaussian_like",
    "learned",
]


BY_OBJECTIVE: dict[object, Learns] = {"diffusion": "denoiser", "mean-velocity": "jumps"}
"""What the words of a card's `objective` stand for."""


def learned(meta: Mapping[str, object]) -> Learns:
    """What the model with this meta learned: its key `learns`; without one, what `objective` says.

    A word that is not in `BY_OBJECTIVE` stands for a flow map.
    """
    return cast(Learns, meta.get("learns", BY_OBJECTIVE.get(meta.get("objective"), "flow-map")))
