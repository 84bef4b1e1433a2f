"""RAdam by Adam's kernel against torch's own RAdam."""

import copy

import pytest
import torch
from torch import nn

from consistune.training.radam import RAdam
from consistune.training.sharding import load_optimizer


def networks() -> tuple[nn.Sequential, nn.Sequential]:
    torch.manual_seed(0)
    pair = [nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Flatten(), nn.Linear(288, 1)) for _ in range(2)]
    pair[1].load_state_dict(pair[0].state_dict())
    return pair[0], pair[1].to(memory_format=torch.channels_last)


def take(network: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        network(x).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1, "eps": 1e-3}, {"betas": (0.8, 0.9)}])
def test_it_is_torchs_radam_before_and_after_the_variance_is_known(fused, options) -> None:
    ours, theirs = networks()
    a = RAdam(ours.parameters(), lr=1e-3, fused=fused, **options)
    b = torch.optim.RAdam(theirs.parameters(), lr=1e-3, foreach=False, **options)
    for first in range(0, 30, 3):  # the sixth step is the first with a known variance
        take(ours, a, range(first, first + 3))
        take(theirs, b, range(first, first + 3))
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    assert a.param_groups[0]["lr"] == 1e-3
    assert a.param_groups[0]["eps"] == options.get("eps", 1e-8)


def test_channels_last_weights_step_as_others_do() -> None:
    ours, last = networks()
    for network in (ours, last):
        take(network, RAdam(network.parameters(), lr=1e-3, fused=True), range(20))
    for p, q in zip(ours.parameters(), last.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_a_continued_optimizer_steps_as_the_unbroken_one() -> None:
    unbroken, continued = networks()
    a = RAdam(unbroken.parameters(), lr=1e-3, fused=True)
    take(unbroken, a, range(12))
    b = RAdam(continued.parameters(), lr=1e-3, fused=True)
    take(continued, b, range(4))
    c = RAdam(continued.parameters(), lr=1e-3, fused=True)
    c.load_state_dict(b.state_dict())
    take(continued, c, range(4, 12))
    for p, q in zip(unbroken.parameters(), continued.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


def test_moments_of_another_memory_format_are_the_same_moments() -> None:
    """A run continued with channels_last switched on: the kernel reads weights and moments as they lie."""
    unbroken, continued = networks()
    a = RAdam(unbroken.parameters(), lr=1e-3, fused=True)
    take(unbroken, a, range(8))
    state = copy.deepcopy(a.state_dict())
    continued.load_state_dict(unbroken.state_dict())
    b = RAdam(continued.parameters(), lr=1e-3, fused=True)
    load_optimizer(b, state)
    for network, optimizer in ((unbroken, a), (continued, b)):
        take(network, optimizer, range(8, 12))
    for p, q in zip(unbroken.parameters(), continued.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
