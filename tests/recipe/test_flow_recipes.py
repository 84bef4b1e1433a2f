"""Recipes of continuous-time consistency and MeanFlow: what they refuse, train, store and continue."""

from pathlib import Path
from typing import Any

import pytest
import torch

from consistune.core.sampling import Multistep, PhasedSteps
from consistune.errors import UserError
from consistune.models import default_sampler, load, sample
from consistune.nn import store
from consistune.nn.adapt import adapt
from consistune.nn.precond import EDMPrecond
from consistune.nn.small import ResidualMLP
from consistune.recipe import read_recipe
from consistune.recipe.plan import Plan, make_plan
from consistune.training.options import TrainOptions

MLP = "{kind: mlp, width: 8, blocks: 1%s}"
TINY = ["start_from=null", "train.batch=8", "train.images=32", "train.checkpoint_images=16"]
RECIPES = {"digits-sct-continuous": MLP % "", "digits-meanflow": MLP % ", second_time: true"}
RECIPES["digits-imf"] = RECIPES["digits-meanflow"]


def plan(name: str, *overrides: str) -> Plan:
    return make_plan(read_recipe(name, [f"network={RECIPES[name]}", *TINY, *overrides]))


@pytest.mark.parametrize(
    ("name", "overrides", "words"),
    [
        ("digits-meanflow", ["network={kind: mlp, width: 8}"], ["network", "second_time: true"]),
        ("digits-meanflow", ["intervals={kind: logit-normal, highest: 1.0}"], ["intervals", "highest"]),
        ("digits-meanflow", ["estimator={kind: teacher}"], ["estimator.model", "missing"]),
        ("digits-meanflow", ["guidance={omega: 2.0}"], ["train.label_dropout"]),
        ("digits-meanflow", ["guidance={low: 2.0, high: 1.0}"], ["guidance", "low"]),
        ("digits-meanflow", ["target={kind: online}"], ["target"]),
        (
            "digits-meanflow",
            ["conditional=false", "guidance={kappa: 0.5}", "estimator={kind: one-sample}"],
            ["guidance", "conditional: true"],
        ),
        ("digits-sct-continuous", ["estimator={kind: teacher}"], ["estimator.model", "missing"]),
        ("digits-sct-continuous", ["precond={kind: edm}"], ["uncertainty", "edm2"]),
        ("digits-meanflow", ["train.shard=true"], ["train.shard", "derivatives"]),
        ("digits-sct-continuous", ["c=0"], ["c", "greater than 0"]),
        ("digits-sct-continuous", ["target={kind: online}"], ["target"]),
    ],
)
def test_what_cannot_work_is_refused_by_its_key(name, overrides, words) -> None:
    with pytest.raises(UserError) as error:
        plan(name, *overrides)
    line = str(error.value)
    assert "\n" not in line
    assert all(word in line for word in words), line


@pytest.mark.parametrize(("name", "left_open"), [("digits-sct-continuous", False), ("digits-ect", None)])
def test_where_a_derivative_is_taken_only_a_recipe_that_asks_is_compiled(
    name, left_open, monkeypatch
) -> None:
    asked: list[object] = []
    on = TrainOptions.on
    monkeypatch.setattr(TrainOptions, "on", lambda self, place: asked.append(self.compile) or on(self, place))
    keys = [f"network={RECIPES['digits-sct-continuous']}", *TINY]
    make_plan(read_recipe(name, keys))
    assert asked[-1] is left_open
    assert make_plan(read_recipe(name, [*keys, "train.compile=true"])).options.compile is True


@pytest.mark.parametrize("name", RECIPES)
def test_a_stopped_run_goes_on_to_the_same_model(name) -> None:
    """From the state half-way; what is random in a step follows from its number."""
    whole, first = plan(name).trainer(), plan(name).trainer()
    for _ in whole.steps():
        pass
    steps = first.steps()
    next(steps), next(steps)
    state = first.state_dict()
    second = plan(name).trainer()
    second.load_state_dict(state)
    for _ in second.steps():
        pass
    pairs = zip(whole.averaged.parameters(), second.averaged.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", RECIPES)
def test_a_stored_model_samples_as_its_card_says(name, tmp_path: Path) -> None:
    trainer = plan(name).trainer()
    for _ in trainer.steps():
        pass
    store.save(trainer.averaged, tmp_path / "model")
    model = load(tmp_path / "model")
    two_times = name != "digits-sct-continuous"
    assert model.two_times == two_times
    assert model.card.objective == ("mean-velocity" if two_times else "continuous")
    kind = PhasedSteps if two_times else Multistep
    assert isinstance(default_sampler(model, 2), kind)
    for steps in (None, 1, 2):
        expected = sample(trainer.averaged, range(4), steps)
        assert torch.equal(sample(model, range(4), steps), expected)


@pytest.mark.parametrize("name", ["digits-meanflow", "digits-sct-continuous"])
def test_a_run_starts_from_a_diffusion_model(name, tmp_path: Path) -> None:
    """A flow map of two times begins with the teacher's x̂_0 for every jump; the card names what is new."""
    torch.manual_seed(0)
    teacher = EDMPrecond(ResidualMLP((1, 8, 8), 10, width=8, blocks=1))
    for parameter in teacher.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    store.save(teacher, tmp_path / "teacher")
    model = plan(name, "network=null", f"start_from={tmp_path / 'teacher'}", "dropout=0").model
    x, t = torch.randn(3, 1, 8, 8), torch.tensor([0.1, 1.0, 5.0])
    ends = [None] if name == "digits-sct-continuous" else [None, t / 2, 0 * t]
    for s in ends:
        found = model.eval()(x, t, torch.tensor([1, 2, 3]), s)
        torch.testing.assert_close(found, teacher.eval()(x, t, torch.tensor([1, 2, 3])))
    origin = model.card.start_from
    assert origin is not None
    assert all("second" in new or "logvar" in new for new in origin.new)


ESTIMATORS = (
    "{kind: one-sample}",
    "{kind: score-identity, reference: batch}",
    "{kind: score-identity, reference: class, size: 4}",
    "{kind: blend, estimator: {kind: score-identity, reference: class}}",
)


@pytest.mark.parametrize("schedule", ["edm", "vp", "trigonometric"])
@pytest.mark.parametrize("name", RECIPES)
def test_any_schedule_and_estimator_takes_a_step(name, schedule) -> None:
    for estimator in ESTIMATORS:
        trainer = plan(name, f"schedule={{kind: {schedule}}}", f"estimator={estimator}").trainer()
        report = next(trainer.steps())
        assert report.finite
        assert report.gradient_norm > 0


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_derivatives_are_taken_in_fp32(precision) -> None:
    """The pass is in the run's precision, its derivative is not; afterwards the precision is as it was."""
    trainer = plan("digits-meanflow", f"train.precision={precision}").trainer()
    passes: Any = trainer.step_loss._denoiser(trainer.model).model
    seen: list[torch.dtype] = []
    hook = trainer.model.network.leave.register_forward_hook(lambda m, i, out: seen.append(out.dtype))
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([0.5, 1.0])
    passes(x, t)
    with passes.exactly():
        passes(x, t)
    passes(x, t)
    hook.remove()
    half = torch.bfloat16 if precision == "bf16" else torch.float16
    assert seen == [half, torch.float32, half]
    assert next(trainer.steps()).finite


def test_a_sampler_under_another_schedule_converts_the_model() -> None:
    """sample(schedule=…): the same images as under EDM's, where one step leaves no room to differ."""
    torch.manual_seed(0)
    network = ResidualMLP((1, 8, 8), width=8, blocks=1)
    torch.nn.init.normal_(network.leave.weight)
    model = adapt(EDMPrecond(network), second_time=True).model
    images = []
    for schedule in (
        plan("digits-meanflow", f"schedule={{kind: {k}}}").objective.schedule for k in ("edm", "vp")
    ):
        t = schedule.time_at(torch.tensor([80.0], dtype=torch.float64))
        sampler = Multistep(t_max=float(t))
        images.append(sample(model, range(4), schedule=schedule, sampler=sampler).float())
    assert float((images[0] - images[1]).abs().max()) <= 1
    assert float(images[0].std()) > 1
