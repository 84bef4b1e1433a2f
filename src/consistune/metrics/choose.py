"""The extractor and the classifier that fit a set of images."""

import hashlib
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from consistune.errors import UserError
from consistune.metrics.cache import damaged, intact, keep, usable_cache
from consistune.metrics.classifier import ImageClassifier, train_classifier
from consistune.metrics.features import image_digest
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


def classifier_of(
    images: Images, device: torch.device | str = "cpu", cache: Path | None = None
) -> ImageClassifier:
    """A classifier of the set's labels, trained on the CPU once a set and kept (`cache.usable_cache`).

    The key is the hash of pixels and labels. A damaged file is made anew.
    """
    labels = hashlib.sha256(images.labels.cpu().numpy().tobytes()).hexdigest()
    key = hashlib.sha256(f"1 {image_digest(images.images)} {labels}".encode()).hexdigest()[:32]
    path = (cache or usable_cache()) / "classifier" / f"{key}.safetensors"
    _, channels, height, width = images.images.shape
    if intact(path):
        with torch.random.fork_rng(devices=[]):
            kept = ImageClassifier((channels, height, width), int(images.labels.max()) + 1)
        try:
            kept.load_state_dict(load_file(path))
            return kept.eval().requires_grad_(False).to(device)
        except (OSError, SafetensorError, RuntimeError):
            damaged(path)
    made = train_classifier(images.images, images.labels)
    keep(path, save(made.state_dict()))
    return made.to(device)


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
