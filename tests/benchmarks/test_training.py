"""benchmarks/training.py: how the times of two processes are put together."""

from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import training

    return training


def test_the_slower_process_counts_in_each_round(benchmark) -> None:
    first = {"alone": [4.0, 2.0], "side by side": [4.0, 2.5], "together": [5.0, 4.0]}
    second = {"alone": [0.0, 0.0], "side by side": [5.0, 2.0], "together": [4.0, 8.0]}
    found = benchmark.summary([first, second])
    assert found["seconds"]["side by side"]["seconds"] == [5.0, 2.5]
    assert found["efficiency"]["side by side"] == {"median": 0.8, "low": 0.8, "high": 0.8}
    assert found["efficiency"]["together"] == {"median": 0.525, "low": 0.25, "high": 0.8}
    table = benchmark.efficiency_table({"batch a process": 4, **found})
    assert "| alone | 3.00 | 1.33 | 1 |" in table
    assert "| together | 6.50 | 1.23 | **0.53** (0.25 to 0.80) |" in table
