"""What is replaced: only what this program made, of the same kind. Anything else stays as it is."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from consistune.data.prepare.run import PrepareOptions, prepare
from consistune.errors import UserError
from consistune.nn import store
from consistune.nn.precond import EDMPrecond
from consistune.nn.small import ResidualMLP
from consistune.system.files import previous
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
    before = everything(tmp_path)
    store.save(model(), tmp_path / "run" / ".model.77.partial")
    (tmp_path / "run" / ".log.txt.77.partial").write_text("half")
    folder.remove_partial_files(tmp_path / "run")
    assert everything(tmp_path) == before


def test_another_folder_is_not_taken_for_an_unfinished_preparation(tmp_path: Path) -> None:
    users_files(tmp_path / "set.part")
    source = edm_zip(tmp_path / "images.zip", pixels(8, 8, 8), [0] * 8)
    with pytest.raises(UserError, match="no unfinished preparation"):
        prepare(source, tmp_path / "set", PrepareOptions())
    assert (tmp_path / "set.part" / "thesis.txt").read_text() == "years of work"
