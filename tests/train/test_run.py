"""Run folders: nothing lost, nothing half-written."""

import errno
import json
import os
import signal
from pathlib import Path
from typing import BinaryIO

import pytest
import torch

from sct.errors import UserError
from sct.nn import store
from sct.nn.precond import Preconditioned
from sct.plan import make_plan
from sct.recipe import read_recipe, to_yaml
from sct.train import checkpoint
from sct.train.run import Interrupted, RunFolder

KEYS = [
    "network={kind: mlp, width: 8, blocks: 1}",
    "train={images: 640, batch: 64, log_images: 64, checkpoint_images: 192, snapshots: [0.5]}",
]


def start(path: Path, *, resume: bool = False) -> tuple[RunFolder, object]:
    recipe = read_recipe("digits-edm", KEYS)
    run = RunFolder(path, to_yaml(recipe), resume=resume)
    trainer = make_plan(recipe).trainer()
    if resume:
        run.resume(trainer)
    return run, trainer


def test_a_finished_run_says_everything(tmp_path: Path) -> None:
    run, trainer = start(tmp_path / "run")
    list(run.steps(trainer))
    names = {p.name for p in (tmp_path / "run").iterdir()}
    assert names == {
        "recipe.yaml", "environment.json", "log.txt", "metrics.jsonl",
        "checkpoints", "snapshots", "tensorboard", "model",
    }  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["images"] for line in lines] == list(range(64, 641, 64))
    assert store.load(tmp_path / "run").meta["objective"] == "diffusion"
    assert store.load(tmp_path / "run" / "snapshots" / "50%").num_classes == 10
    assert len(checkpoint.found(tmp_path / "run" / "checkpoints")) == 2


def test_a_signal_finishes_the_step_saves_and_continues_exactly(tmp_path: Path) -> None:
    run, unbroken = start(tmp_path / "unbroken")
    list(run.steps(unbroken))
    run, trainer = start(tmp_path / "broken")
    steps = run.steps(trainer)
    for _ in range(4):
        next(steps)
    os.kill(os.getpid(), signal.SIGTERM)
    assert next(steps).stopping
    with pytest.raises(Interrupted) as stopped:
        next(steps)
    assert stopped.value.status == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    run, trainer = start(tmp_path / "broken", resume=True)
    assert trainer.step == 5
    list(run.steps(trainer))
    for a, b in zip(unbroken.model.parameters(), trainer.model.parameters(), strict=True):
        assert torch.equal(a, b)
    metrics = [
        (tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("unbroken", "broken")
    ]
    losses = [[json.loads(line)["loss"] for line in lines] for lines in metrics]
    assert losses[0] == losses[1]


def test_a_torn_checkpoint_is_passed_over(tmp_path: Path) -> None:
    run, trainer = start(tmp_path / "run")
    list(run.steps(trainer))
    older, newest = checkpoint.found(tmp_path / "run" / "checkpoints")
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    _, trainer = start(tmp_path / "run", resume=True)
    assert trainer.step == int(older.stem.split("-")[1])
    assert newest.name in (tmp_path / "run" / "log.txt").read_text()


def test_a_run_killed_before_its_first_checkpoint_starts_again(tmp_path: Path) -> None:
    run, first = start(tmp_path / "run")
    next(run.steps(first))
    run, again = start(tmp_path / "run", resume=True)
    assert again.step == 0
    assert len(list(run.steps(again))) == 10


def test_samples_are_drawn_with_every_checkpoint_and_disturb_nothing(tmp_path: Path) -> None:
    drawn: list[str] = []

    def draw(model: Preconditioned, path: Path) -> None:
        torch.randn(3)
        assert not model.training
        drawn.append(path.name)

    recipe = read_recipe("digits-edm", KEYS)
    models = []
    for name, callback in (("plain", None), ("drawn", draw)):
        trainer = make_plan(recipe).trainer()
        list(RunFolder(tmp_path / name, to_yaml(recipe), resume=False, draw=callback).steps(trainer))
        models.append(trainer.model.state_dict())
    assert drawn == [f"{images:012d}.png" for images in (192, 384, 576, 640)]
    assert all(torch.equal(models[0][key], models[1][key]) for key in models[0])


def test_runs_are_not_mixed_up(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run to continue"):
        start(tmp_path / "run", resume=True)
    start(tmp_path / "run")
    with pytest.raises(UserError, match="a run is there already"):
        start(tmp_path / "run")
    with pytest.raises(UserError, match="recipe differs"):
        RunFolder(tmp_path / "run", "objective: other\n", resume=True)


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(tmp_path, {"step": 1})

    def full(state: object, file: BinaryIO) -> None:
        del state
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(tmp_path, {"step": 2})
    assert [checkpoint.step_of(p) for p in tmp_path.iterdir()] == [1]
    assert checkpoint.load_newest(tmp_path)[0] == {"step": 1}
