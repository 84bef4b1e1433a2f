"""What is replaced: only what this program made, of the same kind. Anything else stays as it is."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from consistune.data.prepare.run import PrepareOptions, prepare
from consistune.errors import UserError
from consistune.nn import store
from consistune.nn.precond import EDMPrecond
from consistune.nn.small import ResidualMLP
from consistune.pages.pictures import save_png
from consistune.system.files import previous
from consistune.system.own import is_own
from consistune.training import folder
from tests.support.command import run_main
from tests.support.makers import edm_zip, pixels


def model(value: float = 0.5) -> EDMPrecond:
    made = EDMPrecond(ResidualMLP((1, 4, 4), width=4, blocks=1))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.fill_(value)
    return made


def everything(path: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(path)): p.read_bytes() if p.is_file() else None for p in path.rglob("*")}


def a_run(path: Path) -> None:
    folder.create(path, "objective: diffusion\n")
    store.save(model(), path / "model")


def users_files(path: Path) -> None:
    path.mkdir()
    (path / "thesis.txt").write_text("years of work")


def a_model_with_notes(path: Path) -> None:
    store.save(model(), path)
    (path / "notes.txt").write_text("the good one")


def other_programs_model(path: Path) -> None:
    path.mkdir()
    (path / "config.json").write_text('{"_class_name": "UNet2DModel"}')


def a_file(path: Path) -> None:
    path.write_text("text")


def a_link(path: Path) -> None:
    store.save(model(), path.parent / "elsewhere")
    path.symlink_to(path.parent / "elsewhere")


@pytest.mark.parametrize(
    "make", [a_run, users_files, a_model_with_notes, other_programs_model, a_file, a_link]
)
def test_a_model_replaces_nothing_but_a_model(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "out")
    before = everything(tmp_path)
    with pytest.raises(UserError, match="is already there"):
        store.save(model(), tmp_path / "out")
    assert everything(tmp_path) == before


def test_a_folder_under_the_name_of_the_old_model_is_not_removed(tmp_path: Path) -> None:
    store.save(model(), tmp_path / "out")
    users_files(previous(tmp_path / "out"))
    before = everything(tmp_path)
    with pytest.raises(UserError, match="is already there"):
        store.save(model(), tmp_path / "out")
    assert everything(tmp_path) == before


def test_a_reconstructed_average_is_refused_before_any_work(tmp_path: Path) -> None:
    a_run(tmp_path / "run")
    before = everything(tmp_path)
    run = tmp_path / "run"
    done = run_main("ema", "reconstruct", run, "--std", "0.08", "--out", run)
    assert done.returncode == 2
    assert "is already there" in done.stderr  # and not that the run has no snapshots
    assert everything(tmp_path) == before


def test_files_of_the_user_that_look_unfinished_stay_in_a_run(tmp_path: Path) -> None:
    a_run(tmp_path / "run")
    (tmp_path / "run" / ".notes.old").write_text("mine")
    (tmp_path / "run" / "mine").mkdir()
    (tmp_path / "run" / "mine" / ".step-by-step").write_text("mine")
    (tmp_path / "run" / ".thesis.2024.old").write_text("mine")
    (tmp_path / "run" / ".thesis.txt.2024.partial").write_text("mine")
    (tmp_path / "run" / "samples" / ".photos.2023.old").mkdir(parents=True)
    before = everything(tmp_path)
    store.save(model(), tmp_path / "run" / ".model.77.partial")
    (tmp_path / "run" / ".log.txt.77.partial").write_text("half")
    (tmp_path / "run" / "samples" / ".000000000192.png.77.partial").write_text("half")
    folder.remove_partial_files(tmp_path / "run")
    assert everything(tmp_path) == before


def test_another_folder_is_not_taken_for_an_unfinished_preparation(tmp_path: Path) -> None:
    users_files(tmp_path / "set.part")
    source = edm_zip(tmp_path / "images.zip", pixels(8, 8, 8), [0] * 8)
    with pytest.raises(UserError, match="no unfinished preparation"):
        prepare(source, tmp_path / "set", PrepareOptions())
    assert (tmp_path / "set.part" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("name", ["environment.json", "log.txt", "metrics.jsonl", "checkpoints/mine.txt"])
def test_a_run_does_not_begin_over_the_files_of_another(tmp_path: Path, name: str) -> None:
    file = tmp_path / "run" / name
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    with pytest.raises(UserError, match="is already there, and belongs to no run"):
        folder.create(tmp_path / "run", "objective: diffusion\n")
    assert everything(tmp_path / "run")[name] == b"mine"
    file.unlink()


def test_a_run_that_was_killed_before_its_recipe_was_written_begins_again(tmp_path: Path) -> None:
    folder.create(tmp_path, "objective: diffusion\n")
    (tmp_path / "recipe.yaml").unlink()
    folder.create(tmp_path, "objective: diffusion\n")
    assert (tmp_path / "recipe.yaml").exists()


PICTURE = torch.zeros(3, 8, 8, dtype=torch.uint8)


def a_photograph(path: Path) -> None:
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)


def a_data_set(path: Path) -> None:
    np.savez(path, arr_0=np.zeros((4, 8, 8, 1), np.uint8), arr_1=np.zeros(4, np.int64))


@pytest.mark.parametrize(("name", "make"), [("a.png", a_photograph), ("a.npz", a_data_set)])
def test_samples_replace_samples_and_nothing_else(
    tmp_path: Path, name: str, make: Callable[[Path], None]
) -> None:
    store.save(model(), tmp_path / "model")
    make(tmp_path / name)
    before = everything(tmp_path)
    words = ("sample", tmp_path / "model", "--seeds", "0-1", "--steps", "1")
    words = (*words, "--out", tmp_path / name, "--device", "cpu")
    done = run_main(*words)
    assert (done.returncode, "nothing in it says that this" in done.stderr) == (2, True)
    assert everything(tmp_path) == before
    (tmp_path / name).unlink()
    assert [run_main(*words).returncode for _ in range(2)] == [0, 0]
    save_png(tmp_path / "b.png", PICTURE)
    assert is_own(tmp_path / "b.png")


@pytest.mark.parametrize("option", ["--keep", "--save-reference"])
def test_an_evaluation_does_not_write_over_what_it_reads(tmp_path: Path, option: str) -> None:
    store.save(model(), tmp_path / "model")
    a_data_set(tmp_path / "data.npz")
    np.savez(tmp_path / "ours.npz", arr_0=np.zeros((4, 4, 4, 1), np.uint8), consistune=np.array("samples"))
    before = everything(tmp_path)
    for data in ("data.npz", "ours.npz"):
        words = ("--data", tmp_path / data, option, tmp_path / data, "--out", tmp_path / "out")
        done = run_main("evaluate", tmp_path / "model", *words, "--samples", "4", "--device", "cpu")
        assert done.returncode == 2
        assert "nothing in it says that this" in done.stderr or "is read too" in done.stderr
    assert everything(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("results.json", ("evaluate", "model", "--data", "digits", "--out")),
        ("report.html", ("evaluate", "model", "--data", "digits", "--out")),
        ("variance.csv", ("analyze", "digits", "--out")),
        ("results.json", ("demo", "--out")),
    ],
)
def test_results_replace_results_and_nothing_else(
    tmp_path: Path, name: str, command: tuple[str, ...]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("{}")
    done = run_main(*command, tmp_path / "out")
    assert (done.returncode, "nothing in it says that this" in done.stderr) == (2, True), done.stderr
    assert everything(tmp_path / "out") == {name: b"{}"}


def test_a_figure_of_the_paper_replaces_a_figure_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "digits-smoke" / "unify").mkdir(parents=True)
    (tmp_path / "digits-smoke" / "unify" / "data.json").write_text("{}")
    done = run_main("reproduce", "unify", "--out", tmp_path)
    assert (done.returncode, "nothing in it says that this" in done.stderr) == (2, True), done.stderr


def test_a_folder_of_samples_keeps_pictures_of_the_same_names(tmp_path: Path) -> None:
    store.save(model(), tmp_path / "model")
    (tmp_path / "photos").mkdir()
    a_photograph(tmp_path / "photos" / "000003.png")
    words = ("sample", tmp_path / "model", "--steps", "1", "--device", "cpu", "--out", tmp_path / "photos")
    done = run_main(*words, "--seeds", "0-3")
    assert (done.returncode, "photos/000003.png" in done.stderr) == (2, True)
    assert len(everything(tmp_path / "photos")) == 1
    assert [run_main(*words, "--seeds", "0-2").returncode for _ in range(2)] == [0, 0]


def test_an_archive_with_an_array_named_seeds_is_not_taken_for_samples(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", seeds=np.arange(3), notes=np.zeros(2))
    assert not is_own(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", arr_0=np.zeros((3, 4, 4, 1), np.uint8), seeds=np.arange(3))
    assert is_own(tmp_path / "b.npz")


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("out/results.json", ("--out", "out")),
        ("out/curve.svg", ("--out", "out")),
        ("kept_block0.npz", ("--seeds", "2", "--keep", "kept.npz", "--out", "new")),
        ("b.npz", ("--save-reference", "b.npz", "--out", "new")),
    ],
)
def test_an_evaluation_of_several_models_or_blocks_replaces_nothing_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    store.save(model(), tmp_path / "a")
    np.savez("b.npz", arr_0=np.zeros((16, 8, 8, 1), np.uint8), seeds=np.arange(16))
    Path(file).parent.mkdir(exist_ok=True)
    if file != "b.npz":
        Path(file).write_text("mine")
    before = everything(tmp_path)
    models = ("a",) if "--keep" in words else ("a", "b.npz")
    done = run_main("evaluate", *models, "--data", "digits", "--samples", "16", "--device", "cpu", *words)
    assert done.returncode == 2, done.stderr
    assert "is already there" in done.stderr or "is read too" in done.stderr, done.stderr
    assert everything(tmp_path) == before
