"""One pass over samples feeds every metric of a suite."""

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from consistune.errors import UserError
from consistune.metrics.feature_file import feature_file
from consistune.metrics.gather import gathered_file
from consistune.metrics.metric import Block, Metric, SampleBatch, Setup
from consistune.metrics.table import all_metrics, metric_class
from consistune.system.processes import rank_and_count

LabelledImages = tuple[Tensor, Tensor | None]
"""uint8 images [n, C, H, W], and the labels [n] that they were drawn for."""
SampleSource = Callable[[Sequence[int]], LabelledImages]
"""Seeds → their samples, each a function of its seed alone."""
FEWEST_SAMPLES = 4


@dataclass(frozen=True)
class Outcome:
    """What a suite measured on one block: the results of all its metrics together (`metric.Result`).

    Attributes:
        seconds: of "sampling", of the "extractor", of the "metrics" themselves.
    """

    values: dict[str, float]
    seconds: dict[str, float]
    worst: list[tuple[int, int]]
    memorised: list[tuple[int, int]]


class Stopwatch:
    """Adds up the time between laps under the laps' names."""

    def __init__(self, *names: str) -> None:
        self.seconds = dict.fromkeys(names, 0.0)
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] += now - self._last
        self._last = now


def default_metrics(setup: Setup) -> tuple[str, ...]:
    """The metrics that are computed where the user names none: those `by_default` that the setup allows."""
    names = []
    for name in all_metrics():
        metric = metric_class(name)(setup)
        with suppress(UserError):
            metric.check()
            names += [name] * metric.by_default
    return tuple(names)


@dataclass(frozen=True)
class Suite:
    """Metrics on one setup.

    Attributes:
        metrics: names of the table `consistune.metrics.table`; they are computed in the table's order.
        batch: samples that are drawn and measured at a time.

    Raises UserError for an unknown metric, or for one that the setup does not allow.
    """

    setup: Setup
    metrics: tuple[str, ...]
    batch: int = 256

    def __post_init__(self) -> None:
        if not self.metrics:
            raise UserError("no metric is named", "--metrics", f"known are: {', '.join(all_metrics())}")
        for metric in self._metrics:
            metric.check()

    @cached_property
    def _metrics(self) -> list[Metric]:
        classes = {name: metric_class(name) for name in self.metrics}
        return [classes[name](self.setup) for name in all_metrics() if name in classes]

    def run(
        self,
        source: SampleSource,
        seeds: Sequence[int],
        keep: Callable[[Tensor], None] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Outcome:
        """Draw one image for each seed and measure them. Processes share the work; all get the outcome.

        `keep` is called with each batch of this process's images, in order, `progress` with its size. Images
        are dropped after their batch, except those that a metric keeps.
        """
        if len(seeds) < FEWEST_SAMPLES:
            raise UserError(f"{len(seeds)} samples are too few", "--samples", "give at least 4, better 50000")
        block = Block(self.setup, seeds, *rank_and_count())

        def batches() -> Iterator[LabelledImages]:
            indices = block.indices()
            for start in range(0, len(indices), self.batch):
                images, labels = source([seeds[i] for i in indices[start : start + self.batch]])
                yield images, labels
                if keep is not None:
                    keep(images)
                if progress is not None:
                    progress(len(images))

        return self._measure(batches(), block)

    def measure(self, images: Tensor, labels: Tensor | None = None) -> Outcome:
        """Measure samples in memory, in this process alone: uint8 [n, C, H, W], and their labels [n]."""
        return self._measure([(images, labels)], Block(self.setup, range(len(images))))

    def _measure(self, batches: Iterable[LabelledImages], block: Block) -> Outcome:
        clock = Stopwatch("sampling", "extractor", "metrics")
        stored = any(metric.stores_features for metric in self._metrics)
        dim = len(self.setup.reference.mean)
        with tempfile.TemporaryDirectory(prefix="consistune-features-") as folder:
            own = Path(folder) / "own.npy"
            with feature_file(own, len(block.indices()), dim) if stored else nullcontext() as file:
                for metric in self._metrics:
                    metric.start(block)
                for batch in self._with_features(batches, block, clock):
                    if file is not None:
                        file.append(batch.features)
                    for metric in self._metrics:
                        metric.accumulate(batch)
                    clock.lap("metrics")
            if stored:
                block.features = gathered_file(own, own.with_name("all.npy"), block.total, block.world)
            results = [metric.result() for metric in self._metrics]
        clock.lap("metrics")
        return Outcome(
            values={name: value for result in results for name, value in result.values.items()},
            seconds=clock.seconds,
            # The last metric's list is kept: Memorisation, by pixels, follows PrecisionRecall, by features.
            worst=next((result.worst for result in reversed(results) if result.worst), []),
            memorised=next((result.memorised for result in reversed(results) if result.memorised), []),
        )

    def _with_features(
        self, batches: Iterable[LabelledImages], block: Block, clock: Stopwatch
    ) -> Iterator[SampleBatch]:
        extractor, done = self.setup.extractor, 0
        uses_probabilities = any(metric.uses_probabilities for metric in self._metrics)
        for images, labels in batches:
            clock.lap("sampling")
            features = extractor(images)
            probabilities = extractor.probabilities(images) if uses_probabilities else None
            clock.lap("extractor")
            indices = torch.tensor(block.indices()[done : done + len(images)])
            yield SampleBatch(indices, images, labels, features, probabilities)
            done += len(images)
