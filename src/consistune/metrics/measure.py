"""The quick measure of samples in memory: for the demo, for curves while training, for comparisons."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from consistune.errors import UserError
from consistune.metrics.classifier import ImageClassifier, accuracy, train_classifier
from consistune.metrics.distances import frechet, moments
from consistune.metrics.features import Extractor, blocks, load_extractor
from consistune.metrics.memorisation import nearest_distances
from consistune.metrics.sheet import WITHOUT_FILE

LARGEST_CLASSIFIED = 64
"""Side of the images that a small classifier can be trained on while one waits."""


class Images(Protocol):
    """uint8 images [n, C, H, W] and labels [n]; in memory or mapped."""

    @property
    def images(self) -> Tensor: ...
    @property
    def labels(self) -> Tensor: ...
    @property
    def class_names(self) -> tuple[str, ...]: ...
    def __len__(self) -> int: ...


class Split(Protocol):
    """Images to train on, and, where there are any, images that training never sees."""

    @property
    def train(self) -> Images: ...
    @property
    def held_out(self) -> Images | None: ...


@dataclass(frozen=True)
class Measures:
    """How good a set of samples is.

    Attributes:
        frechet_train, frechet_held_out: Fréchet distance of features, in % of the training images' variance
            of features (to held-out images: of theirs).
        accuracy: share of samples that the classifier gives the label they were drawn for.
        memorisation: see `memorisation_ratio`.
    """

    frechet_train: float
    frechet_held_out: float | None
    accuracy: float | None
    memorisation: float | None


class Measure:
    """Measures samples against training and held-out images on one extractor's features.

    Attributes:
        name: what the Fréchet distance is called: "fid" on the official Inception alone, else "fd-…".
        train_variance: tr Σ of the training features: relative distances in % times it /100 are plain ones.
        classifier_accuracy: share of held-out images that the classifier has right; None without classifier.
    """

    def __init__(self, data: Split, extractor: Extractor, classifier: ImageClassifier | None) -> None:
        self.data, self.extractor, self.classifier = data, extractor, classifier
        self.name = extractor.name
        self.train_moments = moments(self._features(data.train.images))
        self.train_variance = float(self.train_moments[1].trace())
        held_out = data.held_out
        self.held_out_moments = None if held_out is None else moments(self._features(held_out.images))
        self._real_distance = None if held_out is None else self._distance_to_training(held_out.images)
        self.classifier_accuracy = (
            None
            if classifier is None or held_out is None
            else accuracy(classifier, held_out.images, held_out.labels)
        )

    def _features(self, images: Tensor) -> Tensor:
        return torch.cat([self.extractor(part) for part in blocks(images)])

    def __call__(self, samples: Tensor, labels: Tensor | None = None) -> Measures:
        """uint8 samples [n, C, H, W] and the labels [n] they were drawn for."""
        found = moments(self._features(samples))
        return Measures(
            frechet_train=_relative(found, self.train_moments),
            frechet_held_out=None
            if self.held_out_moments is None
            else _relative(found, self.held_out_moments),
            accuracy=None
            if labels is None or self.classifier is None
            else accuracy(self.classifier, samples, labels),
            memorisation=None
            if self._real_distance is None
            else self._distance_to_training(samples) / self._real_distance,
        )

    def _distance_to_training(self, images: Tensor) -> float:
        return float(nearest_distances(images, self.data.train.images)[0].mean())


def _relative(found: tuple[Tensor, Tensor], reference: tuple[Tensor, Tensor]) -> float:
    return 100 * frechet(*found, *reference) / float(reference[1].trace())


def measure_for(
    data: Split, features: str | None = None, device: torch.device | str = "cpu", seed: int = 0
) -> Measure:
    """The measure for a data set.

    Args:
        data: training and, where there are any, held-out images.
        features: an extractor (`load_extractor`); None: "classifier" where the images are grey and have
            labels, "efficientnet-64" where they are in colour and small, "efficientnet" where they are not.
        seed: of the classifier.

    Raises UserError for an unknown extractor, or where nothing fits the data.
    """
    word = features or default_features(data.train)
    grey = data.train.images.shape[1] == 1
    wanted = can_classify(data.train) and (grey or word == "classifier")
    classifier = classifier_of(data.train, seed) if wanted else None
    extractor = load_extractor(word, device, None if classifier is None else lambda: classifier)
    return Measure(data, extractor, None if classifier is None else classifier.to(device))


def can_classify(images: Images) -> bool:
    """Small square images with labels."""
    height, width = images.images.shape[-2:]
    return len(images.class_names) > 1 and height == width <= LARGEST_CLASSIFIED


def classifier_of(images: Images, seed: int = 0) -> ImageClassifier:
    """A classifier of the set's labels, on the CPU, the same for the same seed."""
    return train_classifier(images.images, images.labels, seed)


def default_features(images: Images) -> str:
    """The extractor that a data set gets when none is named. Raises UserError where nothing fits."""
    channels, side = images.images.shape[1], images.images.shape[-1]
    if channels == 1 and can_classify(images):
        return "classifier"
    if channels == 3:
        return "efficientnet-64" if side <= 64 else "efficientnet"
    raise UserError("no extractor of ours fits these images", "--features", WITHOUT_FILE)
