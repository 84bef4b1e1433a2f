"""The parts of the TD error in benchmarks/method.py, on a model whose parts are known."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from consistune.analyze.worlds import Empirical
from consistune.core.estimators import ScoreIdentity
from consistune.core.noise import EDM
from consistune.core.solve import solve
from consistune.core.types import Batch
from consistune.data.images import digits

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import method

    monkeypatch.setattr(method, "TD_QUERIES", 32)
    monkeypatch.setattr(method, "TD_TIMES", (0.8, 3.0))
    return method


def test_the_exact_consistency_function_has_no_inconsistency_of_its_own(benchmark, monkeypatch) -> None:
    monkeypatch.setattr(benchmark, "TD_TIMES", (3.0,))
    monkeypatch.setattr(benchmark, "GAPS", (1 / 8,))
    train = digits().train
    exact = ScoreIdentity(EDM(), Empirical(train.images, train.labels, EDM()).reference)

    def model(x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        batch = Batch(torch.zeros_like(x_t), condition)
        return solve(EDM(), exact, x_t, t, torch.zeros_like(t), batch, 40, "heun")

    (row,) = benchmark.td_error(model)
    assert row["end"] == 0
    assert row["noise"] > 0
    assert row["own"] < 0.1 * row["noise"]


def test_the_discretisation_is_of_second_order_and_the_noise_of_first(benchmark) -> None:
    def model(x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        return x_t

    rows = {(row["t"], row["gap"]): row for row in benchmark.td_error(model)}
    for t in benchmark.TD_TIMES:
        wide, narrow = rows[t, 1 / 16], rows[t, 1 / 32]
        assert wide["euler"] / narrow["euler"] == pytest.approx(4, rel=0.15)
        assert wide["noise"] / narrow["noise"] == pytest.approx(2, rel=0.01)
