"""Where the measured samples come from: a model, which draws an image for each seed, or a file."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from consistune.core.rng import mix_seed
from consistune.core.sampling import Multistep, Sampler
from consistune.core.types import Denoiser
from consistune.errors import UserError
from consistune.models import default_sampler, sample
from consistune.nn.precond import Preconditioned

LABEL_STREAM = 7
"""The labels of a seed come from another random stream than its noise."""
LabelRule = Literal["data", "uniform", "balanced"]
LABEL_RULES: tuple[LabelRule, ...] = ("data", "uniform", "balanced")


@dataclass(frozen=True)
class ModelSource:
    """Seeds → uint8 images [n, C, H, W] and their labels [n]: a function of each seed alone.

    Attributes:
        labels: of the training images; None: not known.
        label_rule: "data": the label of a random training image (ECT's protocol); "uniform": each class with
            the same probability (EDM's); "balanced": the seed modulo the number of classes.
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
        """The label [n] of each seed; None where the model takes no labels."""
        classes = self.model.num_classes
        if classes == 0:
            return None
        if self.label_rule == "balanced":
            return torch.tensor([seed % classes for seed in seeds])
        numbers = [mix_seed(seed, LABEL_STREAM) for seed in seeds]
        if self.label_rule == "uniform":
            return torch.tensor([number % classes for number in numbers])
        if self.labels is None:
            raise UserError(
                "the labels of the training images are not known",
                "--labels data",
                "give --data, or --labels uniform",
            )
        return self.labels[torch.tensor([number % len(self.labels) for number in numbers])]

    @property
    def evaluations(self) -> int:
        """Network evaluations for an image."""
        stops = getattr(self.sampler, "stops", None)
        if stops is not None:
            return len(stops(80.0)) - 1
        return int(self.sampler.evaluations)  # type: ignore[attr-defined]

    @property
    def settings(self) -> dict[str, Any]:
        """The sampler's settings, for results.json."""
        return {
            "kind": type(self.sampler).__name__,
            **asdict(self.sampler),  # type: ignore[call-overload]
            "evaluations": self.evaluations,
            "omega": self.omega,
            "labels": self.label_rule if self.model.num_classes else None,
        }

    def with_mid_t(self, t: float) -> "ModelSource":
        """The same in two steps with this intermediate time."""
        return replace(self, sampler=Multistep((t,)))

    def with_eta(self, eta: float) -> "ModelSource":
        """The same with another η of edge-skipping. Raises UserError where the model has no phases."""
        edges = self.model.meta.get("edges")
        if not edges:
            raise UserError("the model has no phases", "--search eta", "search mid-t or omega instead")
        return replace(self, sampler=default_sampler(self.model, None, eta=eta))

    def with_omega(self, omega: float) -> "ModelSource":
        return replace(self, omega=omega)


@dataclass(frozen=True)
class FileSource:
    """Row numbers, in the place of seeds → the images of a file, and their labels."""

    images: Tensor
    labels: Tensor | None

    def __call__(self, seeds: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        rows = torch.tensor(list(seeds))
        return self.images[rows].contiguous(), None if self.labels is None else self.labels[rows]
