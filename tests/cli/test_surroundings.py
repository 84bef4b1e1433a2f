"""The program in poor surroundings: Ctrl-C at any moment, terminals without UTF-8, no home to write to."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image

from consistune.cli.main import interrupted
from consistune.data.images import load_data
from consistune.metrics.statistics import build_reference
from consistune.nn import store
from consistune.nn.card import ModelCard
from consistune.nn.precond import EDMPrecond
from consistune.nn.small import ResidualMLP
from tests.support.metrics import EXTRACTOR

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "OMP_NUM_THREADS": "1"}


def start(*words: str, python: Sequence[str] = (), **options: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, *python, "-m", "consistune", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)  # type: ignore[call-overload]


@pytest.mark.parametrize("imported", ["consistune.cli", "typer.core", "torch._utils", "numpy.version"])
def test_ctrl_c_during_start_up_is_a_clean_line(imported: str, tmp_path: Path) -> None:
    """Right after a module is imported: of the package itself, of the parser's, of PyTorch's, of NumPy's."""
    process = start("train", "digits-edm", "--out", str(tmp_path / "run"), python=["-X", "importtime"])
    for line in process.stderr:  # type: ignore[union-attr]
        if line.decode().rpartition("|")[2].strip() == imported:
            break
    for _ in range(20):
        process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    said = [line for line in err.splitlines() if not line.startswith(b"import time:")]
    assert (process.returncode, said) == (130, [b"consistune: stopped"])
    assert not (tmp_path / "run").exists()


def test_a_second_ctrl_c_in_a_run_is_a_clean_line(tmp_path: Path) -> None:
    keys = [
        "network={kind: mlp, width: 8, blocks: 1}",
        "train={images: 10_000_000, log_images: 64, batch: 64}",
    ]
    process = start("train", "digits-edm", *keys, "--out", str(tmp_path / "run"))
    while not (tmp_path / "run" / "metrics.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.05)
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        time.sleep(0.01)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in err, err
    assert b"stopped" in err


def test_sigterm_in_a_measurement_is_answered_and_leaves_nothing(tmp_path: Path) -> None:
    store.save(EDMPrecond(ResidualMLP((1, 8, 8), width=8, blocks=1)), tmp_path / "model")
    (tmp_path / "temporary").mkdir()
    words = ["--data", "digits", "--samples", "100000000", "--metrics", "fd", "--features", "classifier"]
    words += ["--steps", "1", "--no-anchors", "--device", "cpu"]
    environment = {**os.environ, "TMPDIR": str(tmp_path / "temporary"), "OMP_NUM_THREADS": "1"}
    process = start("evaluate", "model", *words, "--out", "e", cwd=tmp_path, env=environment)
    while not list((tmp_path / "temporary").glob("consistune-features-*")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert (process.returncode, b"Traceback" in err) == (128 + signal.SIGTERM, False), err
    assert err.endswith(b"consistune: stopped\n")
    assert not list((tmp_path / "temporary").glob("consistune-features-*"))


def test_a_terminal_of_ascii_shows_everything(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = EDMPrecond(ResidualMLP((1, 8, 8), num_classes=10, width=8, blocks=1))
    model.card = ModelCard(objective="consistency")
    store.save(model, tmp_path / "model")
    out = os.fsdecode("bilder-\u00e4\u03c9.npz".encode())
    keys = ["network={kind: mlp, width: 8, blocks: 1}", "train={images: 128, batch: 64}"]
    for words, status in {
        ("sample", "model", "--seeds", "0-3", "--out", out): 0,
        ("train", "digits-edm", *keys, "--out", "run-ä"): 0,
    }.items():
        process = start(*words, env=os.environ | ASCII, cwd=tmp_path)
        _, err = process.communicate(timeout=120)
        assert process.returncode == status, err
        assert b"Traceback" not in err
    assert (tmp_path / out).exists()


def test_a_cache_is_never_necessary(tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CONSISTUNE_CACHE", str(tmp_path / "file" / "below"))
    images, extractor = load_data("digits").train, EXTRACTOR
    found = build_reference("digits", images.images, extractor)
    assert found.mean.isfinite().all()
    assert "no cache" in capsys.readouterr().err
    kept = build_reference("digits", images.images, extractor, cache=tmp_path / "cache")
    assert torch.equal(found.covariance, kept.covariance)


def test_an_error_on_the_way_out_of_ctrl_c_is_no_failure() -> None:
    def closed() -> None:
        try:
            raise KeyboardInterrupt
        finally:
            raise RuntimeError("unexpected pos 316672")

    with pytest.raises(RuntimeError) as caught:
        closed()
    assert interrupted(caught.value)
    assert not interrupted(RuntimeError("unexpected pos 316672"))


@pytest.mark.parametrize("close", ["stdout", "stderr"])
def test_a_reader_that_leaves_ends_no_work(close: str, tmp_path: Path) -> None:
    """As with `consistune data prepare … 2>&1 | head -1`."""
    for name in "ab":
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / name / "1.png")
    process = start("data", "prepare", str(tmp_path / "images"), str(tmp_path / "set"), "--workers", "1")
    getattr(process, close).close()
    other = (process.stderr if close == "stdout" else process.stdout).read()
    assert process.wait(timeout=60) == 0
    assert b"Error" not in other, other
    assert (tmp_path / "set" / "meta.json").exists()
