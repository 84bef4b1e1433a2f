"""What a metric is, and what it is given: the setup, a block of samples, and batches of the block."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from consistune.errors import UserError
from consistune.metrics.choose import Split
from consistune.metrics.classifier import ImageClassifier
from consistune.metrics.feature_file import FeatureFile, Rows
from consistune.metrics.features import Extractor
from consistune.metrics.moments import Convention
from consistune.metrics.neighbours import Neighbourhoods, neighbourhoods, radii
from consistune.metrics.statistics import KEPT_ROWS, ReferenceStatistics

SHOWN = 16
"""Samples in a list of extreme ones."""
Extremes = list[tuple[int, int]]
"""Samples by their seeds, each with the row of the nearest training image."""


@dataclass(frozen=True)
class Setup:
    """What samples are measured with, and against what.

    Attributes:
        reference: statistics of real images' features by the same extractor.
        data: training and held-out images; None where only the statistics are known.
        classifier: of the data's labels.
        labelled: the samples are drawn for labels.
        convention: of the samples' covariance; the reference has its own.
        extrapolate: also estimate the Fréchet distance at infinitely many samples.
    """

    extractor: Extractor
    reference: ReferenceStatistics
    data: Split | None = None
    classifier: ImageClassifier | None = None
    labelled: bool = True
    convention: Convention = "unbiased"
    extrapolate: bool = False

    def need_real_features(self) -> Rows:
        """The real images' features. Raises UserError where only their moments are known."""
        if self.reference.features is None:
            raise UserError("needs real images, not only moments", "--metrics kid, pr", "give --data")
        return self.reference.features

    def neighbourhoods(self, features: Rows) -> Neighbourhoods:
        """Precision, recall and nearest real rows of features [n, D]."""
        real, device = self.need_real_features(), self.extractor.device
        own_radii = radii(features, device=device)
        return neighbourhoods(real, features, self.reference.feature_radii(device), own_radii, device)


@dataclass
class Block:
    """Samples that are measured together. Process `rank` of `world` has the samples rank, rank + world, …

    Attributes:
        seeds: of all samples, in order.
        features: of all samples, after the last batch; None before, and where no metric stores them.
    """

    setup: Setup
    seeds: Sequence[int]
    rank: int = 0
    world: int = 1
    features: FeatureFile | None = None

    @property
    def total(self) -> int:
        return len(self.seeds)

    def indices(self, count: int | None = None) -> range:
        """Which of the samples this process has; with `count`, which of the first `count`."""
        return range(self.rank, self.total if count is None else min(count, self.total), self.world)

    def need_features(self) -> FeatureFile:
        """The features. Raises ValueError for a metric that reads them and does not say `stores_features`."""
        if self.features is None:
            raise ValueError("the features of the samples are not stored")
        return self.features

    @cached_property
    def neighbourhoods(self) -> Neighbourhoods:
        """Of the first KEPT_ROWS samples."""
        return self.setup.neighbourhoods(FeatureFile(self.need_features().path, KEPT_ROWS))

    def feature_extremes(self, *, largest: bool) -> Extremes:
        """The samples whose features are farthest from, or nearest to, real ones."""
        near, image_rows = self.neighbourhoods, self.setup.reference.rows
        rows = near.rows if image_rows is None else image_rows[near.rows]
        return self.extremes(near.distances, rows, largest=largest)

    def extremes(self, distances: Tensor, rows: Tensor, *, largest: bool) -> Extremes:
        """The SHOWN samples with the largest or smallest of distances [n], with their rows [n]."""
        chosen = distances.topk(min(SHOWN, len(distances)), largest=largest).indices.tolist()
        return [(self.seeds[i], int(rows[i])) for i in chosen]


@dataclass(frozen=True)
class SampleBatch:
    """The next samples of this process.

    Attributes:
        indices: of the samples in their block [n].
        images: uint8 [n, C, H, W].
        labels: for which they were drawn [n]; None: for none.
        features: fp32 [n, D], on the CPU.
        probabilities: of the classes [n, K], where a metric of the suite uses them.
    """

    indices: Tensor
    images: Tensor
    labels: Tensor | None
    features: Tensor
    probabilities: Tensor | None = None


@dataclass(frozen=True)
class Result:
    """What a metric gives for one block.

    Attributes:
        values: name → number; a standard error or deviation is named NAME_error or NAME_deviation.
        worst: the samples farthest from any real features.
        memorised: the samples nearest to a training image.
    """

    values: dict[str, float]
    worst: Extremes = field(default_factory=list)
    memorised: Extremes = field(default_factory=list)


class Metric:
    """One measure of samples; an object serves one block after the other.

    For each block `start` is called, then `accumulate` with each batch of this process, then `result` once,
    in all processes at the same time. What depends on the real images alone may be kept between blocks.
    A subclass has a row in `consistune.metrics.table`, or is given to its `register`.
    """

    uses_probabilities = False
    """The metric reads `SampleBatch.probabilities`."""
    by_default = True
    """The metric is computed where the user names none and `check` allows it."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup

    @property
    def stores_features(self) -> bool:
        """The metric reads `Block.features`: they are kept on disk until the block ends."""
        return False

    def check(self) -> None:
        """Raises UserError where the setup lacks something that the metric needs."""

    def start(self, block: Block) -> None:
        """Forget the samples of the block before."""
        self.block = block

    def accumulate(self, batch: SampleBatch) -> None:
        """Take in the next samples of this process."""

    def result(self) -> Result:
        """The numbers of the block."""
        raise NotImplementedError
