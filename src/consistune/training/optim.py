"""Optimizers and learning-rate schedules; every schedule is a function of the images seen.

The published loops of EDM, EDM2 and ECT replace NaN and infinity in gradients by numbers. Here a step with
such a gradient is skipped and counted (`consistune.training.loop`).
"""

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import nn

from consistune.training.radam import RAdam

FUSED = ("cpu", "cuda")
"""The devices that have torch's fused kernels; on others the update uses its foreach functions."""


class RateSchedule(Protocol):
    """The learning rate's factor when `images` of `total` training images have been seen."""

    def factor(self, images: int, total: int) -> float: ...


@dataclass(frozen=True)
class Constant:
    """1: a constant learning rate."""

    def factor(self, images: int, total: int) -> float:  # noqa: ARG002 - constant
        return 1.0


@dataclass(frozen=True)
class Cosine:
    """½(1 + cos πu) at the share u of training done."""

    def factor(self, images: int, total: int) -> float:
        return 0.5 * (1 + math.cos(math.pi * min(images / total, 1.0)))


@dataclass(frozen=True)
class LinearDecay:
    """1 up to the share `start` of training, then linearly to 0."""

    start: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.start < 1:
            raise ValueError(f"start must lie in [0, 1), got {self.start}")

    def factor(self, images: int, total: int) -> float:
        return min(1.0, max(0.0, (1 - images / total) / (1 - self.start)))


@dataclass(frozen=True)
class InverseSquareRoot:
    """1/√max(n/n_ref, 1) after n images  (EDM2, 2312.02696, eq. 67).

    Attributes:
        reference_images: n_ref, where the decay begins. EDM2 gives it in batches, t_ref: n_ref = t_ref·batch.
    """

    reference_images: int

    def __post_init__(self) -> None:
        if self.reference_images < 1:
            raise ValueError(f"reference_images must be at least 1, got {self.reference_images}")

    def factor(self, images: int, total: int) -> float:  # noqa: ARG002 - does not know the end
        return max(images / self.reference_images, 1.0) ** -0.5


@dataclass(frozen=True)
class Optimizer:
    """RAdam, Adam or AdamW, with a learning-rate schedule (ECT and iCT: RAdam, 1e-4, constant).

    Attributes:
        lr_schedule: the factor of the rate; `warmup_images` multiplies it by min(n/warmup_images, 1), n the
            images seen before the step (EDM and EDM2: 10 million, so that the first step has rate 0).
    """

    kind: Literal["radam", "adam", "adamw"] = "radam"
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    lr_schedule: RateSchedule = Constant()
    warmup_images: int = 0

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"lr must be positive, got {self.lr}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie in [0, 1), got {list(self.betas)}")
        if self.warmup_images < 0:
            raise ValueError(f"warmup_images must not be negative, got {self.warmup_images}")

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """The torch optimizer of the parameters that require gradients."""
        cls = {"radam": RAdam, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[self.kind]
        parameters = [p for p in model.parameters() if p.requires_grad]
        fused = all(p.device.type in FUSED for p in parameters)
        return cls(
            parameters,
            lr=self.lr,
            betas=self.betas,
            eps=self.eps,
            weight_decay=self.weight_decay,
            **{"fused" if fused else "foreach": True},
        )

    def rate_at(self, images: int, total: int) -> float:
        """The learning rate of the step before which `images` of `total` images have been seen."""
        warmup = min(images / self.warmup_images, 1.0) if self.warmup_images else 1.0
        return self.lr * warmup * self.lr_schedule.factor(images, total)


def require_gradients(model: nn.Module) -> None:
    """Let the parameters that are trained require gradients, and no others.

    Not trained are those that the model names in `frozen` (`nn.module.wrap`), and those that come without a
    gradient where others come with one.
    """
    named = dict(model.named_parameters())
    asked = {name for name, parameter in named.items() if parameter.requires_grad} or named.keys()
    trained = asked - getattr(model, "frozen", frozenset())
    for name, parameter in named.items():
        parameter.requires_grad_(name in trained)
