"""What an evaluation is asked for."""

from dataclasses import dataclass
from pathlib import Path

import torch

from consistune.evaluate.draws import LabelRule
from consistune.evaluate.search import Setting
from consistune.metrics.moments import Convention


@dataclass(frozen=True)
class Wanted:
    """What was asked for; `None` means the default that the data or the model decide.

    Attributes:
        model: a model's or run's folder, a checkpoint, or a .npz of samples (arr_0).
        data: a data set's name, a prepared folder, or a .npz of images (arr_0).
        reference: a file of moments that stands in for the data's own.
        features: see `load_extractor`.
        steps: one row of results each; None: the model's own number.
        blocks: blocks of `samples` consecutive seeds from `first_seed` on.
        mid_t, eta, omega, worse: the sampler's settings.
        search: the setting that is searched, on `search_samples` samples and `search_evaluations` values.
        covariance: divided by n − 1 (EDM, EDM2) or n (ECT), of the samples and of a reference of ours.
        x_flip: the reference contains the mirror images too.
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
    label_rule: LabelRule = "data"
    mid_t: tuple[float, ...] | None = None
    eta: float = 1.0
    omega: float = 1.0
    worse: Path | None = None
    search: Setting | None = None
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
        """Where a row's block is kept: under `keep` itself where it is the only one."""
        if self.keep is None:
            return None
        words = [self.keep.stem]
        if len(self.steps) > 1 or self.search is not None:
            words.append(name.replace(" ", "-"))
        if self.blocks > 1:
            words.append(f"block{block}")
        if world > 1:
            words.append(f"process{rank}")
        return self.keep.with_name("_".join(words) + ".npz")
