"""`consistune evaluate` whole: load, draw, measure, and write down what is needed to repeat it."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch import device as Device

from consistune.data.images import DataSplit, ImageSet, load_data
from consistune.errors import UserError
from consistune.evaluate.draws import Drawing, Drawn
from consistune.evaluate.page import write_page
from consistune.evaluate.record import described, facts, summarise
from consistune.evaluate.request import Wanted
from consistune.evaluate.search import RANGES, Setting, golden_section
from consistune.metrics.classifier import ImageClassifier
from consistune.metrics.features import load_extractor
from consistune.metrics.measure import can_classify, classifier_of, default_features
from consistune.metrics.sheet import WITHOUT_FILE
from consistune.metrics.statistics import Reference, build_reference, read_reference, read_samples
from consistune.metrics.suite import Draw, Outcome, Suite
from consistune.models import default_sampler, load
from consistune.nn.precond import Preconditioned
from consistune.system.files import atomic_file, file_digest, write_atomically
from consistune.system.processes import rank_and_count
from consistune.system.progress import Screen
from consistune.train.metrics_file import MetricsFile


class Job:
    """One evaluation: its suite, its subject, and the results as they come."""

    def __init__(self, wanted: Wanted, screen: Screen) -> None:
        self.wanted, self.screen = wanted, screen
        self.began = time.perf_counter()
        self.data = _data(wanted.data)
        self.model: Preconditioned | None = None
        self.draws: dict[str, Draw] = {}
        if wanted.model.suffix == ".npz":
            images, labels = read_samples(wanted.model)
            self.images: tuple[Tensor, Tensor | None] | None = (images, labels)
            self.digest = sample_file_digest(wanted.model)
            channels, height, width = images.shape[1:]
            if wanted.blocks * wanted.samples + wanted.first_seed > len(images):
                raise UserError(
                    f"holds {len(images)} samples", str(wanted.model), "lower --samples or --seeds"
                )
            if wanted.search is not None or wanted.steps != (None,):
                raise UserError("samples are drawn already", "--search, --steps", "give a model")
        else:
            self.images = None
            self.model, self.digest = load_subject(wanted.model, wanted.device)
            channels, height, width = self.model.image_shape
        self.worse = None if wanted.worse is None else load(wanted.worse, wanted.device)
        self.suite = self._suite((channels, height, width))

    def _suite(self, image_shape: tuple[int, int, int]) -> Suite:
        wanted, data = self.wanted, self.data
        if data is None and wanted.reference is None:
            raise UserError("nothing to compare with", "--data", "give images, or --reference with moments")
        if data is not None and tuple(data.train.images.shape[1:]) != image_shape:
            found = list(data.train.images.shape[1:])
            raise UserError(f"the data are {found}, the samples {list(image_shape)}", "--data")
        word = wanted.features
        if word is None and wanted.metrics and {"fid", "is"} & set(wanted.metrics):
            raise UserError("FID and IS need the official Inception", "--metrics fid, is", WITHOUT_FILE)
        if word is None:
            if data is None:
                raise UserError("no extractor is named", "--features", WITHOUT_FILE)
            word = default_features(data.train)
        classifier = self._classifier(word)
        extractor = load_extractor(word, wanted.device, None if classifier is None else lambda: classifier)
        self.screen.say(f"features: {extractor.name} ({extractor.identity})")
        reference = self._reference(extractor).in_convention(wanted.covariance)
        reference.check(extractor, image_shape, wanted.x_flip)
        if wanted.save_reference is not None:
            reference.save(wanted.save_reference)
        metrics = wanted.metrics or self._default_metrics(reference, classifier)
        return Suite(
            extractor,
            reference,
            metrics,
            data,
            classifier,
            wanted.extrapolate,
            wanted.batch,
            wanted.covariance,
        )

    def _classifier(self, word: str) -> ImageClassifier | None:
        asked = self.wanted.metrics
        if self.data is None or not can_classify(self.data.train):
            return None
        if word != "classifier" and not (asked and "accuracy" in asked):
            return None
        self.screen.say("training a small classifier of the data's labels")
        return classifier_of(self.data.train).to(self.wanted.device)

    def _reference(self, extractor: Any) -> Reference:
        if self.wanted.reference is not None:
            found = read_reference(self.wanted.reference, extractor)
            if found.identity is None:
                self.screen.say(f"{found.source} does not name its extractor: taken as {extractor.name}'s")
            return found
        if self.data is None:
            raise ValueError("neither data nor reference")
        self.screen.say("reference statistics of the training images (kept for the next time)")
        train = self.data.train
        return build_reference(str(self.wanted.data), train.images, extractor, self.wanted.x_flip)

    def _default_metrics(self, reference: Reference, classifier: ImageClassifier | None) -> tuple[str, ...]:
        metrics = ["fd"]
        if reference.features is not None:
            metrics += ["kid", "pr"]
        if self.data is not None:
            metrics.append("memorisation")
        if classifier is not None and (self.model is None or self.model.num_classes):
            metrics.append("accuracy")
        return tuple(metrics)

    def drawing(self, steps: int | None) -> Drawing:
        """The model drawn in a number of steps, with the settings that were asked for."""
        wanted = self.wanted
        if self.model is None:
            raise ValueError("samples of a file are not drawn")
        try:
            sampler = default_sampler(self.model, steps, wanted.mid_t, wanted.eta)
        except ValueError as error:
            raise UserError(str(error), "--steps") from error
        labels = None if self.data is None or len(self.data.train.class_names) < 2 else self.data.train.labels
        return Drawing(self.model, sampler, labels, wanted.label_rule, self.worse, wanted.omega, wanted.batch)

    def run(self) -> Path:
        """All rows and the page; returns the page. In several processes only the first writes."""
        rows = []
        search = None
        if self.images is not None:
            rows.append(self.row("samples", Drawn(*self.images), {"file": str(self.wanted.model)}))
        elif self.wanted.search is not None:
            search, settings = self.searched(self.wanted.search)
            rows += [self.row(name, found, described(found)) for name, found in settings.items()]
        else:
            for steps in self.wanted.steps:
                drawing = self.drawing(steps)
                count = drawing.evaluations
                name = f"{count} evaluation{'s' if count > 1 else ''}"
                rows.append(self.row(name, drawing, described(drawing)))
        results = {"rows": rows, "search": search, **facts(self.wanted, self.suite, self.digest, self.began)}
        page = self.wanted.out / "report.html"
        if rank_and_count()[0] == 0:
            write_atomically(self.wanted.out / "results.json", json.dumps(results, indent=1))
            write_page(page, results, self.draws, self.data, run_folder_of(self.wanted.model))
        return page

    def row(self, name: str, draw: Draw, sampler: dict[str, Any]) -> dict[str, Any]:
        """Every block of seeds of one setting, and their summary."""
        self.draws[name] = draw
        wanted = self.wanted
        outcomes: list[Outcome] = []
        seeds = []
        rank, world = rank_and_count()
        share = len(range(rank, wanted.samples, world))
        for block in range(wanted.blocks):
            start = wanted.first_seed + block * wanted.samples
            seeds.append([start, start + wanted.samples - 1])
            with (
                _kept(wanted.keep_file(name, block, rank, world)) as keep,
                self.screen.bar(f"{name}, block {block + 1}", share) as bar,
            ):
                outcomes.append(self.suite.run(draw, range(start, start + wanted.samples), keep, bar.advance))
        summary = summarise([outcome.values for outcome in outcomes])
        return {
            "name": name,
            "sampler": sampler,
            "seeds": seeds,
            "blocks": [asdict(outcome) for outcome in outcomes],
            "summary": summary,
        }

    def searched(self, setting: Setting) -> tuple[dict[str, Any], dict[str, Drawing]]:
        """The setting's curve on few samples, and the default and the best to be confirmed on all."""
        wanted = self.wanted
        base = self.drawing(1 if setting == "mid-t" else wanted.steps[0])
        vary: Callable[[float], Drawing] = {
            "mid-t": base.with_mid_t,
            "eta": base.with_eta,
            "omega": base.with_omega,
        }[setting]
        if setting == "omega" and self.worse is None and not (self.model and self.model.num_classes):
            raise UserError("needs a worse model to guide by", "--search omega", "give --worse FOLDER")
        quick = replace(self.suite, metrics=("fd",), extrapolate=False)
        seeds = range(wanted.first_seed, wanted.first_seed + wanted.search_samples)
        with self.screen.bar(f"search {setting}", wanted.search_evaluations) as bar:

            def loss(value: float) -> float:
                found = quick.run(vary(value), seeds).values[quick.extractor.name]
                bar.advance(1, f"{setting} {value:.3g}: {found:.4g}")
                return found

            best, curve = golden_section(loss, RANGES[setting], wanted.search_evaluations)
        settings = {f"{setting} {best:.4g} (found)": vary(best)}
        default = _default_setting(setting, self.drawing)
        if default is not None:
            settings = {f"{setting} as the model says": default, **settings}
        found = {
            "setting": setting,
            "metric": quick.extractor.name,
            "samples": wanted.search_samples,
            "best": best,
            "curve": [{"value": value, "distance": distance} for value, distance in curve],
        }
        return found, settings


def _default_setting(setting: Setting, drawing: Callable[[int | None], Drawing]) -> Drawing | None:
    """The model's own setting, to compare the found one with; None where a model has none."""
    try:
        return drawing(2 if setting == "mid-t" else None)
    except UserError:
        return None


def _data(word: str | None) -> DataSplit | None:
    if word is None:
        return None
    if not word.endswith(".npz"):
        return load_data(word)
    images, labels = read_samples(Path(word))
    count = 1 if labels is None else int(labels.max()) + 1
    known = torch.zeros(len(images), dtype=torch.long) if labels is None else labels
    return DataSplit(ImageSet.of(word, images, known, tuple(str(i) for i in range(count))), None)


@contextmanager
def _kept(path: Path | None) -> Iterator[Callable[[Tensor], None] | None]:
    """Collects images for a file: .npz with arr_0 uint8 NHWC."""
    if path is None:
        yield None
        return
    parts: list[Tensor] = []
    yield lambda images: parts.append(images.permute(0, 2, 3, 1).contiguous())
    with atomic_file(path) as file:
        np.savez_compressed(file, arr_0=torch.cat(parts).numpy())


def load_subject(path: Path, device: Device) -> tuple[Preconditioned, str]:
    """The model and the SHA-256 of its weights. Raises UserError for what is none."""
    model = load(path, device)
    return model, weights_digest(model)


def weights_digest(model: Preconditioned) -> str:
    """SHA-256 of names, shapes and values: the same in every file format."""
    sha = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        sha.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        sha.update(value.detach().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()


def run_folder_of(path: Path) -> Path | None:
    """The run that a model lies in, with its metrics; None where it lies in none."""
    for folder in (path, path.parent):
        if MetricsFile(folder).path.is_file():
            return folder
    return None


def sample_file_digest(path: Path) -> str:
    if not path.is_file():
        raise UserError("no such file of samples", str(path))
    return file_digest(path)
