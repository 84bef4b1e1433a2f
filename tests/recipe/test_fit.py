"""What an objective does not go with is refused before the run, with the key's name."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from consistune.core.estimators import OneSample
from consistune.core.noise import EDM, RectifiedFlow
from consistune.core.objectives import Consistency, MeanVelocity
from consistune.core.times import LogNormalPairs, SigmoidGap
from consistune.errors import UserError
from consistune.front import steps, tune
from consistune.nn import store
from consistune.nn.card import ModelCard
from consistune.nn.module import wrap
from consistune.nn.precond import EDMPrecond
from consistune.nn.small import ResidualMLP
from consistune.recipe import read_recipe
from consistune.recipe.plan import Plan, make_plan
from consistune.training.loop import StepReport

BLEND = "estimator={kind: blend, estimator: {kind: score-identity, reference: class}}"
CMT = ("start_from=TEACHER", "estimator.model=TEACHER")
MLP = "network={kind: mlp, width: 8, blocks: 1}"
TWO_TIMES = "network={kind: mlp, width: 8, blocks: 1, second_time: true}"
FROM_NOTHING = ("start_from=null", MLP)
WIDE = ("law.mean=10.0", "law.std=10.0", "law.low=null", "law.high=null")


def saved(folder: Path, name: str, classes: int = 10, second_time: bool = False, **card: object) -> Path:
    torch.manual_seed(0)
    model = EDMPrecond(ResidualMLP((1, 8, 8), classes, width=8, blocks=1, second_time=second_time))
    model.card = ModelCard().updated(**card)
    return store.save(model, folder / name)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "TEACHER": saved(folder, "teacher", objective="diffusion", label_dropout=0.0),
        "GUIDED": saved(folder, "guided", objective="diffusion", label_dropout=0.1),
        "BARE": saved(folder, "bare", classes=0, objective="diffusion", label_dropout=0.0),
        "ECT": saved(folder, "ect", objective="consistency"),
        "TCM": saved(folder, "tcm", objective="truncated"),
        "TWO": saved(folder, "two", second_time=True, objective="consistency"),
    }


def plan(models: dict[str, Path], name: str, *keys: str) -> Plan:
    for word, path in models.items():
        keys = tuple(key.replace(word, str(path)) for key in keys)
    return make_plan(read_recipe(name, keys))


REFUSED = {
    "more points than a batch": ("digits-cmt", (*CMT, "steps=256"), "steps"),
    "order above the steps": ("digits-cmt", (*CMT, "steps=2"), "order 3"),
    "no image at the boundary": (
        "digits-tcm",
        ("start_from=ECT", "below=ECT", "pairs.share=0.01", "train.batch=32"),
        "pairs.share",
    ),
    "below, TCM's own stage": ("digits-tcm", ("start_from=ECT", "below=TCM"), "below: .*second stage"),
    "below, a diffusion model": ("digits-tcm", ("start_from=ECT", "below=TEACHER"), "below: .*diffusion"),
    "a few-step model as teacher": (
        "digits-cd",
        ("start_from=TEACHER", "estimator.model=ECT"),
        "estimator.model: .*few-step",
    ),
    "a two-time consistency model as teacher": (
        "digits-cd",
        ("start_from=TEACHER", "estimator.model=TWO"),
        "estimator.model: .*few-step",
    ),
    "a rounded noise level": (
        "digits-sct-continuous",
        (*FROM_NOTHING, "precond={kind: iddpm}", "uncertainty=false"),
        "precond: 'iddpm' rounds",
    ),
    "guidance beyond the schedule": (
        "digits-meanflow",
        (TWO_TIMES, "guidance={omega: 4, low: 2.0}", "train.label_dropout=0.1"),
        "guidance above t = 2 has no effect",
    ),
    "an edge beyond the schedule": (
        "digits-sct-phased",
        (
            *FROM_NOTHING,
            "schedule={kind: rectified-flow}",
            "pairs={kind: phased, edges: [0.5, 5.0], pairs: {kind: lognormal, gap: {kind: sigmoid}}}",
        ),
        "pairs.edges.*outside the schedule",
    ),
    "a law without mass": (
        "digits-sct-continuous",
        (*FROM_NOTHING, "law={kind: lognormal, mean: -1.1, std: 0.01, low: 2, high: 80}"),
        "law: .*no mass",
    ),
    "a law of too many degrees": (
        "digits-tcm",
        ("start_from=ECT", "below=ECT", "pairs.law.df=1e16"),
        "pairs.law.*df",
    ),
    "guidance without a branch": (
        "digits-cd",
        (*CMT, "estimator.guidance=2.0"),
        "estimator.guidance: .*not trained",
    ),
    "guidance without labels": (
        "digits-cd",
        ("start_from=BARE", "estimator.model=BARE", "estimator.guidance=2.0", "conditional=false"),
        "estimator.guidance: .*no labels",
    ),
    "no signal": ("digits-sct-continuous", (*FROM_NOTHING, "schedule={kind: rectified-flow}", *WIDE), "law"),
    "no finite time": ("digits-sct-continuous", (*FROM_NOTHING, "law.mean=800.0", "law.high=null"), "law"),
    "jumps from pure noise": (
        "digits-meanflow",
        (TWO_TIMES, "intervals.mean=10.0", "intervals.highest=0.99999999999"),
        "intervals",
    ),
    "jumps from no noise": (
        "digits-meanflow",
        (TWO_TIMES, "intervals.mean=-10.0", "intervals.std=100.0"),
        "intervals",
    ),
    "no head": (
        "digits-sct-continuous",
        (*FROM_NOTHING, "precond={kind: edm2, logvar_channels: 0}"),
        "uncertainty: .*logvar_channels",
    ),
    "too small a difference": ("digits-sct-continuous", (*FROM_NOTHING, "difference=1e-8"), "difference"),
    "a blend without warm-up": (
        "digits-sct-continuous",
        (*FROM_NOTHING, "warmup_images=0", BLEND),
        "estimator: without a warm-up",
    ),
    "a blend at r = t": (
        "digits-meanflow",
        (TWO_TIMES, "intervals.equal=1.0", BLEND),
        "estimator: where r = t",
    ),
    "an interval of no guidance": (
        "digits-meanflow",
        (TWO_TIMES, "guidance={low: 0.2, high: 0.5}"),
        "guidance: low",
    ),
    "a scatter that divides nothing": (
        "digits-meanflow",
        (TWO_TIMES, "scale={kind: adaptive-power, p: 0, scatter: own}"),
        "scale: scatter",
    ),
    "LPIPS's own key": (
        "digits-ect",
        (*FROM_NOTHING, "loss.distance={kind: lpips, weights: nowhere}"),
        "loss.distance.weights: ",
    ),
    "a model inside a blend": (
        "digits-ect",
        (*FROM_NOTHING, "estimator={kind: blend, estimator: {kind: teacher, model: nowhere}}"),
        "estimator.estimator.model: ",
    ),
    "references inside a blend": (
        "digits-ect",
        (*FROM_NOTHING, "estimator={kind: blend, estimator: {kind: score-identity, reference: all}}"),
        "estimator.estimator.reference=all: ",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_with_its_key(models: dict[str, Path], case: str) -> None:
    name, keys, match = REFUSED[case]
    with pytest.raises(UserError, match=match):
        plan(models, name, *keys)


def test_what_lies_just_inside_is_taken(models: dict[str, Path]) -> None:
    plan(models, "digits-cmt", *CMT, "steps=128")
    plan(models, "digits-tcm", "start_from=ECT", "below=ECT", "pairs.share=0.04", "train.batch=32")
    plan(models, "digits-cd", "start_from=GUIDED", "estimator.model=GUIDED", "estimator.guidance=2.0")
    plan(models, "digits-sct-continuous", *FROM_NOTHING, "law.low=null", "law.high=null")


def test_what_gives_tcms_targets_is_not_rounded_coarser_than_they_end(models: dict[str, Path]) -> None:
    """A teacher's error is multiplied by t − r, that of the model below t′ is not."""
    keys = ("start_from=ECT", "below=ECT", "train.precision={until_ratio: 0.9, first: bf16, then: fp32}")
    made = plan(models, "digits-tcm", *keys)
    assert made.objective.below.precision.word == "fp32"  # type: ignore[attr-defined]
    teacher = "estimator={kind: teacher, model: TEACHER}"
    made = plan(models, "digits-tcm", *keys, teacher)
    assert made.objective.estimator.model.precision.word == "bf16"  # type: ignore[attr-defined]


def test_data_of_another_deviation_in_the_loss_is_noted(models: dict[str, Path]) -> None:
    said = "sigma_data is 0.5 in the loss, and 1 in the model"
    notes = plan(models, "digits-edm", "precond={kind: edm, sigma_data: 1.0}").notes
    assert any(said in note for note in notes)
    both = ("precond={kind: edm, sigma_data: 1.0}", "weight.sigma_data=1.0")
    assert not any("sigma_data" in note for note in plan(models, "digits-edm", *both).notes)


def test_an_objective_from_python_decides_what_the_network_is_told_and_what_the_card_says() -> None:
    torch.manual_seed(0)
    model = EDMPrecond(ResidualMLP((1, 8, 8), 10, width=8, blocks=1))
    model.card = ModelCard().updated(objective="diffusion")
    method = MeanVelocity(RectifiedFlow(), OneSample())
    (state,) = steps(model, "digits", images=32, batch=32, method=method)
    assert state.trainer.model.two_times
    assert state.trainer.model.card.objective == "mean-velocity"


class Own(nn.Module):
    """A user's network on rows of pixels, with attention or batch normalisation."""

    def __init__(self, normalised: bool) -> None:
        super().__init__()
        self.inner, self.time = nn.Linear(8, 24), nn.Linear(1, 8)
        self.norm = nn.BatchNorm1d(8) if normalised else nn.Identity()

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        rows = x.flatten(1, 2) + self.time(c_noise[:, None])[:, None]
        q, k, v = self.inner(self.norm(rows)).chunk(3, -1)
        return nn.functional.scaled_dot_product_attention(q, k, v).view_as(x)


def continuous(network: nn.Module, **settings: object) -> list[StepReport]:
    model = wrap(network, (1, 8, 8))
    model.card = ModelCard().updated(objective="diffusion")
    states = steps(model, "digits", images=64, batch=32, method="sct-continuous", settings=settings)
    return [state.report for state in states]


def test_a_users_attention_has_its_derivative() -> None:
    assert all(report.finite for report in continuous(Own(normalised=False)))


def test_a_network_without_forward_derivative_is_refused_and_trains_by_differences() -> None:
    network = Own(normalised=True)
    with pytest.raises(UserError, match=r"(?s)network.*no forward derivative.*difference=1e-3"):
        continuous(network)
    assert int(network.norm.num_batches_tracked) == 0
    assert all(report.finite for report in continuous(network, difference=1e-3))


class Timed(Own):
    """A user's network that is told a function of the noise level."""

    def __init__(self, told: Callable[[Tensor], Tensor]) -> None:
        super().__init__(normalised=False)
        self.told = told

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return super().forward(x, self.told(c_noise))


def finely(c_noise: Tensor) -> Tensor:
    return (c_noise * 250).round() / 250


@pytest.mark.parametrize("told", [torch.round, finely, torch.detach], ids=["rounds", "finely", "detaches"])
def test_a_network_that_does_not_follow_the_noise_level_is_refused(told) -> None:
    with pytest.raises(UserError, match=r"network rounds or detaches the noise level"):
        continuous(Timed(told))


@pytest.mark.parametrize(
    "told", [torch.sin, torch.cos, torch.square, torch.abs, torch.relu, torch.zeros_like]
)
def test_a_network_that_follows_the_noise_level_or_ignores_it_is_taken(told) -> None:
    assert all(report.finite for report in continuous(Timed(told)))


def test_differences_pass_a_network_that_detaches_the_noise_level_and_not_one_that_rounds_it() -> None:
    assert all(report.finite for report in continuous(Timed(torch.detach), difference=1e-3))
    with pytest.raises(UserError, match=r"network rounds or detaches the noise level"):
        continuous(Timed(torch.round), difference=1e-3)


def test_a_model_of_tcm_says_its_lowest_level(models: dict[str, Path]) -> None:
    for schedule in ("edm", "vp", "rectified-flow"):
        keys = ("start_from=ECT", "below=ECT", f"schedule={{kind: {schedule}}}", "mid_t=[2.0]")
        tcm = plan(models, "digits-tcm", *keys).model.card
        assert tcm.lowest == 1.0
    assert tcm.learning(Consistency(EDM(), LogNormalPairs(SigmoidGap()), OneSample())).lowest is None


def test_a_users_network_of_one_time_learns_no_jumps() -> None:
    model = wrap(Own(normalised=False), (1, 8, 8))
    with pytest.raises(UserError, match=r"network: mean-velocity needs .* a second time"):
        tune(model, "digits", method="meanflow", images=64, batch=32)


def test_a_model_that_the_settings_name_is_not_replaced_by_the_given_one(models: dict[str, Path]) -> None:
    start = store.load(models["ECT"], "cpu")
    with pytest.raises(UserError, match=r"below: .*nowhere"):
        tune(start, "digits", method="tcm", images=64, batch=32, settings={"below": "nowhere"})
