"""The continuous objective against the published step: parity/scm."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from consistune.core.estimators import NoiseEstimator, OneSample, Teacher
from consistune.core.laws import LogNormal
from consistune.core.noise import EDM, NoiseSchedule, TrigFlow, convert
from consistune.core.objectives import ContinuousConsistency, InverseGap, Uniform
from consistune.core.rng import SharedDropout
from consistune.core.types import Batch, Times
from tests.support.toy import ToyDenoiser, close, compare, entries, gradients, named, of_variant

STEPS = 10_000
DIFFERENCED, FLOAT32_LOSS, FLOAT32_GRADIENT = 5e-12, 4e-7, 2e-6
"""What rounding leaves, over the smallest noise level, where F is a quotient of small numbers."""
STEP = 1e-3
"""Of the finite difference; rounding is divided by it."""


@dataclass(frozen=True)
class Published:
    """α/(σ·d): the published step divides the mean over the sample by d once more."""

    elements: int

    def __call__(self, times: Times, schedule: NoiseSchedule) -> Tensor:
        return InverseGap()(times, schedule) / self.elements


class Step:
    """A variant's objective, its networks and its inputs."""

    def __init__(self, arrays: dict[str, Tensor], variant: str) -> None:
        self.arrays, self.variant = arrays, variant
        null = int(arrays["null_label"][0])
        self.net, self.teacher = (ToyDenoiser(arrays, prefix, null) for prefix in ("net_", "teacher_"))
        form, *options = variant.split("_")
        estimators: dict[str, NoiseEstimator] = {
            "sct": OneSample(),
            "scd": Teacher(self.teacher, 1.7 if "cfg" in options else 1.0),
        }
        plain, self.differenced = "plain" in options, "fd" in options
        self.objective = ContinuousConsistency(
            EDM(),
            estimators[form],
            weight=Uniform() if plain else Published(arrays["x_0"][0].numel()),
            log_variance=lambda t: self.net.log_variance(t),
            warmup_images=STEPS,
            per_root_dim=not plain,
            sigma_data=self.net.sigma_data,
            difference=STEP if self.differenced else None,
        )
        self.batch = Batch(arrays["x_0"], arrays["label"])
        self.sigma = arrays["sigma"]
        self.noise = arrays["z"] / self.net.sigma_data
        self.progress = int(arrays.get(f"{variant}.iteration", torch.tensor(2 * STEPS)))

    def __getitem__(self, name: str) -> Tensor | None:
        return self.arrays.get(f"{self.variant}.{name}")

    def loss(self) -> Tensor:
        return self.objective.at(self.net, self.batch, self.sigma, self.progress, self.noise)


@pytest.fixture(params=entries("scm/scm", r"(\w+)\.loss"))
def step(request, parity) -> Step:
    return Step(parity("scm/scm"), request.param)


def test_the_step_is_the_published_one(step: Step) -> None:
    least = float(step.sigma.min())
    relative = max(1.5e-11, DIFFERENCED / least) if step.differenced else 1e-12
    stored = of_variant(step.arrays, step.variant)
    loss = step.loss()
    unweighted = replace(step.objective, weight=Uniform(), log_variance=None)
    found = {
        "loss": loss,
        "loss_unweighted": unweighted.at(step.net, step.batch, step.sigma, step.progress, step.noise),
        **gradients(step.net, loss.mean()),
        **parts(step),
    }
    if {"grad_bv", "grad_wv"} <= stored.keys():  # bv is a single number, which may nearly cancel
        for arrays in (stored, found):
            arrays["grad_wv"] = torch.cat([arrays["grad_wv"], arrays.pop("grad_bv").view(1)])
    compare(stored, found, relative, given=["iteration"])


def parts(step: Step) -> dict[str, Tensor]:
    """What the loss is made of."""
    objective, condition = step.objective, step.batch.condition
    trig = TrigFlow(objective.sigma_data)
    angle = trig.time_at(step.sigma)
    close(angle, step.arrays["t_hat"])
    x = trig.diffuse(step.batch.x_0, step.noise, angle)
    close(x, step.arrays["x_t_hat"])
    x_t = EDM().diffuse(step.batch.x_0, step.noise, step.sigma)
    x0_hat = objective.estimator.clean(x_t, step.sigma, step.batch)
    velocity = trig.estimated_velocity(step.batch.x_0, step.noise, x0_hat, angle)
    raw = objective.raw(step.net, x, angle, condition)
    again = SharedDropout(x.device).again
    with torch.no_grad():
        slope = objective._slope(step.net, x, x0_hat, velocity, angle, condition, again)
    times = objective._bound(step.batch, step.sigma, step.progress, step.noise, None).times
    warmed = times.r / times.t
    g = objective.tangent(x, velocity, raw, slope, angle, warmed)
    normalised = objective.normalised(g)
    return {
        "r": warmed[0],
        "dxt_dt": velocity,
        "F": raw,
        # These two are the toy's own: they check the fixture alone.
        "logvar": step.net.log_variance(step.sigma),
        "x0_hat": step.net(x_t, step.sigma, condition),
        "jvp": slope,
        "g_unnormalised": g,
        "g_norm": length(g) / length(normalised) - objective.c,  # what the package divides by, less c
        "g": normalised,
    }


def length(g: Tensor) -> Tensor:
    return g.flatten(1).norm(dim=1)


@pytest.mark.parametrize("variant", entries("scm/scm", r"(\w+)\.loss_f32"))
def test_in_float32(parity, variant) -> None:
    """Two steps in float32: their rounding."""
    step = Step(parity("scm/scm"), variant)
    step.net.float(), step.teacher.float()
    step.batch = Batch(step.batch.x_0.float(), step.batch.condition)
    step.sigma, step.noise = step.sigma.float(), step.noise.float()
    loss = step.loss()
    assert loss.dtype == torch.float32
    least = float(step.sigma.min()) * (STEP if step.differenced else 1.0)
    close(loss, step["loss_f32"], max(1e-5, FLOAT32_LOSS / least))
    if step["grad_W2_f32"] is not None:
        gradient = gradients(step.net, loss.mean())["grad_W2"]
        close(gradient, step["grad_W2_f32"], max(4e-5, FLOAT32_GRADIENT / least))


def test_the_coordinates_and_the_warm_up(parity) -> None:
    maps = parity("scm/trigflow_maps")
    sigma = maps["sigma"]
    trig = TrigFlow(float((sigma / maps["t_hat"].tan()).median()))
    angle = trig.time_at(sigma)
    close(angle, maps["t_hat"])
    close(trig.noise_to_signal(angle), maps["sigma_back"])
    one = torch.ones(len(sigma), 1, 1, 1, dtype=torch.float64)
    x, back = convert(one, angle, trig, EDM())
    close(x.flatten(), maps["x_scale"])
    close(back.log() / 4, maps["c_noise"])
    close(angle.cos() * angle.sin(), maps["v_t"])
    zero = torch.zeros_like(sigma)
    close(InverseGap()(Times(sigma, zero, zero), EDM()), maps["prior_weight"])
    objective = ContinuousConsistency(EDM(), OneSample(), warmup_images=STEPS)
    batch, t = Batch(one[:1]), torch.ones(1, dtype=torch.float64)
    for iteration, expected in zip(maps["warmup_iteration"], maps["warmup_r"], strict=True):
        times = objective._bound(batch, t, int(iteration), one[:1], None).times
        close(times.r / times.t, expected.view(1))


def test_the_law_of_the_noise_level(parity) -> None:
    law = parity("scm/time_law")
    for match in named(law, r"(lognormal_\d+)_settings"):
        mean, std, low, high = law[match[0]].tolist()
        close(LogNormal(mean, std, low, high).quantile(law["uniform"]), law[match[1]])
