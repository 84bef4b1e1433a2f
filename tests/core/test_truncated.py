"""Truncated consistency training: the published step, its law of t, and what the boundary does."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from consistune.core.estimators import OneSample, ScoreIdentity, Teacher
from consistune.core.laws import LogNormal, LogStudent
from consistune.core.noise import EDM
from consistune.core.objectives import (
    AdaptiveHuber,
    Huber,
    InverseGap,
    SNRPlus,
    Truncated,
    Uniform,
)
from consistune.core.rng import SharedDropout
from consistune.core.times import SigmoidGap, TruncatedPairs
from consistune.core.types import Batch, Times
from consistune.errors import UserError
from consistune.nn import store
from consistune.recipe import read_recipe
from consistune.recipe.plan import make_plan
from tests.core.test_objectives import Net, gaussian_data, images
from tests.support.gaussian import SCHEDULES, Anisotropic
from tests.support.toy import (
    ToyDenoiser,
    close,
    compare,
    entries,
    gradients,
    in_float32,
    named,
    of_variant,
    settings,
)

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
PAIRS = TruncatedPairs(SigmoidGap())
STD = torch.tensor([[[0.2, 0.5], [0.9, 1.4]]], dtype=torch.float64)


# The published step ---------------------------------------------------------------------------------------


VARIANTS = entries("tcm/tcm", r"(\w+)\.settings")


def without_mean_of_nothing(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without a sample at the boundary the published total, which has a mean over them, may be NaN."""
    if bool(stored["boundary"].any()):
        return stored
    of_total = lambda name: name.startswith(("total", "grad_"))
    return {k: value for k, value in stored.items() if not (of_total(k) and bool(value.isnan().any()))}


class Step:
    """A variant's objective, networks and inputs."""

    def __init__(self, arrays: dict[str, Any], variant: str) -> None:
        given = settings(arrays, variant)
        self.stored = without_mean_of_nothing(of_variant(arrays, variant))
        self.student, self.frozen = ToyDenoiser(arrays), ToyDenoiser(arrays, "stage1_")
        self.gap = SigmoidGap(q=given["q"], every_images=1, max_ratio=given["ratio_limit"])
        self.ratio = 1 - self.gap.shrinkage(int(given["stage"]))
        self.objective = Truncated(
            EDM(),
            pairs=TruncatedPairs(
                self.gap,
                LogStudent(low=given["transition_t"]),
                given["transition_t"],
                given["boundary_prob"],
            ),
            estimator=OneSample(),
            distance=Huber(given["c"]),
            weight={"default": InverseGap(), "cout_sq": SNRPlus(self.student.sigma_data)}[given["weighting"]],
            below=self.frozen,
            boundary_weight=given["w_boundary"],
        )
        self.batch, self.noise = Batch(arrays["x_0"], arrays["label"]), self.stored["noise"]
        self.boundary = self.stored["boundary"]

    def losses(self, least_r: float = 0.0, **changes: Any) -> Tensor:
        """The loss of each sample, before the shares of the two parts."""
        t, r = self.stored["t"], self.stored["r"].clamp(min=least_r)
        objective = replace(self.objective, **changes)
        draws = objective._bound(self.batch, Times(t, r, 0 * t), self.noise, None)
        return objective.losses(self.student, self.student, draws)

    def total(self, losses: Tensor) -> Tensor:
        """The batch's mean under the shares."""
        return (self.objective.shares(self.boundary, int(self.boundary.sum())) * losses).mean()

    def end(self) -> Tensor:
        """The target's value at r."""
        t, r = self.stored["t"], self.stored["r"]
        draws = self.objective._bound(self.batch, Times(t, r, 0 * t), self.noise, None)
        x_r = EDM().diffuse(self.batch.x_0, self.noise, r)
        return self.objective._end(self.student, x_r, draws, SharedDropout(r.device))


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_is_tcms_step(parity, variant: str) -> None:
    """Losses, their total over the batch and every gradient, at the stored times and noise.

    At r/t = 0.999 the gradient is a difference that cancels three digits: 5e-12 there. FastGen's total is
    of an r that is not below 0.002.
    """
    step = Step(parity("tcm/tcm"), variant)
    stored, boundary = step.stored, step.boundary
    assert step.objective.pairs.at_boundary(len(boundary)) == int(boundary.sum())
    losses = step.losses()
    total = step.total(losses)
    grads = gradients(step.student, total)
    assert all(parameter.grad is None for parameter in step.frozen.parameters())
    x_t = EDM().diffuse(step.batch.x_0, step.noise, stored["t"])
    found = {
        "ratio": torch.tensor(step.ratio, dtype=torch.float64),
        "r": step.gap.lower(stored["t"], int(settings(parity("tcm/tcm"), variant)["stage"])).clamp(min=1e-6),
        "r_uses_student": stored["r"] >= step.objective.pairs.boundary,
        "D_t": step.student(x_t, stored["t"], step.batch.condition),
        "D_r": step.end(),
        "loss": losses[~boundary],
        "loss_boundary": losses[boundary],
        "loss_unweighted": step.losses(weight=Uniform())[~boundary],
        "total": total,
        "total_fastgen": step.total(step.losses(least_r=0.002)),
    }
    compare(stored, found, given=["t", "noise", "boundary", *grads])
    named = {name: value for name, value in stored.items() if name in grads}
    compare(named, grads, 5e-12 if step.ratio >= 0.999 else 1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_is_tcms_step_in_float32(parity, variant: str) -> None:
    """Two steps in float32: their rounding, over the part of t between t and r."""
    published = parity("tcm/tcm")
    step, boundary = Step(in_float32(published), variant), published[f"{variant}.boundary"]
    losses = step.losses()
    total = step.total(losses)
    found = {
        "loss": losses[~boundary],
        "loss_boundary": losses[boundary],
        "total": total,
        **gradients(step.student, total),
    }
    stored = of_variant(published, variant, "_f32") | {"boundary": boundary}
    compare(without_mean_of_nothing(stored), found, 1e-6 / (1 - step.ratio), given=["boundary"])


def test_the_law_of_t_is_tcms(parity) -> None:
    maps = parity("tcm/tcm_maps")
    for match in named(maps, r"(log_t_\d+)_settings"):
        mean, std, low, high, df = maps[match[0]].tolist()
        found = LogStudent(mean, std, low, high, df).quantile(maps["uniform"]).log()
        close(found, maps[match[1]])


def test_the_map_from_t_to_r_is_tcms(parity) -> None:
    maps = parity("tcm/tcm_maps")
    t = maps["t"]
    for match in named(maps, r"r_(\d+)_ratio"):
        ratio, j = float(maps[match[0]]), match[1]
        gap = SigmoidGap(q=max(1 / (1 - ratio), 1 + 1e-12))  # ratio 0: r is 0, here 1e-6
        r = gap.lower(t, 0).clamp(min=1e-6)
        close(r, maps[f"r_{j}"], 1e-12 if ratio else 1e-8)  # the published 1e-6 is t − (t − 1e-6)
        close(InverseGap()(Times(t, r, 0 * t), EDM()), maps[f"weight_default_{j}"])
    for match in named(maps, r"ratio_q([\d.]+)_limit([\d.]+)"):
        ratios, (q, limit) = maps[match[0]], map(float, match.groups())
        gap = SigmoidGap(q=q, every_images=1, max_ratio=limit)
        found = [1 - gap.shrinkage(stage) for stage in range(len(ratios))]
        close(torch.tensor(found, dtype=torch.float64), ratios)
    inverse = maps["c_out"] ** -2
    sigma_data = float((inverse - t**-2)[t.argmax()]) ** -0.5  # no key says it
    close(SNRPlus(sigma_data)(Times(t, 0 * t, 0 * t), EDM()), inverse)


# The law of t ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("df", [0.01, 0.7, 1.0, 2.0, 30.0])
def test_the_quantile_inverts_the_integral_of_students_density(df: float) -> None:
    """Against a plain sum over the density (1 + z²/df)^{−(df + 1)/2} on a fine grid."""
    law = LogStudent(-0.4, 0.5, 0.3, 9.0, df)
    low, high = ((torch.tensor(u, dtype=torch.float64).log() + 0.4) / 0.5 for u in (law.low, law.high))
    z = torch.linspace(float(low), float(high), 200_001, dtype=torch.float64)
    density = (1 + z.square() / df) ** (-(df + 1) / 2)
    mass = torch.cat([z.new_zeros(1), (density[1:] + density[:-1]).cumsum(0)])
    rows = torch.tensor([0, 1000, 70_000, 140_000, 199_999, 200_000])
    found = law.quantile(mass[rows] / mass[-1])
    torch.testing.assert_close(found, torch.exp(-0.4 + 0.5 * z[rows]), rtol=1e-6, atol=0)
    assert [float(u) for u in law.quantile(torch.tensor([0.0, 1.0]))] == pytest.approx([0.3, 9.0], rel=1e-12)


@every_schedule
@pytest.mark.parametrize("law", [LogStudent(), LogNormal(low=1.0, high=80.0)], ids=["student", "lognormal"])
def test_a_share_sits_at_the_boundary_and_no_t_below_it(schedule, law) -> None:
    pairs = TruncatedPairs(SigmoidGap(), law, schedule=schedule)
    times = pairs.sample(130, 6_400_000, torch.Generator().manual_seed(0))
    ratio = schedule.noise_to_signal(times.t.double())
    assert pairs.at_boundary(130) == 32
    torch.testing.assert_close(ratio[:32], torch.ones(32).double(), rtol=1e-5, atol=0)
    assert bool((ratio > 1 - 1e-5).all())
    assert bool((times.r < times.t).all())
    assert float(ratio.max()) > 5


@pytest.mark.parametrize(("n", "expected"), [(3, 0), (4, 1), (7, 1), (8, 2)])
def test_the_share_at_the_boundary_is_rounded_down(n: int, expected: int) -> None:
    assert TruncatedPairs(SigmoidGap(), share=0.25).at_boundary(n) == expected


# The objective --------------------------------------------------------------------------------------------


@every_schedule
def test_the_exact_consistency_function_has_no_loss_above_itself(schedule) -> None:
    gaussian = Anisotropic(schedule, STD)
    exact = lambda x, t, c=None: gaussian.flow(x, t, 0 * t)
    pairs = TruncatedPairs(SigmoidGap(max_ratio=0.9), schedule=schedule)
    objective = Truncated(
        schedule,
        estimator=Teacher(gaussian.denoise),
        weight=Uniform(),
        steps=60,
        method="heun",
        pairs=pairs,
        below=exact,
    )

    def loss(model, objective) -> float:
        g = torch.Generator().manual_seed(2)
        return float(objective(model, model, Batch(gaussian_data(32)), 10**8, g).max())

    assert loss(exact, objective) < 1e-3
    assert loss(gaussian.denoise, objective) > 0.05
    assert loss(exact, replace(objective, below=gaussian.denoise)) > 0.05


def test_the_batchs_mean_is_the_sum_of_the_two_means() -> None:
    pairs = TruncatedPairs(SigmoidGap())
    objective = Truncated(EDM(), estimator=OneSample(), pairs=pairs, below=Net(seed=2), boundary_weight=0.3)
    net, batch = Net(), Batch(images(18))
    draws = objective.draw(batch, 6_400_000, torch.Generator().manual_seed(0))
    losses = objective.losses(net, net, draws)
    plain = objective.losses(net, net, replace(draws, share=None))
    torch.testing.assert_close(losses.mean(), plain[4:].mean() + 0.3 * plain[:4].mean())
    parts = [objective.losses(net, net, draws.rows(slice(i, i + 6))) for i in (0, 6, 12)]
    torch.testing.assert_close(torch.cat(parts), losses)


def test_a_batch_too_small_for_the_boundary_has_a_finite_loss() -> None:
    objective = Truncated(EDM(), estimator=OneSample(), pairs=PAIRS, below=Net(seed=2))
    loss = objective(Net(), Net(), Batch(images(3)), 6_400_000, torch.Generator().manual_seed(0))
    assert bool(torch.isfinite(loss).all())


def test_a_reference_of_one_trains_as_the_one_sample_form() -> None:
    x_0 = images(1)
    times = Times(*(torch.tensor([u]) for u in (1.5, 1.2, 0.0)))
    noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(0))

    def loss(estimator, distance) -> Tensor:
        objective = Truncated(EDM(), estimator=estimator, distance=distance, pairs=PAIRS, below=Net(seed=2))
        return objective.at(Net(), Net(), Batch(x_0), times, noise)

    assert torch.equal(loss(OneSample(), Huber()), loss(ScoreIdentity(EDM()), Huber()))
    torch.testing.assert_close(
        loss(OneSample(), Huber()), loss(ScoreIdentity(EDM()), AdaptiveHuber("measured")), rtol=1e-5, atol=0
    )


# Recipes --------------------------------------------------------------------------------------------------

TINY = ["network={kind: mlp, width: 8, blocks: 1}", "start_from=null"]


@pytest.fixture(scope="module")
def stage_1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stage_1")
    store.save(make_plan(read_recipe("digits-ect", TINY)).model, path / "model")
    return path / "model"


def test_a_recipe_trains_above_the_boundary(stage_1: Path) -> None:
    keys = [f"start_from={stage_1}", f"below={stage_1}", "train.images=512"]
    plan = make_plan(read_recipe("digits-tcm", keys))
    assert isinstance(plan.objective, Truncated)
    assert plan.model.card.updated().mid_t == (1.0,)
    assert all(report.finite for report in plan.trainer().steps())
    assert not any(p.requires_grad for p in plan.objective.below.model.parameters())


@pytest.mark.parametrize(
    ("override", "names"),
    [
        ("below=nowhere", ["below", "nowhere"]),
        ("pairs.boundary=2.0", ["pairs", "boundary"]),
        ("pairs.boundary=-1.0", ["pairs", "boundary"]),
        ("pairs.boundary=100.0", ["pairs", "boundary", "80"]),
        ("pairs.law={kind: lognormal}", ["pairs", "low", "boundary"]),
        ("pairs.law={kind: log-student, low: 2.0}", ["pairs", "low 2.0", "boundary"]),
        ("pairs.law={kind: lognormal, low: 1.0}", ["pairs", "high None"]),
        ("pairs.law.high=0.5", ["pairs.law", "low < high"]),
        ("pairs.share=1.0", ["pairs", "share"]),
        ("boundary_weight=0.0", ["boundary_weight"]),
        ("mid_t=[0.821]", ["mid_t", "no t below 1"]),
        ("loss.steps=2", ["loss.steps"]),
    ],
)
def test_wrong_input_is_named(stage_1: Path, override: str, names: list[str]) -> None:
    keys = [f"start_from={stage_1}", f"below={stage_1}", override]
    with pytest.raises(UserError) as error:
        make_plan(read_recipe("digits-tcm", keys))
    for name in names:
        assert name in str(error.value)


def test_a_diffusion_model_or_none_below_is_refused(tmp_path: Path) -> None:
    path = store.save(make_plan(read_recipe("digits-edm", TINY[:1])).model, tmp_path / "model")
    with pytest.raises(UserError, match=r"below: .*is a diffusion model"):
        make_plan(read_recipe("digits-tcm", [f"start_from={path}", f"below={path}"]))
    with pytest.raises(UserError, match="below"):
        read_recipe("digits-tcm", ["below=null"])
