"""Whole commands on a card: train, stop and continue, sample, evaluate."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from consistune.cli.evaluate import evaluate
from consistune.cli.sample import sample
from consistune.cli.train import train
from consistune.nn import store
from consistune.training.log import Telemetry
from consistune.training.metrics_file import MetricsFile

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
KEYS = [
    "network={kind: mlp, width: 8, blocks: 1}",
    "start_from=null",
    "dropout=0.1",
    "train={images: 512, batch: 64, log_images: 64, checkpoint_images: 128, trackers: []}",
]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONSISTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("consistune.metrics.classifier.EPOCHS", 1)
    train("digits-sct", KEYS, tmp_path / "run", device="cuda")
    return tmp_path / "run"


def test_a_run_is_sampled_and_evaluated(run: Path, tmp_path: Path) -> None:
    assert len(MetricsFile(run).records()) == 8
    sample(run, "0-7", 1, out=tmp_path / "a.npz", device="cuda")
    sample(run, "0-7", 1, out=tmp_path / "b.npz", device="cpu")
    with np.load(tmp_path / "a.npz") as here, np.load(tmp_path / "b.npz") as there:
        assert np.abs(here["arr_0"].astype(int) - there["arr_0"]).max() <= 1
    evaluate(
        run, data="digits", samples=64, metrics="fd,accuracy", out=tmp_path / "evaluation", device="cuda"
    )
    assert next((tmp_path / "evaluation").glob("**/*.html")).is_file()


def test_a_run_that_was_stopped_goes_on_to_the_same_model(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = Telemetry.write

    def stopping(self: Telemetry, report) -> None:
        written(self, report)
        if report.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Telemetry, "write", stopping)
    with pytest.raises(SystemExit) as stopped:
        train("digits-sct", KEYS, tmp_path / "again", device="cuda")
    assert stopped.value.code == 128 + signal.SIGTERM
    monkeypatch.setattr(Telemetry, "write", written)
    train(str(tmp_path / "again"), resume=True, device="cuda")
    models = [store.load(folder).state_dict() for folder in (run, tmp_path / "again")]
    for name, weight in models[0].items():
        torch.testing.assert_close(models[1][name], weight, rtol=1e-5, atol=1e-6)
