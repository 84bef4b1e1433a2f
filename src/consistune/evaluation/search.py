"""The best value of one setting of the sampler: golden section on few samples."""

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from typing import Any

from consistune.errors import UserError, load_entry_point
from consistune.evaluation.request import Request
from consistune.evaluation.sources import ModelSource
from consistune.metrics.suite import Suite
from consistune.models import default_sampler
from consistune.nn.sampler import lowest_time
from consistune.system.again import is_again
from consistune.system.progress import Screen

GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Range:
    """The values among which a setting is searched, in equal steps of its logarithm where `log` is true."""

    low: float
    high: float
    log: bool


@dataclass(frozen=True)
class SamplerSetting:
    """A number that changes how a model is sampled, and that `consistune evaluate --search NAME` can search.

    Attributes:
        values: where it is searched.
        apply: the samples of a model with a value of the setting.
        check: raises UserError where a model does not have the setting; None: every model has it.
        steps: the number of steps that the search begins from; None: the first of `--steps`.
        default_steps: the number of steps of the model's own setting, with which the best one is compared;
            None: the first of `--steps`.
    """

    values: Range
    apply: Callable[[ModelSource, float], ModelSource]
    check: Callable[[ModelSource], None] | None = None
    steps: int | None = None
    default_steps: int | None = None


def _with_mid_t(model: ModelSource, t: float) -> ModelSource:
    return replace(model, sampler=default_sampler(model.model, 2, (t,)))


def _with_eta(model: ModelSource, eta: float) -> ModelSource:
    return replace(model, sampler=default_sampler(model.model, None, eta=eta))


def _with_omega(model: ModelSource, omega: float) -> ModelSource:
    return replace(model, omega=omega)


def _check_middle(model: ModelSource) -> None:
    card = model.model.card
    if card.is_diffusion or card.edges:
        raise UserError("the model takes no time between steps", "--search mid-t", "search another setting")


def _check_phases(model: ModelSource) -> None:
    if not model.model.card.edges:
        raise UserError("the model has no phases", "--search eta", "search mid-t or omega instead")


def _check_worse(model: ModelSource) -> None:
    if model.worse is None and not model.labelled:
        raise UserError("needs a worse model to guide by", "--search omega", "give --worse FOLDER")


SETTINGS: dict[str, SamplerSetting] = {
    "mid-t": SamplerSetting(Range(0.1, 20.0, True), _with_mid_t, _check_middle, 1, 2),
    "eta": SamplerSetting(Range(0.0, 1.0, False), _with_eta, _check_phases),
    "omega": SamplerSetting(Range(1.0, 3.0, False), _with_omega, _check_worse),
}


def register_setting(name: str, setting: SamplerSetting) -> None:
    """Let `--search` name a setting. One whose `apply` is defined again replaces itself.

    Raises ValueError where the name is another's.
    """
    if not is_again(setting.apply, SETTINGS.get(name, setting).apply):
        raise ValueError(f"there is a sampler setting {name!r} already")
    SETTINGS[name] = setting


def all_settings() -> dict[str, SamplerSetting]:
    """SETTINGS, and those of the entry points of the group `consistune.settings`: name = "module:object"."""
    for entry in entry_points(group="consistune.settings"):
        if entry.name not in SETTINGS:
            SETTINGS[entry.name] = load_entry_point(entry)
    return SETTINGS


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
    while len(seen) < evaluations and a < x < y < b:  # else the bracket is at the numbers' resolution
        if at(x) <= at(y):
            b, y = y, x
            x = b - GOLDEN * (b - a)
        else:
            a, x = x, y
            y = a + GOLDEN * (b - a)
    curve = sorted(seen.items())
    return min(curve, key=lambda point: point[1])[0], curve


Search = tuple[str, SamplerSetting, ModelSource]
"""What `start_search` returns."""


def start_search(name: str, request: Request, model: ModelSource) -> Search:
    """The name of a setting, the setting, and the samples to which its values are applied.

    Raises UserError where the model does not have it, and beside options that it varies or that do not fit.
    """
    setting = all_settings()[name]
    if setting.check is not None:
        setting.check(model)
    fixed = {
        "mid-t": request.mid_t,
        "eta": request.eta,
        "omega": None if request.omega == 1 else request.omega,
    }
    if fixed.get(name) is not None:
        raise UserError(f"is what --search {name} varies", f"--{name}", "leave it out")
    steps_vary = name in ("mid-t", "eta") and request.steps != (None,)
    if steps_vary or len(request.steps) > 1:
        what = f"--search {name} {'takes its own number' if steps_vary else 'takes one number'} of steps"
        raise UserError(what, "--steps", "leave it out" if steps_vary else "give one number")
    return name, setting, model.in_steps(setting.steps or request.steps[0], request)


def search_setting(
    request: Request, search: Search, model: ModelSource, suite: Suite, screen: Screen
) -> tuple[dict[str, Any], dict[str, ModelSource]]:
    """The curve of a search for results.json, and the sources to be measured on all samples.

    These are the samples with the model's own value, where it has one, and with the best value.
    """
    name, setting, base = search
    quick = Suite(replace(suite.setup, extrapolate=False), ("fd",), suite.batch)
    metric = suite.setup.extractor.name
    seeds = range(request.first_seed, request.first_seed + request.search_samples)
    values = setting.values
    if name == "mid-t":
        values = replace(values, low=max(values.low, lowest_time(model.model)))
    with screen.bar(f"search {name}", request.search_evaluations) as bar:

        def loss(value: float) -> float:
            distance = quick.run(setting.apply(base, value), seeds).values[metric]
            bar.advance(1, f"{name} {value:.3g}: {distance:.4g}")
            return distance

        best, curve = golden_section(loss, values, request.search_evaluations)
    sources = {f"{name} {best:.4g} (found)": setting.apply(base, best)}
    with suppress(UserError):  # where the model has no value of its own
        default = model.in_steps(setting.default_steps or request.steps[0], request)
        sources = {f"{name} as the model says": default} | sources
    record = {
        "setting": name,
        "metric": metric,
        "samples": request.search_samples,
        "best": best,
        "curve": [{"value": value, "distance": distance} for value, distance in curve],
    }
    return record, sources
