"""Other commands use what a run wrote: averages of other lengths, and snapshots as worse models."""

from pathlib import Path

import numpy as np
import pytest

from consistune.cli.ema import reconstruct
from consistune.cli.sample import sample
from consistune.cli.train import train
from consistune.errors import UserError
from consistune.nn import store

KEYS = [
    "network={kind: mlp, width: 8, blocks: 1}",
    "start_from=null",
    "train={images: 640, batch: 64, ema_snapshot_images: 128}",
    "train.ema=[{kind: power, std: 0.05}, {kind: power, std: 0.1}]",
    "optimizer.lr=0.01",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tuned"
    train("digits-sct", KEYS, folder, device="cpu")
    return folder


def drawn(model: Path, out: Path, guidance: float = 1.0, worse: Path | None = None) -> np.ndarray:
    sample(model, "0-15", 1, out=out, guidance=guidance, worse=worse, precision="fp32", device="cpu")
    with np.load(out) as arrays:
        return arrays["arr_0"]


def test_an_average_of_another_length_is_a_model(run: Path, tmp_path: Path) -> None:
    reconstruct(run, 0.07, tmp_path / "between")
    model = store.load(tmp_path / "between")
    assert model.card.ema == {"std": 0.07, "images": 640}
    assert model.card.objective == "consistency"
    images = drawn(tmp_path / "between", tmp_path / "a.npz")
    assert not np.array_equal(images, drawn(run, tmp_path / "b.npz"))
    reconstruct(run, 0.05, tmp_path / "kept", at=640)
    same = drawn(tmp_path / "kept", tmp_path / "c.npz").astype(int) - drawn(run, tmp_path / "b.npz")
    assert np.abs(same).max() <= 1


def test_every_snapshot_can_guide_the_model_as_the_worse_one(run: Path, tmp_path: Path) -> None:
    plain = drawn(run, tmp_path / "plain.npz")
    for share in ("25%", "50%", "75%"):
        worse = run / "snapshots" / share
        assert store.load(worse).card == store.load(run).card
        guided = drawn(run, tmp_path / "guided.npz", 1.5, worse)
        assert not np.array_equal(guided, plain)


def test_a_run_without_such_averages_says_how_to_keep_them(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ema_snapshot_images"):
        reconstruct(run / "snapshots", 0.07, tmp_path / "none")
    assert not (tmp_path / "none").exists()
