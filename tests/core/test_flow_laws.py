"""Laws of the objectives in continuous time: fixed points, linearity, and what they share."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from consistune.core.estimators import Blend, NoiseEstimator, OneSample, ScoreIdentity, Teacher
from consistune.core.flow import mean_velocity
from consistune.core.intervals import LogitNormal
from consistune.core.noise import EDM, NoiseSchedule, RectifiedFlow, Rescheduled
from consistune.core.objectives import (
    AdaptivePower,
    ContinuousConsistency,
    ImprovedMeanVelocity,
    MeanVelocity,
    Mixture,
    Objective,
    Uniform,
)
from consistune.core.posterior.mean import Reference
from consistune.core.types import Batch, Condition, Times, expand
from consistune.nn import store
from tests.support.gaussian import SCHEDULES, Anisotropic

SHAPE = (1, 2, 3)
RATIOS = torch.tensor([0.02, 0.1, 0.4, 1.0, 3.0, 20.0], dtype=torch.float64)
WARM = 100
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
every_objective = pytest.mark.parametrize("kind", ["continuous", "mean-velocity", "improved"])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@dataclass(frozen=True)
class Reversed(NoiseEstimator):
    """The x̂_0 whose velocity is the negative of another estimator's."""

    inner: NoiseEstimator
    schedule: NoiseSchedule

    def clean(self, x_t: Tensor, t: Tensor, batch: Batch) -> Tensor:
        v = self.schedule.velocity(x_t, self.inner.clean(x_t, t, batch), t)
        d_alpha, d_sigma = self.schedule.rates(t)
        keep = d_sigma / self.schedule.sigma(t)
        return (-v - expand(keep, v) * x_t) / expand(d_alpha - keep * self.schedule.alpha(t), v)


def objective_of(kind: str, schedule: NoiseSchedule, estimator: NoiseEstimator, **options: Any) -> Any:
    if kind == "continuous":
        given = {"weight": Uniform(), "warmup_images": WARM, "c": 1.0, **options}
        return ContinuousConsistency(schedule, estimator, **given)
    made = ImprovedMeanVelocity if kind == "improved" else MeanVelocity
    return made(schedule, estimator, **{"scale": AdaptivePower(0.0), **options})


def loss_of(objective: Objective, model: Any, batch: Batch, noise: Tensor, ratios: Tensor = RATIOS) -> Tensor:
    t = objective.schedule.time_at(ratios)
    if isinstance(objective, ContinuousConsistency):
        return objective.at(model, batch, t, WARM, noise)
    shares = torch.linspace(0, 1, len(t), dtype=t.dtype)  # r = 0 at one end, r = t at the other
    return objective.at(model, batch, Times(t, shares * t, 0 * t), noise)


@every_schedule
@every_objective
@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
def test_the_exact_solution_is_a_fixed_point(schedule, kind, sigma_data) -> None:
    """On an anisotropic Gaussian with the marginal velocity; with its sign flipped it is none."""
    world = Anisotropic(
        schedule, 0.1 + torch.rand(SHAPE, generator=torch.Generator().manual_seed(1)).double()
    )
    options = {"sigma_data": sigma_data} if kind == "continuous" else {}
    x_0, noise = 0.3 + world.std * normal(6, *SHAPE), normal(6, *SHAPE, seed=2)
    teacher = Teacher(world.denoise)
    residuals = [
        loss_of(objective_of(kind, schedule, estimator, **options), world, Batch(x_0), noise).sqrt()
        for estimator in (teacher, Reversed(teacher, schedule))
    ]
    size = schedule.velocity(
        schedule.diffuse(x_0, noise, schedule.time_at(RATIOS)), x_0, schedule.time_at(RATIOS)
    )
    assert residuals[0].max() < 1e-12 * max(1.0, float(size.abs().max()))
    assert residuals[1].max() > 0.3


class Net(nn.Module):
    """A smooth two-time denoiser with random weights."""

    two_times = True

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.inner, self.outer = nn.Linear(8, 16).double(), nn.Linear(16, 6).double()

    def forward(self, x: Tensor, t: Tensor, condition: Any = None, s: Tensor | None = None) -> Tensor:
        s = t if s is None else s
        times = torch.stack([t.log1p(), s.log1p()], dim=1)
        return self.outer(torch.tanh(self.inner(torch.cat([x.flatten(1), times], dim=1)))).view_as(x)


@every_schedule
@every_objective
def test_before_normalisation_the_score_identity_is_the_mean_over_one_sample_forms(schedule, kind) -> None:
    """Over the images that may have made x_t, with their weights: the same expectation, without variance."""
    images, net = 0.7 * normal(5, *SHAPE), Net()
    t = schedule.time_at(torch.tensor([2.5], dtype=torch.float64))
    x_t = schedule.diffuse(images[:1], normal(1, *SHAPE, seed=4), t)
    logits = -(x_t - schedule.alpha(t) * images).flatten(1).square().sum(1) / (2 * schedule.sigma(t) ** 2)
    weights = torch.softmax(logits, 0)
    identity = ScoreIdentity(schedule, Reference.ungrouped(images))

    def gradient(estimator: NoiseEstimator, image: Tensor) -> Tensor:
        """Of the loss with respect to the network's output layer: linear in the target."""
        noise = (x_t - schedule.alpha(t) * image) / schedule.sigma(t)
        objective = objective_of(kind, schedule, estimator)
        if kind == "continuous":
            objective.__dict__["normalised"] = lambda g: g
        net.zero_grad()
        times = Times(t, 0.5 * t, 0 * t)
        at = (t, WARM) if kind == "continuous" else (times,)
        objective.at(net, Batch(image), *at, noise).sum().backward()
        return net.outer.weight.grad.clone()

    one = sum(w * gradient(OneSample(), image[None]) for w, image in zip(weights, images, strict=True))
    marginal = gradient(identity, images[:1])
    torch.testing.assert_close(marginal, one, rtol=0, atol=1e-6 * float(one.abs().max()))
    spread = gradient(OneSample(), images[:1]) - marginal
    assert spread.abs().max() > 1e-2 * one.abs().max()


@every_schedule
@pytest.mark.parametrize("guidance", [Mixture(), Mixture(2.0, 0.25)], ids=["plain", "guided"])
def test_own_scatter_divides_by_the_error_of_one_sample_noise(schedule, guidance) -> None:
    """At r = t, where one-sample's error has no other part: s/(e + c)^p with e of one-sample noise."""
    images, labels, net = 0.7 * normal(6, *SHAPE), torch.zeros(6, dtype=torch.long), Net()
    t, noise = schedule.time_at(RATIOS), normal(6, *SHAPE, seed=9)
    identity = ScoreIdentity(schedule, Reference.grouped(images, labels))

    def losses(estimator: NoiseEstimator, scale: AdaptivePower) -> Tensor:
        objective = MeanVelocity(schedule, estimator, scale=scale, guidance=guidance)
        return objective.at(net, Batch(images, labels), Times(t, t, 0 * t), noise)

    error, of_one = (losses(estimator, AdaptivePower(0.0)) for estimator in (identity, OneSample()))
    assert (of_one[3:] - error[3:]).abs().min() > 1e-3  # at small t the posterior is one image
    found = losses(identity, AdaptivePower(0.75, 0.01, "own"))
    torch.testing.assert_close(found, error / (of_one + 0.01) ** 0.75, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", ["mean-velocity", "improved"])
def test_own_scatter_moves_no_exact_solution_and_changes_nothing_for_one_sample(kind) -> None:
    schedule, scale = RectifiedFlow(), AdaptivePower(scatter="own")
    x_0, noise, net = 0.5 * normal(6, *SHAPE), normal(6, *SHAPE, seed=5), Net()
    own, plain = (objective_of(kind, schedule, OneSample(), scale=each) for each in (scale, AdaptivePower()))
    losses = [loss_of(objective, net, Batch(x_0), noise) for objective in (own, plain)]
    torch.testing.assert_close(*losses, rtol=1e-10, atol=0)
    spread = 0.1 + torch.rand(SHAPE, generator=torch.Generator().manual_seed(1)).double()
    world = Anisotropic(schedule, spread)
    exact = objective_of(kind, schedule, Teacher(world.denoise), scale=scale)
    assert loss_of(exact, world, Batch(0.3 + spread * x_0), noise).abs().max() < 1e-12


@every_schedule
@pytest.mark.parametrize("kind", ["mean-velocity", "improved"])
def test_at_r_equal_t_mean_flow_is_flow_matching(schedule, kind) -> None:
    """‖u(x_t, t, t) − v‖² with u the velocity of the network's x̂_0; u tends to it as r tends to t."""
    x_0, noise, net = 0.5 * normal(6, *SHAPE), normal(6, *SHAPE, seed=5), Net()
    t = schedule.time_at(RATIOS)
    found = objective_of(kind, schedule, OneSample()).at(net, Batch(x_0), Times(t, t, 0 * t), noise)
    d_alpha, d_sigma = (expand(rate, x_0) for rate in schedule.rates(t))
    x_t = schedule.diffuse(x_0, noise, t)
    u = schedule.velocity(x_t, net(x_t, t, None, t), t)
    expected = (u - (d_alpha * x_0 + d_sigma * noise)).flatten(1).square().sum(1)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    near = mean_velocity(schedule, x_t, x_0, t, t * (1 - 1e-5))
    torch.testing.assert_close(near, schedule.velocity(x_t, x_0, t), rtol=2e-3, atol=1e-3)


@every_schedule
@every_objective
def test_a_reference_of_one_image_is_one_sample(schedule, kind) -> None:
    image, noise, net = normal(1, *SHAPE), normal(1, *SHAPE, seed=6), Net()
    identity = ScoreIdentity(schedule, Reference.ungrouped(image))
    a, b = (
        loss_of(objective_of(kind, schedule, estimator), net, Batch(image), noise, RATIOS[3:4])
        for estimator in (identity, OneSample())
    )
    torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


@every_objective
def test_every_estimator_and_every_share_of_a_batch(kind) -> None:
    """Losses of rows are the rows of the losses, whatever gives the velocity."""
    schedule = RectifiedFlow()
    images, labels = normal(8, *SHAPE), torch.tensor([0] * 4 + [1] * 4)
    net = Net()
    identity = ScoreIdentity(schedule, Reference.grouped(images, labels))
    estimators = (
        OneSample(),
        Teacher(lambda x, t, c=None: 0.5 * x),
        ScoreIdentity(schedule),
        identity,
        replace(identity, size=3),
        ScoreIdentity(schedule, Reference.ungrouped(images)),
        Blend(schedule, identity),
    )
    losses = []
    for estimator in estimators:
        objective = objective_of(kind, schedule, estimator)
        batch = Batch(images, labels, torch.arange(8))
        if isinstance(estimator, ScoreIdentity) and estimator.reference is not None:
            batch = batch if len(estimator.reference.offsets) > 2 else replace(batch, condition=None)
        draws = objective.draw(batch, WARM // 2, torch.Generator().manual_seed(7))
        whole = objective.losses(net, net, draws)
        parts = [objective.losses(net, net, draws.rows(part)) for part in (slice(0, 3), slice(3, 8))]
        torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-5, atol=1e-6)
        losses.append(whole)
    assert torch.isfinite(torch.stack(losses)).all()
    assert len({round(float(loss.sum()), 9) for loss in losses}) >= 5  # the batch is the whole set here


@every_schedule
@every_objective
def test_a_network_for_edm_trains_alike_under_every_schedule(schedule, kind) -> None:
    """Rescheduled, a two-time network gives finite losses and gradients; sCM's loss is EDM's to rounding."""
    x_0, noise, net = 0.5 * normal(6, *SHAPE), normal(6, *SHAPE, seed=8), Net()
    losses = [
        loss_of(objective_of(kind, s, OneSample()), Rescheduled(net, s), Batch(x_0), noise)
        for s in (schedule, EDM())
    ]
    assert torch.isfinite(torch.stack(losses)).all()
    if kind == "continuous":
        torch.testing.assert_close(*losses, rtol=1e-9, atol=1e-12)


# What the published numbers cannot show ---------------------------------------------------------------------


def test_guidance_acts_inside_its_interval_and_on_labels_that_are_seen() -> None:
    t = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=torch.float64)
    x_t, x0_hat = normal(5, *SHAPE), normal(5, *SHAPE, seed=1)
    hidden = torch.tensor([False, False, True, False, False])
    batch = Batch(x_t, torch.tensor([1, 2, 3, 4, 5]), hidden=hidden)

    def ask(condition: Any) -> Tensor:
        if condition is None:
            return torch.zeros_like(x_t)
        assert isinstance(condition, Condition)
        return expand(condition.label.double(), x_t).expand_as(x_t)

    mixed, share = Mixture(2.0, 0.25, 0.3, 0.8)(ask, t, batch, x0_hat)
    assert share.flatten().tolist() == [1, 2, 1, 2, 1]  # below, inside, hidden, inside, above
    for row in (0, 2, 4):
        assert torch.equal(mixed[row], x0_hat[row])
    for row in (1, 3):
        torch.testing.assert_close(mixed[row], 2 * x0_hat[row] + 0.25 * (row + 1))
    assert MeanVelocity(RectifiedFlow(), OneSample(), guidance=Mixture(2.0)).needs_unlabelled


class Masks(nn.Module):
    """Dropout that remembers its masks."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.rand(x.shape) < 0.5
        self.seen.append(mask)
        return x * mask * 2


@every_objective
@pytest.mark.parametrize("difference", [None, 1e-3])
def test_the_derivative_has_the_dropout_mask_of_the_pass(kind, difference) -> None:
    network = {"kind": "mlp", "image_shape": (1, 4, 4), "width": 8, "num_classes": 2, "second_time": True}
    model = store.build({"network": network, "precond": {"kind": "edm"}}).double().train()
    masks = [Masks() for _ in model.network.trunk]
    for block, mask in zip(model.network.trunk, masks, strict=True):
        block.dropout = mask
        nn.init.normal_(block.outer.weight)
    options: dict[str, Any] = {"guidance": Mixture(0.5, 0.4)}
    if kind == "continuous":
        options = {"difference": difference}
    objective = objective_of(kind, EDM(), OneSample(), **options)
    batch = Batch(normal(6, 1, 4, 4), torch.tensor([0, 1] * 3))
    loss_of(objective, model, batch, normal(6, 1, 4, 4, seed=9)).sum().backward()
    for mask in masks:
        assert len(mask.seen) >= 2
        assert all(torch.equal(mask.seen[0], other) for other in mask.seen[1:])
    assert not torch.equal(masks[0].seen[0], masks[1].seen[0])
    before = masks[0].seen[0]
    loss_of(objective, model, batch, normal(6, 1, 4, 4, seed=9))
    assert not torch.equal(masks[0].seen[-1], before)


def test_times_out_of_order_are_refused() -> None:
    batch, noise = Batch(normal(2, *SHAPE)), normal(2, *SHAPE)
    t = torch.tensor([0.5, 0.6], dtype=torch.float64)
    objective = objective_of("mean-velocity", RectifiedFlow(), OneSample())
    for r in (t + 0.1, t - 1):
        with pytest.raises(ValueError, match="t >= r >= 0"):
            objective.at(Net(), batch, Times(t, r, 0 * t), noise)
    with pytest.raises(ValueError, match="NaN"):
        objective.at(Net(), batch, Times(t, t, 0 * t), noise * torch.nan)


def test_the_law_of_the_jumps() -> None:
    t, r = LogitNormal(equal=0.4, exact=True).sample(1000, torch.Generator().manual_seed(0))
    assert bool((r <= t).all())
    assert int((r[:400] == t[:400]).sum()) == 400
    t, r = LogitNormal(equal=0.25, exact=True).sample(6, torch.Generator().manual_seed(0))
    assert (r == t).tolist() == [True] + [False] * 5  # ⌊1.5⌋ of them
    law = LogitNormal()  # v1's: 25 %, and its clamping makes them 30 %
    t, r = law.sample(20_000, torch.Generator().manual_seed(0))
    assert 0.27 < float((r == t).float().mean()) < 0.33
    assert float((t / (1 + t)).max()) <= 0.999
    for wrong in ({"std": 0.0}, {"equal": 1.5}, {"highest": 1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            LogitNormal(**wrong)
