"""What version 0.1.0 wrote still serves: a model, a run broken off, a prepared set, cached statistics.

legacy/README.md says how each was made.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import consistune
from consistune.cli.main import app
from consistune.data.images import load_data

LEGACY = Path(__file__).parent / "legacy"
STOPPED_AT, IMAGES = 4_080, 16_000
FINGERPRINT = "de5786183258d6b59722f75826e1d373df7651c1018a94e51882ad0e1e1f380f"


@pytest.fixture(autouse=True)
def there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files name each other relative to their folder."""
    monkeypatch.chdir(LEGACY)


def command(*arguments: object) -> str:
    """Run a command of the program; what it says on standard error."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if done.exception is not None:
        raise done.exception
    assert done.exit_code == 0
    return done.stderr


def lines(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_model_folder_answers_as_it_did() -> None:
    model = consistune.load("model")
    assert model.card.objective == "diffusion"
    with np.load("expected.npz") as stored:
        expected = {name: torch.from_numpy(stored[name]) for name in stored}
    with torch.no_grad():
        found = model(expected["x"], expected["t"], expected["labels"])
    torch.testing.assert_close(found, expected["denoised"], rtol=1e-5, atol=1e-5)
    samples = consistune.sample(model, range(4), steps=5, condition=expected["labels"])
    assert samples.dtype == torch.uint8
    assert (samples.int() - expected["samples"].int()).abs().max() <= 1


def test_a_run_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    run = Path(shutil.copytree("run", tmp_path / "run"))
    before = lines(run)
    assert not (run / "model").exists()
    command("train", run, "--resume", "--device", "cpu")
    assert f"continued at {STOPPED_AT:,} images" in (run / "log.txt").read_text(encoding="utf-8")
    after = lines(run)
    assert after[: len(before)] == before
    assert [line["images"] for line in after] == list(range(1_600, IMAGES + 1, 1_600))
    assert after[-1]["step"] == IMAGES // 16
    assert after[-1]["nonfinite_total"] == 0
    tuned = consistune.load(run)
    assert tuned.card.objective == "consistency"
    assert consistune.sample(tuned, range(4)).shape == (4, 1, 8, 8)
    earlier = consistune.load(run / "snapshots" / "25%").card  # written before cards had label_dropout
    assert earlier == tuned.card.without("label_dropout")


def test_a_prepared_set_opens() -> None:
    data = load_data("data")
    assert data.train.images.shape == (64, 1, 8, 8)
    assert data.train.images.dtype == torch.uint8
    assert data.train.labels.tolist() == [0] * 32 + [1] * 32
    assert data.held_out is not None
    assert data.held_out.labels.tolist() == [0] * 8 + [1] * 8
    assert data.train.class_names == ("0", "1")
    assert data.train.fingerprint == FINGERPRINT
    assert int(data.train.images.long().sum()) == 322402
    command("data", "info", "data", "--verify")


@pytest.mark.parametrize("variable", ["CONSISTUNE_CACHE", "SCT_CACHE"])
def test_cached_statistics_are_found_and_used(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An entry that was made anew would lie beside the old one, or differ from it."""
    cache = Path(shutil.copytree("cache", tmp_path / "cache"))
    for name in ("CONSISTUNE_CACHE", "SCT_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(cache))
    monkeypatch.syspath_prepend(str(LEGACY))
    before = contents(cache)
    options = ["--data", "data", "--features", "raw_pixels:raw", "--samples", 64, "--device", "cpu"]
    said = command("evaluate", "model", *options, "--out", tmp_path / "out")
    assert contents(cache) == before
    warned = "warning: SCT_CACHE is now called CONSISTUNE_CACHE" in said
    assert warned == (variable == "SCT_CACHE")
    results = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert results["reference"]["images"] == 64
    assert results["rows"][0]["summary"]["fd-raw"]["mean"] == pytest.approx(0.6909223985994308, rel=0.01)


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file's bytes and when they were written."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}
