"""Guidance: linear in ω, free at ω = 1, confined to its interval."""

import pytest
import torch

from consistune.core.guidance import Guided


class Scale:
    """x̂_0 = a·x (a + 1 where a condition is given); counts its calls."""

    def __init__(self, a: float) -> None:
        self.a, self.calls = a, 0

    def __call__(self, x_t, t, condition=None):
        self.calls += 1
        return (self.a + (condition is not None)) * x_t


x = torch.randn(4, 1, 2, 2, generator=torch.Generator().manual_seed(0))
t = torch.tensor([0.1, 1.0, 2.0, 5.0])


def test_omega_one_never_calls_the_worse_model() -> None:
    better, worse = Scale(2.0), Scale(1.0)
    assert torch.equal(Guided(better, worse, 1.0)(x, t), 2 * x)
    assert (better.calls, worse.calls) == (1, 0)


@pytest.mark.parametrize("omega", [0.0, 0.5, 1.7, 3.0])
def test_it_is_the_line_through_both_models(omega: float) -> None:
    torch.testing.assert_close(Guided(Scale(2.0), Scale(1.5), omega)(x, t), (1.5 + omega * 0.5) * x)


def test_without_a_worse_model_the_unconditional_branch_guides() -> None:
    label = torch.zeros(4, dtype=torch.long)
    torch.testing.assert_close(Guided(Scale(2.0), None, 1.5)(x, t, label), (2 + 1.5 * 1) * x)


def test_guidance_acts_inside_its_interval_only() -> None:
    out = Guided(Scale(2.0), Scale(1.0), 2.0, low=0.1, high=2.0)(x, t)
    torch.testing.assert_close(out, x * torch.tensor([2.0, 3.0, 3.0, 2.0]).view(4, 1, 1, 1))
    worse = Scale(1.0)
    Guided(Scale(2.0), worse, 2.0, low=10.0)(x, t)
    assert worse.calls == 0
