"""`consistune create`: one command from images to a page, continued after a stop; and what is refused."""

import json
import os
import re
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from consistune import create
from consistune.cli.create import parse_duration
from consistune.cli.main import app
from consistune.data.images import DataSplit, ImageSet, load_data
from consistune.data.prepare import latents as prepared_latents
from consistune.data.prepare.survey import Survey
from consistune.errors import UserError
from consistune.metrics import scores
from consistune.metrics.classifier import ImageClassifier
from consistune.nn.autoencoder.space import LatentSpace
from consistune.pages.create import verdict
from consistune.recipe import read_recipe
from consistune.training.lock import LOCK, folder_lock
from tests.support import latents
from tests.support.command import run_main
from tests.support.makers import class_folders, pixels
from tests.support.small_jobs import small_create


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
    """Small jobs of this process alone, by a clock that stands still: a slow machine has the same time."""
    small_create(monkeypatch)
    clock = SimpleNamespace(monotonic=lambda: 0.0, perf_counter=time.perf_counter)
    monkeypatch.setattr(create, "time", clock)
    monkeypatch.setattr("consistune.cli.create.clock", clock)
    monkeypatch.setattr("consistune.system.cores.cores", lambda: 1)

    def fresh(data: ImageSet, _: object) -> ImageClassifier:  # of few features, which are measured at once
        channels, height, width = data.images.shape[1:]
        return ImageClassifier((channels, height, width), 3).eval()

    monkeypatch.setattr(scores, "default_features", lambda _: "classifier")
    monkeypatch.setattr(scores, "classifier_of", fresh)


def run(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["create", *words])
    if isinstance(result.exception, UserError):
        return 2, str(result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_the_whole_job_and_again(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the teacher the machine is twice as fast as while planning, so the tuning is longer."""
    rates = iter([40.0, 40.0, 80.0])
    monkeypatch.setattr(create, "training_rate", lambda *_: next(rates))
    out = tmp_path / "job"
    words = (str(photos), "--out", str(out), "--size", "8", "--time", "40s", "--yes", "--device", "cpu")
    assert run(*words)[0] == 0
    images = read_recipe(str(out / "tuned.yaml")).train.images
    assert images == 2 * sum(create.split_images(create.PIXELS, 40, (40.0, 40.0)))
    assert read_recipe(str(out / "tuned" / "recipe.yaml")).train.images == images
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
        ["create", str(photos), "--out", str(tmp_path / "job"), "--size", "8", "--time", "40s"],
        input="n\n",
    )
    assert result.exit_code == 0
    assert not (tmp_path / "job" / "teacher").exists()
    assert not (tmp_path / "job" / "teacher.yaml").exists()


def test_colour_goes_through_latents_and_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted while encoding, the same command continues, and measures pictures against pictures."""
    source, out = latents.source(tmp_path, 40), tmp_path / "job"
    words = ("--latents", "tiny", "--size", "16", "--flip", "--out", str(out), "--yes", "--time", "20s")
    decode, rows = LatentSpace.decode, prepared_latents._rows

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(prepared_latents, "_rows", stopped)
    assert run(str(source), *words)[0] == 130
    assert (out / "data.latents.part").exists()
    monkeypatch.setattr(prepared_latents, "_rows", rows)
    decoded: list[int] = []
    monkeypatch.setattr(LatentSpace, "decode", lambda self, z: decoded.append(len(z)) or decode(self, z))
    status, said = run(str(source), *words)
    assert status == 0, said
    data = load_data(str(out / "data"))
    assert (len(data.train), len(data.to_look_at.train)) == (
        74,
        37,
    )  # mirrored; one of each class is held out
    results = json.loads((out / "results.json").read_text())
    assert results["latent_shape"] == [6, 4, 4]
    assert results["latents"]["mirrored"]
    assert results["look"]["shape"] == [3, 16, 16]
    assert results["floor"] > 0
    assert sum(decoded) >= 4 * results["samples"]  # every row's samples, to be measured
    page = " ".join((out / "report.html").read_text().split())
    assert "as latents 6×4×4 of the autoencoder tiny" in page
    again = run(str(source), *words[:-1], "30s")
    assert again[0] == 2
    assert re.search("was begun with --time 20s, now 30s is given", again[1])
    encoded = (str(out / "data"), "--out", str(tmp_path / "other"), "--time", "20s")
    assert run(*encoded, "--flip") == (2, f"{out / 'data'}: is a set of latents already; leave --flip out")
    planned = CliRunner().invoke(app, ["create", *encoded], input="n\n")
    assert re.search("plan: latents of tiny, 6×4×4", planned.output)


@pytest.mark.parametrize(
    ("channels", "side", "size", "rate", "chosen"),
    [
        (3, 500, None, 1e9, "taef2"),
        (3, 48, None, 1e9, "taef2"),
        (3, 500, 32, 1.0, None),
        (3, 32, 64, 1e9, "taef2"),
        (3, 32, None, 2e6, None),
        (3, 32, None, 1e3, "taef2"),
        (1, 500, 64, 1.0, None),
    ],
)
def test_the_choice_between_pixels_and_latents(
    channels: int,
    side: int,
    size: int | None,
    rate: float,
    chosen: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(create, "training_rate", lambda *_: rate)
    seen, cpu = Survey(channels, side, own_held_out=False, sizes={"a": 20}), torch.device("cpu")
    assert create.choose_autoencoder("auto", seen, size, 10.0, cpu) == chosen
    assert create.choose_autoencoder("none", seen, size, 10.0, cpu) is None
    assert create.choose_autoencoder("mine", seen, size, 10.0, cpu) == "mine"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--time", "0.1s"), "too short.*give 1m"),
        (("--time", "soon"), "not a duration"),
        (("--size", "12"), "give --size 8"),
        (("--size", "0"), "give --size 8"),
        (("--size", "24", "--latents", "taef2"), "no multiple of 16; give --size 16"),
    ],
)
def test_what_cannot_work_is_refused(words: tuple[str, ...], said: str, photos: Path, tmp_path: Path) -> None:
    given = ("--out", str(tmp_path / "job"), "--yes", *(() if "--size" in words else ("--size", "8")), *words)
    status, line = run(str(photos), *given)
    assert status == 2
    assert re.search(said, line), line
    assert not (tmp_path / "job" / "teacher").exists()


@pytest.mark.parametrize("text", ["", "[]", "3", '{"--size": 8}', '{"autoencoder": 5}', "[" * 100_000])
def test_a_damaged_record_is_a_line(text: str, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "create.json").write_text(text)
    status, line = run(str(photos), "--out", str(tmp_path), "--size", "8")
    assert (status, line.endswith("is damaged; remove it and data/ beside it, or choose another --out")) == (
        2,
        True,
    )


def test_a_record_of_another_is_not_taken_for_damaged(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "create.json").write_text('{"name": "mine"}')
    status, line = run(str(photos), "--out", str(tmp_path), "--size", "8")
    assert (status, line.endswith("is not of this command; choose another --out, or move it away")) == (
        2,
        True,
    )


@pytest.mark.parametrize("kind", ["flat", "damaged"])
def test_many_images_are_not_left_out(kind: str, tmp_path: Path) -> None:
    """Images beside a folder of images have no class; damaged ones cannot be used."""
    source = tmp_path / "mine"
    class_folders(source, pixels(20, 16, 16), ["results"] * 20)
    flat = source if kind == "flat" else source / "results"
    for k in range(20, 60):
        good = (source / "results" / sorted(os.listdir(source / "results"))[0]).read_bytes()
        (flat / f"{k}.png").write_bytes(good if kind == "flat" else good[:40])
    status, line = run(str(source), "--out", str(tmp_path / "job"), "--size", "8", "--time", "40s", "--yes")
    assert (status, "40 images would be left out" in line) == (2, True), line
    assert re.search("mend or move them; or use consistune data prepare, where --allow-missing 40", line)
    assert not (tmp_path / "job" / "create.json").exists()


def test_a_second_program_in_a_job_is_refused_and_writes_nothing(photos: Path, tmp_path: Path) -> None:
    out, words = tmp_path / "new" / "job", (str(photos), "--size", "8", "--time", "40s", "--yes")
    out.mkdir(parents=True)
    with folder_lock(out, print):
        status, line = run(*words, "--out", str(out))
        assert (status, "another program trains in this folder" in line) == (2, True)
        assert [path.name for path in out.iterdir()] == [LOCK]
    shutil.rmtree(out.parent)
    assert run(str(tmp_path / "no"), *words[1:], "--out", str(out))[0] == 2
    assert not out.parent.exists()


def test_what_a_kill_left_unfinished_in_a_job_is_removed(photos: Path, tmp_path: Path) -> None:
    words = ("create", str(photos), "--out", str(tmp_path), "--size", "8", "--time", "40s")
    for name in ("create.json", "teacher.yaml", "notes.txt"):
        (tmp_path / f".{name}.12.partial").touch()
    assert CliRunner().invoke(app, words, input="n\n").exit_code == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        LOCK,
        "create.json",
        "data",
        ".notes.txt.12.partial",
    }


def test_results_do_not_lie_among_the_images(photos: Path) -> None:
    before = sorted(photos.rglob("*"))
    for out in (photos, photos / "runs" / "a"):
        assert re.search("lies in the images' folder; give --out", run(str(photos), "--out", str(out))[1])
    assert sorted(photos.rglob("*")) == before


def test_too_few_images_and_a_class_of_one() -> None:
    images = torch.zeros(20, 1, 8, 8, dtype=torch.uint8)
    few = DataSplit(ImageSet.of("few", images[:4], torch.zeros(4, dtype=torch.long), ("a",)), None)
    with pytest.raises(UserError, match="4 images: too few"):
        create.check_images(few, conditional=False)
    labels = torch.tensor([0] * 19 + [1])
    lonely = DataSplit(ImageSet.of("lonely", images, labels, ("a", "b")), None)
    with pytest.raises(UserError, match=r"the class 'b' has 1 image.*--no-labels"):
        create.check_images(lonely, conditional=True)
    create.check_images(lonely, conditional=False)


def test_a_refused_folder_can_be_given_other_images(photos: Path, tmp_path: Path) -> None:
    """A refusal before anything is prepared leaves no settings, and names no option that is not there."""
    few, lonely, out = (
        tmp_path / "few",
        tmp_path / "lonely",
        ("--out", str(tmp_path / "job"), "--time", "0.1s"),
    )
    class_folders(few, pixels(1, 16, 16, 3), ["a"])
    class_folders(lonely, pixels(20, 16, 16, 3), ["a"] * 19 + ["b"])
    assert run(str(few), *out) == (2, f"{few}: 1 image: too few; give 16, better 500 or more")
    status, line = run(str(lonely), *out)
    assert (status, line) == (2, f"{lonely}: the class 'b' has 1 image; add images, or give --no-labels")
    grey = (2, "digits: holds grey pictures; autoencoders take pictures in colour; leave --latents out")
    assert run("digits", *out, "--latents", "taef2") == grey
    broken = tmp_path / "broken"
    (broken).mkdir()
    for k in range(20):
        (broken / f"{k}.png").write_bytes(b"no picture")
    assert "can be read" in run(str(broken), *out)[1]
    assert re.search("too short", run(str(lonely), *out, "--no-labels", "--size", "16")[1])


def test_a_short_job_gives_the_tuning_what_it_needs_first() -> None:
    space = replace(create.LATENTS, wanted=30_000)
    long, short, shortest = (create.split_images(space, t, (165.0, 107.0)) for t in (7200, 900, 300))
    assert long == (int(7200 * 0.6 * 165), int(7200 * 0.25 * 107))
    assert short[1] == space.wanted
    assert short[0] == int((900 * 0.85 - space.wanted / 107) * 165)
    assert shortest == (int(300 * 0.85 / 2 * 165), int(300 * 0.85 / 2 * 107))


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


def test_images_that_changed_before_the_training_are_prepared_anew(photos: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "mine", ("--out", str(tmp_path / "job"), "--size", "8", "--device", "cpu")
    shutil.copytree(photos, source)
    (source / "lonely").mkdir()
    shutil.copy(photos / "dark" / "0.png", source / "lonely")
    (source / "lonely" / "1.png").write_bytes(b"no picture")
    status, line = run(str(source), *out, "--time", "40s", "--yes")
    assert (status, line) == (
        2,
        f"{source}: the class 'lonely' has 0 images; add images, or give --no-labels",
    )
    for k in range(6):
        shutil.copy(photos / "dark" / f"{k}.png", source / "lonely")
    refused = CliRunner().invoke(app, ["create", str(source), *out, "--time", "40s"], input="n\n")
    assert "have changed: they are prepared anew" in refused.output
    assert len(load_data(str(tmp_path / "job" / "data")).train.class_names) == 3
    again = CliRunner().invoke(app, ["create", str(source), *out, "--time", "40s"], input="n\n")
    assert "prepared anew" not in again.output
    assert again.exit_code == 0


def test_a_folder_goes_before_the_built_in_set_of_its_name(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(photos, "digits")
    words = ("--out", "job", "--size", "8", "--time", "40s", "--device", "cpu")
    assert CliRunner().invoke(app, ["create", "digits", *words], input="n\n").exit_code == 0
    assert load_data("job/data").train.class_names == ("dark", "light")
    shutil.rmtree("digits")
    shutil.move("job/data", "digits")
    words = ("--out", "other", "--time", "40s", "--device", "cpu")
    assert "2 classes" not in CliRunner().invoke(app, ["create", "digits", *words], input="n\n").output
    assert run("digits", *words, "--yes")[0] == 0
    assert read_recipe("other/teacher.yaml").data == "./digits"
    with pytest.raises(UserError, match="both the built-in set and a prepared folder"):
        load_data("digits")


@pytest.mark.parametrize("name", ["teacher.yaml", "results.json", "data/0.png"])
def test_files_of_another_in_the_folder_are_refused_and_stay(name: str, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "job" / name).parent.mkdir(parents=True)
    (tmp_path / "job" / name).write_text("mine")
    status, line = run(str(photos), "--out", str(tmp_path / "job"), "--size", "8", "--yes")
    assert status == 2
    assert "is already there, and nothing in it says that this command wrote it; choose another" in line
    assert [p.read_text() for p in (tmp_path / "job").rglob("*") if p.is_file()] == ["mine"]


def test_a_job_goes_on_from_another_working_folder(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("--size", "8", "--time", "40s", "--yes", "--device", "cpu")
    shown = CliRunner().invoke(app, ["create", str(photos), "--out", "job", *words])
    assert shown.exit_code == 0, shown.output
    (tmp_path / "job" / "results.json").unlink()
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    assert run(str(photos), "--out", "../job", *words)[0] == 0
    assert read_recipe("../job/tuned/recipe.yaml").start_from == "../job/teacher/model"
    assert (tmp_path / "job" / "results.json").exists()


def test_without_a_terminal_the_question_is_refused_at_once(photos: Path, tmp_path: Path) -> None:
    words = ("create", photos, "--out", tmp_path / "job", "--size", "8", "--time", "40s")
    with open(os.devnull) as nothing, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", nothing)
        done = run_main(*words)
    assert (done.returncode, "there is no terminal to ask on" in done.stderr) == (2, True)
    assert not (tmp_path / "job").exists()
    assert run(*map(str, words[1:])) == (2, "Begin?: no answer came; give --yes")  # an empty pipe
    undecodable = run(str(photos), "--out", str(tmp_path / "caf\udce9"), "--yes")
    assert (undecodable[0], "is no name in UTF-8" in undecodable[1]) == (2, True)


def test_an_unfinished_preparation_of_earlier_images_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = latents.source(tmp_path, 40), tmp_path / "job"
    words = (str(source), "--latents", "tiny", "--size", "16", "--out", str(out), "--yes", "--time", "20s")

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prepared_latents, "_rows", stopped)
        assert run(*words)[0] == 130
    assert (out / "data.latents.part").exists()
    latents.source(tmp_path, 44)
    planned = CliRunner().invoke(app, ["create", *[w for w in words if w != "--yes"]], input="n\n")
    assert "have changed: they are prepared anew" in planned.output, planned.output
    data = load_data(str(out / "data"))
    assert len(data.train) + len(data.need_held_out("")) == 44


def test_what_is_not_of_the_preparation_is_not_removed(photos: Path, tmp_path: Path) -> None:
    source, data = tmp_path / "mine", tmp_path / "job" / "data"
    shutil.copytree(photos, source)
    words = ("create", str(source), "--out", str(tmp_path / "job"), "--size", "8", "--time", "40s")
    assert CliRunner().invoke(app, words, input="n\n").exit_code == 0
    (source / ".DS_Store").write_text("of the system")
    assert "prepared anew" not in CliRunner().invoke(app, words, input="n\n").output
    shutil.copy(photos / "dark" / "0.png", source / "dark" / "new.png")
    (data / "notes.txt").write_text("mine")
    assert "would be prepared anew, and holds 'notes.txt'" in run(*words[1:])[1]
    assert (data / "notes.txt").read_text() == "mine"
    (data / "notes.txt").unlink()
    data.rename(tmp_path / "elsewhere")
    data.symlink_to(tmp_path / "elsewhere")
    assert "would be prepared anew, and is a link" in run(*words[1:])[1]
    assert (tmp_path / "elsewhere" / "meta.json").exists()


def test_a_source_that_is_not_there_is_a_line(tmp_path: Path) -> None:
    status, line = run(str(tmp_path / "no"), "--out", str(tmp_path / "job"), "--yes")
    assert (status, line) == (2, f"{tmp_path / 'no'}: is neither a file nor a folder")
    assert not (tmp_path / "job").exists()
