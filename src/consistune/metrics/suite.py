"""One pass over samples feeds every metric that was asked for."""

import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from consistune.errors import UserError
from consistune.metrics.classifier import ImageClassifier
from consistune.metrics.distances import finite_sample_bias, frechet
from consistune.metrics.extrapolate import limit
from consistune.metrics.feature_file import FeatureFile, FeatureWriter, Rows, feature_file
from consistune.metrics.features import Extractor, blocks
from consistune.metrics.kernel import kernel_distance
from consistune.metrics.measure import Split
from consistune.metrics.memorisation import nearest_distances
from consistune.metrics.moments import Convention, InceptionScore, Moments, gathered, gathered_file
from consistune.metrics.neighbours import Neighbourhoods, neighbourhoods, radii
from consistune.metrics.sheet import WITHOUT_FILE
from consistune.metrics.statistics import KEPT_ROWS, Reference, random_rows
from consistune.system.processes import rank_and_count

METRICS = ("fd", "fid", "kid", "is", "pr", "memorisation", "accuracy")
SHOWN = 16
Draw = Callable[[Sequence[int]], tuple[Tensor, Tensor | None]]
"""Seeds → uint8 images [n, C, H, W] and the labels [n] they were drawn for, each by its seed alone."""


@dataclass(frozen=True)
class Outcome:
    """What one block of samples gave.

    Attributes:
        values: metric → number; a standard error or deviation stands beside its metric under NAME_error.
        seconds: of drawing, of the extractor, of the metrics themselves.
        worst, memorised: seeds of the samples farthest from any real features, and nearest to a training
            image (as features see it where they are known, else as pixels), each with that image's row.
    """

    values: dict[str, float]
    seconds: dict[str, float]
    worst: list[tuple[int, int]] = field(default_factory=list)
    memorised: list[tuple[int, int]] = field(default_factory=list)


@dataclass(frozen=True)
class Suite:
    """What to measure, against what.

    Attributes:
        metrics: of METRICS; "fd" is the Fréchet distance under the extractor's own name, "fid" the same
            where the extractor is the official Inception, and refused elsewhere.
        data: training and held-out images; None where only foreign statistics are given.
        classifier: of the data's labels, for "accuracy"; also where the extractor is another.
        convention: of the samples' covariance; the reference's is its own.
        extrapolate: also estimate the distance at infinitely many samples.
    """

    extractor: Extractor
    reference: Reference
    metrics: tuple[str, ...]
    data: Split | None
    classifier: ImageClassifier | None
    extrapolate: bool = False
    batch: int = 256
    convention: Convention = "unbiased"

    def __post_init__(self) -> None:
        unknown = [name for name in self.metrics if name not in METRICS]
        if unknown or not self.metrics:
            raise UserError(
                f"unknown metric {unknown[0]!r}" if unknown else "no metric is named",
                "--metrics",
                f"known are: {', '.join(METRICS)}",
            )
        if "fid" in self.metrics and self.extractor.name != "fid":
            raise UserError(
                f"{self.extractor.name} is not FID", "--metrics fid", f"write fd, or {WITHOUT_FILE}"
            )
        if "is" in self.metrics and not self.extractor.has_probabilities:
            raise UserError(
                f"{self.extractor.name} gives no class probabilities", "--metrics is", "leave it out"
            )
        if {"kid", "pr"} & set(self.metrics) and self.reference.features is None:
            raise UserError("needs real images, not only moments", "--metrics kid, pr", "give --data")
        if "memorisation" in self.metrics and self.data is None:
            raise UserError("needs training images", "--metrics memorisation", "give --data")
        if "accuracy" in self.metrics and self.classifier is None:
            raise UserError("needs a classifier of the data's labels", "--metrics accuracy", "leave it out")

    @property
    def kernel_name(self) -> str:
        """KID is Inception's; elsewhere kd-…"""
        return "kid" if self.extractor.name == "fid" else self.extractor.name.replace("fd-", "kd-", 1)

    @property
    def keeps_features(self) -> bool:
        near = {"kid", "pr"} & set(self.metrics)
        return bool(near) or self.extrapolate or ("memorisation" in self.metrics and self._real is not None)

    @property
    def _real(self) -> Rows | None:
        return self.reference.features

    @cached_property
    def _bias(self) -> float:
        """For one sample; divided by the number of samples."""
        return finite_sample_bias(self.reference.covariance, 1)

    @cached_property
    def real_distances(self) -> Tensor | None:
        """Pixel distances of held-out images to their nearest training image [m], float64."""
        if self.data is None or self.data.held_out is None:
            return None
        held_out = self.data.held_out.images
        return self._nearest_pixels(held_out[random_rows(len(held_out))])[0]

    @cached_property
    def _real_feature_distance(self) -> float | None:
        """Mean distance of held-out images' features to the nearest training features."""
        if self.data is None or self.data.held_out is None or self._real is None:
            return None
        held_out = self.data.held_out.images
        chosen = held_out[random_rows(len(held_out))]
        features = torch.cat([self.extractor(x) for x in blocks(chosen)])
        return float(self._neighbours(features).distances.mean())

    def _nearest_pixels(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if self.data is None:
            raise ValueError("no training images")
        return nearest_distances(images, self.data.train.images, device=self.extractor.device)

    def _neighbours(self, features: Rows) -> Neighbourhoods:
        """Of `features` among the real ones."""
        if self._real is None:
            raise ValueError("no real features")
        device = self.extractor.device
        return neighbourhoods(
            self._real, features, self.reference.sample_radii(device), radii(features, device=device), device
        )

    def run(
        self,
        draw: Draw,
        seeds: range,
        keep: Callable[[Tensor], None] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Outcome:
        """Draw one image a seed and measure them; every process draws its share and all get the outcome.

        `keep` is called with each batch of this process's images, in order. Images are dropped after their
        batch, except the first ones where memorisation is asked for.
        """
        if len(seeds) <= 3:
            raise UserError(f"{len(seeds)} samples are too few", "--samples", "give at least 4, better 50000")
        rank, world = rank_and_count()
        places = range(rank, len(seeds), world)
        with tempfile.TemporaryDirectory(prefix="consistune-features-") as folder:
            own = Path(folder) / "own.npy" if self.keeps_features else None
            width = len(self.reference.mean)
            with feature_file(own, len(places), width) if own is not None else nullcontext() as features:
                block = _Block(self, places, len(seeds), features)
                for start in range(0, len(places), self.batch):
                    part = places[start : start + self.batch]
                    block.feed(draw, [seeds[place] for place in part])
                    if keep is not None:
                        keep(block.images)
                    if progress is not None:
                        progress(len(part))
            return block.finish(seeds, own)


class _Block:
    """The accumulators of one block of `total` samples, of which this process has those at `places`."""

    def __init__(self, suite: Suite, places: range, total: int, features: FeatureWriter | None) -> None:
        self.suite, self.total, self.features = suite, total, features
        self.places = torch.tensor(list(places))
        self.seconds = {"sampling": 0.0, "extractor": 0.0, "metrics": 0.0}
        self.moments = Moments(len(suite.reference.mean), suite.convention)
        self.score: InceptionScore | None = None
        self.pixels: Tensor | None = None
        self.fed = 0
        self.right = torch.zeros(2, dtype=torch.long)
        self.images = torch.empty(0)

    def _timed(self, what: str, began: float) -> float:
        now = time.perf_counter()
        self.seconds[what] += now - began
        return now

    def feed(self, draw: Draw, seeds: list[int]) -> None:
        """Measure the next of `places`, which these seeds stand for."""
        suite, metrics = self.suite, self.suite.metrics
        clock = time.perf_counter()
        self.images, labels = draw(seeds)
        clock = self._timed("sampling", clock)
        features = suite.extractor(self.images)
        probabilities = suite.extractor.probabilities(self.images) if "is" in metrics else None
        clock = self._timed("extractor", clock)
        self.moments.update(features)
        if self.features is not None:
            self.features.append(features)
        if probabilities is not None:
            self.score = self.score or InceptionScore(probabilities.shape[1], self.total)
            self.score.update(probabilities, self.places[self.fed : self.fed + len(seeds)])
        if suite.classifier is not None and "accuracy" in metrics and labels is not None:
            guesses = suite.classifier(self.images.to(suite.extractor.device)).argmax(1).cpu()
            self.right += torch.tensor([int((guesses == labels.cpu()).sum()), len(labels)])
        if "memorisation" in metrics:
            if self.pixels is None:
                first = int((self.places < KEPT_ROWS).sum())
                self.pixels = torch.empty(first, *self.images.shape[1:], dtype=torch.uint8)
            room = self.pixels[self.fed : self.fed + len(seeds)]
            room.copy_(self.images[: len(room)])
        self.fed += len(seeds)
        self._timed("metrics", clock)

    def finish(self, seeds: range, own: Path | None) -> Outcome:
        """`own`: the file of this process's features, where they were kept."""
        clock = time.perf_counter()
        suite, metrics, values = self.suite, self.suite.metrics, {}
        worst: list[tuple[int, int]] = []
        memorised: list[tuple[int, int]] = []
        features = None if own is None else gathered_file(own, own.with_name("all.npy"), self.total)
        if {"fd", "fid"} & set(metrics):
            mean, covariance = self.moments.compute()
            name = suite.extractor.name
            values[name] = frechet(mean, covariance, suite.reference.mean, suite.reference.covariance)
            values[f"{name}_bias"] = suite._bias / self.total
            if suite.extrapolate and features is not None:
                values |= limit(features, suite.reference, name, suite.convention)
        if "kid" in metrics and features is not None and suite._real is not None:
            name = suite.kernel_name
            values[name], values[f"{name}_error"] = kernel_distance(suite._real, features)
        if self.score is not None:
            mean_score, deviation = self.score.compute()
            values["is"], values["is_deviation"] = float(mean_score), float(deviation)
        if features is not None and suite._real is not None and {"pr", "memorisation"} & set(metrics):
            near = suite._neighbours(FeatureFile(features.path, KEPT_ROWS))
            if "pr" in metrics:
                values["precision"], values["recall"] = near.precision, near.recall
            rows = near.rows if suite.reference.rows is None else suite.reference.rows[near.rows]
            worst = _extremes(near.distances, rows, seeds, largest=True)
            memorised = _extremes(near.distances, rows, seeds, largest=False)
            real = suite._real_feature_distance
            if "memorisation" in metrics and real is not None:
                values["novelty_features"] = float(near.distances.double().mean()) / real
        if "memorisation" in metrics:
            values |= self._memorisation(memorised, seeds)
        right, asked = gathered_sum(self.right)
        if "accuracy" in metrics and asked:
            values["accuracy"] = right / asked
        self._timed("metrics", clock)
        return Outcome(values, self.seconds, worst, memorised)

    def _memorisation(self, memorised: list[tuple[int, int]], seeds: range) -> dict[str, float]:
        first = self.places[self.places < KEPT_ROWS]
        count = min(self.total, KEPT_ROWS)
        if self.pixels is None:
            raise ValueError("no samples were fed")
        distances, rows = self.suite._nearest_pixels(self.pixels)
        distances, rows = gathered(distances, first, count), gathered(rows, first, count)
        memorised[:] = _extremes(distances, rows, seeds, largest=False)
        values = {"copies": float((distances == 0).double().mean())}
        real = self.suite.real_distances
        if real is not None:
            values["novelty"] = float(distances.mean() / real.mean())
            values["near_copies"] = float((distances < real.quantile(0.01)).double().mean())
        return values


def _extremes(distances: Tensor, rows: Tensor, seeds: range, *, largest: bool) -> list[tuple[int, int]]:
    """(seed, nearest training row) of the samples with the largest or smallest distances."""
    chosen = distances.topk(min(SHOWN, len(distances)), largest=largest).indices.tolist()
    return [(seeds[i], int(rows[i])) for i in chosen]


def gathered_sum(values: Tensor) -> list[Any]:
    """The sum over all processes, as numbers."""
    _, world = rank_and_count()
    if world > 1:
        values = values.clone()
        torch.distributed.all_reduce(values)
    return values.tolist()
