"""Quick evaluation while a model trains."""

from collections.abc import Callable

import torch

from consistune.evaluation.sources import ModelSource
from consistune.metrics.choose import Split
from consistune.metrics.scores import score_suite
from consistune.models import default_sampler
from consistune.nn.precond import Preconditioned

SAMPLES = 2_000


def training_evaluation(
    data: Split,
    samples: int = SAMPLES,
    device: torch.device | str = "cpu",
) -> Callable[[Preconditioned], dict[str, float]]:
    """A function model → {metric: number} for curves while training; the smallest first value is the best.

    The seeds are the same at every call, so that differences between two calls are the model's. The Fréchet
    distance to the training images is in % of their variance of features, and named after the extractor; few
    samples bias it upwards. Raises UserError where no extractor fits the data.
    """
    suite = score_suite(data, device=device)
    names = (f"{suite.setup.extractor.name}_percent", "accuracy", "novelty")

    def evaluate(model: Preconditioned) -> dict[str, float]:
        source = ModelSource(model, default_sampler(model, None), data.train.labels)
        values = suite.measure(*source(range(samples))).values
        return {name: values[name] for name in names if name in values}

    return evaluate
