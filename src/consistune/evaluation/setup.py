"""The suite of an evaluation: its data, extractor, classifier, reference and metrics, from the options."""

import glob
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from consistune.data.images import DataSplit, ImageSet, load_data
from consistune.errors import UserError
from consistune.evaluation.request import Request
from consistune.evaluation.sources import note_unread
from consistune.metrics.choose import can_classify, classifier_of, default_features
from consistune.metrics.classifier import ImageClassifier
from consistune.metrics.features import Extractor, load_extractor
from consistune.metrics.frechet import LEAST_TO_EXTRAPOLATE
from consistune.metrics.metric import Setup
from consistune.metrics.sheet import WITHOUT_FILE
from consistune.metrics.statistics import (
    FACTS,
    ReferenceStatistics,
    arrays_in,
    build_reference,
    read_reference,
    read_samples,
)
from consistune.metrics.suite import Suite, default_metrics
from consistune.metrics.table import metric_class
from consistune.system.own import check_file, check_folder
from consistune.system.processes import launched_processes
from consistune.system.progress import Screen

NO_FEATURES_NEEDED = {"fd", "fid", "is", "accuracy"}
"""Metrics for which moments suffice, so that no features of images are computed beside them."""


def check_destinations(request: Request, also_read: Sequence[Path] = ()) -> None:
    """Raises UserError where what an evaluation writes could not be written, or would replace other files.

    also_read: samples and models that the same command reads.
    """
    names = ("results.json", "report.html", "curve.svg", "curve.png")
    check_folder(request.out, "--out", names, "results.json", ("rows", "anchors"))
    written = [(path, "--keep", {"arr_0"}) for path in _kept_files(request)]
    if request.save_reference:
        written.append((request.save_reference, "--save-reference", {"mu", "sigma"}))
    for path, option, arrays in written:
        check_file(path, option, arrays)
        read = (request.model, request.worse, request.reference, request.data, *also_read)
        if path.exists() and any(Path(other).resolve() == path.resolve() for other in read if other):
            raise UserError(f"{str(path)!a} is read too", option, "choose another name")


def _kept_files(request: Request) -> list[Path]:
    """The files that `Request.keep_file` names, as far as they are there; at least one, there or not."""
    if request.keep is None:
        return []
    if request.keep_file("", 0, 0, launched_processes()) == request.keep:
        return [request.keep]
    stem, ending = request.keep.stem, request.keep.suffix
    beside = sorted(request.keep.parent.glob(f"{glob.escape(stem)}_*{ending}"))
    return beside or [request.keep.with_name(f"{stem}_{ending}")]


def images_in(reference: Path | None) -> str | None:
    """The reference's file where it holds images too (arr_0), as published batches do."""
    return str(reference) if reference is not None and "arr_0" in arrays_in(reference) else None


def read_data(word: str | None) -> DataSplit | None:
    """The data that `--data` names; a .npz of images (arr_0) has no held-out part."""
    if word is None:
        return None
    if not word.lower().endswith(".npz"):
        return load_data(word)
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
    if request.extrapolate and request.samples < LEAST_TO_EXTRAPOLATE:
        what = f"{request.samples} samples are too few: eight subsets of them are compared"
        raise UserError(what, "--extrapolate", f"draw {LEAST_TO_EXTRAPOLATE} or more, or leave it out")
    for name in request.metrics or ():
        metric_class(name)  # an unknown name is refused before the work begins
    moments = _moments_file(request)
    if request.x_flip and moments is not None and not arrays_in(moments) & set(FACTS):
        raise UserError("has no effect on a file of moments", "--x-flip", "leave it out")
    images = request.data or images_in(request.reference)
    for path in dict.fromkeys(Path(given) for given in (images, moments) if given):
        note_unread(path, screen, images=path == Path(images or ""), moments=path == moments)
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
    screen.say("a small classifier of the data's labels (trained once, kept for the next time)")
    return classifier_of(data.train, request.device)


def _moments_file(request: Request) -> Path | None:
    """The file of moments: --reference, or the data's where these have mu and sigma; None: there is none.

    Raises UserError where the data have one of the two.
    """
    if request.reference is not None or request.data is None:
        return request.reference
    found = {"mu", "sigma"} & arrays_in(Path(request.data))
    if len(found) == 1:
        what = f"holds {found.pop()} alone, not both mu and sigma"
        raise UserError(what, request.data, "store both, or neither")
    return Path(request.data) if found else None


def _reference(
    request: Request, data: DataSplit | None, extractor: Extractor, screen: Screen
) -> ReferenceStatistics:
    """Moments from --reference, from a batch's own mu and sigma, or of the data; features of the data."""
    path, name = _moments_file(request), str(request.data or request.reference)
    moments = None if path is None else read_reference(path, extractor)
    if moments is not None and moments.identity is None:
        screen.say(f"{moments.source} does not name its extractor: taken as {extractor.name}'s")
    if moments is not None and (data is None or set(request.metrics or ("all",)) <= NO_FEATURES_NEEDED):
        return moments
    if data is None:
        raise ValueError("neither data nor reference")
    screen.say("reference statistics of the training images (kept for the next time)")
    own = build_reference(name, data.train.images, extractor, request.x_flip)
    if moments is None:
        return own
    screen.say(
        f"{path}: its mu and sigma are the reference of the Fréchet distance; the {len(data.train.images)} "
        f"images of {name} are that of the other metrics"
    )
    return replace(moments, features=own.features, rows=own.rows, folder=own.folder)
