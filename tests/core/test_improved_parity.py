"""iMF's loss, with the published head and guidance inputs on the toy network: parity/imf."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from consistune.core.estimators import OneSample
from consistune.core.intervals import LogitNormal
from consistune.core.noise import RectifiedFlow
from consistune.core.objectives import AdaptivePower, Draws, ImprovedMeanVelocity
from consistune.core.rng import SharedDropout
from consistune.core.sampling import PhasedSteps
from consistune.core.types import Batch, Condition, Times, expand
from tests.support.toy import ToyVelocity, close, compare, entries, gradients, of_variant, settings

FLOW = RectifiedFlow()


class Heads(ToyVelocity):
    """The toy with its velocity head; `extra` is the guidance input [1 − 1/ω, t_min, t_max] of u."""

    extra: Tensor

    def heads(self, x: Tensor, t: Tensor, q: Tensor, label: Tensor, extra: Tensor) -> tuple[Tensor, Tensor]:
        h = self.hidden_layer(x, t, label, q, extra)
        return self.out(h, x), (h @ self.W3.T + self.b3).view_as(x)

    def velocity(self, x: Tensor, t: Tensor, r: Tensor, condition: Any = None) -> Tensor:
        return self.heads(x, t, t - r, self.labels(condition, len(x)), self.extra)[0]


@dataclass(frozen=True)
class Published(ImprovedMeanVelocity):
    """The objective with the published guidance, own velocity and head."""

    share: Tensor = torch.zeros(0)
    """1 − 1/ω of each sample, 0 outside its interval."""

    def own(self, model: Heads, x_t: Tensor, t: Tensor, label: Tensor, share: Tensor) -> Tensor:
        zero, one = torch.zeros_like(t), torch.ones_like(t)
        return model.heads(x_t, t, zero, label, torch.stack([share, zero, one], dim=1))[1]

    def along(self, model: Any, x_t: Tensor, draws: Any, v: Tensor, again: Any) -> Tensor:
        return self.own(model, x_t, draws.times.t, draws.batch.condition, self.share)

    def velocities(self, model: Any, x_t: Tensor, draws: Any, again: Any) -> tuple[Tensor, Any]:
        (v, own), t, batch = super().velocities(model, x_t, draws, again), draws.times.t, draws.batch
        null = torch.full_like(batch.condition, model.null)
        difference = self.along(model, x_t, draws, v, again)
        difference = difference - self.own(model, x_t, t, null, torch.zeros_like(t))
        share = torch.where(batch.hidden, 0.0, self.share).view(-1, 1, 1, 1)
        return v + share * difference, lambda: own() + share * difference


class Step:
    """A variant's objective, network and inputs, all from the stored draws."""

    def __init__(self, arrays: dict[str, Any], variant: str) -> None:
        given, size = settings(arrays, variant), len(arrays["x_0"])
        self.p, self.c = given.get("norm_p", 1.0), given.get("norm_eps", 0.01)
        share = given.get("data_proportion", 0.5)
        law = LogitNormal(-0.4, 1.0, -0.4, 1.0, share, "swap", exact=True, highest=1 - 1e-15)
        self.t, self.r = law.times(arrays["normal_t"], arrays["normal_r"], torch.zeros(size))
        self.same = torch.arange(size) < int(share * size)
        beta, u = given.get("cfg_beta", 1.0), arrays["uniform_omega"]
        power = 1 - beta
        omega = 8**u if beta == 1 else (1 + u * (8**power - 1)) ** (1 / power)
        self.omega = omega.float()  # as the reference keeps it
        guidance = (1 - 1 / self.omega).double()
        self.t_min = torch.where(self.same, 0.0, 0.5 * arrays["uniform_t_min"])
        self.t_max = torch.where(self.same, 1.0, 0.5 + 0.5 * arrays["uniform_t_max"])
        dropped = int((arrays["drop_uniform"] < given.get("class_dropout_prob", 0.1)).sum())
        self.batch = Batch(arrays["x_0"], arrays["label"], hidden=torch.arange(size) < dropped)
        self.net = Heads(arrays, null=len(arrays["net_Wl"]) - 1)
        self.net.extra = torch.stack([guidance, self.t_min, self.t_max], dim=1)
        inside = (self.t >= self.t_min) & (self.t <= self.t_max)
        self.objective = Published(
            FLOW,
            OneSample(),
            scale=AdaptivePower(self.p, self.c),
            share=torch.where(inside, guidance, 0.0),
        )
        self.times = Times(self.t, self.r, torch.zeros_like(self.t))
        self.draws = self.objective.bound(self.batch, self.times, arrays["noise"], None)


@pytest.mark.parametrize("variant", entries("imf/imf", r"(\w+)\.settings"))
def test_the_published_step(parity, variant) -> None:
    arrays = parity("imf/imf")
    step = Step(arrays, variant)
    objective, net, draws = step.objective, step.net, step.draws
    x_t, again = FLOW.diffuse(step.batch.x_0, arrays["noise"], step.t), SharedDropout(step.t.device).again
    condition = step.batch.network_condition
    loss_u = objective.losses(net, net, draws)
    with torch.no_grad():
        v, v_own = objective.velocities(net, x_t, draws, again)
        torch.testing.assert_close(v, v_own(), rtol=0, atol=0)  # one-sample noise
        own = objective.along(net, x_t, draws, v, again)
        u = objective.mean_velocity(net, x_t, step.times, condition)
        change = objective.change(net, x_t, step.times, condition, own, u, again)
    label = net.labels(condition, len(x_t))
    head = net.heads(x_t, step.t, step.t - step.r, label, net.extra)[1]
    error_v = (head - v).flatten(1).square().sum(1)
    loss_v = objective.scale(error_v, lambda: error_v)
    loss = loss_u + loss_v
    found = {
        "t": step.t,
        "r": step.r,
        "omega": step.omega,
        "t_min": step.t_min,
        "t_max": step.t_max,
        "x_t": x_t,
        "velocity": arrays["noise"] - step.batch.x_0,
        "guided_velocity": v,
        "v_cond": own,
        "label_used": label,
        "u": u,
        "V": u + change,
        "v_head": head,
        "loss_u": loss_u,
        "loss_v": loss_v,
        "loss": loss,
        "mean_loss": loss.mean(),
        "flow_matching": step.same,
        "jvp": change,
        **gradients(net, loss.mean()),
    }
    stored = of_variant(arrays, variant)
    if "jvp" in stored:  # only its product with t − r is there
        stored["jvp"] = (step.t - step.r).view(-1, 1, 1, 1) * stored["jvp"]
    compare(stored, found)


@pytest.mark.parametrize("name", entries("imf/imf", r"(sample_\d+)"))
def test_the_published_samples(parity, name) -> None:
    arrays, steps = parity("imf/imf"), int(name.removeprefix("sample_"))
    net = Heads(arrays, null=len(arrays["net_Wl"]) - 1)
    net.extra = torch.tensor([[1 - 1 / 3.5, 0.2, 0.8]], dtype=torch.float64).expand(len(arrays["noise"]), 3)
    edges = tuple(k / steps for k in range(1, steps))
    found = PhasedSteps(edges, t_max=1.0)(
        net, FLOW, lambda *shape: arrays["noise"], arrays["noise"].shape[1:], arrays["label"]
    )
    close(found, arrays[name])


# What the published numbers cannot show: `Published` has an `along` of its own ----------------------------


@pytest.mark.parametrize("augmented", [False, True])
def test_the_own_velocity_sees_every_label_also_hidden_ones(augmented: bool) -> None:
    labels, augment = torch.tensor([1.0, 2.0]), torch.tensor([[3.0], [4.0]]) if augmented else None
    x_t, t = torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([0.5, 0.25])
    batch = Batch(x_t, labels, hidden=torch.tensor([True, False]), augment=augment)
    draws = Draws(batch, Times(t, 0 * t, 0 * t), x_t, OneSample())

    def model(x: Tensor, t: Tensor, condition: Any = None) -> Tensor:
        given = condition if isinstance(condition, Condition) else Condition(condition)
        assert given.hidden is None
        assert given.augment is augment
        return expand(given.label, x).expand_as(x)

    found = ImprovedMeanVelocity(FLOW, OneSample()).along(model, x_t, draws, x_t, nullcontext)
    torch.testing.assert_close(found, (x_t - expand(labels, x_t)) / expand(t, x_t))
