"""The analysis of a data set: laws of what it reports, and the files it writes."""

import csv
import math
from functools import partial

import pytest
import torch

from consistune.analyze import report
from consistune.analyze.measures import (
    discretisation,
    effective_sizes,
    named_estimators,
    target_moments,
    target_variance,
)
from consistune.analyze.report import analyze, analyze_mixture
from consistune.analyze.worlds import Empirical
from consistune.core.estimators import OneSample, ScoreIdentity
from consistune.core.noise import EDM
from tests.core.posterior.test_mean import pixels

IMAGES = pixels(90, shape=(1, 4, 4))
LABELS = torch.randint(3, (90,), generator=torch.Generator().manual_seed(0))
WORLD = Empirical(IMAGES, LABELS, EDM())


def test_variance_rises_from_nothing_and_the_class_reference_is_exact() -> None:
    estimators = named_estimators(IMAGES, LABELS, EDM())
    measured = target_variance(WORLD, estimators, (0.01, 3.0, 80.0), queries=256)
    rows = {(r.t, r.estimator): r for r in measured}
    assert {name for _, name in rows} == {"one-sample", "batch", "class", "all"}
    assert rows[0.01, "one-sample"].error < 1e-3 < rows[3.0, "one-sample"].error
    for t in (3.0, 80.0):
        assert rows[t, "one-sample"].relative == 1
        assert rows[t, "class"].error < 1e-12
        assert rows[t, "batch"].relative < 0.5
        assert rows[t, "all"].error > rows[t, "class"].error  # it ignores the label


def test_the_variance_of_one_sample_is_bias_free_and_agrees_with_its_error() -> None:
    estimators = {"one": OneSample(), "all": ScoreIdentity(EDM(), WORLD.reference)}
    found = target_moments(WORLD, estimators, (2.0,), batch_size=5120, batches=1)
    rows = {r.estimator: r for r in found}
    error = target_variance(WORLD, {"one-sample": OneSample()}, (2.0,), queries=2048)[0].error
    assert rows["one"].variance == pytest.approx(error, rel=0.2)
    assert abs(rows["one"].squared_bias) < 0.05 * error
    assert rows["all"].variance < 1e-12


def test_references_count_once_without_noise_and_all_in_pure_noise() -> None:
    world = Empirical(IMAGES, None, EDM())
    small, large = effective_sizes(world, world.reference, (0.001, 1e5))
    assert small.median == pytest.approx(1, abs=1e-3)
    assert large.median == pytest.approx(90, rel=1e-3)


def test_discretisation_falls_with_the_step_at_each_solvers_local_order() -> None:
    """The local error of one step is O(gap²) for Euler and O(gap³) for Heun."""
    rows = discretisation(Empirical(IMAGES, None, EDM()), (2.0,), (1 / 16, 1 / 32), queries=64)
    assert math.log2(rows[0].euler / rows[1].euler) == pytest.approx(2, abs=0.35)
    assert math.log2(rows[0].heun / rows[1].heun) == pytest.approx(3, abs=0.5)


def test_tables_and_plots_are_written(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(report, "target_moments", partial(target_moments, batches=1, repeats=4))
    monkeypatch.setattr(report, "discretisation", partial(discretisation, gaps=(1 / 2, 1 / 4), fine_steps=4))
    written = analyze(IMAGES, LABELS, tmp_path / "a", times=(0.5, 5.0), queries=64)
    written += analyze_mixture(tmp_path / "b", bank=64, times=(0.1, 1.0), queries=64)
    assert len(written) == 16
    for path in written:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".csv":
            rows = list(csv.DictReader(text.splitlines()))
            assert rows
            assert not any(v in ("nan", "inf") for row in rows for v in row.values())
        else:
            assert text.startswith("<svg")
