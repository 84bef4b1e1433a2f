"""Samples to be measured: from a model, a seed an image; or from a file of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from consistune.core.rng import mix_seed
from consistune.core.sampling import Multistep, Sampler
from consistune.core.types import Denoiser
from consistune.errors import UserError
from consistune.models import default_sampler, sample
from consistune.nn.precond import Preconditioned

LABEL_STREAM = 7
"""Labels and noise of a seed come from different streams."""
LabelRule = Literal["data", "uniform", "balanced"]
LABEL_RULES: tuple[LabelRule, ...] = ("data", "uniform", "balanced")


@dataclass(frozen=True)
class Drawing:
    """Seeds → uint8 images [n, C, H, W] and their labels [n]: a function of each seed alone.

    Attributes:
        labels: of the training images; None: unknown.
        label_rule: "data": the label of a training image drawn by the seed (ECT's protocol); "uniform": each
            class equally likely (EDM's); "balanced": the seed modulo the classes.
        worse, omega: guidance by a worse model.
    """

    model: Preconditioned
    sampler: Sampler
    labels: Tensor | None = None
    label_rule: LabelRule = "data"
    worse: Denoiser | None = None
    omega: float = 1.0
    batch: int = 256

    def __call__(self, seeds: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        labels = self.labels_of(seeds)
        images = sample(
            self.model,
            seeds,
            condition=labels,
            sampler=self.sampler,
            guidance=self.omega,
            worse=self.worse,
            batch=self.batch,
        )
        return images, labels

    def labels_of(self, seeds: Sequence[int]) -> Tensor | None:
        """The labels [n] that the seeds are drawn for; None where the model takes none."""
        classes = self.model.num_classes
        if classes == 0:
            return None
        if self.label_rule == "balanced":
            return torch.tensor([seed % classes for seed in seeds])
        chances = [mix_seed(seed, LABEL_STREAM) for seed in seeds]
        if self.label_rule == "uniform":
            return torch.tensor([chance % classes for chance in chances])
        if self.labels is None:
            raise UserError(
                "the labels of the training images are not known",
                "--labels data",
                "give --data, or --labels uniform",
            )
        return self.labels[torch.tensor([chance % len(self.labels) for chance in chances])]

    @property
    def evaluations(self) -> int:
        """Network evaluations an image."""
        stops = getattr(self.sampler, "stops", None)
        if stops is not None:
            return len(stops(80.0)) - 1
        return int(self.sampler.evaluations)  # type: ignore[attr-defined]

    def with_mid_t(self, t: float) -> "Drawing":
        """The same with one intermediate time: two steps."""
        return replace(self, sampler=Multistep((t,)))

    def with_eta(self, eta: float) -> "Drawing":
        """The same with another edge-skipping. Raises UserError where the model has no phases."""
        if not self.model.card.edges:
            raise UserError("the model has no phases", "--search eta", "search mid-t or omega instead")
        return replace(self, sampler=default_sampler(self.model, None, eta=eta))

    def with_omega(self, omega: float) -> "Drawing":
        return replace(self, omega=omega)


@dataclass(frozen=True)
class Drawn:
    """Images of a file, row by row, as if the row were the seed."""

    images: Tensor
    labels: Tensor | None

    def __call__(self, seeds: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        rows = torch.tensor(list(seeds))
        return self.images[rows].contiguous(), None if self.labels is None else self.labels[rows]
