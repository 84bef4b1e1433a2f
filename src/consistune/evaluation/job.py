"""A whole `consistune evaluate`: load, draw, measure, and write down what is needed to repeat it."""

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

from consistune.errors import UserError
from consistune.evaluation.anchors import anchors
from consistune.evaluation.page import write_page
from consistune.evaluation.record import facts, summarise
from consistune.evaluation.request import Request
from consistune.evaluation.search import Search, search_setting, start_search
from consistune.evaluation.setup import build_suite, check_destinations, images_in, read_data
from consistune.evaluation.sources import (
    DecodedSource,
    FileSource,
    ModelSource,
    check_labels,
    decoded_source,
    file_source,
    is_samples,
    model_source,
)
from consistune.metrics.frechet import LEAST_TO_EXTRAPOLATE
from consistune.metrics.suite import SampleSource
from consistune.pages.evaluation import verdict
from consistune.pages.page import counted
from consistune.system.files import atomic_file, write_atomically
from consistune.system.own import MARK
from consistune.system.processes import rank_and_count
from consistune.system.progress import Screen
from consistune.training.metrics_file import MetricsFile

FLOOR = "autoencoder alone"
"""The row of training pictures that were decoded from their latents: no model of these can do better."""


class Job:
    """One evaluation. Raises UserError at its start for options that cannot be used.

    Attributes:
        sources: the samples of each row of the results, by the row's name.
    """

    def __init__(self, request: Request, screen: Screen) -> None:
        self.request, self.screen = request, screen
        check_destinations(request)
        self.began = time.perf_counter()
        given = read_data(request.data or images_in(request.reference))
        self.data = None if given is None else given.to_look_at
        self.floor: DecodedSource | None = None
        self.drawn: list[ModelSource] = []
        self.search: Search | None = None
        self.source: ModelSource | FileSource
        if is_samples(request.model):
            self.source = file_source(request, screen)
        else:
            train = None if self.data is None else self.data.train
            labels = None if train is None or len(train.class_names) < 2 else train.labels
            self.source = model_source(request, labels)
            if labels is not None and train is not None:
                check_labels(self.source, len(train.class_names))
            self.floor = decoded_source(self.source.model, given)
            if request.search is not None:
                self.search = start_search(request.search, request, self.source)
            else:
                self.drawn = [self.source.in_steps(steps, request) for steps in request.steps]
        self.suite = build_suite(request, self.data, self.source.image_shape, self.source.labelled, screen)
        self._check_classes()
        self.sources: dict[str, SampleSource] = {}

    def _check_classes(self) -> None:
        """Raises UserError where the accuracy of labels would be measured that the data do not have."""
        if "accuracy" not in self.suite.metrics or self.data is None:
            return
        known, largest = len(self.data.train.class_names), self.source.classes - 1
        if largest >= known:
            what = f"the samples have labels up to {largest}, the data {known} classes"
            raise UserError(
                what, str(self.request.model), "give the data of these, or --metrics without accuracy"
            )

    def run(self) -> Path:
        """All rows and the page; returns the page. Of several processes only the first writes."""
        request, source, search = self.request, self.source, None
        if isinstance(source, FileSource):
            rows = [self.row("samples", source, {"file": str(request.model)})]
        else:
            if self.search is not None:
                search, sources = search_setting(request, self.search, source, self.suite, self.screen)
            else:
                sources = {counted(varied.evaluations, "evaluation"): varied for varied in self.drawn}
            rows = [self.row(name, varied, varied.settings) for name, varied in sources.items()]
        if self.floor is not None:
            rows.append(self.row(FLOOR, self.floor, self.floor.settings))
        results = {
            "rows": rows,
            "anchors": self.anchors() if request.anchors else [],
            "search": search,
            **facts(request, self.suite, source.digest, self.began),
        }
        for line in verdict(results):
            self.screen.say(line)
        page = request.out / "report.html"
        if rank_and_count()[0] == 0:
            write_atomically(request.out / "results.json", json.dumps(results, indent=1))
            write_page(page, results, self.sources, self.data, run_folder_of(request.model))
        return page

    def anchors(self) -> list[dict[str, Any]]:
        """The rows of `evaluation.anchors`, a block of seeds each."""
        rows = []
        for anchor in anchors(self.request.samples, self.source, self.data, self.screen):
            evaluations = anchor.settings.get("evaluations")
            name = anchor.kind + ("" if evaluations is None else f", {counted(evaluations, 'evaluation')}")
            self.sources[name] = anchor.source
            suite = self.suite
            if not anchor.source.labelled:
                suite = replace(suite, metrics=tuple(n for n in suite.metrics if n != "accuracy"))
            if anchor.samples < LEAST_TO_EXTRAPOLATE:
                suite = replace(suite, setup=replace(suite.setup, extrapolate=False))
            own = len(range(rank_and_count()[0], anchor.samples, rank_and_count()[1]))
            try:
                with self.screen.bar(name, own) as bar:
                    outcome = suite.run(anchor.source, range(anchor.samples), None, bar.advance)
            except (UserError, ValueError) as error:  # the model's own rows are not lost by it
                self.screen.say(f"{name} is not measured: {error}")
                del self.sources[name]
                continue
            rows.append(
                {
                    "name": name,
                    "kind": anchor.kind,
                    "sampler": anchor.settings,
                    "seeds": [[0, anchor.samples - 1]],
                    "blocks": [asdict(outcome)],
                    "summary": summarise([outcome.values]),
                }
            )
        return rows

    def row(self, name: str, source: SampleSource, settings: dict[str, Any]) -> dict[str, Any]:
        """Every block of seeds of one source, and their summary. The floor's samples are not kept."""
        self.sources[name] = source
        suite, of_model = self.suite, source is not self.floor
        if not of_model:
            suite = replace(suite, metrics=tuple(name for name in suite.metrics if name != "memorisation"))
        request, outcomes, seeds = self.request, [], []
        rank, world = rank_and_count()
        share = len(range(rank, request.samples, world))
        for block in range(request.blocks):
            start = request.first_seed + block * request.samples
            seeds.append([start, start + request.samples - 1])
            with (
                _kept(request.keep_file(name, block, rank, world) if of_model else None) as keep,
                self.screen.bar(f"{name}, block {block + 1}", share) as bar,
            ):
                block_seeds = range(start, start + request.samples)
                outcomes.append(suite.run(source, block_seeds, keep, bar.advance))
        return {
            "name": name,
            "sampler": settings,
            "seeds": seeds,
            "blocks": [asdict(outcome) for outcome in outcomes],
            "summary": summarise([outcome.values for outcome in outcomes]),
        }


def run_folder_of(path: Path) -> Path | None:
    """The folder of the training run that a model lies in, with its metrics; None: there is none."""
    return next((f for f in (path, path.parent) if MetricsFile(f).path.is_file()), None)


@contextmanager
def _kept(path: Path | None) -> Iterator[Callable[[Tensor], None] | None]:
    """A function that collects images for a file (.npz, arr_0 uint8 NHWC); None where there is no file."""
    if path is None:
        yield None
        return
    parts: list[Tensor] = []
    yield lambda images: parts.append(images.permute(0, 2, 3, 1).contiguous())
    with atomic_file(path) as file:
        arrays: dict[str, Any] = {"arr_0": torch.cat(parts).numpy(), MARK: np.array("samples")}
        np.savez_compressed(file, **arrays)
