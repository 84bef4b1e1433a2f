"""A part from outside the package works in a recipe: by a call, and by an entry point."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import Any, ClassVar

import pytest
from torch import Generator, Tensor

from consistune.core.noise import NoiseSchedule
from consistune.core.objectives import Draws, Learns, Objective, gaussian_like, learned
from consistune.core.sampling import ODE
from consistune.core.times import TimePairs
from consistune.core.types import Batch, Denoiser, Times
from consistune.errors import UserError
from consistune.models import default_sampler
from consistune.recipe import read_recipe, register, words
from consistune.recipe.plan import make_plan

TINY = ["network={kind: mlp, width: 8, blocks: 1}", "start_from=null", "train.images=128", "train.batch=64"]


@dataclass(frozen=True)
class FixedGap:
    """r = share·t."""

    share: float = 0.25

    def lower(self, t: Tensor, progress: int) -> Tensor:
        return self.share * t


@dataclass(frozen=True)
class Regression(Objective):
    """power·‖D(x_t, t) − x_0‖²."""

    schedule: NoiseSchedule
    pairs: TimePairs
    power: float = 1.0

    learns: ClassVar[Learns] = "denoiser"

    def draw(self, batch: Batch, progress: int, generator: Generator) -> Draws:
        times: Times = self.pairs.sample(len(batch), progress, generator)
        return Draws(batch, times, gaussian_like(batch.x_0, generator))

    def losses(self, model: Denoiser, target: Denoiser, draws: Draws) -> Tensor:
        del target
        batch, t = draws.batch, draws.times.t
        x0_hat = model(self.schedule.diffuse(batch.x_0, draws.noise, t), t, batch.network_condition)
        return self.power * (x0_hat - batch.x_0).flatten(1).square().sum(1)


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """The tables as they were."""
    before = {part: dict(table) for part, table in words.PARTS.items()}
    yield
    for part, table in words.PARTS.items():
        table.clear()
        table.update(before[part])
    for built in (words.section, words.one_of, words.recipe_section, words.recipe_reader):
        built.cache_clear()


def test_a_registered_gap_is_read_built_and_explained() -> None:
    with pytest.raises(UserError, match="allowed are: 'sigmoid', 'const'"):
        read_recipe("digits-ect", [*TINY, "pairs.gap={kind: fixed}"])
    register("gap", "fixed", FixedGap)
    plan = make_plan(read_recipe("digits-ect", [*TINY, "pairs.gap={kind: fixed, share: 0.5}"]))
    assert plan.objective.pairs.gap == FixedGap(0.5)  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"unknown key pairs.gap.part.*share"):
        read_recipe("digits-ect", [*TINY, "pairs.gap={kind: fixed, part: 0.5}"])
    with pytest.raises(UserError, match="'fixed'"):
        read_recipe("digits-ect", [*TINY, "pairs.gap={kind: fixt}"])


def test_a_registered_objective_trains_and_its_model_is_sampled_as_what_it_learned() -> None:
    register("objective", "regression", Regression)
    recipe = words.recipe_reader().validate_python(
        {
            "objective": "regression",
            "network": {"kind": "mlp", "width": 8, "blocks": 1},
            "pairs": {"kind": "lognormal", "gap": {"kind": "const"}},
            "power": 2.0,
            "train": {"images": 128, "batch": 64},
        }
    )
    plan = make_plan(recipe)
    assert isinstance(plan.objective, Regression)
    assert plan.objective.power == 2.0
    reports = list(plan.trainer().steps())
    assert len(reports) == 2
    assert all(report.finite for report in reports)
    assert learned(plan.model.card.to_json()) == "denoiser"
    assert isinstance(default_sampler(plan.model, None), ODE)


def test_a_denoisers_recipe_has_no_keys_of_a_flow_map() -> None:
    register("objective", "regression", Regression)
    assert not {"target", "mid_t"} & set(words.recipe_section("regression").model_fields)
    assert {"target", "mid_t"} <= set(words.recipe_section("consistency").model_fields)


def test_an_entry_point_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    def points(group: str) -> list[EntryPoint]:
        return [EntryPoint("gap:fixed", f"{__name__}:FixedGap", group)]

    monkeypatch.setattr(words, "entry_points", points)
    words.load_entry_points.cache_clear()
    words.recipe_reader.cache_clear()
    read_recipe("digits-ect", [*TINY, "pairs.gap={kind: fixed}"])
    monkeypatch.setattr(
        words, "entry_points", lambda group: [EntryPoint("gap:odd", "no_such_module:x", group)]
    )
    words.load_entry_points.cache_clear()
    words.recipe_reader.cache_clear()
    with pytest.raises(UserError, match="gap:odd"):
        read_recipe("digits-ect", TINY)
    monkeypatch.undo()
    words.load_entry_points.cache_clear()


def test_what_cannot_be_registered_is_refused() -> None:
    with pytest.raises(ValueError, match="known are schedule"):
        register("gapp", "fixed", FixedGap)
    with pytest.raises(ValueError, match="'sigmoid' is already SigmoidGap"):
        register("gap", "sigmoid", FixedGap)


def test_a_model_without_the_key_learns_is_known_by_its_objective() -> None:
    assert learned({"objective": "diffusion"}) == "denoiser"
    assert learned({"objective": "consistency"}) == learned({}) == "flow-map"
    assert learned({"objective": "anything", "learns": "denoiser"}) == "denoiser"


class Unhinted:
    def __init__(self, share=0.5) -> None: ...


class Unreadable:
    def __init__(self, share: Tensor) -> None: ...


class Kinded:
    def __init__(self, kind: str = "own") -> None: ...


@pytest.mark.parametrize(
    ("part", "make", "said"),
    [
        ("gap", Unhinted, "gap: Unhinted cannot .*'share' has no type hint"),
        ("objective", Unhinted, "'share' has no type hint"),
        ("gap", Unreadable, "Unreadable cannot .*'share'.*Tensor"),
        ("gap", Kinded, "Kinded cannot .*kind"),
        ("objective", FixedGap, "FixedGap cannot .*uses_target"),
        ("gap", FixedGap(), r"FixedGap\(share=0.25\) cannot"),
        ("gap", 5, "5 cannot"),
    ],
)
def test_what_no_recipe_could_be_read_with_is_not_registered(part: str, make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        register(part, "odd", make)
    read_recipe("digits-ect", TINY)
    register(part, "odd", {"gap": FixedGap, "objective": Regression}[part])


def test_a_class_that_is_defined_again_replaces_itself() -> None:
    register("gap", "fixed", FixedGap)
    again = type("FixedGap", (FixedGap,), {"__module__": __name__})
    register("gap", "fixed", again)
    assert words.PARTS[words.NAMES["gap"]]["fixed"] is again
    with pytest.raises(ValueError, match="'fixed' is already FixedGap"):
        register("gap", "fixed", type("Other", (FixedGap,), {"__module__": __name__}))
