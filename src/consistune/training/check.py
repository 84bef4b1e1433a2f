"""Is a run normal? Its log against the expected curves, and tests of a log that need none."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from consistune.errors import UserError
from consistune.nn import store
from consistune.training.expected import (
    PARTS,
    Band,
    Comparison,
    Curve,
    Difference,
    Expected,
    Record,
    comparison,
    curves_of,
    of_complete_parts,
    part_of,
)
from consistune.training.folder import read_recipe_of
from consistune.training.metrics_file import EVALUATION, MetricsFile

FAR = 2.0
"""A figure that is so many half widths from the middle of its band has left it. One nearer has where the next
part of training is outside on the same side too, or training ends."""
EARLY = 0.25
"""A figure that leaves its band before this share of training points to how the run began."""
NONFINITE_SHARE, CLIPPED_SHARE = 0.01, 0.5
FALL = 0.98
"""A diffusion loss that is above this share of its first value has not fallen."""
GROWTH = 30.0
"""The last quarter's median gradient norm over the second quarter's from which it counts as exploding."""


@dataclass(frozen=True)
class Left:
    """A figure that left its band: where first, its value there, and the band."""

    figure: str
    part: int
    step: int
    images: int
    value: float
    band: Band

    @property
    def above(self) -> bool:
        return self.band.excess(self.value) > 0

    @property
    def share(self) -> float:
        return (self.part + 1) / PARTS

    def __str__(self) -> str:
        return (
            f"{self.figure} left the expected band at step {self.step:,} ({self.images:,} images): "
            f"{self.value:.3g}, expected {self.band.low:.3g} to {self.band.high:.3g}"
        )


@dataclass(frozen=True)
class Advice:
    """A likely cause, or what a log shows; and what to do."""

    what: str
    remedy: str


@dataclass(frozen=True)
class Verdict:
    """What the check of a run says.

    Attributes:
        images, total: training images that the log has reached, and those of the recipe.
        curves: the run's figures in every part of training. left: those that left their band.
        problems: what is wrong in any run. causes: the likely causes of `left`, the likeliest first.
    """

    run: str
    images: int
    total: int
    compared: Comparison
    curves: Mapping[str, Curve]
    left: tuple[Left, ...]
    problems: tuple[Advice, ...]
    causes: tuple[Advice, ...]

    @property
    def normal(self) -> bool:
        return not self.left and not self.problems


def check_run(run: Path, against: str | None = None) -> Verdict:
    """Compare a run's log with expected curves. Raises UserError where the folder has no log of a run.

    against: the name of a recipe with expected curves, or a file of such; None: those of the run's recipe.
    """
    recipe = read_recipe_of(run)
    records = MetricsFile(run).records()
    total = recipe["train"].get("images")
    if not records or not isinstance(total, int) or total < 1:
        what = "metrics.jsonl has no line yet" if not records else "recipe.yaml does not say train.images"
        raise UserError(what, str(run), "wait for train.log_images, or give another run's folder")
    compared = comparison(recipe, fingerprint_of(run), against)
    whole = of_complete_parts(records, recipe)
    left = () if compared.expected is None else tuple(left_bands(whole, total, compared.expected))
    return Verdict(
        run=str(run),
        images=records[-1]["images"],
        total=total,
        compared=compared,
        curves=curves_of(whole, total),
        left=left,
        problems=tuple(problems(recipe, records)),
        causes=tuple(causes(left, compared.differences)),
    )


def fingerprint_of(run: Path) -> str | None:
    """The fingerprint of a run's training images, from the card of a model that it stored; None: none yet."""
    for config in (run / "model" / store.CONFIG, *sorted((run / "snapshots").glob(f"*/{store.CONFIG}"))):
        try:
            found = json.loads(config.read_text(encoding="utf-8"))["meta"]["data_sha256"]
        except (OSError, ValueError, LookupError, TypeError):
            continue
        return found if isinstance(found, str) else None
    return None


def left_bands(records: Sequence[Record], total: int, expected: Expected) -> Iterator[Left]:
    """The figures that left their band, each at the first part of training in which it did, in that order."""
    curves, found = curves_of(records, total), []
    for figure in expected.curves.keys() & curves.keys():
        bands, values = expected.bands(figure), curves[figure]
        outside = [
            (part, value, band, _excess(figure, value, band))
            for part, (value, band) in enumerate(zip(values, bands, strict=True))
            if value is not None and band is not None
        ]
        for place, (part, value, band, excess) in enumerate(outside):
            after = outside[place + 1][3] if place + 1 < len(outside) else excess * (part == PARTS - 1)
            if abs(excess) > FAR or (abs(excess) > 1 and after * math.copysign(1, excess) > 1):
                last = max(
                    (record for record in records if part_of(record["images"], total) == part),
                    key=lambda record: record["images"],
                )
                found.append(Left(figure, part, last["step"], last["images"], value, band))
                break
    return iter(sorted(found, key=lambda one: (one.part, _order(one.figure), one.figure)))


def _excess(figure: str, value: float, band: Band) -> float:
    """`Band.excess`, and 0 where the figure is better than expected."""
    excess = band.excess(value)
    better = BETTER.get(group_of(figure), 0) * excess > 0 and not math.isnan(value)
    return 0.0 if better else excess


def _order(figure: str) -> int:
    return [group for group, _ in GROUPS].index(group_of(figure))


# What a log shows without curves to compare it with -------------------------------------------------------


def problems(recipe: Mapping[str, Any], records: Sequence[Record]) -> Iterator[Advice]:
    """What is wrong in a log of any recipe: non-finite steps, gradients, clipping, a loss that stays."""
    train, last = recipe["train"], records[-1]
    steps, skipped = last["step"], max(record.get("nonfinite_total", 0) for record in records)
    if skipped > max(NONFINITE_SHARE * steps, 1):
        yield Advice(
            f"{skipped:,} of {steps:,} steps had a non-finite loss or gradient and were skipped",
            "a tenth of optimizer.lr; under fp16 train.precision=bf16",
        )
    norms = [(record["images"], record["gradient_norm"]) for record in records if "gradient_norm" in record]
    finite = [norm for _, norm in norms if math.isfinite(norm)]
    if finite and max(finite) == 0:
        yield Advice(
            "all gradients are 0: nothing is learned",
            "look at the loss's weight, and at the network's output",
        )
    clip = train.get("clip_norm")
    clipped = sum(norm > clip for norm in finite) / len(finite) if clip and finite else 0.0
    if clipped > CLIPPED_SHARE:
        yield Advice(
            f"{clipped:.0%} of the logged gradients were longer than train.clip_norm={clip:g}: "
            "the steps' length is the clip's, not the loss's",
            "a larger train.clip_norm, or a lower optimizer.lr",
        )
    growth = _growth(norms, train["images"])
    if growth is not None and growth > GROWTH:
        yield Advice(
            f"the gradient norm grew {growth:.0f}-fold from the second quarter of training to the last",
            "a lower optimizer.lr, a decay of it (lr_schedule), or train.clip_norm",
        )
    fall = _fall(recipe, records)
    if fall is not None and fall > FALL:
        yield Advice(
            f"the loss did not fall: it is {fall:.2f} times its first value",
            "another optimizer.lr (ten times more, a tenth); look at the data with consistune data info",
        )


def _growth(norms: Sequence[tuple[int, float]], total: int) -> float | None:
    """The median norm of the last quarter of training over that of the second; None before there are both."""
    early, late = (
        [norm for images, norm in norms if low < images / total <= high]
        for low, high in ((0.25, 0.5), (0.75, 1.0))
    )
    return median(late) / median(early) if early and late and median(early) > 0 else None


def _fall(recipe: Mapping[str, Any], records: Sequence[Record]) -> float | None:
    """The last quarter's loss over the first record's; None where a sound loss need not fall.

    It falls in a diffusion training from fresh weights. In tuning the gap shrinks with time.
    """
    if recipe["objective"] != "diffusion" or recipe.get("start_from") is not None:
        return None
    losses = [record["loss"] for record in records if math.isfinite(record.get("loss", math.nan))]
    if len(losses) < 8 or not losses[0] > 0:
        return None
    quarter = len(losses) // 4
    return median(losses[-quarter:]) / median(losses[:2])


# Likely causes --------------------------------------------------------------------------------------------

GROUPS: tuple[tuple[str, Callable[[str], bool]], ...] = (
    ("loss", lambda figure: figure.startswith("loss")),
    ("gradient", lambda figure: figure == "gradient_norm"),
    ("accuracy", lambda figure: figure == EVALUATION + "accuracy"),
    ("novelty", lambda figure: figure == EVALUATION + "novelty"),
    ("distance", lambda figure: figure.startswith(EVALUATION)),
)
"""Kinds of figures, and which figures are of them: the first that is."""


BETTER = {"distance": -1, "accuracy": 1, "novelty": 1}
"""Kinds of figures of which one side is no fault: the sign of that side."""


def group_of(figure: str) -> str:
    """The kind of a figure."""
    return next(name for name, belongs in GROUPS if belongs(figure))


LIKELY: dict[tuple[str, bool, bool], Advice] = {
    # kind of figure, above the band, early
    ("loss", True, True): Advice(
        "the learning rate is too high or too low, or the weights it starts from are not a trained teacher's",
        "compare optimizer.lr and optimizer.kind with the recipe; look at samples of start_from",
    ),
    ("loss", True, False): Advice(
        "the learning rate is too high for this stage, or a schedule (rate, gap) is another",
        "compare optimizer.lr_schedule and pairs; continue from a checkpoint with a lower rate",
    ),
    ("loss", False, True): Advice(
        "the task is easier: a wider or a constant gap, no dropout, repeated or fewer images",
        "compare pairs.gap, dropout and the number of images (consistune data info)",
    ),
    ("loss", False, False): Advice(
        "the model learns the training images by heart, or the gap does not shrink",
        "consistune evaluate RUN --metrics memorisation; compare pairs.gap and dropout",
    ),
    ("gradient", True, True): Advice(
        "the batch is smaller, or the learning rate is too high",
        "compare train.batch and optimizer.lr with the recipe",
    ),
    ("gradient", True, False): Advice(
        "the learning rate is too high for this stage",
        "a decay of it (optimizer.lr_schedule), or train.clip_norm",
    ),
    ("gradient", False, True): Advice(
        "the batch is larger, the loss is weighted otherwise, or part of the network is not trained",
        "compare train.batch and loss with the recipe",
    ),
    ("gradient", False, False): Advice(
        "the batch is larger, or the loss is weighted otherwise",
        "compare train.batch and loss with the recipe",
    ),
    ("distance", True, True): Advice(
        "the averaged weights lag behind (train.ema is too long), or it learns too slowly",
        "compare train.ema; evaluate the newest checkpoint: consistune sample RUN --at latest",
    ),
    ("distance", True, False): Advice(
        "the average of the weights is too short or too long, or the images are others",
        "compare train.ema, and the data's SHA-256 (consistune data info)",
    ),
    ("accuracy", False, True): Advice(
        "the labels do not belong to the images, or the model does not see them",
        "look at the images by class (consistune data info), and at conditional and train.label_dropout",
    ),
    ("novelty", False, True): Advice(
        "the samples repeat training images", "more images, train.x_flip where mirroring is right, or dropout"
    ),
}  # fmt: skip
LIKELY |= {
    ("accuracy", False, False): LIKELY["accuracy", False, True],
    ("novelty", False, False): LIKELY["novelty", False, True],
}


def causes(left: Sequence[Left], different: Sequence[Difference]) -> Iterator[Advice]:
    """The likely causes, each once: keys that differ from the recipe, then those of the first figures."""
    if not left:
        return
    for difference in different:
        yield Advice(
            f"its recipe differs: {difference}",
            f"set {difference.key} as in the recipe, or judge the run by its samples",
        )
    told = set()
    for one in left:
        advice = LIKELY.get((group_of(one.figure), one.above, one.share <= EARLY))
        if advice is not None and advice not in told:
            told.add(advice)
            yield advice


# While a run trains ---------------------------------------------------------------------------------------


class Watch:
    """Says, in one line a part of training, which figures of a run left their band; each figure once."""

    def __init__(self, run: Path, data_sha256: str | None, say: Callable[[str], None]) -> None:
        """data_sha256: the fingerprint of the training images. `say` gets a line."""
        self.run, self.say = run, say
        self.recipe = read_recipe_of(run)
        self.total, self.compared = self.recipe["train"]["images"], comparison(self.recipe, data_sha256)
        self.part, self.told = 0, set[str]()

    def look(self, images: int) -> None:
        """Look at the parts of training that are complete after so many images."""
        complete = images * PARTS // self.total
        expected = self.compared.expected
        if complete <= self.part or expected is None:
            return
        self.part = complete
        records = of_complete_parts(MetricsFile(self.run).records(), self.recipe)
        new = [one for one in left_bands(records, self.total, expected) if one.figure not in self.told]
        self.told |= {one.figure for one in new}
        if new:
            others = f", and {len(new) - 1} more" if new[1:] else ""
            keys = "; ".join(map(str, self.compared.differences))
            differs = f" (its recipe differs: {keys})" if keys else ""
            line = f"{new[0]}, as {expected.name} had{differs}{others}"
            self.say(f"{line}; consistune check {self.run} says more")
