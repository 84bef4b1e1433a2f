"""Four numbers for samples in memory: for the demo, the studies, and curves while a model trains."""

from dataclasses import dataclass

import torch
from torch import Tensor

from consistune.metrics.choose import Split, can_classify, classifier_of, default_features
from consistune.metrics.features import load_extractor
from consistune.metrics.metric import Setup
from consistune.metrics.statistics import statistics_in_memory
from consistune.metrics.suite import Suite


@dataclass(frozen=True)
class Scores:
    """How good a set of samples is.

    Attributes:
        frechet_train: Fréchet distance to the training images, in % of their variance of features.
        frechet_held_out: the same for held-out images.
        accuracy: share of samples that the classifier gives the label they were drawn for.
        memorisation: mean pixel distance to the nearest training image, over that of held-out images.

    None where the data have no held-out images, or where there is no classifier or no label.
    """

    frechet_train: float
    frechet_held_out: float | None
    accuracy: float | None
    memorisation: float | None


def score_suite(data: Split, features: str | None = None, device: torch.device | str = "cpu") -> Suite:
    """The suite behind `scores`: statistics of the training images in memory, and what the data allow.

    `features` is an extractor (`load_extractor`); None: `default_features`. A classifier is trained where the
    images are grey and have labels, or where it is the extractor. Raises UserError for an unknown extractor,
    or where none fits the data.
    """
    word = features or default_features(data.train)
    grey = data.train.images.shape[1] == 1
    classifies = can_classify(data.train) and (grey or word == "classifier")
    classifier = classifier_of(data.train, device) if classifies else None
    extractor = load_extractor(word, device, classifier)
    reference = statistics_in_memory("training images", data.train.images, extractor)
    metrics = ["relative"]
    if classifier is not None:
        metrics.append("accuracy")
    if data.held_out is not None:
        metrics.append("memorisation")
    return Suite(Setup(extractor, reference, data, classifier), tuple(metrics))


def scores(suite: Suite, samples: Tensor, labels: Tensor | None = None) -> Scores:
    """The scores of uint8 samples [n, C, H, W], drawn for labels [n], by a suite of `score_suite`."""
    values = suite.measure(samples, labels).values
    percent = f"{suite.setup.extractor.name}_percent"
    return Scores(
        frechet_train=values[percent],
        frechet_held_out=values.get(f"{percent}_held_out"),
        accuracy=values.get("accuracy"),
        memorisation=values.get("novelty"),
    )
