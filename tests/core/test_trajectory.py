"""Consistency mid-training: the published step and its solver, LPIPS, and what a trajectory must be."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from consistune.core.estimators import OneSample, ScoreIdentity, Teacher
from consistune.core.noise import EDM
from consistune.core.objectives import LPIPS, Huber, SquaredL2, Trajectory
from consistune.core.posterior.mean import Reference
from consistune.core.solve import dpm_solver
from consistune.core.types import Batch, expand
from consistune.errors import UserError
from consistune.nn import store
from consistune.recipe import read_recipe
from consistune.recipe.plan import make_plan
from tests.core.test_objectives import Net, gaussian_data, images
from tests.support.gaussian import SCHEDULES, Anisotropic
from tests.support.toy import ToyDenoiser, close, compare, entries, gradients, in_float32, of_variant

STD = torch.tensor([[[0.2, 0.5], [0.9, 1.4]]], dtype=torch.float64)
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)


# The published step ---------------------------------------------------------------------------------------


VARIANTS = entries("cmt/cmt", r"(\w+)\.loss")
METRICS = {"MAE": Huber(), "MSE": SquaredL2()}
"""By the published names: the L2 norm, and its square."""


class Step:
    """A variant's objective, networks and draws; the fixture has a step's rows together, ours a sample's."""

    def __init__(self, arrays: dict[str, Any], variant: str) -> None:
        of = lambda name: arrays[f"{variant}.{name}"]
        self.student, self.teacher = ToyDenoiser(arrays), ToyDenoiser(arrays, "teacher_")
        self.x_0, self.noise, k = of("x_0"), of("noise"), int(of("nfe"))
        self.size = len(self.x_0), k
        self.objective = Trajectory(EDM(), Teacher(self.teacher), METRICS[str(of("metric"))], steps=k)
        draws = self.objective.at(Batch(self.x_0.repeat(k, 1, 1, 1)), self.noise.repeat(k, 1, 1, 1))
        t = self.objective.grid[:-1].to(self.x_0).repeat(len(self.x_0))
        self.draws = replace(draws, times=replace(draws.times, t=t))

    def by_step(self, rows: Tensor) -> Tensor:
        return rows.unflatten(0, self.size).transpose(0, 1).flatten(0, 1)

    def losses(self) -> Tensor:
        return self.by_step(self.objective.losses(self.student, self.student, self.draws))


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_is_cmts_step(parity, variant: str) -> None:
    """Grid, trajectory, predictions, losses and gradients."""
    fixture = parity("cmt/cmt")
    step = Step(fixture, variant)
    losses, objective = step.losses(), step.objective
    points = objective.trajectories(Batch(step.x_0), step.noise, objective.estimator)
    sigma = step.by_step(step.draws.times.t)
    found = {
        "time_grid": objective.grid,
        "trajectory": points,
        "target": points[-1],
        "sigma": sigma,
        "prediction": step.student(points[:-1].flatten(0, 1), sigma),
        "loss": losses,
        **gradients(step.student, losses.mean()),
    }
    compare(of_variant(fixture, variant), found, given=["x_0", "noise", "batch", "nfe", "metric"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_is_cmts_step_in_float32(parity, variant: str) -> None:
    """Two steps in float32. Of 80 other draws the worst gradient was 2.4e-6 off."""
    fixture = parity("cmt/cmt")
    step = Step(in_float32(fixture), variant)
    losses = step.losses()
    stored = of_variant(fixture, variant, "_f32")
    if "loss" in stored:
        close(losses, stored.pop("loss"), 6e-5)
    end = step.objective.trajectories(Batch(step.x_0), step.noise, step.objective.estimator)[-1]
    compare(stored, {"trajectory_end": end, **gradients(step.student, losses.mean())}, 4e-6)


def test_lpips_is_the_published_distance(parity) -> None:
    fixture = parity("lpips/lpips_narrow")
    lpips = LPIPS(fixture)
    a, b = (fixture[name].double().requires_grad_() for name in ("image_a", "image_b"))
    close(lpips.by_layer(a, b), fixture["per_layer"])
    distance = lpips(a, b)
    close(distance, fixture["distance"])
    distance.mean().backward()
    close(a.grad, fixture["grad_a_of_mean"])
    published = {
        key.replace(".weight", ".model.1.weight") if key[:3] == "lin" else key: v
        for key, v in fixture.items()
    }
    assert torch.equal(LPIPS(published)(a, b), distance)
    single = LPIPS({key: value.float() for key, value in fixture.items()})
    close(single(a.float(), b.float()), fixture["distance_f32"], 1e-6)


# LPIPS ----------------------------------------------------------------------------------------------------


def narrow(seed: int = 0) -> dict[str, Tensor]:
    """Weights of a narrow trunk."""
    g = torch.Generator().manual_seed(seed)
    weights, before = {}, 3
    groups = {0: (0, 2), 1: (5, 7), 2: (10, 12, 14), 3: (17, 19, 21), 4: (24, 26, 28)}
    for number, places in groups.items():
        for place in places:
            weights[f"features.{place}.weight"] = torch.randn(4, before, 3, 3, generator=g) / 4
            weights[f"features.{place}.bias"] = torch.randn(4, generator=g) / 4
            before = 4
        weights[f"lin{number}.weight"] = torch.rand(1, 4, 1, 1, generator=g)
    return weights


def test_equal_images_are_at_distance_zero_with_a_finite_gradient() -> None:
    """Also where every feature of a pixel is 0, at which a plain root would give NaN."""
    weights = narrow()
    weights["features.2.bias"] = torch.full((4,), -100.0)
    a = torch.randn(2, 1, 16, 16, requires_grad=True)
    distance = LPIPS(weights)(a, torch.randn(2, 1, 16, 16))
    distance.sum().backward()
    assert bool(torch.isfinite(a.grad).all())
    assert torch.equal(LPIPS(narrow())(a, a), torch.zeros(2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features.7.bias": None}, "no features.7.bias"),
        ({"lin3.weight": None}, "no lin3.weight"),
        ({"lin3.weight": torch.ones(1, 5, 1, 1)}, "lin3.weight has shape"),
        ({"features.12.weight": torch.ones(4, 5, 3, 3)}, "features.12.weight has shape"),
    ],
)
def test_other_networks_weights_are_refused(change, message) -> None:
    weights = {key: value for key, value in (narrow() | change).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        LPIPS(weights)


# The solver -----------------------------------------------------------------------------------------------


@every_schedule
@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_solver_converges_with_its_order(schedule, order) -> None:
    """On the Gaussian's exact flow; twice the steps, 2^order times less error; order 3 falls as order 2."""
    gaussian = Anisotropic(schedule, STD)
    ratio = torch.tensor([20.0, 0.05], dtype=torch.float64)
    start = 20 * schedule.alpha(schedule.time_at(ratio[:1])) * gaussian_data(3)

    def error(steps: int, order: int = order) -> float:
        share = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        times = schedule.time_at(ratio[0] * (ratio[1] / ratio[0]) ** share)
        points = dpm_solver(schedule, gaussian.denoise, start, times, order)
        top, end = times[:1].expand(3), times[-1:].expand(3)
        return float((points[-1] - gaussian.flow(start, top, end)).abs().max())

    rate, expected = error(100) / error(200), 2 ** min(order, 2)
    assert 0.8 * expected < rate < 1.3 * expected
    assert order == 1 or error(100) < error(100, order - 1) / 2


# The objective --------------------------------------------------------------------------------------------


@every_schedule
def test_an_exact_teachers_trajectories_give_the_exact_map(schedule) -> None:
    gaussian = Anisotropic(schedule, STD)
    exact = lambda x, t, c=None: gaussian.flow(x, t, 0 * t)

    def loss(model, steps: int, **options) -> float:
        objective = Trajectory(schedule, Teacher(gaussian.denoise), steps=steps, low=1e-5, **options)
        batch = Batch(gaussian_data(steps))
        draws = objective.draw(batch, 0, torch.Generator().manual_seed(0))
        return float(objective.losses(model, model, draws).max())

    coarse, fine = (loss(exact, steps) for steps in (60, 120))
    assert fine < 2e-3
    assert fine < coarse
    assert loss(gaussian.denoise, 120) > 0.05
    assert loss(exact, 60, order=1) > 3 * coarse


@pytest.mark.parametrize("estimator", ["teacher", "classes"])
def test_parts_of_a_batch_have_its_losses_also_with_labels(estimator: str) -> None:
    """The labels of an image hold along its whole trajectory, and parts may begin within one."""
    x_0, labels = images(10), torch.tensor([0, 1, 2, 1, 0, 2, 2, 0, 1, 0])

    def labelled(x, t, condition=None):
        assert condition.shape == t.shape
        return x / (1 + expand(t, x)) + expand(condition.to(x), x) / 10

    by = {"teacher": Teacher(labelled), "classes": ScoreIdentity(EDM(), Reference.grouped(x_0, labels))}
    objective = Trajectory(EDM(), by[estimator], steps=4)
    draws = objective.draw(Batch(x_0, labels), 0, torch.Generator().manual_seed(1))
    assert draws.batch.condition.tolist() == [0] * 4 + [1] * 4 + [2] * 2
    assert torch.equal(draws.batch.x_0[7], x_0[1])
    whole = objective.losses(labelled, labelled, draws)
    assert whole.shape == (10,)
    for size in (4, 3, 1):
        parts = [
            objective.losses(labelled, labelled, draws.rows(slice(i, min(i + size, 10))))
            for i in range(0, 10, size)
        ]
        torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-4, atol=1e-5)
    single = objective.draw(Batch(x_0[:1], labels[:1]), 0, torch.Generator().manual_seed(1))
    assert objective.losses(labelled, labelled, single).shape == (1,)


def test_no_gradient_reaches_the_trajectory() -> None:
    net, teacher = Net(), Net(seed=1)
    objective = Trajectory(EDM(), Teacher(teacher), steps=3)
    objective(net, net, Batch(images(6)), 0, torch.Generator().manual_seed(0)).sum().backward()
    assert teacher.weight.grad is None
    assert float(net.weight.grad.abs().max()) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimator": OneSample()}, "one-sample"),
        ({"estimator": ScoreIdentity(EDM(), Reference.ungrouped(images(4)), size=2)}, "random references"),
        ({"order": 4}, "order"),
        ({"steps": 0}, "steps"),
        ({"low": 90.0}, "low < high"),
    ],
)
def test_impossible_trajectories_are_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        Trajectory(EDM(), **{"estimator": Teacher(Net()), **options})


# Recipes --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "model"
    return store.save(
        make_plan(read_recipe("digits-edm", ["network={kind: mlp, width: 8, blocks: 1}"])).model, path
    )


def test_mid_training_then_tuning(teacher: Path, tmp_path: Path) -> None:
    """The recipe's steps are finite, and what it leaves is what digits-cmt-ect starts from, r/t near 1."""
    keys = [f"start_from={teacher}", f"estimator.model={teacher}", "train.images=512"]
    trainer = make_plan(read_recipe("digits-cmt", keys)).trainer()
    assert all(report.finite for report in trainer.steps())
    middle = store.save(trainer.averaged, tmp_path / "model")
    plan = make_plan(read_recipe("digits-cmt-ect", [f"start_from={middle}"]))
    for progress in (0, plan.options.images):
        times = plan.objective.pairs.sample(1000, progress, torch.Generator().manual_seed(0))
        ratio = times.r.double() / times.t.double()
        assert 4090.9 / 4096 < float(ratio.min()) < float(ratio.max()) < 4095.1 / 4096


@pytest.mark.parametrize(
    ("override", "names"),
    [
        ("estimator={kind: one-sample}", ["estimator", "one-sample"]),
        ("estimator={kind: teacher, model: nowhere}", ["estimator.model", "nowhere"]),
        ("estimator={kind: score-identity, reference: class, size: 9}", ["random references"]),
        ("distance={kind: lpips, weights: vgg.safetensors}", ["distance.weights", "16 pixels"]),
        ("distance={kind: adaptive-huber, scatter: own}", ["distance", "radius"]),
        ("order=4", ["order=4"]),
        ("low=80.0", ["objective", "low < high"]),
    ],
)
def test_wrong_input_is_named(teacher: Path, override: str, names: list[str]) -> None:
    keys = [f"start_from={teacher}", f"estimator.model={teacher}", override]
    with pytest.raises(UserError) as error:
        make_plan(read_recipe("digits-cmt", keys))
    for name in names:
        assert name in str(error.value)


def test_lpips_weights_come_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.test_shipped import fixture, planning, small

    monkeypatch.setattr(planning, "load_data", fixture)
    save_file(narrow(), tmp_path / "vgg.safetensors")
    weights = tmp_path / "vgg.safetensors"
    keys = [*small("cifar10-cmt", tmp_path), f"distance={{kind: lpips, weights: {weights}}}"]
    plan = make_plan(read_recipe("cifar10-cmt", keys))
    assert isinstance(plan.objective.distance, LPIPS)
    assert next(plan.trainer().steps()).finite
    with pytest.raises(UserError, match=r"distance\.weights: there is no"):
        make_plan(read_recipe("cifar10-cmt", [*keys, "distance.weights=nowhere"]))
    for name, value in (("lin0.weight", -1.0), ("lin1.weight", torch.nan), ("features.0.bias", torch.inf)):
        wrong = narrow()
        wrong[name] = torch.full_like(wrong[name], value)
        save_file(wrong, tmp_path / "wrong.safetensors")
        with pytest.raises(UserError, match=rf"distance\.weights: {name} in .*wrong"):
            make_plan(
                read_recipe("cifar10-cmt", [*keys, f"distance.weights={tmp_path / 'wrong.safetensors'}"])
            )
    save_file({"features.0.weight": torch.ones(2)}, tmp_path / "odd.safetensors")
    with pytest.raises(UserError, match=r"distance"):
        make_plan(read_recipe("cifar10-cmt", [*keys, f"distance.weights={tmp_path / 'odd.safetensors'}"]))
