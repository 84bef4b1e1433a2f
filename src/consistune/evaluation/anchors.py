"""What a number means: the same measures of real images, of the teacher, and of the teacher in one step."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from consistune.data.images import DataSplit
from consistune.errors import UserError
from consistune.evaluation.sources import FileSource, ModelSource
from consistune.metrics.suite import FEWEST_SAMPLES
from consistune.models import default_sampler, load, picture_shape
from consistune.nn.precond import Preconditioned
from consistune.pages.evaluation import FORCED, REAL, TEACHER
from consistune.system.progress import Screen

SAMPLES = 5_000
"""At most, of each anchor: the teacher takes tens of evaluations an image."""


@dataclass(frozen=True)
class Anchor:
    """A row of results beside the model's own.

    Attributes:
        kind: its word in results.json, `pages.evaluation.REAL`, `TEACHER` or `FORCED`.
    """

    kind: str
    source: ModelSource | FileSource
    settings: dict[str, Any]
    samples: int


def anchors(
    samples: int, source: ModelSource | FileSource, data: DataSplit | None, screen: Screen
) -> Iterator[Anchor]:
    """The anchors that data and model allow: held-out images; of a tuned model the teacher, if found."""
    held_out = None if data is None else data.held_out
    if held_out is not None and len(held_out) >= FEWEST_SAMPLES:
        count = min(samples, SAMPLES, len(held_out))
        generator = torch.Generator().manual_seed(0)
        rows = torch.randperm(len(held_out), generator=generator)[:count]  # they are sorted by class
        labels = held_out.labels[rows] if source.labelled else None
        real = FileSource(held_out.images[rows], labels, held_out.fingerprint)
        yield Anchor(REAL, real, {"kind": "held-out images"}, count)
    teacher = _teacher(source, screen) if isinstance(source, ModelSource) else None
    if teacher is None or not isinstance(source, ModelSource):
        return
    known = source.labels is not None and int(source.labels.max()) < teacher.num_classes
    needs_labels = source.label_rule == "data" and teacher.num_classes > 0
    rule = "uniform" if needs_labels and not known else source.label_rule
    for kind, steps in ((TEACHER, None), (FORCED, 1)):
        sampler = default_sampler(teacher, steps)
        own = replace(source, model=teacher, sampler=sampler, worse=None, omega=1.0, label_rule=rule)
        yield Anchor(kind, own, own.settings, min(samples, SAMPLES))


def _teacher(source: ModelSource, screen: Screen) -> Preconditioned | None:
    """The diffusion model from which a tuned model started; None, with a word, where it is not there."""
    model = source.model
    if model.card.is_diffusion or model.card.start_from is None:
        return None
    path = model.card.start_from.path
    try:
        teacher = load(path, next(model.parameters()).device)
    except UserError as error:
        screen.say(f"the teacher is not measured beside the model: {error}")
        return None
    fits = teacher.card.is_diffusion and picture_shape(teacher) == source.image_shape
    return teacher if fits else None
