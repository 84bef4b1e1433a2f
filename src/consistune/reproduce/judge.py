"""How good a model's samples are. The demo, the experiments and the benchmarks all measure here."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from consistune.core.sampling import Sampler
from consistune.data.images import DataSplit, ImageSet
from consistune.metrics.scores import score_suite, scores
from consistune.metrics.suite import Suite
from consistune.models import sample
from consistune.nn.precond import Preconditioned
from consistune.system.progress import Screen

MEASURES = ("frechet_train", "frechet_held_out", "accuracy", "memorisation")


class Judge:
    """Draws samples of a model and measures them against a data set.

    Every model and every sampler gets the noise of the seeds 0 to samples − 1, and the labels of `_labels`.
    """

    def __init__(
        self,
        data: DataSplit,
        samples: int,
        features: str | None,
        screen: Screen,
        device: torch.device | str = "cpu",
    ) -> None:
        """`features` names the extractor; None: the one that fits the data (metrics.scores.score_suite).

        A model of latents is measured by its pictures, against those that were encoded.
        """
        self.data, self.samples, self.features = data.to_look_at, samples, features
        self.screen, self.device = screen, device
        self.labels = _labels(data.train, samples)

    @cached_property
    def suite(self) -> Suite:
        """Made once: trains a classifier or loads an extractor, and measures the reference images."""
        self.screen.say("measuring the reference images")
        return score_suite(self.data, self.features, self.device)

    def of_images(self, images: Tensor, labels: Tensor | None) -> dict[str, float | None]:
        """MEASURES of uint8 images [n, C, H, W] and the labels [n] that they were drawn for."""
        return asdict(scores(self.suite, images, labels))

    def draw(self, model: Preconditioned, sampler: Sampler, **options: Any) -> Tensor:
        """uint8 samples [samples, C, H, W]; `options` as for `models.sample`."""
        labels = self.labels if model.num_classes else None
        return sample(model, range(self.samples), condition=labels, sampler=sampler, **options)

    def __call__(self, model: Preconditioned, sampler: Sampler, **options: Any) -> dict[str, float | None]:
        """MEASURES of a model's samples; `options` as for `models.sample`."""
        labels = self.labels if model.num_classes else None
        return self.of_images(self.draw(model, sampler, **options), labels)

    def for_log(
        self, samplers: Callable[[Preconditioned], Mapping[str, Sampler]]
    ) -> Callable[[Preconditioned], dict[str, float]]:
        """A function that measures a model while it trains: "SAMPLER/MEASURE" → number."""

        def evaluate(model: Preconditioned) -> dict[str, float]:
            return {
                f"{name}/{key}": value
                for name, sampler in samplers(model).items()
                for key, value in self(model, sampler).items()
                if value is not None
            }

        return evaluate


def _labels(images: ImageSet, samples: int) -> Tensor:
    """The classes in turn; where one has more than twice the images of another, in the images' shares [n].

    A distance between sets of pictures also measures how much of each class they hold.
    """
    counts = torch.bincount(images.labels, minlength=len(images.class_names))
    if counts.max() <= 2 * counts.min():
        return torch.arange(samples) % len(counts)
    order = torch.randperm(len(images.labels), generator=torch.Generator().manual_seed(0))
    return images.labels[order[torch.arange(samples) % len(order)]]
