"""`consistune create`: one command from images to a page, continued after a stop; and what is refused."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from consistune import create
from consistune.cli.create import parse_duration
from consistune.cli.main import app
from consistune.data.images import ImageSet
from consistune.errors import UserError
from consistune.nn.autoencoder.record import Latents
from consistune.pages.create import verdict


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 20 grey images of 20×16 pixels, one of them twice."""
    root = tmp_path_factory.mktemp("create") / "photos"
    random = np.random.default_rng(0)
    for name, base in (("dark", 40), ("light", 200)):
        (root / name).mkdir(parents=True)
        for i in range(20):
            pixels = random.normal(base, 20, (16, 20)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    (root / "dark" / "copy.png").write_bytes((root / "dark" / "0.png").read_bytes())
    return root


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(create, "FEWEST_TEACHER", 128)
    monkeypatch.setattr(create, "FEWEST_TUNED", 128)
    monkeypatch.setattr(create.Job, "_rate", lambda self, recipe: 400.0)


def run(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["create", *words])
    if isinstance(result.exception, UserError):
        return 2, str(result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_the_whole_job_and_again(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "job"
    words = (str(photos), "--out", str(out), "--size", "8", "--time", "4s", "--yes", "--device", "cpu")
    assert run(*words)[0] == 0
    results = json.loads((out / "results.json").read_text())
    assert results["look"]["classes"] == 2
    assert results["look"]["duplicates"] in (0, 1)  # 1 unless one of the pair is held out
    assert [row["evaluations"] for row in results["rows"]] == [35, 1, 1, 2]
    assert all(row["distance"] > 0 for row in results["rows"])
    page = (out / "report.html").read_text()
    assert "One evaluation instead of 35" in page
    assert "<img" in page
    models = [(out / name / "model" / "model.safetensors").read_bytes() for name in ("teacher", "tuned")]
    assert models[0] != models[1]
    assert run(*words)[0] == 0
    assert [(out / n / "model" / "model.safetensors").read_bytes() for n in ("teacher", "tuned")] == models


def test_nothing_is_trained_without_a_yes(photos: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app,
        ["create", str(photos), "--out", str(tmp_path / "job"), "--size", "8", "--time", "4s"],
        input="n\n",
    )
    assert result.exit_code == 0
    assert not (tmp_path / "job" / "teacher").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--time", "0.1s"), "too short.*give 1m"),
        (("--time", "soon"), "not a duration"),
        (("--size", "12"), "give --size 8"),
    ],
)
def test_what_cannot_work_is_refused(words: tuple[str, ...], said: str, photos: Path, tmp_path: Path) -> None:
    given = ("--out", str(tmp_path / "job"), "--yes", *(() if "--size" in words else ("--size", "8")), *words)
    status, line = run(str(photos), *given)
    assert status == 2
    assert re.search(said, line), line
    assert not (tmp_path / "job" / "teacher").exists()


def test_too_few_images_and_a_class_of_one() -> None:
    images = torch.zeros(20, 1, 8, 8, dtype=torch.uint8)
    few = ImageSet.of("few", images[:4], torch.zeros(4, dtype=torch.long), ("a",))
    with pytest.raises(UserError, match="4 images are too few"):
        create.check_images(few, conditional=False)
    labels = torch.tensor([0] * 19 + [1])
    lonely = ImageSet.of("lonely", images, labels, ("a", "b"))
    with pytest.raises(UserError, match=r"the class 'b' has 1 image.*--no-labels"):
        create.check_images(lonely, conditional=True)
    create.check_images(lonely, conditional=False)


@pytest.mark.parametrize(("text", "seconds"), [("90", 5400), ("30m", 1800), ("1.5h", 5400), ("45s", 45)])
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text, "--time") == seconds


@pytest.mark.parametrize(
    ("teacher", "forced", "tuned", "said"),
    [
        (2.0, 70.0, 2.5, "about as near"),
        (2.0, 70.0, 6.0, "clearly behind"),
        (2.0, 70.0, 20.0, "far behind"),
        (147.4, 134.8, 131.3, "learned little yet"),
        (None, None, None, "not measured"),
    ],
)
def test_the_verdict_follows_the_distances(
    teacher: float | None, forced: float | None, tuned: float | None, said: str
) -> None:
    assert re.search(said, verdict(teacher, forced, tuned))


def test_a_set_of_latents_is_refused_before_the_work_begins() -> None:
    record = Latents("taef2", "0" * 64, 8, (3, 64, 64), (0.0,) * 32, (1.0,) * 32)
    images = torch.zeros(20, 32, 8, 8, dtype=torch.uint8)
    latents = replace(ImageSet.of("coded", images, torch.zeros(20).long(), ("a",)), latents=record)
    with pytest.raises(UserError, match=r"coded: is a set of latents.*emoji64-latent-edm"):
        create.check_images(latents, conditional=False)
