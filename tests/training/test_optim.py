"""Learning rates follow their formulas, counted in images; the fused kernels give the plain ones' steps."""

import copy
from typing import Literal

import pytest
import torch
from torch import nn

from consistune.training.optim import (
    Constant,
    Cosine,
    InverseSquareRoot,
    LinearDecay,
    Optimizer,
    RateSchedule,
)


def test_learning_rates_at_known_points() -> None:
    assert [Cosine().factor(n, 10) for n in (0, 10)] == [1, 0]
    assert Cosine().factor(5, 10) == pytest.approx(0.5)
    decay = LinearDecay(start=0.5)
    assert [decay.factor(n, 100) for n in (0, 50, 75, 100)] == [1, 1, 0.5, 0]
    assert [Constant().factor(n, 10) for n in (0, 10)] == [1, 1]


def test_edm2s_rate_is_its_published_formula() -> None:
    """lr(n) = α/√max(n/(t_ref·B), 1)·min(n/10⁷, 1)  with img64-s: α = 0.01, t_ref = 35,000, B = 2048."""
    made = Optimizer("adam", 0.01, lr_schedule=InverseSquareRoot(35_000 * 2048), warmup_images=10_000_000)
    for n in (0, 2048, 5_000_000, 10_000_000, 71_680_000, 286_720_000, 2**30):
        expected = 0.01 / max(n / (35_000 * 2048), 1) ** 0.5 * min(n / 10e6, 1)
        assert made.rate_at(n, 2**30) == pytest.approx(expected, rel=1e-12)
    assert made.rate_at(4 * 71_680_000, 2**30) == pytest.approx(0.005)


def test_edms_rate_rises_over_the_first_ten_million_images() -> None:
    made = Optimizer("adam", 1e-3, warmup_images=10_000_000)
    assert [made.rate_at(n, 200_000_000) for n in (0, 2_500_000, 10_000_000, 2 * 10**8)] == [
        0,
        2.5e-4,
        1e-3,
        1e-3,
    ]


@pytest.mark.parametrize("schedule", [Constant(), Cosine(), LinearDecay(), InverseSquareRoot(7_000)])
def test_the_batch_does_not_change_a_schedule(schedule: RateSchedule) -> None:
    """At the same number of images seen, runs of different batches have the same rate."""
    made = Optimizer("adam", 1.0, lr_schedule=schedule, warmup_images=4_000)
    rates = {batch: {n: made.rate_at(n, 64_000) for n in range(0, 64_000, batch)} for batch in (64, 256)}
    assert all(rates[64][n] == rate for n, rate in rates[256].items())
    assert len(set(rates[256].values())) > 1


def test_what_makes_no_sense_is_refused() -> None:
    for wrong in (
        lambda: InverseSquareRoot(0),
        lambda: LinearDecay(1.0),
        lambda: Optimizer("adam", 0.0),
        lambda: Optimizer("adam", warmup_images=-1),
    ):
        with pytest.raises(ValueError, match="got"):
            wrong()


@pytest.mark.parametrize("kind", ["adam", "adamw", "radam"])
def test_every_option_reaches_torchs_optimizer(kind: Literal["adam", "adamw", "radam"]) -> None:
    made = Optimizer(kind, 1e-3, betas=(0.8, 0.95), eps=1e-5, weight_decay=0.1)
    (group,) = made.build(nn.Linear(2, 2)).param_groups
    expected = {"lr": 1e-3, "betas": (0.8, 0.95), "eps": 1e-5, "weight_decay": 0.1}
    assert {name: group[name] for name in expected} == expected


def three_steps(optimizer: torch.optim.Optimizer, model: nn.Module, place: str) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(8, 6, generator=draw).to(place)).square().sum().backward()
        optimizer.step()
    return [p.detach().cpu() for p in model.parameters()]


@pytest.mark.parametrize("place", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("kind", ["adam", "adamw", "radam"])
def test_the_kernel_in_use_takes_the_plain_loops_steps(kind: str, place: str) -> None:
    model = nn.Linear(6, 4).to(place)
    other = copy.deepcopy(model)
    made = Optimizer(kind, 0.01, weight_decay=0.1).build(model)  # type: ignore[arg-type]
    assert made.defaults["fused"]
    cls = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "radam": torch.optim.RAdam}[kind]
    plain = cls(other.parameters(), lr=0.01, weight_decay=0.1, foreach=False)
    for a, b in zip(three_steps(made, model, place), three_steps(plain, other, place), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)
