"""Optimizers and learning-rate schedules; every schedule is a function of the share of training done."""

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import nn


class RateSchedule(Protocol):
    """The learning rate's factor at the share u in [0, 1] of training done."""

    def factor(self, share: float) -> float: ...


@dataclass(frozen=True)
class Constant:
    """The learning rate stays."""

    def factor(self, share: float) -> float:  # noqa: ARG002 - constant
        return 1.0


@dataclass(frozen=True)
class Cosine:
    """½(1 + cos πu) at the share u of training done."""

    def factor(self, share: float) -> float:
        return 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


@dataclass(frozen=True)
class LinearDecay:
    """1 up to the share `start` of training, then linearly to 0."""

    start: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.start < 1:
            raise ValueError(f"start must lie in [0, 1), got {self.start}")

    def factor(self, share: float) -> float:
        return min(1.0, max(0.0, (1 - share) / (1 - self.start)))


@dataclass(frozen=True)
class Optimizer:
    """RAdam, Adam or AdamW, with a learning-rate schedule (ECT and iCT: RAdam, 1e-4, constant)."""

    kind: Literal["radam", "adam", "adamw"] = "radam"
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    lr_schedule: RateSchedule = Constant()

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"lr must be positive, got {self.lr}")

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        cls = {"radam": torch.optim.RAdam, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[self.kind]
        return cls(
            [p for p in model.parameters() if p.requires_grad],
            lr=self.lr,
            betas=self.betas,
            eps=self.eps,
            weight_decay=self.weight_decay,
            foreach=True,
        )

    def rate_at(self, share: float) -> float:
        """The learning rate when the share u of training is done."""
        return self.lr * self.lr_schedule.factor(share)
