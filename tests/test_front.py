"""The front door for Python: what it trains is what the commands train, and wrong arguments are one line."""

import inspect
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import consistune as ct
from consistune.core.estimators import OneSample
from consistune.core.noise import EDM, RectifiedFlow
from consistune.core.objectives import Consistency, Huber, InverseGap, MeanVelocity
from consistune.core.times import LogNormalPairs, SigmoidGap
from consistune.data.images import DataSplit, ImageSet, digits
from consistune.data.inputs import as_split
from consistune.errors import UserError
from consistune.front import State, _leave_all, evaluate, method_recipe, methods, steps, train, tune
from consistune.models import load, sample
from consistune.nn.precond import Preconditioned
from consistune.recipe import read_recipe
from consistune.recipe.plan import make_plan
from consistune.training.loop import TrainingDiverged
from consistune.training.run import Interrupted

SMALL = {"kind": "mlp", "width": 16, "blocks": 1, "expansion": 1, "embedding": 16}
OWN = Consistency(EDM(), LogNormalPairs(SigmoidGap()), OneSample())
LONELY = as_split(torch.zeros(9, 1, 8, 8).byte(), [0] * 8 + [1])


class Net(nn.Module):
    """A network that is not ours, with labels."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.config = {"width": width}
        self.first, self.last = nn.Linear(64 + 1 + 10, width), nn.Linear(width, 64)

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor) -> Tensor:
        given = torch.cat([x.flatten(1), c_noise[:, None], labels], 1)
        return self.last(torch.relu(self.first(given))).view_as(x)


def nn_without_labels() -> nn.Module:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(64, 64)

        def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
            return self.inner(x.flatten(1)).view_as(x) * torch.cos(c_noise)[:, None, None, None]

    return Plain()


@pytest.fixture(scope="module")
def teacher() -> Preconditioned:
    torch.manual_seed(0)
    return train(Net(), "digits", images=1280, batch=64)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_a_network_of_ones_own_is_trained_tuned_stored_and_sampled(
    teacher: Preconditioned, tmp_path: Path
) -> None:
    before = weights(teacher).clone()
    model = tune(teacher, "digits", images=640, batch=64)
    assert torch.equal(weights(teacher), before)
    assert not torch.equal(weights(model), before)
    assert (teacher.card.is_diffusion, model.card.is_diffusion) == (True, False)
    model.save(tmp_path / "model")
    again = load(tmp_path / "model")
    assert torch.equal(sample(again, range(4)), sample(model, range(4)))
    made = load(tmp_path / "model", network=Net)
    assert torch.equal(weights(made), weights(model))


def test_training_lowers_the_loss() -> None:
    losses = [state.loss for state in steps(SMALL, "digits", method="edm", images=12_800, batch=64)]
    assert len(losses) == 200
    assert sum(losses[-40:]) < 0.9 * sum(losses[:40])


def test_the_same_training_as_the_recipe_of_the_same_keys() -> None:
    keys = ["train.images=640", "train.batch=64", "network.dropout=0.0", "network.width=16"]
    keys += ["network.blocks=1", "network.expansion=1", "network.embedding=16"]
    recipe = read_recipe("digits-edm", [*keys, "optimizer.lr_schedule={kind: cosine}"])
    trainer = make_plan(recipe).trainer()
    for _ in trainer.steps():
        pass
    states = list(steps({**SMALL, "dropout": 0.0}, "digits", method="edm", images=640, batch=64))
    assert torch.equal(weights(states[-1].trainer.model), weights(trainer.model))


@pytest.fixture(scope="module")
def own() -> Preconditioned:
    """A teacher with a network of ours, which can take a second time."""
    torch.manual_seed(0)
    return train(SMALL, "digits", images=128, batch=64)


@pytest.mark.parametrize("method", methods())
def test_each_method_takes_steps(method: str, own: Preconditioned) -> None:
    start = tune(own, "digits", method="ect", images=64, batch=64) if method == "tcm" else own
    states = list(steps(start, "digits", method=method, images=128, batch=64))
    assert [state.step for state in states] == [1, 2]
    assert all(math.isfinite(state.loss) for state in states)


def test_an_objective_made_of_parts_of_core(teacher: Preconditioned) -> None:
    pairs = LogNormalPairs(SigmoidGap(every_images=1000))
    own = Consistency(EDM(), pairs, OneSample(), Huber(), InverseGap())
    given = {"pairs.gap.every_images": 1000}
    objects = [s.loss for s in steps(teacher, "digits", method=own, images=256, batch=64)]
    named = [s.loss for s in steps(teacher, "digits", method="ect", images=256, batch=64, settings=given)]
    assert objects == named


def test_durations_follow_the_length_of_the_training() -> None:
    short, long = (
        method_recipe("sct", "digits", {"train.images": n, "conditional": True}) for n in (96_000, 192_000)
    )
    assert long.pairs.gap.every_images == 32_000
    assert short.pairs.gap.every_images == 16_000
    assert long.train.ema[0].images == pytest.approx(2 * short.train.ema[0].images, abs=1)


def test_a_callback_ends_the_training(teacher: Preconditioned) -> None:
    seen: list[int] = []
    tune(
        teacher,
        "digits",
        images=6400,
        batch=64,
        on_step=lambda state: seen.append(state.step) or state.step == 3,
    )
    assert seen == [1, 2, 3]


def test_a_stopped_run_is_continued_in_its_folder(teacher: Preconditioned, tmp_path: Path) -> None:
    options = {"images": 640, "batch": 64, "settings": {"train.checkpoint_images": 128}}
    whole = tune(teacher, "digits", out=tmp_path / "whole", **options)
    states = steps(teacher, "digits", out=tmp_path / "cut", **options)
    for state in states:
        if state.step == 5:
            break
    states.close()
    again = tune(teacher, "digits", out=tmp_path / "cut", **options)
    assert torch.equal(weights(again), weights(whole))
    assert torch.equal(weights(load(tmp_path / "cut")), weights(whole))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"samples": 2.5}, "2.5 samples"),
        ({"samples": 64, "steps": 1.5}, "steps: "),
        ({"model": "x"}, "str is no model"),
    ],
)
def test_wrong_arguments_of_evaluate_are_one_line(teacher: Preconditioned, options: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        evaluate(**({"model": teacher, "data": "digits"} | options))


def test_evaluation_measures_what_it_is_asked(teacher: Preconditioned) -> None:
    values = evaluate(teacher, "digits", samples=64, steps=3, metrics=("accuracy",))
    assert set(values) == {"accuracy"}
    assert 0 <= values["accuracy"] <= 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"method": "sctt"}, "unknown method 'sctt'"),
        ({"images": 0}, "0 is not a number of images"),
        ({"settings": {"loss.distanec.c": 1}}, "unknown key loss.distanec"),
        ({"settings": {"start_from": "runs/x"}}, "a run needs either"),
        ({"lr": -1.0}, "lr"),
        ({"conditional": False, "settings": {"estimator.reference": "class"}}, "has no classes"),
    ],
)
def test_wrong_arguments_are_one_line(change: dict, said: str, teacher: Preconditioned) -> None:
    options = {"images": 128, "batch": 64, **change}
    with pytest.raises(UserError, match=said) as caught:
        next(steps(teacher, "digits", **options))
    assert "\n" not in str(caught.value)


def test_settings_that_an_argument_has_or_that_change_nothing_are_refused(teacher: Preconditioned) -> None:
    objective = Consistency(EDM(), LogNormalPairs(SigmoidGap()), OneSample())
    for options, said in (
        ({"settings": {"train.images": 64}}, "is the argument images"),
        ({"settings": {"train": {"batch": 64}}}, "is the argument batch"),
        ({"settings": {"optimizer.lr": 1e-3}, "lr": 1e-3}, "is the argument lr"),
        ({"settings": "a=b"}, "no mapping"),
        ({"settings": {3: 4}}, "no mapping"),
        ({"settings": {"train.evaluate_images": 64}}, "no effect without a folder"),
        ({"settings": {"pairs.mean": 3.0}, "method": objective}, "the objective has its own"),
        ({"settings": {"schedule": {"kind": "vp"}}, "method": objective}, "the objective has its own"),
    ):
        with pytest.raises(UserError, match=said):
            next(steps(teacher, "digits", **({"images": 128, "batch": 64} | options)))


def test_a_run_is_not_continued_with_another_objective(teacher: Preconditioned, tmp_path: Path) -> None:
    first, other = (Consistency(EDM(), LogNormalPairs(SigmoidGap(q=q)), OneSample()) for q in (2.0, 4.0))
    options = {"images": 192, "batch": 64, "out": tmp_path / "run"}
    options["settings"] = {"train.checkpoint_images": 64, "train.snapshots": []}
    states = steps(teacher, "digits", method=first, **options)
    next(states)
    states.close()
    for method in (other, "ect"):
        with pytest.raises(UserError, match="another objective"):
            next(steps(teacher, "digits", method=method, **options))
    again = Consistency(EDM(), LogNormalPairs(SigmoidGap(q=2.0)), OneSample())
    assert [state.images for state in steps(teacher, "digits", method=again, **options)][-1] == 192


def test_a_run_of_a_method_is_not_continued_with_an_objective(
    teacher: Preconditioned, tmp_path: Path
) -> None:
    options = {"images": 192, "batch": 64, "out": tmp_path / "run"}
    states = steps(teacher, "digits", method="ect", **options)
    next(states)
    states.close()
    with pytest.raises(UserError, match="another objective"):
        next(steps(teacher, "digits", method=OWN, **options))
    (tmp_path / "mine" / "model").mkdir(parents=True)
    with pytest.raises(UserError, match="belongs to no run"):
        next(steps(teacher, "digits", method=OWN, **(options | {"out": tmp_path / "mine"})))
    assert {path.name for path in (tmp_path / "mine").iterdir()} == {"model", ".lock"}


@pytest.mark.parametrize("out", [None, "run"])
def test_a_model_that_diverged_is_not_returned(tmp_path: Path, out: str | None) -> None:
    with pytest.raises(TrainingDiverged, match="diverged at step"):
        train(SMALL, "digits", images=640, lr=1e30, out=out and tmp_path / out)


def test_what_a_training_changes_of_its_teacher_is_said(teacher: Preconditioned, tmp_path: Path) -> None:
    split = digits().train
    data = as_split(split.images, split.labels // 5)
    with pytest.warns(UserWarning, match="the given model is adapted: new: "):
        tune(train(SMALL, "digits", images=64, batch=64), data, images=64, batch=64)
    tune(teacher, "digits", images=64, batch=64, out=tmp_path / "run")
    assert "started from a model in memory" in (tmp_path / "run" / "log.txt").read_text()


def test_a_run_from_python_is_measured_where_it_is_asked(teacher: Preconditioned, tmp_path: Path) -> None:
    settings = {"train.evaluate_images": 64, "train.log_images": 64, "train.snapshots": []}
    tune(teacher, "digits", images=64, batch=64, settings=settings, out=tmp_path / "run")
    assert "evaluate/" in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_a_network_without_labels_does_not_learn_classes() -> None:
    plain = train(nn_without_labels(), "digits", images=64, batch=64, conditional=False)
    with pytest.raises(UserError, match=r"conditional: .*without labels"):
        tune(plain, "digits", images=64, batch=64, conditional=True)


def test_a_teacher_is_named_inside_a_blend_too(teacher: Preconditioned) -> None:
    inner = {"kind": "teacher", "model": "no-such"}
    for settings in (
        {"estimator": inner},
        {"estimator": {"kind": "blend", "estimator": inner}},
        {"estimator.kind": "blend", "estimator.estimator": inner},
    ):
        with pytest.raises(UserError, match="no-such"):
            tune(teacher, "digits", images=32, batch=32, method="ect", settings=settings)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_held_out_images_end_no_evaluation(teacher: Preconditioned, count: int) -> None:
    split = digits()
    assert split.held_out is not None
    own = split.held_out
    few = DataSplit(split.train, ImageSet.of("few", own.images[:count], own.labels[:count], own.class_names))
    found = evaluate(teacher, few, samples=16, steps=1)
    assert all(math.isfinite(value) for value in found.values())
    assert found


def test_data_without_the_models_classes_are_measured_by_all_of_them(
    teacher: Preconditioned, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    images = digits().train.images

    def watched(model: Preconditioned, seeds: list[int], condition: Tensor, **_: object) -> Tensor:
        asked.extend(condition.tolist())
        return images[: len(seeds)]

    monkeypatch.setattr("consistune.evaluation.sources.sample", watched)
    data = as_split(images, digits().train.labels // 5)
    evaluate(teacher, data, samples=20, steps=1)
    assert asked == list(range(10)) * 2


def test_a_target_network_that_is_never_asked_is_refused(teacher: Preconditioned) -> None:
    method = MeanVelocity(RectifiedFlow(), OneSample())
    with pytest.raises(UserError, match="asks no target network"):
        tune(teacher, "digits", images=32, method=method, settings={"target": {"kind": "average"}})


def test_the_given_model_is_named_where_it_cannot_stand_for_the_frozen_one(teacher: Preconditioned) -> None:
    with pytest.raises(UserError, match="below: the given model is a diffusion model"):
        tune(teacher, "digits", images=64, batch=64, method="tcm")


def test_tuning_needs_a_trained_model() -> None:
    with pytest.raises(UserError, match="needs a trained diffusion model, Net is given"):
        tune(Net(), "digits", images=128)


@pytest.mark.parametrize("network", [Net, None, 3])
def test_what_is_no_network_is_named(network: object) -> None:
    seen = network.__name__ if isinstance(network, type) else type(network).__name__
    with pytest.raises(UserError, match=f"network: {seen} is no network"):
        train(network, "digits", images=64)


class Other(nn.Module):
    """A network whose result is `change` of images."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.change = nn.Conv2d(1, 1, 1), change

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.change(self.layer(x))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda y: y[:, :, 1:], r"gives \[2, 1, 7, 8\], expected images \[2, 1, 8, 8\]"),
        (lambda y: y.detach(), "gives torch.float32 without a gradient"),
        (lambda y: y.long(), "gives torch.int64 without a gradient"),
        (lambda y: y * math.nan, "gives values that are not finite"),
    ],
)
def test_a_network_that_cannot_learn_is_named(change: Callable[[Tensor], Tensor], said: str) -> None:
    with pytest.raises(UserError, match=f"network: Other {said}"):
        train(Other(change), "digits", images=64)


@pytest.mark.parametrize(
    ("attempt", "said"),
    [
        (lambda m: tune(m, "digits", images=64, method=3), "method: int is no method"),
        (lambda m: tune(m, "digits", images=64, on_step=3), "on_step: 3 is no function"),
        (lambda m: tune(m, "digits", images=64, out=__file__), "out: .* is a file"),
        (lambda m: tune(m, "digits", images=64, out="/proc/x"), "out: .* cannot be written"),
        (lambda m: tune(m, torch.zeros(1, 1, 8, 8).byte(), images=64), "data: one image is no set"),
        (lambda m: tune(m, LONELY, images=64), "the class '1' has 1 image; .* conditional=False"),
        (
            lambda m: tune(m, digits().train.images, images=64),
            "data: the images have one class, the model knows 10; give labels",
        ),
        (
            lambda m: train("mlp", digits().train.images, images=64, conditional=True),
            "data: the images have one class; give labels",
        ),
        (lambda m: evaluate(m, "digits", metrics="fd"), r"metrics: 'fd' is one name; give \['fd'\]"),
        (lambda m: m.save("/proc/x"), "folder: .* cannot be written"),
        (lambda m: sample("m", [1]), "model: str is no model"),
        (lambda m: sample(m, 5), "seeds: 5 are no integers"),
        (lambda m: sample(m, ["a"]), r"seeds: \['a'\] are no integers"),
        (lambda m: sample(m, [1], steps=0), "sample: .*got 0"),
        (lambda m: evaluate(m, "digits", samples=1), "samples: 1 samples"),
        (lambda m: evaluate(m, torch.zeros(4, 1, 4, 4).byte()), r"the data are \[1, 4, 4\]"),
        (lambda m: load("emoji64", device="toaster"), "device toaster: .*; use cpu"),
        (lambda m: ct.wrap(None, (1, 8, 8)), "network: NoneType is no network"),
    ],
)
def test_what_cannot_work_is_one_line(
    attempt: Callable[[Preconditioned], object], said: str, teacher: Preconditioned
) -> None:
    with pytest.raises(UserError, match=said) as caught:
        attempt(teacher)
    assert "\n" not in str(caught.value)


def test_a_single_step_model_takes_no_zero_steps(own: Preconditioned) -> None:
    model = tune(own, "digits", images=64, batch=64)
    with pytest.raises(UserError, match="steps must be at least 1, got 0"):
        sample(model, [1], steps=0)


def test_the_front_door_is_all_that_shows_and_is_explained() -> None:
    assert set(dir(ct)) == {"__version__", *ct.WHERE}
    for name in ct.WHERE:
        function = getattr(ct, name)
        assert len(inspect.getdoc(function) or "") > 40, name
        hints = inspect.signature(function)
        assert hints.return_annotation is not inspect.Signature.empty, name
        assert all(p.annotation is not inspect.Parameter.empty for p in hints.parameters.values()), name


def test_the_method_can_be_reached_from_the_package() -> None:
    code = "import consistune, sys; consistune.core; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_tensors_train_as_the_set_they_were_taken_from() -> None:
    split = digits().train
    own = as_split(split.images, split.labels)
    named, given = (
        [s.loss for s in steps(SMALL, data, method="edm", images=256, batch=64)] for data in ("digits", own)
    )
    assert named == given


def page_blocks() -> list[str]:
    page = (Path(__file__).parents[1] / "docs" / "python.md").read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", page, re.DOTALL)


def test_every_block_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = [block for block in page_blocks() if "from diffusers" not in block]
    code = re.sub(r"images=\d\d+_000(, batch=256)?", "images=256", "\n".join(blocks))
    assert len(blocks) == 4
    assert code.count("images=256") == 5
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {"__name__": "python_page"}
    exec(compile(code, "docs/python.md", "exec"), scope)
    assert torch.equal(sample(scope["again"], range(64)), scope["images"])


def test_the_notebook_with_a_unet_of_diffusers_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("diffusers", reason="the extra diffusers is not installed")
    (block,) = (block for block in page_blocks() if "from diffusers" in block)
    assert len(block.splitlines()) <= 20
    code = re.sub(r"images=\d[\d_]+", "images=4, batch=4", block)
    monkeypatch.chdir(tmp_path)
    photos = torch.rand(12, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    scope = {"data": as_split(photos, torch.arange(12) % 3, value_range=(0, 1))}
    exec(compile(code, "docs/python.md", "exec"), scope)
    assert scope["picture"].size == (16, 16)
    assert type(scope["pipe"]).__name__ == "ConsistencyModelPipeline"


def test_an_error_in_a_callback_gives_the_runs_folder_free(tmp_path: Path) -> None:
    """A notebook keeps the error, and with it the frames of its traceback."""

    def wrong(_: object) -> None:
        raise ZeroDivisionError

    kept = None
    try:
        train("mlp", "digits", images=256, batch=64, out=tmp_path / "run", on_step=wrong)
    except ZeroDivisionError as error:
        kept = error
    train("mlp", "digits", images=256, batch=64, out=tmp_path / "run")
    assert kept is not None


class Two(nn.Module):
    """Two convolutions, with labels or without."""

    def __init__(self, classes: int = 0) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1 + classes, 4, 3, padding=1), nn.Conv2d(4, 1, 3, padding=1)

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        maps = [] if labels is None else [labels[:, :, None, None].expand(-1, -1, *x.shape[2:])]
        return self.b(torch.relu(self.a(torch.cat([x, *maps], 1)) + c_noise[:, None, None, None]))


PLAIN = digits().train.images[:200]
THREE = as_split(PLAIN, torch.arange(200) % 3)
LONG = {"images": 640, "batch": 64}


@pytest.mark.parametrize("kind", ["adam", "adamw", "radam"])
def test_frozen_weights_stay_as_they_are(kind: str, tmp_path: Path) -> None:
    """Through a training, a tuning that is stopped and continued, and with weight decay."""
    network = Two()
    network.b.requires_grad_(False)
    options = {**LONG, "settings": {"optimizer.kind": kind, "optimizer.weight_decay": 0.1}}
    first = train(network, PLAIN, **options)
    second = tune(first, PLAIN, **options, out=tmp_path / "run", on_step=lambda state: state.step == 3)
    third = tune(first, PLAIN, **options, out=tmp_path / "run")
    for model in (first, second, third):
        assert torch.equal(weights(model.network.module.b), weights(network.b))
    parts = [weights(part.a) for part in (network, *(m.network.module for m in (first, second, third)))]
    assert not any(torch.equal(before, after) for before, after in pairwise(parts))


def stop(state: State) -> bool:
    return state.step == 3


def fail(state: State) -> None:
    if state.step == 3:
        raise ZeroDivisionError


def train_and_stop(network: nn.Module, out: Path) -> None:
    train(network, PLAIN, **LONG, out=out, on_step=stop)


def train_and_fail(network: nn.Module, out: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        train(network, PLAIN, **LONG, out=out, on_step=fail)


def break_off(network: nn.Module, out: Path) -> None:
    for state in steps(network, PLAIN, method="edm", **LONG, out=out):
        if state.step == 3:
            break


def end_the_program(network: nn.Module, out: Path) -> None:
    states = steps(network, PLAIN, method="edm", **LONG, out=out)
    for _ in range(3):
        next(states)
    _leave_all()


@pytest.mark.parametrize("end", [train_and_stop, train_and_fail, break_off, end_the_program])
def test_a_training_that_is_left_goes_on_where_it_was(
    end: Callable[[nn.Module, Path], None], tmp_path: Path
) -> None:
    network, seen = Two(), []
    end(network, tmp_path / "run")
    assert "stopped at 192 images" in (tmp_path / "run" / "log.txt").read_text()
    again = train(network, PLAIN, **LONG, out=tmp_path / "run", on_step=lambda s: seen.append(s.step))
    assert seen == list(range(4, 11))
    assert torch.equal(weights(again), weights(train(network, PLAIN, **LONG)))


def test_a_callback_may_end_a_training_in_its_last_step(tmp_path: Path) -> None:
    train(Two(), PLAIN, images=128, batch=64, out=tmp_path / "run", on_step=lambda state: state.step == 2)
    assert (tmp_path / "run" / "model").is_dir()


def test_a_state_that_is_not_sound_is_not_saved(tmp_path: Path) -> None:
    def spoil(state: State) -> bool:
        next(state.trainer.model.parameters()).data.fill_(math.nan)
        return True

    train(Two(), PLAIN, **LONG, out=tmp_path / "run", on_step=spoil)
    assert "64 images is not saved: weights are not finite" in (tmp_path / "run" / "log.txt").read_text()
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 1


def test_a_run_is_not_continued_with_another_teacher(tmp_path: Path) -> None:
    first, other = (train(Two(), PLAIN, images=64, batch=64) for _ in range(2))
    options = {**LONG, "method": "cd", "out": tmp_path / "run"}
    tune(first, PLAIN, **options, on_step=stop)
    with pytest.raises(UserError, match="the folder's run began from other weights; take another out"):
        tune(other, PLAIN, **options)
    tune(first, PLAIN, **options, on_step=lambda state: state.step == 5)
    (tmp_path / "run" / "weights.txt").unlink()  # as an older version left it
    tune(other, PLAIN, **options)


def test_a_run_goes_on_with_its_own_weights_where_a_fresh_network_is_given(tmp_path: Path) -> None:
    train(Two(), PLAIN, **LONG, out=tmp_path / "run", on_step=stop)
    train(Two(), PLAIN, **LONG, out=tmp_path / "run")
    said = "warning: the network has other weights than the run began with, which goes on with its own"
    assert said in (tmp_path / "run" / "log.txt").read_text()


def test_the_random_numbers_of_the_caller_are_the_callers() -> None:
    torch.manual_seed(5)
    expected = torch.rand(11)
    torch.manual_seed(5)
    drawn = [torch.rand(()) for _ in steps("mlp", PLAIN, method="edm", **LONG)] + [torch.rand(())]
    assert torch.equal(torch.stack(drawn), expected)


def test_a_signal_in_a_callback_names_the_folder_and_the_way_on(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    said = f"stopped at 256 images, saved in {tmp_path / 'run'}; the same call continues"
    with pytest.raises(Interrupted, match=re.escape(said)):
        train(
            Two(),
            PLAIN,
            **LONG,
            out=tmp_path / "run",
            on_step=lambda state: state.step == 3 and os.kill(os.getpid(), signal.SIGTERM),
        )
    assert signal.getsignal(signal.SIGTERM) == before


def test_signals_between_two_steps_are_the_callers(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    states = steps(Two(), PLAIN, method="edm", **LONG, out=tmp_path / "run")
    next(states)
    assert signal.getsignal(signal.SIGINT) == before
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(UserError, match=r"\(or a generator of this program that is still open\)"):
        next(steps(Two(), PLAIN, method="edm", **LONG, out=tmp_path / "run"))
    own = signal.signal(signal.SIGINT, signal.SIG_IGN)
    next(states)
    states.close()
    assert signal.signal(signal.SIGINT, own) == signal.SIG_IGN


@pytest.mark.parametrize(
    ("data", "conditional", "said"),
    [
        (THREE, False, "wrapped with 3 classes, and the run has no classes"),
        (as_split(PLAIN, torch.arange(200) % 2), None, "wrapped with 3 classes, and the run has 2 classes"),
    ],
)
def test_a_network_of_ones_own_keeps_its_classes(
    data: DataSplit, conditional: bool | None, said: str
) -> None:
    known = train(Two(3), THREE, images=64, batch=64)
    with pytest.raises(UserError, match=said):
        tune(known, data, images=64, batch=64, conditional=conditional)


def test_a_network_that_can_do_without_its_labels_may() -> None:
    class Free(Two):
        def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
            return super().forward(x, c_noise) + (0 if labels is None else labels.sum() * 0)

    known = train(Free(), THREE, images=64, batch=64)
    assert tune(known, THREE, images=64, batch=64, conditional=False).num_classes == 0


def test_settings_are_sections_and_numbers_of_numpy_too() -> None:
    settings = {
        "train": {"ema": np.array([0.5]), "microbatch": np.int64(16)},
        "optimizer": {"kind": "adamw", "eps": np.float32(0.5), "weight_decay": torch.tensor(0.25)},
    }
    options = {"images": np.int64(64), "batch": np.int64(32), "seed": np.int64(3), "lr": np.float32(0.5)}
    trainer = next(steps(Two(), PLAIN, method="edm", **options, settings=settings)).trainer
    assert (trainer.options.images, trainer.options.batch, trainer.options.seed) == (64, 32, 3)
    assert (trainer.options.microbatch, trainer.averages[0].average.beta) == (16, 0.5)
    optimizer = trainer.optimizer_options
    assert (optimizer.kind, optimizer.lr, optimizer.eps, optimizer.weight_decay) == ("adamw", 0.5, 0.5, 0.25)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"out": ""}, "out: is empty"),
        ({"method": Consistency}, r"method: Consistency is a class; give Consistency\(…\)"),
        ({"images": None}, "images: None is not a number of images"),
        ({"settings": {"train.ema": object()}}, r"settings\['train.ema'\]: object is no value of a recipe"),
        ({"settings": {"optimizer": {"lr": 0.1}}, "lr": 0.1}, "is the argument lr"),
    ],
)
def test_arguments_of_another_kind_are_one_line(change: dict, said: str, teacher: Preconditioned) -> None:
    with pytest.raises(UserError, match=said):
        next(steps(teacher, "digits", **({"images": 64, "batch": 64} | change)))


def test_a_folder_may_lie_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    train("mlp", PLAIN, images=64, batch=64, out="~/run")
    assert (tmp_path / "run" / "model").is_dir()


def test_metrics_are_any_list_and_a_number_of_samples_may_be_numpys(teacher: Preconditioned) -> None:
    assert evaluate(teacher, "digits", samples=np.int64(64), steps=3, metrics=["accuracy"]).keys() == {
        "accuracy"
    }
