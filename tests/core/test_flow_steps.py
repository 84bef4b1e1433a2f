"""Whole steps of the objectives in continuous time: hidden labels, networks that compute again, references
by continuous conditions."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from consistune.core.estimators import OneSample, ScoreIdentity
from consistune.core.noise import EDM, RectifiedFlow
from consistune.core.objectives import ContinuousConsistency, Mixture
from consistune.core.posterior.mean import Reference
from consistune.core.types import Batch, Condition, Times
from consistune.nn import lean, store
from tests.core.test_flow_laws import SHAPE, every_objective, loss_of, normal, objective_of

FLOW = RectifiedFlow()
OMEGA, KAPPA, LOW, HIGH = 1.7, 0.3, 0.25, 0.75


class Velocity(nn.Module):
    """u(x, t, r, label) of rectified flow by its formula, as the two-time denoiser x − t·u; 3: no label."""

    two_times = True

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(normal(4, *SHAPE, seed=1))
        self.mix = nn.Parameter(normal(6, 6, seed=2) / 3)

    def u(self, x: Tensor, t: Tensor, r: Tensor, label: Tensor) -> Tensor:
        at = t.view(-1, 1, 1, 1)
        h = torch.tanh(x.flatten(1) @ self.mix).view_as(x) + self.shift[label] * torch.cos(at)
        return h + (at - r.view(-1, 1, 1, 1)) * x.sin()

    def forward(self, x: Tensor, t: Tensor, condition: Any = None, s: Tensor | None = None) -> Tensor:
        given = condition if isinstance(condition, Condition) else Condition(condition)
        label = torch.full((len(x),), 3) if given.label is None else given.label
        if given.hidden is not None:
            label = torch.where(given.hidden, 3, label)
        return x - t.view(-1, 1, 1, 1) * self.u(x, t, t if s is None else s, label)


@pytest.mark.parametrize("difference", [None, 1e-3])
def test_derivatives_and_differences_are_taken_exactly(difference) -> None:
    """Within the model's `exactly`, where the training loop's models compute in fp32."""
    inside: list[bool] = []

    class Rough(nn.Module):
        exact = False

        @contextmanager
        def exactly(self) -> Iterator[None]:
            self.exact = True
            yield
            self.exact = False

        def forward(self, x: Tensor, t: Tensor, condition: Any = None) -> Tensor:
            inside.append(self.exact)
            return x * 0.5 + t.view(-1, 1, 1, 1).to(x)

    objective = ContinuousConsistency(EDM(), OneSample(), difference=difference, warmup_images=0)
    batch = Batch(normal(4, *SHAPE))
    objective.at(Rough(), batch, torch.full((4,), 1.0), 0, normal(4, *SHAPE, seed=3))
    assert inside == [False, True] + [True] * (difference is not None)


@pytest.mark.parametrize("kind", ["mean-velocity", "improved"])
def test_guidance_and_hidden_labels_in_a_whole_step(kind) -> None:
    """The loss is that of the formulas: iMF differentiates along u of the label, also where it is hidden."""
    net, x_0, noise = Velocity(), normal(6, *SHAPE), normal(6, *SHAPE, seed=3)
    label, hidden = torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([False, True, False, True, False, False])
    t = torch.tensor([0.1, 0.2, 0.3, 0.5, 0.6, 0.9], dtype=torch.float64)
    r = torch.tensor([0.05, 0.1, 0.3, 0.2, 0.0, 0.4], dtype=torch.float64)
    objective = objective_of(kind, FLOW, OneSample(), guidance=Mixture(OMEGA, KAPPA, LOW, HIGH))
    found = objective.at(net, Batch(x_0, label, hidden=hidden), Times(t, r, 0 * t), noise)

    seen, none, at = torch.where(hidden, 3, label), torch.full((6,), 3), t.view(-1, 1, 1, 1)
    x_t, v = (1 - at) * x_0 + at * noise, noise - x_0
    guided = OMEGA * v + (1 - OMEGA - KAPPA) * net.u(x_t, t, t, none) + KAPPA * net.u(x_t, t, t, label)
    inside = ((t >= LOW) & (t <= HIGH) & ~hidden).view(-1, 1, 1, 1)
    assert inside.flatten().tolist() == [False, False, True, False, True, False]
    v = torch.where(inside, guided, v)
    along = net.u(x_t, t, t, label) if kind == "improved" else v
    u, slope = torch.func.jvp(lambda x, at: net.u(x, at, r, seen), (x_t, t), (along, torch.ones_like(t)))
    error = u - v + (t - r).view(-1, 1, 1, 1) * slope
    torch.testing.assert_close(found, error.flatten(1).square().sum(1), rtol=1e-12, atol=0)


@pytest.mark.parametrize("network", ["song", "edm2"])
@every_objective
def test_a_step_of_a_network_that_computes_again_has_the_plain_ones_gradients(
    kind, network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layers of `nn.lean` keep little for the backward pass, also beside a forward derivative."""
    torch.manual_seed(0)
    own = {"channel_mult": [1], "num_blocks": 1, "attn_resolutions": [8], "dropout": 0.0}
    shape = {"kind": network, "image_shape": [2, 8, 8], "model_channels": 64, "second_time": True}
    first = store.build({"network": own | shape, "precond": {"kind": "edm"}}).double().train()
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    x_0, noise = normal(3, 2, 8, 8), normal(3, 2, 8, 8, seed=4)
    ratios = torch.tensor([0.1, 0.5, 2.0], dtype=torch.float64)
    kept: list[int] = []

    def step() -> list[Tensor]:
        model = copy.deepcopy(first)  # a training pass of EDM2 sets its weights' norms
        loss = loss_of(objective_of(kind, EDM(), OneSample()), model, Batch(x_0), noise, ratios)
        loss.sum().backward()
        return [loss, *(p.grad for p in model.parameters() if p.grad is not None)]

    again = lean.checkpoint

    def counted(*inputs: Any, **options: Any) -> Any:
        kept.append(1)
        return again(*inputs, **options)

    monkeypatch.setattr(lean, "checkpoint", counted)
    by_halves = step()
    assert kept
    monkeypatch.setattr(lean, "checkpoint", lambda function, *inputs, **_: function(*inputs))
    for a, b in zip(by_halves, step(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12 * float(b.detach().abs().max()))


@every_objective
@pytest.mark.parametrize("options", [{"bandwidth": 0.1}, {"nearest": 3}], ids=["bandwidth", "nearest"])
def test_references_by_continuous_conditions(kind, options) -> None:
    """Two far groups of conditions: each sample's loss is that of a reference of its own group."""
    images, noise, net = normal(6, *SHAPE), normal(6, *SHAPE, seed=5), Velocity()
    conditions = torch.tensor([0.0, 0.0, 0.0, 9.0, 9.0, 9.0], dtype=torch.float64).view(6, 1)
    groups = torch.tensor([0, 0, 0, 1, 1, 1])
    ratios = torch.tensor([0.5, 1.0, 3.0, 0.5, 1.0, 3.0], dtype=torch.float64)

    def loss(estimator: ScoreIdentity, condition: Tensor) -> Tensor:
        objective = objective_of(kind, FLOW, estimator)
        unlabelled = lambda x, t, c=None, s=None: net(x, t, None, s)
        unlabelled.two_times = True
        return loss_of(objective, unlabelled, Batch(images, condition), noise, ratios)

    continuous = Reference(images, (0, 6), conditions)
    found = loss(ScoreIdentity(FLOW, continuous, **options), conditions)
    expected = loss(ScoreIdentity(FLOW, Reference.grouped(images, groups)), groups)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
