"""What training minimises: distances and weights by their formulas, the consistency loss by its laws."""

import math
import re
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from consistune.core.estimators import Blend, OneSample, ScoreIdentity, Teacher
from consistune.core.intervals import LogitNormal
from consistune.core.laws import LogNormal
from consistune.core.noise import EDM, VP, RectifiedFlow, Rescheduled, Trigonometric
from consistune.core.objectives import (
    L1,
    AdaptiveHuber,
    AdaptivePower,
    Consistency,
    ContinuousConsistency,
    Denoising,
    Huber,
    InverseCOut,
    InverseGap,
    MeanVelocity,
    Mixture,
    SNRPlus,
    SquaredL2,
    Trajectory,
    Uniform,
)
from consistune.core.posterior.mean import Reference, dequantise
from consistune.core.times import LogNormalPairs, Phased, SigmoidGap
from consistune.core.types import Batch, Times
from tests.core.posterior.test_mean import pixels
from tests.support.gaussian import SCHEDULES, Gaussian

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
PAIRS = LogNormalPairs(SigmoidGap())
STAGE = 3_200_000


def images(n: int = 16, seed: int = 8) -> Tensor:
    return dequantise(pixels(n, seed=seed, shape=(1, 4, 4)))


def gaussian_data(n: int) -> Tensor:
    g = torch.Generator().manual_seed(0)
    return 0.3 + 0.5 * torch.randn(n, 1, 2, 2, generator=g, dtype=torch.float64)


class Net(nn.Module):
    """A small denoiser with a dropout, which remembers the masks and times it was called with."""

    def __init__(self, dropout: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        self.dropout = dropout
        g = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(16, 17, generator=g) / 4)
        self.masks: list[Tensor] = []
        self.times: list[Tensor] = []

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        self.times.append(t)
        mask = nn.functional.dropout(torch.ones_like(x_t), self.dropout)
        self.masks.append(mask)
        h = torch.cat([(x_t / (1 + t.view(-1, 1, 1, 1)) * mask).flatten(1), t[:, None].log()], dim=1)
        return torch.tanh(h @ self.weight.T.to(h)).view_as(x_t)


# Distances and weights ------------------------------------------------------------------------------------


@given(
    st.floats(0, 10), st.floats(0, 0.1), st.sampled_from([torch.float32, torch.float64]), st.integers(0, 9)
)
def test_huber_is_its_formula_in_float64(c: float, per: float, dtype: torch.dtype, exponent: int) -> None:
    g = torch.Generator().manual_seed(exponent)
    a = torch.randn(5, 2, 3, generator=g, dtype=dtype)
    b = a + torch.randn(5, 2, 3, generator=g, dtype=dtype) * 10.0**-exponent
    full = c + per * math.sqrt(6)
    squares = (a.double() - b.double()).flatten(1).square().sum(1)
    expected = squares / (torch.sqrt(squares + full**2) + full)
    torch.testing.assert_close(Huber(c, per)(a, b).double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    "distance", [Huber(), Huber(0.06), Huber(1e-30), Huber(per_root_dim=0.00054), SquaredL2(), L1()]
)
def test_distances_of_equal_images_are_zero_with_a_finite_gradient(distance) -> None:
    a = images(3).requires_grad_()
    d = distance(a, a.detach())
    assert torch.equal(d, torch.zeros(3))
    d.sum().backward()
    assert bool(torch.isfinite(a.grad).all())


def test_distances_are_sums_over_the_whole_sample() -> None:
    a, b = torch.zeros(2, 1, 2, 2), torch.tensor([3.0, 0, 4, 0]).view(1, 1, 2, 2).repeat(2, 1, 1, 1)
    assert Huber()(a, b).tolist() == [5.0, 5.0]
    assert SquaredL2()(a, b).tolist() == [25.0, 25.0]
    assert L1()(a, b).tolist() == [7.0, 7.0]


def test_weights_by_their_formulas(parity) -> None:
    fixture = parity("ect/ect_imagenet_maps")
    t = fixture["t"]
    times = Times(t, t / 3, torch.zeros_like(t))
    torch.testing.assert_close(SNRPlus()(times, EDM()), fixture["weight"], rtol=1e-9, atol=0)
    torch.testing.assert_close(InverseGap()(times, EDM()), 1.5 / t)
    c_out = parity("openai_cm/openai_cm")
    sigma = c_out["sigma"]
    found = InverseCOut()(Times(sigma, sigma, sigma), EDM())
    torch.testing.assert_close(found, 1 / c_out["edm_c_out"], rtol=1e-6, atol=0)
    assert torch.equal(Uniform()(times, EDM()), torch.ones_like(t))


@every_schedule
@pytest.mark.parametrize("weight", [InverseGap(), SNRPlus(), InverseCOut(), Uniform()])
def test_a_transition_weighs_the_same_under_every_schedule(schedule, weight) -> None:
    ratios = torch.logspace(-2, 1.9, 30, dtype=torch.float64)
    edm = Times(ratios, ratios * 0.7, 0 * ratios)
    same = Times(schedule.time_at(edm.t), schedule.time_at(edm.r), edm.s)
    torch.testing.assert_close(weight(same, schedule), weight(edm, EDM()), rtol=1e-6, atol=0)


@every_schedule
def test_the_smallest_gap_has_a_finite_weight(schedule, generator) -> None:
    """After 24 halvings fp32 gives some t and r the same noise-to-signal ratio."""
    pairs = LogNormalPairs(SigmoidGap(every_images=1), schedule=schedule)
    times = pairs.sample(20_000, 24, generator)
    weights = InverseGap()(times, schedule)
    assert bool((weights.isfinite() & (weights > 0)).all())


# The denoising objective ----------------------------------------------------------------------------------


@every_schedule
def test_denoising_is_edms_weighted_mean_square(schedule) -> None:
    """For a model that answers 0, the loss is λ(t)·mean(x_0²); t is drawn from the law."""
    x_0 = images(64)
    seen: list[Tensor] = []

    def zero(x_t, t, condition=None):
        seen.append(t)
        return torch.zeros_like(x_t)

    loss = Denoising(schedule)(zero, zero, Batch(x_0), 0, torch.Generator().manual_seed(0))
    s = schedule.noise_to_signal(seen[0].double())
    expected = (s**-2 + 4) * x_0.double().flatten(1).square().mean(1)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=0)
    ratios = LogNormal(-1.2, 1.2).sample(64, torch.Generator().manual_seed(0))
    torch.testing.assert_close(s.float(), ratios, rtol=1e-4, atol=0)


def test_denoising_is_least_at_the_posterior_mean(generator) -> None:
    """On Gaussian data the exact denoiser beats itself shifted or scaled."""
    gaussian = Gaussian(EDM())
    x_0 = 0.3 + 0.5 * torch.randn(4000, 1, 2, 2, generator=generator)

    def loss(change) -> float:
        g = torch.Generator().manual_seed(1)
        model = lambda x, t, c=None: change(gaussian.denoise(x, t))
        return float(Denoising(EDM())(model, model, Batch(x_0), 0, g).mean())

    best = loss(lambda d: d)
    assert all(best < loss(change) for change in (lambda d: d + 0.03, lambda d: d - 0.03, lambda d: 0.95 * d))


# The consistency objective --------------------------------------------------------------------------------


@every_schedule
@pytest.mark.parametrize("progress", [0, 3 * STAGE])
def test_the_exact_consistency_function_has_no_loss(schedule, progress) -> None:
    gaussian = Gaussian(schedule)
    pairs = LogNormalPairs(SigmoidGap(), low=0.05, high=80.0, schedule=schedule)
    x_0 = gaussian_data(32)

    def loss(model, steps: int) -> float:
        objective = Consistency(
            schedule, pairs, Teacher(gaussian.denoise), weight=Uniform(), steps=steps, method="heun"
        )
        g = torch.Generator().manual_seed(2)
        return float(objective(model, model, Batch(x_0), progress, g).max())

    exact = [loss(gaussian.consistency, steps) for steps in (40, 80)]
    assert exact[1] < 2e-3
    assert exact[1] < exact[0] / 3 or exact[1] < 1e-5  # only the solver's second-order error is left
    assert loss(gaussian.denoise, 80) > 0.05  # the diffusion model is not its own consistency function


@every_schedule
def test_the_exact_phased_function_has_no_loss(schedule) -> None:
    gaussian = Gaussian(schedule)
    edges = tuple(schedule.time_at(torch.tensor([0.5, 5.0], dtype=torch.float64)).tolist())
    plain = LogNormalPairs(SigmoidGap(), low=0.05, high=80.0, schedule=schedule)
    bounds = torch.tensor((0.0, *edges), dtype=torch.float32).double()

    def phased(x_t, t, condition=None):
        """x̂_0 with step(x, x̂_0, t, s) = the trajectory at the edge s below t."""
        s = bounds[torch.searchsorted(bounds, t.double()) - 1]
        end, keep = gaussian.flow(x_t, t, s), schedule.sigma(s) / schedule.sigma(t)
        move = schedule.alpha(s) - schedule.alpha(t) * keep
        return (end - keep.view(-1, 1, 1, 1) * x_t) / move.view(-1, 1, 1, 1)

    objective = Consistency(
        schedule, Phased(plain, edges), Teacher(gaussian.denoise), weight=Uniform(), steps=60, method="heun"
    )
    x_0 = gaussian_data(64)
    loss = objective(phased, phased, Batch(x_0), STAGE, torch.Generator().manual_seed(3))
    assert float(loss.max()) < 3e-3


def test_at_r_zero_the_target_is_the_estimate_and_the_target_network_is_not_called() -> None:
    x_0 = images()
    estimator = ScoreIdentity(EDM(), Reference.ungrouped(x_0))
    objective = Consistency(EDM(), PAIRS, estimator, weight=Uniform())
    t = torch.linspace(0.1, 3, 16)
    zero = torch.zeros_like(t)
    noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(0))
    model, target = Net(), Net()
    loss = objective.at(model, target, Batch(x_0), Times(t, zero, zero), noise)
    x_t = EDM().diffuse(x_0, noise, t)
    expected = (model(x_t, t) - estimator.clean(x_t, t, Batch(x_0))).flatten(1).norm(dim=1)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    assert target.times == []


@pytest.mark.parametrize("stage", [0, 3, 7])
@pytest.mark.parametrize("c", [0.0, 0.06])
def test_the_one_sample_loss_is_ects_formula(stage: int, c: float) -> None:
    """(√(‖D(x_0 + tε, t) − D(x_0 + rε, r)‖² + c²) − c)/(t − r), with x_0 for the target where r = 0."""
    x_0 = images(64).double()
    objective = Consistency(EDM(), PAIRS, OneSample(), distance=Huber(c))
    g = torch.Generator().manual_seed(stage)
    times = PAIRS.sample(64, stage * STAGE, g)
    times = Times(times.t.double(), times.r.double(), times.s.double())
    noise = torch.randn(x_0.shape, generator=g, dtype=torch.float64)
    net = Net().double()
    loss = objective.at(net, net, Batch(x_0), times, noise)
    t, r = (u.view(-1, 1, 1, 1) for u in (times.t, times.r))
    f_t = net(x_0 + t * noise, times.t)
    f_r = torch.where(r > 0, net(x_0 + r * noise, times.r.clamp(min=1e-9)), x_0)
    expected = (torch.sqrt((f_t - f_r).flatten(1).square().sum(1) + c**2) - c) / (times.t - times.r)
    # net() computes in double here; the objective compares in fp32.
    torch.testing.assert_close(loss.double(), expected, rtol=1e-3, atol=1e-4)
    if stage == 0:
        assert bool((times.r == 0).any())
        assert bool((times.r > 0).any())


def test_no_gradient_reaches_the_target_and_samples_do_not_mix() -> None:
    x_0, model, target = images(), Net(), Net(seed=1)
    objective = Consistency(EDM(), PAIRS, OneSample())
    times = PAIRS.sample(16, 4 * STAGE, torch.Generator().manual_seed(0))
    noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(1))
    loss = objective.at(model, target, Batch(x_0), times, noise)
    loss.sum().backward()
    assert target.weight.grad is None
    assert float(model.weight.grad.abs().max()) > 0
    for i in range(16):
        one = slice(i, i + 1)
        alone = Times(times.t[one], times.r[one], times.s[one])
        torch.testing.assert_close(
            objective.at(model, target, Batch(x_0[one]), alone, noise[one]), loss[one], rtol=1e-4, atol=1e-6
        )


def test_both_passes_share_the_dropout_mask() -> None:
    net = Net(dropout=0.4)
    torch.manual_seed(0)
    objective = Consistency(EDM(), PAIRS, OneSample())
    objective(net, net, Batch(images()), 4 * STAGE, torch.Generator().manual_seed(0))
    objective(net, net, Batch(images()), 4 * STAGE, torch.Generator().manual_seed(0))
    assert torch.equal(net.masks[0], net.masks[1])
    assert torch.equal(net.masks[2], net.masks[3])
    assert not torch.equal(net.masks[0], net.masks[2])


def test_a_reference_of_one_trains_as_ect_to_the_bit() -> None:
    """The same seed, loss and gradient, sample by sample."""
    for x_0 in images(8).split(1):
        losses, gradients = [], []
        for estimator in (OneSample(), ScoreIdentity(EDM())):
            net = Net()
            loss = Consistency(EDM(), PAIRS, estimator)(
                net, net, Batch(x_0), STAGE, torch.Generator().manual_seed(3)
            )
            loss.sum().backward()
            losses.append(loss.detach())
            gradients.append(net.weight.grad)
        assert torch.equal(*losses)
        assert torch.equal(*gradients)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("stage", [0, 7, 14])
def test_half_precision_images_never_give_a_nan(dtype: torch.dtype, stage: int) -> None:
    """t − r is far below half precision's resolution at late stages; times stay in fp32."""
    x_0, net = images(64).to(dtype), Net()
    for estimator in (
        OneSample(),
        ScoreIdentity(EDM()),
        ScoreIdentity(EDM(), Reference.ungrouped(pixels(9, shape=(1, 4, 4)))),
    ):
        objective = Consistency(EDM(), PAIRS, estimator)
        loss = objective(net, net, Batch(x_0), stage * STAGE, torch.Generator().manual_seed(0))
        assert loss.dtype == torch.float32
        assert bool(torch.isfinite(loss).all())


@every_schedule
@pytest.mark.parametrize("stage", [0, 5])
@pytest.mark.parametrize("reference", [False, True])
def test_one_network_has_the_same_loss_under_every_schedule(schedule, stage, reference) -> None:
    """An EDM network, adapted: the same pairs, noise, weights and targets give the same numbers."""
    x_0, net = images(32).double(), Net().double()
    bank = Reference.ungrouped(pixels(9, shape=(1, 4, 4)))

    def loss(schedule, model) -> Tensor:
        estimator = ScoreIdentity(schedule, bank) if reference else OneSample()
        pairs = LogNormalPairs(SigmoidGap(), low=0.01, high=80.0, schedule=schedule)
        ratios = LogNormalPairs(SigmoidGap(), low=0.01, high=80.0).sample(
            32, stage * STAGE, torch.Generator().manual_seed(0)
        )
        times = Times(
            schedule.time_at(ratios.t.double()), schedule.time_at(ratios.r.double()), 0 * ratios.t.double()
        )
        noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        return Consistency(schedule, pairs, estimator).at(model, model, Batch(x_0), times, noise)

    torch.testing.assert_close(
        loss(schedule, Rescheduled(net, schedule)), loss(EDM(), net), rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("reference", [None, Reference.ungrouped(pixels(9, shape=(1, 4, 4)))])
def test_the_gradient_is_that_of_finite_differences(reference) -> None:
    """Central differences of the loss in the student's weights, the target held fixed, in float64."""
    estimator = OneSample() if reference is None else ScoreIdentity(EDM(), reference)
    x_0, net, target = images(6).double(), Net().double(), Net().double()
    objective = Consistency(EDM(), PAIRS, estimator, distance=Huber(0.03))
    times = PAIRS.sample(6, 3 * STAGE, torch.Generator().manual_seed(0))
    times = Times(times.t.double(), times.r.double(), times.s.double())
    noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def loss(weight: Tensor) -> Tensor:
        with torch.no_grad():
            net.weight.copy_(weight)
        return objective.at(net, target, Batch(x_0), times, noise).sum()

    start = target.weight.detach().clone()
    (gradient,) = torch.autograd.grad(loss(start), net.weight)
    for i, j in [(0, 0), (3, 7), (15, 16), (8, 2)]:
        bump = torch.zeros_like(start)
        bump[i, j] = 1e-6
        numeric = (loss(start + bump) - loss(start - bump)) / 2e-6
        assert float(gradient[i, j]) == pytest.approx(float(numeric.detach()), rel=1e-5, abs=1e-7)


def test_learned_uncertainty_is_least_at_the_mean_loss() -> None:
    """L/e^u + u has its minimum u = ln E[L] and there the value 1 + ln E[L]."""
    x_0, zero = images(256), lambda x, t, c=None: torch.zeros_like(x)
    plain = Denoising(EDM())(zero, zero, Batch(x_0), 0, torch.Generator().manual_seed(0))
    u = plain.mean().log().expand(256).clone().requires_grad_()
    objective = Denoising(EDM(), log_variance=lambda t: u)
    loss = objective(zero, zero, Batch(x_0), 0, torch.Generator().manual_seed(0)).mean()
    assert float(loss.detach()) == pytest.approx(1 + float(plain.mean().log()), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, u)
    assert float(gradient.sum()) == pytest.approx(0, abs=1e-5)


def at(t=1.0, r=0.5, s=0.0, x_0=None, noise=None, estimator=OneSample()) -> Tensor:
    x_0 = images(4) if x_0 is None else x_0
    times = Times(*(torch.full((4,), float(u)) for u in (t, r, s)))
    noise = torch.zeros_like(x_0) if noise is None else noise
    return Consistency(EDM(), PAIRS, estimator).at(Net(), Net(), Batch(x_0), times, noise)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: at(t=0.5, r=1.0), "t > r"),
        (lambda: at(t=0.5, r=0.5), "t > r"),
        (lambda: at(r=-0.1), "t > r"),
        (lambda: at(r=0.2, s=0.3), "t > r"),
        (lambda: at(t=math.inf), "t > r"),
        (lambda: at(t=math.nan), "t > r"),
        (lambda: at(x_0=torch.full((4, 1, 4, 4), math.nan)), "NaN"),
        (lambda: at(noise=torch.full((4, 1, 4, 4), math.inf)), "NaN"),
    ],
)
def test_impossible_transitions_and_data_are_refused(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()


REFERENCE = ScoreIdentity(EDM(), Reference.ungrouped(torch.zeros(3, 1, 4, 4)))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Consistency(RectifiedFlow(), PAIRS, REFERENCE), "ScoreIdentity has the schedule EDM"),
        (lambda: ContinuousConsistency(Trigonometric(), REFERENCE), "ScoreIdentity has the schedule EDM"),
        (lambda: MeanVelocity(RectifiedFlow(), Blend(RectifiedFlow(), REFERENCE)), "give both the same"),
        (lambda: Trajectory(VP(), REFERENCE), "ScoreIdentity has the schedule EDM"),
        (lambda: Trajectory(EDM(), REFERENCE, AdaptiveHuber("own")), "adaptive radius"),
        (lambda: Consistency(EDM(), PAIRS, OneSample(), steps=4), "one Euler step"),
        (lambda: Consistency(EDM(), PAIRS, OneSample(), AdaptiveHuber("own")), "always 0"),
        (lambda: Consistency(EDM(), PAIRS, Teacher(Net()), AdaptiveHuber("posterior")), "knows no posterior"),
        (lambda: Huber(math.nan), "must not be negative"),
        (lambda: AdaptiveHuber("bogus"), "own, posterior or measured"),
        (lambda: AdaptivePower(math.nan), "p must"),
        (lambda: Mixture(math.inf), "omega must be finite"),
        (lambda: LogitNormal(mean=math.nan), "must be finite"),
        (lambda: LogitNormal(order="sort"), "swap or clamp"),
    ],
)
def test_parts_that_do_not_go_together_are_refused_when_they_are_put_together(build, message) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_pairs_of_another_schedule_are_refused_when_times_are_drawn() -> None:
    objective = Consistency(RectifiedFlow(), PAIRS, OneSample())
    with pytest.raises(ValueError, match="has the schedule EDM, the objective RectifiedFlow"):
        objective.draw(Batch(images(4)), 0, torch.Generator().manual_seed(0))


def test_a_reference_on_another_device_is_refused_by_name() -> None:
    reference = Reference.ungrouped(torch.zeros(3, 1, 4, 4, device="meta", dtype=torch.uint8))
    with pytest.raises(ValueError, match="the reference on meta"):
        at(estimator=ScoreIdentity(EDM(), reference))


class Odd(OneSample):
    """An estimate of one image for all."""

    def clean(self, x_t: Tensor, t: Tensor, batch: Batch) -> Tensor:
        return super().clean(x_t, t, batch).mean(0, keepdim=True)


class Wider(Odd):
    local = False


class Reduced(Denoising):
    """Losses that are averaged already."""

    def losses(self, model, target, draws) -> Tensor:
        return super().losses(model, target, draws).mean()[None]


PART_SHAPES = [
    (lambda: Consistency(EDM(), PAIRS, OneSample(), lambda a, b: (a - b).square().mean()), "distances []"),
    (lambda: Consistency(EDM(), PAIRS, OneSample(), lambda a, b: L1()(a, b)[:, None]), "distances [4, 1]"),
    (lambda: Consistency(EDM(), PAIRS, Odd()), "Odd gives images [1, 1, 4, 4], expected [4, 1, 4, 4]"),
    (lambda: MeanVelocity(EDM(), Odd()), "Odd gives images"),
    (lambda: ContinuousConsistency(EDM(), Odd()), "Odd gives images"),
    (lambda: Trajectory(EDM(), Wider(), steps=1, order=1), "Wider gives images"),
    (lambda: Trajectory(EDM(), REFERENCE, lambda a, b: (a - b).sum()), "Trajectory gives losses []"),
    (lambda: Reduced(EDM()), "Reduced gives losses [1], expected [4]"),
    (lambda: Denoising(EDM(), log_variance=lambda t: t[:, None]), "Denoising gives losses [4, 4]"),
]


@pytest.mark.parametrize(("build", "message"), PART_SHAPES)
def test_a_part_that_would_be_broadcast_is_refused(build, message) -> None:
    model = Net()
    with pytest.raises(ValueError, match=re.escape(message)):
        build()(model, model, Batch(images(4)), 0, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("lower", [2.0, -0.5])
def test_a_gap_that_leaves_its_bounds_is_refused(lower: float) -> None:
    gap = SimpleNamespace(lower=lambda t, _: lower * t)
    objective = Consistency(EDM(), LogNormalPairs(gap), OneSample())
    with pytest.raises(ValueError, match="t > r"):
        objective.draw(Batch(images(4)), 0, torch.Generator().manual_seed(0))
