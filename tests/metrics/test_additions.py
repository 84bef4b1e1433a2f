"""Metrics from outside the package: registered, named, chosen by default, and refused as they say."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from consistune.errors import UserError
from consistune.metrics import table
from consistune.metrics.frechet import FrechetDistance
from consistune.metrics.metric import Block, Metric, Result, SampleBatch, Setup
from consistune.metrics.suite import Suite
from tests.support.metrics import setup_of

IMAGES = torch.arange(80, dtype=torch.uint8).reshape(20, 1, 2, 2)


class Brightness(Metric):
    """The mean pixel of the samples."""

    def check(self) -> None:
        if self.setup.convention == "biased":
            raise UserError("knows no biased convention", "--metrics brightness")

    def start(self, block: Block) -> None:
        super().start(block)
        self.sum = 0.0

    def accumulate(self, batch: SampleBatch) -> None:
        self.sum += float(batch.images.double().mean((1, 2, 3)).sum())

    def result(self) -> Result:
        return Result({"brightness": self.sum / self.block.total}, worst=[(0, 1)])


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch) -> Setup:
    monkeypatch.setattr(table, "METRICS", dict(table.METRICS))
    return setup_of(torch.zeros(4), torch.eye(4))


def test_a_registered_metric_is_measured_beside_the_others(setup: Setup) -> None:
    table.register("brightness", Brightness)
    outcome = Suite(setup, ("brightness", "fd"), batch=7).run(
        lambda rows: (IMAGES[list(rows)], None), range(20)
    )
    assert list(outcome.values) == ["fd-pixels", "fd-pixels_error", "fd-pixels_bias", "brightness"]
    assert outcome.values["brightness"] == pytest.approx(39.5)
    assert outcome.worst == [(0, 1)]
    with pytest.raises(ValueError, match="already"):
        table.register("fd", Brightness)


@pytest.mark.usefixtures("setup")
def test_a_metric_that_is_defined_again_replaces_itself() -> None:
    table.register("brightness", Brightness)
    again = type("Brightness", (Brightness,), {"__module__": __name__})
    table.register("brightness", again)
    assert table.metric_class("brightness") is again
    with pytest.raises(ValueError, match="already"):
        table.register("brightness", FrechetDistance)


def test_a_metric_refuses_its_setup_before_anything_is_drawn(setup: Setup) -> None:
    table.register("brightness", f"{__name__}:Brightness")
    with pytest.raises(UserError, match="no biased convention"):
        Suite(Setup(setup.extractor, setup.reference, convention="biased"), ("brightness",))


def test_an_entry_point_of_another_package_adds_a_metric(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "other-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(f"[consistune.metrics]\nbrightness = {__name__}:Brightness\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert list(table.all_metrics()) == [*table.METRICS, "brightness"]
    assert table.metric_class("brightness") is Brightness
    assert Suite(setup, ("brightness",)).measure(IMAGES).values == {"brightness": pytest.approx(39.5)}


def test_samples_in_memory_are_measured_as_those_that_are_drawn(setup: Setup) -> None:
    drawn = Suite(setup, ("fd",), batch=3).run(lambda rows: (IMAGES[list(rows)], None), range(20)).values
    assert Suite(setup, ("fd",)).measure(IMAGES).values == pytest.approx(drawn, rel=1e-9)


def test_a_metric_that_reads_features_must_say_so(setup: Setup) -> None:
    class Careless(FrechetDistance):
        stores_features = False

        def result(self) -> Result:
            self.block.need_features()
            return super().result()

    table.register("careless", Careless)
    with pytest.raises(ValueError, match="not stored"):
        Suite(setup, ("careless",)).measure(IMAGES)


def test_the_names_are_known_without_torch() -> None:
    """`consistune --help` shows them, and is to start fast."""
    code = (
        "import sys, json; from consistune.metrics.table import METRICS; "
        "print(json.dumps(['torch' in sys.modules, list(METRICS)]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [False, list(table.METRICS)]
