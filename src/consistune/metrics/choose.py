"""The extractor and the classifier that fit a set of images."""

from typing import Protocol

import torch
from torch import Tensor

from consistune.errors import UserError
from consistune.metrics.classifier import ImageClassifier, train_classifier
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


def can_classify(images: Images) -> bool:
    """The images are small and square, and have labels of more than one class."""
    height, width = images.images.shape[-2:]
    return len(images.class_names) > 1 and height == width <= LARGEST_CLASSIFIED


def classifier_of(images: Images, device: torch.device | str = "cpu") -> ImageClassifier:
    """A classifier of the set's labels, trained on the CPU: the same for the same images."""
    return train_classifier(images.images, images.labels).to(device)


def default_features(images: Images) -> str:
    """The extractor where the user names none (`load_extractor`).

    "classifier" for grey images with labels, "efficientnet-64" for small images in colour, "efficientnet" for
    larger ones. Raises UserError where none fits.
    """
    channels, side = images.images.shape[1], images.images.shape[-1]
    if channels == 1 and can_classify(images):
        return "classifier"
    if channels == 3:
        return "efficientnet-64" if side <= 64 else "efficientnet"
    raise UserError("no extractor of ours fits these images", "--features", WITHOUT_FILE)
