"""The adaptive norm: its formula in float64, its radius by laws, the scatter that it reads (METHOD §7)."""

import pytest
import torch
from torch import Tensor

from consistune.core.estimators import Blend, OneSample, ScoreIdentity, Teacher
from consistune.core.noise import EDM, NoiseSchedule
from consistune.core.objectives import AdaptiveHuber, Consistency, Huber, Uniform
from consistune.core.posterior.mean import Reference, posterior
from consistune.core.times import LogNormalPairs, SigmoidGap
from consistune.core.types import Batch, Times
from tests.core.posterior.test_mean import pixels
from tests.core.test_objectives import Net, gaussian_data, images
from tests.support.exact import posterior_exact, scatter_exact
from tests.support.gaussian import SCHEDULES, Anisotropic, Gaussian

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
PAIRS = LogNormalPairs(SigmoidGap())
OWN, POSTERIOR, MEASURED = (AdaptiveHuber(kind) for kind in ("own", "posterior", "measured"))
every_scatter = pytest.mark.parametrize("distance", [OWN, POSTERIOR, MEASURED], ids=lambda d: d.scatter)


def norm(x: Tensor) -> Tensor:
    return x.double().flatten(1).norm(dim=1)


def transition(schedule: NoiseSchedule, n: int, gap: float = 0.1, edge: float = 0.0) -> Times:
    """t over noise-to-signal ratios 0.1 … 40, r a relative gap below it, s at the ratio `edge`."""
    ratio = torch.logspace(-1, 1.6, n, dtype=torch.float64)
    end = torch.full_like(ratio, edge)
    return Times(*map(schedule.time_at, (ratio, torch.maximum((1 - gap) * ratio, end), end)))


def setting(schedule: NoiseSchedule, n: int = 16, gap: float = 0.1) -> tuple[Batch, Times, Tensor, Reference]:
    x_0, noise = images(n).double(), torch.randn(n, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    reference = Reference.ungrouped(torch.cat([x_0, images(20, seed=3).double()]))
    return Batch(x_0), transition(schedule, n, gap), noise.double(), reference


# The distance ---------------------------------------------------------------------------------------------


def test_it_is_pseudo_huber_with_a_radius_a_sample() -> None:
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 9, 1, 4, 4, generator=g, dtype=torch.float64)
    radius = torch.logspace(-3, 2, 9, dtype=torch.float64)
    expected = torch.sqrt(norm(a - b) ** 2 + radius**2) - radius
    torch.testing.assert_close(OWN(a, b, radius), expected, rtol=1e-10, atol=0)
    near = b.float() + 1e-6 * a.float()  # where √(δ² + 1) − 1 is 0 in fp32
    found = OWN(near, b.float(), torch.ones(9))
    torch.testing.assert_close(found.double(), norm(near - b.float()) ** 2 / 2, rtol=1e-6, atol=0)


@pytest.mark.parametrize("radius", [0.0, 1e-30, 1.0])
def test_equal_images_have_distance_zero_and_a_finite_gradient(radius: float) -> None:
    a = images(3).requires_grad_()
    distance = OWN(a, a.detach(), torch.full((3,), radius))
    distance.sum().backward()
    assert torch.equal(distance, torch.zeros(3))
    assert torch.equal(a.grad, torch.zeros_like(a))


# The radius -----------------------------------------------------------------------------------------------


@every_schedule
@pytest.mark.parametrize("distance", [OWN, AdaptiveHuber("own", 0.5, sigma_data=0.8)])
def test_the_radius_is_the_scatter_carried_to_the_networks_output(schedule, distance) -> None:
    times = transition(schedule, 12)
    t, r = times.t, times.r
    alpha_r, sigma_r = schedule.alpha(r), schedule.sigma(r)
    gain = 1 / (alpha_r + sigma_r / (4 * distance.sigma_data))
    carried = (alpha_r - sigma_r * schedule.alpha(t) / schedule.sigma(t)).abs()
    expected = distance.scale * gain * carried * 3.0
    found = distance.radius(times, schedule, torch.full_like(t, 3.0))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


@every_schedule
@pytest.mark.parametrize("edge", [0.0, 0.2, 3.0])
def test_the_gain_is_one_at_the_end_of_a_phase_and_continuous_there(schedule, edge: float) -> None:
    ratio = torch.full((1,), 5.0, dtype=torch.float64)
    t, s = schedule.time_at(ratio), schedule.time_at(torch.full_like(ratio, edge))
    one = torch.ones_like(t)

    def radius(r: Tensor) -> Tensor:
        return OWN.radius(Times(t, r, s), schedule, one)

    assert torch.equal(radius(s), schedule.move(t, s).abs())
    torch.testing.assert_close(radius(s + 1e-9), radius(s), rtol=1e-4, atol=0)


@every_schedule
def test_the_radius_vanishes_as_t_minus_r(schedule) -> None:
    ratio = torch.full((1,), 2.0, dtype=torch.float64)
    t, zero = schedule.time_at(ratio), torch.zeros_like(ratio)
    gaps = [1e-3, 1e-4, 1e-5]
    rates = [OWN.radius(Times(t, t * (1 - gap), zero), schedule, ratio) / gap for gap in gaps]
    torch.testing.assert_close(rates[1], rates[2], rtol=1e-3, atol=0)
    assert float(rates[0]) > 0.1


# In the objective -----------------------------------------------------------------------------------------


@every_schedule
@every_scatter
def test_the_loss_is_the_formula_with_the_naive_posterior(schedule, distance) -> None:
    """Everything again in float64 from [B, n, d] tensors: x̂_0, s_i, x_r, c_i and the distance."""
    batch, times, noise, reference = setting(schedule)
    t, r, x_0 = times.t, times.r, batch.x_0
    model, target = Net().double(), Net(seed=1).double()
    estimator = ScoreIdentity(schedule, reference)
    found = Consistency(schedule, PAIRS, estimator, distance, Uniform()).at(
        model, target, batch, times, noise
    )
    x_t = schedule.diffuse(x_0, noise, t)
    x0_hat = posterior_exact(x_t, t, schedule, reference.images)
    f_r = target(schedule.step(x_t, x0_hat, t, r), r).detach()
    jump = lambda x, u, d: schedule.step(x, d, u, 0 * u)
    f_t, f_r = jump(x_t, t, model(x_t, t)), jump(schedule.step(x_t, x0_hat, t, r), r, f_r)
    if distance is MEASURED:
        x_own = schedule.diffuse(x_0, noise, r)  # one-sample's x_r
        c = norm(jump(x_own, r, target(x_own, r).detach()) - f_r)
    else:
        posterior_root = scatter_exact(x_t, t, schedule, reference.images)
        s = norm(x_0 - x0_hat) if distance is OWN else posterior_root
        c = distance.radius(times, schedule, s)
    delta = norm(f_t - f_r)
    torch.testing.assert_close(found, torch.sqrt(delta**2 + c**2) - c, rtol=1e-6, atol=1e-7)
    assert float(c.max()) > 0.01 > float(c.min())


@every_schedule
@pytest.mark.parametrize("distance", [OWN, MEASURED], ids=lambda d: d.scatter)
def test_the_exact_function_is_a_fixed_point(schedule, distance) -> None:
    """On an anisotropic Gaussian the loss is what the solver misses; another function has more."""
    gaussian = Anisotropic(schedule, torch.tensor([[[0.2, 0.5], [0.9, 1.4]]], dtype=torch.float64))
    pairs = LogNormalPairs(SigmoidGap(), low=0.05, high=80.0, schedule=schedule)

    def loss(model) -> float:
        estimator = Teacher(gaussian.denoise)
        objective = Consistency(schedule, pairs, estimator, distance, Uniform(), steps=60, method="heun")
        g = torch.Generator().manual_seed(2)
        return float(objective(model, model, Batch(gaussian_data(32)), 10**7, g).max())

    assert loss(lambda x, t, c=None: gaussian.flow(x, t, 0 * t)) < 1e-4
    assert loss(gaussian.denoise) > 1e-3


@every_scatter
@pytest.mark.parametrize("gap", [1.0, 0.01])
def test_a_reference_of_one_image_trains_as_ect(distance, gap: float) -> None:
    """The posterior is that image, so the radius is at its floor and the loss the plain norm."""
    batch, times, noise, _ = setting(EDM(), 1, gap)
    losses = [
        Consistency(EDM(), PAIRS, estimator, norm).at(Net().double(), Net().double(), batch, times, noise)
        for estimator, norm in ((ScoreIdentity(EDM()), distance), (OneSample(), Huber()))
    ]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=0)


@every_scatter
def test_at_the_edge_the_measured_radius_is_the_carried_scatter_and_no_network_is_asked(distance) -> None:
    batch, _, noise, reference = setting(EDM())
    times = transition(EDM(), len(batch), gap=1.0, edge=0.05)
    target = Net(seed=1).double()
    objective = Consistency(EDM(), PAIRS, ScoreIdentity(EDM(), reference), distance)
    loss = objective.at(Net().double(), target, batch, times, noise)
    assert target.times == []
    if distance is MEASURED:  # then (b) is (a) with the own scatter
        own = Consistency(EDM(), PAIRS, ScoreIdentity(EDM(), reference), OWN)
        torch.testing.assert_close(
            loss, own.at(Net().double(), target, batch, times, noise), rtol=1e-9, atol=0
        )


@pytest.mark.parametrize("distance", [OWN, POSTERIOR], ids=lambda d: d.scatter)
def test_a_blend_scales_the_scatter_by_rho(distance) -> None:
    batch, times, noise, reference = setting(EDM(), gap=0.02)
    x_t = EDM().diffuse(batch.x_0, noise, times.t)
    identity = ScoreIdentity(EDM(), reference)

    def scatter(estimator) -> Tensor:
        bound = estimator.bind(batch, times, None)
        if distance is POSTERIOR:
            return bound.clean_and_scatter(x_t, times.t, batch)[1]
        return norm(batch.x_0 - bound.clean(x_t, times.t, batch))

    rho = 0.02 / 0.25
    blend = Blend(EDM(), identity, full_gap=0.25)
    torch.testing.assert_close(scatter(blend), rho * scatter(identity), rtol=1e-9, atol=1e-12)


def test_the_measured_pass_draws_the_students_dropout_mask() -> None:
    net = Net(dropout=0.4)
    estimator = ScoreIdentity(EDM())
    times = PAIRS.sample(16, 4 * 3_200_000, torch.Generator().manual_seed(0))
    noise = torch.randn(16, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    Consistency(EDM(), PAIRS, estimator, MEASURED).at(net, net, Batch(images()), times, noise)
    first, *others = net.masks
    assert len(others) == 2
    assert all(torch.equal(first, other) for other in others)


def test_no_gradient_reaches_the_target_or_the_radius() -> None:
    """The gradient is that of the distance at a radius held fixed."""
    batch, times, noise, reference = setting(EDM())
    for distance in (OWN, MEASURED):
        net, target = Net().double(), Net(seed=1).double()
        objective = Consistency(EDM(), PAIRS, ScoreIdentity(EDM(), reference), distance)
        objective.at(net, target, batch, times, noise).sum().backward()
        assert target.weight.grad is None
        assert float(net.weight.grad.abs().max()) > 0


def test_a_teacher_has_an_own_scatter_and_no_posterior() -> None:
    batch, times, noise, _ = setting(EDM())
    teacher = Teacher(Gaussian(EDM()).denoise)
    net = Net().double()
    steps = {"steps": 3, "method": "heun"}
    loss = Consistency(EDM(), PAIRS, teacher, OWN, **steps).at(net, net, batch, times, noise)
    plain = Consistency(EDM(), PAIRS, teacher, **steps).at(net, net, batch, times, noise)
    assert bool((loss < plain).all())
    with pytest.raises(ValueError, match="Teacher knows no posterior"):
        Consistency(EDM(), PAIRS, teacher, POSTERIOR).at(net, net, batch, times, noise)


@pytest.mark.parametrize("wrong", [{"scale": 0.0}, {"scale": float("nan")}, {"sigma_data": -1.0}])
def test_values_out_of_range_are_refused(wrong) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be positive"):
        AdaptiveHuber("own", **wrong)


def test_sigma_data_without_effect_is_refused() -> None:
    with pytest.raises(ValueError, match="no effect"):
        AdaptiveHuber("measured", sigma_data=0.7)


# The scatter of the posterior -----------------------------------------------------------------------------


@every_schedule
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("floating", [False, True])
def test_the_streamed_scatter_is_the_naive_one(schedule, mirrored: bool, floating: bool) -> None:
    """√(Σ_j w_j‖x⁽ʲ⁾ − x̂_0‖²) by its definition, over blocks of several sizes."""
    stored = pixels(40, shape=(3, 8, 8))
    x = stored.double() / 127.5 - 1
    t = schedule.time_at(torch.logspace(-1, 1.9, 12, dtype=torch.float64))
    noise = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    x_t = schedule.diffuse(x[:12], noise, t)
    every = torch.cat([x, x.flip(-1)]) if mirrored else x
    exact = scatter_exact(x_t, t, schedule, every)
    reference = Reference.ungrouped(x if floating else stored)
    for block in (7, 40):
        found = posterior(x_t, t, schedule, reference, mirrored=mirrored, block=block).scatter
        torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-6 if floating else 2e-2)
    assert float(exact.max()) > 5
    assert float(found[0]) == pytest.approx(0, abs=1e-6)
