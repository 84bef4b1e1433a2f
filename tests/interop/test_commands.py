"""consistune import, consistune export, and training that starts from an official file, as a user does it."""

import json
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch
from safetensors.torch import load_file

import consistune
from tests.interop.test_checkpoints import made, same
from tests.support import forge
from tests.support.command import run_main


def run(folder: Path, *arguments: str) -> CompletedProcess[str]:
    return run_main(*arguments, cwd=folder)


def test_in_sample_and_out(tmp_path: Path) -> None:
    forge.write_snapshot(made("song"), tmp_path / "file.pkl")
    done = run(tmp_path, "import", "file.pkl", "models/mine")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("models/mine: edm preconditioning, images [1, 8, 8], no classes")
    assert "dropped: loss_fn (EDMLoss), dataset_kwargs, embedded source text" in done.stdout
    done = run(tmp_path, "import", "file.pkl", "models/mine")
    assert (done.returncode, done.stdout) == (2, "")
    assert "there already" in done.stderr
    for model, name in (("models/mine", "a.npz"), ("file.pkl", "b.npz")):
        done = run(tmp_path, "sample", model, "--seeds", "0-3", "--steps", "2", "--out", name)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    done = run(tmp_path, "export", "models/mine", "out.safetensors", "--format", "safetensors")
    assert done.returncode == 0, done.stderr
    weights = load_file(tmp_path / "out.safetensors")
    assert {k: v.shape for k, v in weights.items()} == {
        k: v.shape for k, v in made("song").state_dict().items()
    }
    same(consistune.load(tmp_path / "out.safetensors"), made("song"))
    done = run(tmp_path, "export", "models/mine", "x", "--format", "onnxx")
    assert done.returncode == 2
    assert "known are: safetensors" in done.stderr


@pytest.mark.parametrize("conditional", [True, False])
def test_training_starts_from_an_official_file(conditional: bool, tmp_path: Path) -> None:
    """Unconditional with augmentation labels → the digits' ten classes; the log and the model say so."""
    path = forge.write_snapshot(made("song"), tmp_path / "file.pkl")
    keys = [
        f"start_from={path}",
        f"conditional={str(conditional).lower()}",
        "dropout=0.1",
        "train={images: 64, batch: 32, checkpoint_images: 64, log_images: 32}",
    ]
    done = run(tmp_path, "train", "digits-ect", *keys, "--out", "run")
    assert done.returncode == 0, done.stderr
    log = (tmp_path / "run" / "log.txt").read_text()
    for words in (f"started from {path}", "CC BY-NC-SA", "dropped: model.map_augment.weight"):
        assert words in log
    assert ("new: model.map_label.weight, model.map_label.bias" in log) == conditional
    origin = json.loads((tmp_path / "run" / "model" / "config.json").read_text())["meta"]["start_from"]
    assert origin["path"] == str(path)
    assert origin["provenance"]["class"] == "EDMPrecond"
    assert origin["dropped"] == ["model.map_augment.weight"]
    model = consistune.load(tmp_path / "run")
    assert model.num_classes == (10 if conditional else 0)
    x, sigma = torch.randn(2, 1, 8, 8), torch.tensor([0.5, 3.0])
    with torch.no_grad():
        moved = (model(x, sigma) - made("song")(x, sigma)).abs().max()
    assert 0 < float(moved) < 0.5
