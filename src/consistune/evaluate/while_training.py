"""Quick evaluation while a model trains."""

from collections.abc import Callable

import torch

from consistune.evaluate.draws import Drawing
from consistune.metrics.measure import Split, measure_for
from consistune.models import default_sampler
from consistune.nn.precond import Preconditioned

SAMPLES = 2_000


def training_evaluation(
    data: Split,
    samples: int = SAMPLES,
    features: str | None = None,
    device: torch.device | str = "cpu",
) -> Callable[[Preconditioned], dict[str, float]]:
    """A function model → {metric: number} for curves while training, smallest is best for the first.

    The same seeds every time, so that differences between two calls are the model's. The Fréchet distance to
    the training images is in % of their variance of features, and named after the extractor; few samples bias
    it upwards. Raises UserError where no extractor fits the data.
    """
    measure = measure_for(data, features, device)

    def evaluate(model: Preconditioned) -> dict[str, float]:
        drawing = Drawing(model, default_sampler(model, None), data.train.labels)
        images, labels = drawing(range(samples))
        found = measure(images, labels)
        values = {f"{measure.name}_percent": found.frechet_train}
        if found.accuracy is not None:
            values["accuracy"] = found.accuracy
        if found.memorisation is not None:
            values["novelty"] = found.memorisation
        return values

    return evaluate
