"""The best value of one setting of the sampler: golden section on few samples."""

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from consistune.core.sampling import Multistep
from consistune.errors import UserError
from consistune.evaluate.request import Request, Setting
from consistune.evaluate.sources import ModelSource
from consistune.metrics.suite import Suite
from consistune.models import default_sampler
from consistune.system.progress import Screen

GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Range:
    """The values among which a setting is searched, in equal steps of its logarithm where `log` is true."""

    low: float
    high: float
    log: bool


RANGES: dict[Setting, Range] = {
    "mid-t": Range(0.1, 20.0, True),
    "eta": Range(0.0, 1.0, False),
    "omega": Range(1.0, 3.0, False),
}
POINTS = 6
"""Values of the coarse grid, around whose best one the golden section searches."""


def golden_section(
    loss: Callable[[float], float], within: Range, evaluations: int
) -> tuple[float, list[tuple[float, float]]]:
    """The value with the least loss, and every (value, loss) in the order of the values.

    First a grid of six values, so that the search does not end at an edge or in the wrong one of two minima.
    Then each evaluation narrows the bracket around the grid's best value by 0.618 (Kiefer 1953). The loss
    must be a fixed function: the same seeds every time.
    """
    to, back = (math.log, math.exp) if within.log else (float, float)
    low, high = to(within.low), to(within.high)
    seen: dict[float, float] = {}

    def at(u: float) -> float:
        value = min(max(back(u), within.low), within.high)
        if value not in seen:
            seen[value] = loss(value)
        return seen[value]

    grid = [low + (high - low) * i / (POINTS - 1) for i in range(POINTS)]
    best = min(range(POINTS), key=lambda i: at(grid[i]))
    a, b = grid[max(best - 1, 0)], grid[min(best + 1, POINTS - 1)]
    x, y = b - GOLDEN * (b - a), a + GOLDEN * (b - a)
    while len(seen) < evaluations:
        if at(x) <= at(y):
            b, y = y, x
            x = b - GOLDEN * (b - a)
        else:
            a, x = x, y
            y = a + GOLDEN * (b - a)
    curve = sorted(seen.items())
    return min(curve, key=lambda point: point[1])[0], curve


def search_setting(
    request: Request, model: ModelSource, suite: Suite, screen: Screen
) -> tuple[dict[str, Any], dict[str, ModelSource]]:
    """The curve of `request.search` for results.json, and the sources to be measured on all samples.

    These are the samples with the model's own value, where it has one, and with the best value. Raises
    UserError where the model does not have the setting.
    """
    setting = request.search
    if setting is None:
        raise ValueError("no setting is searched")
    if setting == "eta" and not model.model.card.edges:
        raise UserError("the model has no phases", "--search eta", "search mid-t or omega instead")
    if setting == "omega" and model.worse is None and not model.labelled:
        raise UserError("needs a worse model to guide by", "--search omega", "give --worse FOLDER")
    base = model.in_steps(1 if setting == "mid-t" else request.steps[0], request)
    vary: Callable[[float], ModelSource] = {
        "mid-t": lambda t: replace(base, sampler=Multistep((t,))),
        "eta": lambda eta: replace(base, sampler=default_sampler(base.model, None, eta=eta)),
        "omega": lambda omega: replace(base, omega=omega),
    }[setting]
    quick = Suite(replace(suite.setup, extrapolate=False), ("fd",), suite.batch)
    metric = suite.setup.extractor.name
    seeds = range(request.first_seed, request.first_seed + request.search_samples)
    with screen.bar(f"search {setting}", request.search_evaluations) as bar:

        def loss(value: float) -> float:
            distance = quick.run(vary(value), seeds).values[metric]
            bar.advance(1, f"{setting} {value:.3g}: {distance:.4g}")
            return distance

        best, curve = golden_section(loss, RANGES[setting], request.search_evaluations)
    sources = {f"{setting} {best:.4g} (found)": vary(best)}
    with suppress(UserError):  # where the model has no value of its own
        default = model.in_steps(2 if setting == "mid-t" else None, request)
        sources = {f"{setting} as the model says": default} | sources
    record = {
        "setting": setting,
        "metric": metric,
        "samples": request.search_samples,
        "best": best,
        "curve": [{"value": value, "distance": distance} for value, distance in curve],
    }
    return record, sources
