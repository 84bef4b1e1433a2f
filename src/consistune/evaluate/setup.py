"""The suite of an evaluation: its data, extractor, classifier, reference and metrics, from the options."""

from pathlib import Path

import torch

from consistune.data.images import DataSplit, ImageSet, load_data
from consistune.errors import UserError
from consistune.evaluate.request import Request
from consistune.metrics.choose import can_classify, classifier_of, default_features
from consistune.metrics.classifier import ImageClassifier
from consistune.metrics.features import Extractor, load_extractor
from consistune.metrics.metric import Setup
from consistune.metrics.sheet import WITHOUT_FILE
from consistune.metrics.statistics import ReferenceStatistics, build_reference, read_reference, read_samples
from consistune.metrics.suite import Suite, default_metrics
from consistune.metrics.table import metric_class
from consistune.system.progress import Screen


def read_data(word: str | None) -> DataSplit | None:
    """The data that `--data` names; a .npz of images (arr_0) has no held-out part."""
    if word is None or not word.endswith(".npz"):
        return None if word is None else load_data(word)
    images, labels = read_samples(Path(word))
    if labels is None:
        labels = torch.zeros(len(images), dtype=torch.long)
    names = tuple(str(i) for i in range(int(labels.max()) + 1))
    return DataSplit(ImageSet.of(word, images, labels, names), None)


def build_suite(
    request: Request,
    data: DataSplit | None,
    image_shape: tuple[int, int, int],
    labelled: bool,
    screen: Screen,
) -> Suite:
    """The suite for samples of this shape. Raises UserError where something is missing or does not fit."""
    if data is None and request.reference is None:
        raise UserError("nothing to compare with", "--data", "give images, or --reference with moments")
    if data is not None and tuple(data.train.images.shape[1:]) != image_shape:
        given = list(data.train.images.shape[1:])
        raise UserError(f"the data are {given}, the samples {list(image_shape)}", "--data")
    for name in request.metrics or ():
        metric_class(name)  # an unknown name is refused before the work begins
    word = _features(request, data)
    classifier = _classifier(request, data, word, screen)
    extractor = load_extractor(word, request.device, classifier)
    screen.say(f"features: {extractor.name} ({extractor.identity})")
    reference = _reference(request, data, extractor, screen).in_convention(request.covariance)
    reference.check(extractor, image_shape, request.x_flip)
    if request.save_reference is not None:
        reference.save(request.save_reference)
    setup = Setup(extractor, reference, data, classifier, labelled, request.covariance, request.extrapolate)
    return Suite(setup, request.metrics or default_metrics(setup), request.batch)


def _features(request: Request, data: DataSplit | None) -> str:
    """The word for `load_extractor`."""
    if request.features is not None:
        return request.features
    if {"fid", "is"} & set(request.metrics or ()):
        raise UserError("FID and IS need the official Inception", "--metrics fid, is", WITHOUT_FILE)
    if data is None:
        raise UserError("no extractor is named", "--features", WITHOUT_FILE)
    return default_features(data.train)


def _classifier(
    request: Request, data: DataSplit | None, word: str, screen: Screen
) -> ImageClassifier | None:
    """A classifier of the data's labels, where the extractor or a metric needs it and the data allow it."""
    needed = word == "classifier" or "accuracy" in (request.metrics or ())
    if not needed or data is None or not can_classify(data.train):
        return None
    screen.say("training a small classifier of the data's labels")
    return classifier_of(data.train, request.device)


def _reference(
    request: Request, data: DataSplit | None, extractor: Extractor, screen: Screen
) -> ReferenceStatistics:
    if request.reference is not None:
        reference = read_reference(request.reference, extractor)
        if reference.identity is None:
            screen.say(f"{reference.source} does not name its extractor: taken as {extractor.name}'s")
        return reference
    if data is None:
        raise ValueError("neither data nor reference")
    screen.say("reference statistics of the training images (kept for the next time)")
    return build_reference(str(request.data), data.train.images, extractor, request.x_flip)
