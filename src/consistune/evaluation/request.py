"""The options of an evaluation."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from consistune.metrics.moments import Convention

LabelRule = Literal["data", "uniform", "balanced"]
LABEL_RULES: tuple[LabelRule, ...] = ("data", "uniform", "balanced")
"""The labels that samples are drawn for: as the data has them, drawn uniformly, or all in turn."""


@dataclass(frozen=True)
class Request:
    """The options of an evaluation; None stands for a default that depends on the data or the model.

    Attributes:
        model: a model's or run's folder, a checkpoint, or samples: a .npz (arr_0), or a folder of PNG files.
        data: a data set's name, a prepared folder, or a .npz of images (arr_0).
        reference: a file of moments, in the place of those of the data. A .npz may hold both, images (arr_0)
            and moments (mu, sigma), as ADM's reference batches do; each then serves its metrics.
        features: see `load_extractor`.
        steps: numbers of sampling steps, each a row of the results; None: the model's own number.
        samples, blocks, first_seed: blocks of `samples` consecutive seeds, from `first_seed` on.
        label_rule: None: "data".
        mid_t, eta, omega, worse: the sampler's settings.
        anchors: also measure held-out images and the teacher (`evaluation.anchors`).
        search: the setting whose best value is searched, with `search_evaluations` values that are measured
            on `search_samples` samples each.
        covariance: of the samples and of our own reference: divided by n − 1 (EDM, EDM2) or by n (ECT).
        x_flip: the reference includes the mirror images.
        keep: a file for the samples (.npz). save_reference: a file for the reference's moments.
    """

    model: Path
    out: Path
    data: str | None = None
    reference: Path | None = None
    features: str | None = None
    metrics: tuple[str, ...] | None = None
    steps: tuple[int | None, ...] = (None,)
    samples: int = 50_000
    blocks: int = 1
    first_seed: int = 0
    label_rule: LabelRule | None = None
    mid_t: tuple[float, ...] | None = None
    eta: float | None = None
    omega: float = 1.0
    worse: Path | None = None
    anchors: bool = False
    search: str | None = None
    search_samples: int = 2_000
    search_evaluations: int = 14
    extrapolate: bool = False
    covariance: Convention = "unbiased"
    x_flip: bool = False
    keep: Path | None = None
    save_reference: Path | None = None
    batch: int = 256
    device: torch.device = torch.device("cpu")

    def keep_file(self, name: str, block: int, rank: int, world: int) -> Path | None:
        """The file for the samples of a row's block; `keep` itself where there is no other block."""
        if self.keep is None:
            return None
        words = [self.keep.stem]
        if len(self.steps) > 1 or self.search is not None:
            words.append(name.replace(" ", "-"))
        if self.blocks > 1:
            words.append(f"block{block}")
        if world > 1:
            words.append(f"process{rank}")
        return self.keep.with_name("_".join(words) + self.keep.suffix)
