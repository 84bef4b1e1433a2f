"""Run folders: nothing lost, nothing half-written."""

import errno
import hashlib
import json
import os
import resource
import shutil
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from pathlib import Path
from threading import Thread
from typing import Any, BinaryIO

import pytest
import torch

from consistune.cli.screen import Screen
from consistune.core.objectives import Draws, Objective
from consistune.data.prepare.run import PrepareOptions, prepare
from consistune.errors import UserError
from consistune.nn import store
from consistune.nn.precond import Preconditioned
from consistune.recipe import read_recipe, to_yaml
from consistune.recipe.plan import make_plan
from consistune.reproduce.runs import train_run
from consistune.training import checkpoint, folder, log
from consistune.training.folder import rename_snapshots
from consistune.training.latest import load_latest
from consistune.training.lock import Busy, folder_lock
from consistune.training.loop import Trainer, TrainingDiverged
from consistune.training.options import share_name
from consistune.training.run import Interrupted, RunFolder
from tests.support.makers import edm_zip, pixels

KEYS = [
    "network={kind: mlp, width: 8, blocks: 1}",
    "train={images: 640, batch: 64, log_images: 64, checkpoint_images: 192, snapshots: [0.5]}",
]


def start(path: Path, *, resume: bool = False, keys: Sequence[str] = ()) -> tuple[RunFolder, Trainer]:
    recipe = read_recipe("digits-edm", [*KEYS, *keys])
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
        "checkpoints", "snapshots", "tensorboard", "model", ".lock",
    }  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["images"] for line in lines] == list(range(64, 641, 64))
    assert store.load(tmp_path / "run").card.objective == "diffusion"
    assert store.load(tmp_path / "run" / "snapshots" / "50%").num_classes == 10
    assert len(checkpoint.paths(tmp_path / "run" / "checkpoints")) == 2


class Clock:
    """A millisecond passes between two looks at it, and as long as a measure takes."""

    def __init__(self, pause: float) -> None:
        self.now, self.pause = 0.0, pause

    def perf_counter(self) -> float:
        self.now += 0.001
        return self.now

    def measure(self, model: Preconditioned) -> dict[str, float]:
        del model
        self.now += self.pause
        return {"nothing": 0.0}


def test_the_speed_is_that_of_training_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A measure of half a second in each step, and of none: the log's speed is alike."""
    speeds = []
    for pause in (0.0, 0.5):
        clock, path = Clock(pause), tmp_path / str(pause)
        monkeypatch.setattr(log, "time", clock)
        recipe = read_recipe("digits-edm", [*KEYS, "train.evaluate_images=64", "train.images=320"])
        run = RunFolder(path, to_yaml(recipe), resume=False, evaluate=clock.measure)
        list(run.steps(make_plan(recipe).trainer()))
        lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        speeds.append([line["images_per_second"] for line in lines if "images_per_second" in line])
    assert len(speeds[0]) == 5
    assert speeds[1] == pytest.approx(speeds[0])


def test_snapshots_of_a_longer_run_are_named_by_their_share_of_it(tmp_path: Path) -> None:
    run, trainer = start(tmp_path / "run", keys=["train.snapshots=[0.25, 0.5, 0.75]"])
    list(run.steps(trainer))
    snapshots = tmp_path / "run" / "snapshots"
    kept = {name: (snapshots / name / "model.safetensors").read_bytes() for name in ("25%", "50%", "75%")}
    recipe = read_recipe("digits-edm", [*KEYS, "train.snapshots=[0.25, 0.5, 0.75]", "train.images=1920"])
    for _ in range(2):  # as after a kill before the recipe was written
        rename_snapshots(tmp_path / "run", 1920)
    again = RunFolder(tmp_path / "run", to_yaml(recipe), resume=True, extend=True)
    trainer = make_plan(recipe).trainer()
    again.resume(trainer)
    list(again.steps(trainer))
    assert {path.name for path in snapshots.iterdir()} == {"8.33333%", "16.6667%", "25%", "50%", "75%"}
    for new, old in (("8.33333%", "25%"), ("16.6667%", "50%"), ("25%", "75%")):
        assert (snapshots / new / "model.safetensors").read_bytes() == kept[old]
    assert (snapshots / "50%" / "model.safetensors").read_bytes() not in kept.values()


def test_a_run_in_a_thread_takes_no_signals(tmp_path: Path) -> None:
    run, trainer = start(tmp_path / "run", keys=["train.images=128"])
    with ThreadPoolExecutor(1) as pool:
        assert len(pool.submit(lambda: list(run.steps(trainer))).result()) == 2


def test_a_signal_in_a_measurement_says_what_it_waits_for(tmp_path: Path) -> None:
    def measure(model: Preconditioned) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGTERM)
        return {"nothing": 0.0}

    recipe = read_recipe("digits-edm", [*KEYS, "train.evaluate_images=128"])
    run = RunFolder(tmp_path / "run", to_yaml(recipe), resume=False, evaluate=measure)
    trainer = make_plan(recipe).trainer()
    with pytest.raises(Interrupted):
        list(run.steps(trainer))
    assert "SIGTERM: stops when this measurement, and the step, is done" in (
        tmp_path / "run" / "log.txt"
    ).read_text(encoding="utf-8")


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
    older, newest = checkpoint.paths(tmp_path / "run" / "checkpoints")
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


@pytest.fixture
def two_sets(tmp_path: Path) -> Callable[[int], Path]:
    """Puts one of two sets of images into the same folder."""

    def put(seed: int) -> Path:
        source = edm_zip(tmp_path / f"{seed}.zip", pixels(64, 8, 8, seed=seed), [i % 10 for i in range(64)])
        shutil.rmtree(tmp_path / "set", ignore_errors=True)
        prepare(source, tmp_path / "set", PrepareOptions())
        return tmp_path / "set"

    return put


def cut_the_newest(path: Path) -> None:
    os.truncate(checkpoint.paths(path / "checkpoints")[-1], 1000)


def remove_the_newest(path: Path) -> None:
    checkpoint.paths(path / "checkpoints")[-1].unlink()


def only_the_log(path: Path) -> None:
    for name in ("checkpoints", "snapshots", "model"):
        shutil.rmtree(path / name)
    (path / "metrics.jsonl").unlink()


@pytest.mark.parametrize("damage", [cut_the_newest, remove_the_newest, only_the_log])
def test_a_run_whose_start_alone_is_sound_is_not_begun_again(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    path, keys = tmp_path / "run", ["train.images=128"]
    run, trainer = start(path, keys=keys)
    list(run.steps(trainer))
    damage(path)
    with pytest.raises(UserError, match=r"sound, and the run had (gone on|begun): "):
        start(path, resume=True, keys=keys)
    assert (path / "metrics.jsonl").exists() == (damage is not only_the_log)
    if damage is cut_the_newest:
        with pytest.raises(UserError, match=r"no sound checkpoint, but 1 damaged"):
            load_latest(path)


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("nowhere"))


def garbage(path: Path) -> None:
    path.unlink()
    digest = hashlib.sha256(b"garbage").hexdigest()[:16]
    path.with_name(f"{path.name.rpartition('-')[0]}-{digest}.pt").write_bytes(b"garbage")


@pytest.mark.parametrize("damage", [dangling, garbage])
def test_a_damaged_checkpoint_of_any_kind_is_passed_over_aloud(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None]
) -> None:
    run, trainer = start(tmp_path / "run")
    list(run.steps(trainer))
    damage(checkpoint.paths(tmp_path / "run" / "checkpoints")[-1])
    (tmp_path / "run" / "checkpoints" / f"step-00000077-{16 * '0'}.pt").mkdir()
    load_latest(tmp_path / "run")
    assert "that of step 9 is taken" in capsys.readouterr().err
    start(tmp_path / "run", resume=True)
    assert "goes on from the checkpoint of step 9" in capsys.readouterr().err


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    for name, width in (("run", 8), ("other", 16)):
        run, trainer = start(tmp_path / name, keys=[f"network.width={width}", "train.images=128"])
        list(run.steps(trainer))
    newest = checkpoint.paths(tmp_path / "other" / "checkpoints")[-1]
    shutil.copy(newest, tmp_path / "run" / "checkpoints" / newest.name.replace("00000002", "00000003"))
    with pytest.raises(UserError, match="not those of this run's network"):
        start(tmp_path / "run", resume=True, keys=["train.images=128"])


@pytest.mark.parametrize("killed_at", [None, *range(6)])
def test_snapshots_keep_their_right_names_through_longer_runs_and_kills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int | None
) -> None:
    """Each holds the images that it had seen; some names are taken by others before."""
    run, shares = tmp_path / "run", (0.125, 0.25, 0.75)
    recipe = read_recipe("digits-edm", [*KEYS, "train.images=512"])
    folder.create(run, to_yaml(recipe))

    def snapshot(share: float, images: int) -> None:
        path = run / "snapshots" / share_name(share)
        path.mkdir(parents=True)
        (path / "images").write_text(f"{share * images:g}")

    for share in shares:
        snapshot(share, 512)
    rename_snapshots(run, 1024)
    for share in shares[2:]:
        snapshot(share, 1024)
    renamed = 0
    original = Path.rename

    def rename(path: Path, target: Path) -> Path:
        nonlocal renamed
        if renamed == killed_at:
            raise KeyboardInterrupt
        renamed += 1
        return original(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    with nullcontext() if killed_at is None else pytest.raises(KeyboardInterrupt):
        rename_snapshots(run, 2048)
    monkeypatch.undo()
    rename_snapshots(run, 4096)
    found = {path.name: (path / "images").read_text() for path in (run / "snapshots").iterdir()}
    assert found == {share_name(images / 4096): f"{images}" for images in (64, 128, 384, 768)}


def test_a_system_without_locks_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers, said = [errno.EACCES, errno.EOPNOTSUPP, errno.ENOLCK], list[str]()

    def acquire(*_: object) -> None:
        raise OSError(numbers.pop(), "No locks available")

    monkeypatch.setattr("filelock.FileLock.acquire", acquire)
    for _ in range(2):
        with folder_lock(tmp_path, said.append):
            pass
    assert len(said) == 2
    with pytest.raises(OSError, match="No locks"), folder_lock(tmp_path, said.append):
        pass


def test_a_terminal_that_is_gone_ends_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = start(tmp_path / "run")
    with open("/dev/full", "w", buffering=1) as full:
        monkeypatch.setattr("sys.stderr", full)
        run.warn("something")
        monkeypatch.undo()
        with suppress(OSError):
            full.close()
    assert "warning: something" in (tmp_path / "run" / "log.txt").read_text()


def test_the_model_is_the_last_that_a_run_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run"
    run, trainer = start(path, keys=["train.images=64", "train.snapshots=[]"])
    seen: list[str] = []
    monkeypatch.setattr(store, "save", lambda *_: seen.append((path / "log.txt").read_text()))
    list(run.steps(trainer))
    assert "done: 64 images" in seen[-1]


def test_a_run_does_not_go_on_with_other_images(tmp_path: Path, two_sets: Callable[[int], Path]) -> None:
    keys = [f"data={two_sets(0)}"]
    run, trainer = start(tmp_path / "run", keys=keys)
    for _ in zip(range(4), run.steps(trainer), strict=False):
        pass
    two_sets(1)
    with pytest.raises(UserError, match="not those that this run began with"):
        start(tmp_path / "run", resume=True, keys=keys)
    two_sets(0)
    run, trainer = start(tmp_path / "run", resume=True, keys=keys)
    assert trainer.step == 3


def test_what_other_images_gave_is_not_taken_for_finished(
    tmp_path: Path, two_sets: Callable[[int], Path]
) -> None:
    recipe = read_recipe("digits-edm", [*KEYS, f"data={two_sets(0)}"])
    for _ in range(2):
        train_run(tmp_path / "run", recipe, Screen(quiet=True))
    two_sets(1)
    with pytest.raises(UserError, match="was trained on other images"):
        train_run(tmp_path / "run", recipe, Screen(quiet=True))


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


def test_a_picture_that_fails_is_a_warning_and_the_checkpoint_is_there_before_it(tmp_path: Path) -> None:
    stored: list[int] = []

    def draw(model: Preconditioned, path: Path) -> None:
        del model
        stored.append(checkpoint.step_of(checkpoint.paths(path.parent.parent / "checkpoints")[-1]) * 64)
        raise ValueError("a picture has 1 or 3 channels, got 32")

    recipe = read_recipe("digits-edm", KEYS)
    run = RunFolder(tmp_path / "run", to_yaml(recipe), resume=False, draw=draw)
    list(run.steps(make_plan(recipe).trainer()))
    assert stored == [192, 384, 576, 640]
    assert store.load(tmp_path / "run").num_classes == 10
    assert (tmp_path / "run" / "log.txt").read_text().count("warning: no picture of samples: a picture") == 4


@pytest.mark.parametrize("skips", [False, True])
def test_a_picture_that_a_kill_prevented_is_drawn_when_the_run_continues(tmp_path: Path, skips: bool) -> None:
    """Also where the checkpoint was put off by a step, because the losses of the one before were NaN."""
    recipe = read_recipe("digits-edm", KEYS)
    victim = "448" if skips else "384"

    def write(model: Preconditioned, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(repr(next(model.parameters()).sum().item()).encode())

    def killed(model: Preconditioned, path: Path) -> None:
        if path.stem.endswith(victim):
            raise KeyboardInterrupt
        write(model, path)

    def run(name: str, draw: Callable[[Preconditioned, Path], None]) -> dict[str, bytes]:
        resume = (tmp_path / name).exists()
        trainer = make_plan(recipe).trainer()
        trainer = sick(trainer, lambda t: skips and t.step == 5)
        folder = RunFolder(tmp_path / name, to_yaml(recipe), resume=resume, draw=draw)
        if resume:
            folder.resume(trainer)
        list(folder.steps(trainer))
        return {path.name: path.read_bytes() for path in (tmp_path / name / "samples").iterdir()}

    with pytest.raises(KeyboardInterrupt):
        run("broken", killed)
    assert run("broken", write) == run("whole", write)


def test_runs_are_not_mixed_up(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run to continue"):
        start(tmp_path / "run", resume=True)
    start(tmp_path / "run")
    with pytest.raises(UserError, match="a run is there already"):
        start(tmp_path / "run")
    with pytest.raises(UserError, match="recipe differs"):
        RunFolder(tmp_path / "run", "objective: other\n", resume=True)
    with pytest.raises(UserError, match="recipe differs"):
        start(tmp_path / "run", resume=True, keys=["train.clip_norm=1.0"])
    start(tmp_path / "run", resume=True, keys=["train.microbatch=16", "train.keep=5"])  # the machine's


def test_two_programs_do_not_train_in_one_folder(tmp_path: Path) -> None:
    run, trainer = start(tmp_path / "run")
    steps = run.steps(trainer)
    next(steps)
    left = sorted(path.name for path in (tmp_path / "run").iterdir())
    with pytest.raises(Busy, match="another program trains in this folder") as busy:
        start(tmp_path / "run", resume=True)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == left
    later = Thread(target=busy.value.wait)
    later.start()
    later.join(0.2)
    assert later.is_alive()
    steps.close()
    later.join(10)
    assert not later.is_alive()
    start(tmp_path / "run", resume=True)


@pytest.mark.parametrize("reason", ["full", "limited"])
def test_a_full_disk_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    checkpoint.save(tmp_path, {"step": 1})

    def full(state: object, file: BinaryIO) -> None:
        del state
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        if reason == "full":
            monkeypatch.setattr(torch, "save", full)
        else:  # what the archive's writer really makes of a write that fails
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        with pytest.raises(OSError, match=r"No space|too large"):
            checkpoint.save(tmp_path, {"step": 2, "weights": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert [checkpoint.step_of(p) for p in tmp_path.iterdir()] == [1]
    assert checkpoint.load_newest(tmp_path)[0] == {"step": 1}


def test_a_checkpoint_of_the_same_step_replaces_the_earlier_one(tmp_path: Path) -> None:
    for value in (0.0, 1.0):
        newest = checkpoint.save(tmp_path, {"step": 1, "weights": torch.full((2,), value)})
    assert checkpoint.paths(tmp_path) == [newest]


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_a_flipped_bit_is_found_anywhere_and_an_older_checkpoint_is_taken(
    tmp_path: Path, place: float
) -> None:
    for step in (1, 2, 3):
        newest = checkpoint.save(tmp_path, {"step": step, "weights": torch.zeros(1000)}, keep=2)
    data = bytearray(newest.read_bytes())
    data[int(place * len(data))] ^= 1
    newest.write_bytes(data)
    state, damaged = checkpoint.load_newest(tmp_path)
    assert state is not None
    assert state["step"] == 2
    assert damaged == [newest]


def test_a_checkpoint_that_a_trainer_deletes_meanwhile_gives_way_to_its_newer_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path, {"step": 1})
    digest = checkpoint.file_digest

    def late(path: Path) -> str:
        if checkpoint.step_of(path) == 1:
            path.unlink()
            checkpoint.save(tmp_path, {"step": 2})
        return digest(path)

    monkeypatch.setattr(checkpoint, "file_digest", late)
    assert checkpoint.load_newest(tmp_path) == ({"step": 2}, [])


def sick(trainer: Trainer, wrong: Callable[[Trainer], bool]) -> Trainer:
    """A trainer whose loss is NaN where `wrong` says so."""
    inner = trainer.objective

    class Sick(Objective):
        def draw(self, *arguments: Any) -> Draws:
            return inner.draw(*arguments)

        def losses(self, *arguments: Any) -> torch.Tensor:
            return inner.losses(*arguments) * (torch.nan if wrong(trainer) else 1)

    trainer.objective = Sick()
    return trainer


def test_a_divergence_goes_back_to_the_last_good_checkpoint_and_on_with_other_noise(tmp_path: Path) -> None:
    keys = ["train.max_nonfinite=2"]
    run, healthy = start(tmp_path / "healthy", keys=keys)
    expected = {report.step: report.loss for report in run.steps(healthy)}
    run, trainer = start(tmp_path / "sick", keys=keys)
    sick(trainer, lambda t: t.rollbacks == 0 and t.step in (5, 6))
    reports = list(run.steps(trainer))
    # Step 6 is due for a checkpoint (384 images), but is not finite: step 3's is the last good one.
    assert [r.step for r in reports] == [1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 7, 8, 9, 10]
    assert [r.finite for r in reports] == 5 * [True] + 2 * [False] + 7 * [True]
    assert reports[-1].nonfinite_total == 2
    assert all(reports[i].loss == expected[i + 1] for i in range(5))
    assert all(r.loss != expected[r.step] for r in reports[7:])
    log = (tmp_path / "sick" / "log.txt").read_text()
    assert "2 steps in a row" in log
    assert "went back to 192 images" in log
    lines = (tmp_path / "sick" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["images"] for line in lines] == list(range(64, 641, 64))


def test_a_run_that_cannot_be_saved_ends_with_a_reason(tmp_path: Path) -> None:
    keys = ["train.max_nonfinite=2", "train.max_rollbacks=2"]
    run, trainer = start(tmp_path / "always", keys=keys)
    with pytest.raises(TrainingDiverged, match="after 2 returns to a checkpoint"):
        list(run.steps(sick(trainer, lambda t: t.step >= 5)))
    assert (tmp_path / "always" / "log.txt").read_text().count("went back") == 2
    run, trainer = start(tmp_path / "at once", keys=keys)
    with pytest.raises(TrainingDiverged, match=r"the last sound checkpoint is step-0+-[0-9a-f]{16}\.pt"):
        list(run.steps(sick(trainer, lambda t: True)))
    assert not (tmp_path / "at once" / "model").exists()


def lost(path: Path) -> None:
    shutil.rmtree(path / "checkpoints")


def cut(path: Path) -> None:
    for file in checkpoint.paths(path / "checkpoints"):
        os.truncate(file, 1000)


def all_but_the_model(path: Path) -> None:
    lost(path)
    shutil.rmtree(path / "snapshots")
    (path / "metrics.jsonl").unlink()


def finish(run: RunFolder, trainer: Trainer) -> None:
    list(run.steps(trainer))


def stop_before_the_first_regular_checkpoint(run: RunFolder, trainer: Trainer) -> None:
    steps = run.steps(trainer)
    next(steps), next(steps)
    steps.close()


@pytest.mark.parametrize("end", [finish, stop_before_the_first_regular_checkpoint])
@pytest.mark.parametrize("damage", [lost, cut, all_but_the_model])
def test_a_run_without_a_sound_checkpoint_is_not_begun_again_in_silence(
    tmp_path: Path, end: Callable[[RunFolder, Trainer], None], damage: Callable[[Path], None]
) -> None:
    if (end, damage) == (stop_before_the_first_regular_checkpoint, all_but_the_model):
        pytest.skip("nothing of the run is left then")
    path = tmp_path / "run"
    end(*start(path))
    damage(path)
    before = {p: p.read_bytes() for p in path.rglob("*") if p.is_file() and p.name != "log.txt"}
    with pytest.raises(UserError, match=r"no checkpoint is sound, and the run had begun: .*(metrics|model)"):
        start(path, resume=True)
    assert {p: p.read_bytes() for p in path.rglob("*") if p.is_file() and p.name != "log.txt"} == before


def test_the_last_files_are_written_under_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, trainer = start(tmp_path / "run")
    busy: list[str] = []

    def save(model: Preconditioned, path: Path) -> Path:
        del model
        with pytest.raises(Busy):
            start(tmp_path / "run", resume=True)
        with pytest.raises(Busy):
            start(tmp_path / "run")
        busy.append(path.name)
        return path

    monkeypatch.setattr(store, "save", save)
    list(run.steps(trainer))
    assert busy == ["50%", "model"]
    start(tmp_path / "run", resume=True)


def test_from_the_beginning_of_a_run_on_no_other_program_comes_between(tmp_path: Path) -> None:
    run, trainer = start(tmp_path / "run")
    with pytest.raises(Busy):
        start(tmp_path / "run", resume=True)
    next(run.steps(trainer))
    run, trainer = start(tmp_path / "run", resume=True)
    with pytest.raises(Busy):
        start(tmp_path / "run", resume=True)


class BrokenTracker:
    name = "broken"

    def __init__(self, where: str) -> None:
        self.where = where

    def __getattr__(self, action: str) -> Callable[..., None]:
        def act(*args: object, **keys: object) -> None:
            del args, keys
            if action == self.where:
                raise ConnectionError("no network")

        return act


@pytest.mark.parametrize("where", ["start", "log", "finish"])
def test_a_tracker_or_a_measure_that_fails_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    monkeypatch.setattr(log, "_tracker", lambda *_: BrokenTracker(where))

    def measure(model: Preconditioned) -> dict[str, float]:
        raise RuntimeError(f"cannot measure {model.kind}")

    recipe = read_recipe("digits-edm", [*KEYS, "train.evaluate_images=320"])
    run = RunFolder(tmp_path / "run", to_yaml(recipe), resume=False, evaluate=measure)
    list(run.steps(make_plan(recipe).trainer()))
    said = (tmp_path / "run" / "log.txt").read_text()
    assert said.count("ConnectionError: no network; the run goes on without it") == 1
    assert said.count("warning: not measured at") == 2
    assert "no network" in capsys.readouterr().err
    assert store.load(tmp_path / "run").num_classes == 10


def test_the_model_that_measures_best_is_kept(tmp_path: Path) -> None:
    values = iter([3.0, 1.0, 2.0, 5.0, 0.5])
    weights: list[dict[str, torch.Tensor]] = []

    def evaluate(model: Preconditioned) -> dict[str, float]:
        weights.append({name: value.clone() for name, value in model.state_dict().items()})
        return {"distance": next(values), "other": -len(weights)}

    recipe = read_recipe("digits-edm", [*KEYS, "train.evaluate_images=128"])
    for _ in range(2):  # killed after the third measurement, and continued from the checkpoint before it
        resume = bool(weights)
        run = RunFolder(tmp_path / "run", to_yaml(recipe), resume=resume, evaluate=evaluate)
        trainer = make_plan(recipe).trainer()
        if resume:
            run.resume(trainer)
            assert trainer.images == 192
            values = iter([1.0, 2.0, 5.0, 0.5])
        for report in run.steps(trainer):
            if not resume and report.images >= 320:
                break
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    found = {line["images"]: line["evaluate/distance"] for line in lines if "evaluate/distance" in line}
    assert found == {128: 3.0, 256: 1.0, 384: 2.0, 512: 5.0, 640: 0.5}
    best = store.load(tmp_path / "run" / "best").state_dict()
    assert all(torch.equal(best[name], weights[-1][name]) for name in best)


def test_the_log_has_the_loss_by_noise_level_and_what_the_machine_does(tmp_path: Path) -> None:
    run, trainer = start(tmp_path / "run", keys=["train.log_images=320"])
    watched: list[tuple[torch.Tensor, torch.Tensor]] = []
    inner = trainer.step_loss.forward

    def forward(objective: Objective, target: Any, draws: Draws) -> torch.Tensor:
        losses = inner(objective, target, draws)
        watched.append((draws.times.t, losses.detach()))
        return losses

    trainer.step_loss.forward = forward  # type: ignore[method-assign]
    list(run.steps(trainer))
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    t, losses = (torch.cat(parts[5:]) for parts in zip(*watched, strict=True))
    inside = (t > 0.3) & (t <= 1)
    assert line["loss/t=0.3-1"] == pytest.approx(float(losses[inside].mean()), rel=1e-4)
    assert line["peak_memory_gib"] > 0.05
    assert line["images_per_second"] > 0


def test_what_a_killed_process_left_half_written_is_removed(tmp_path: Path) -> None:
    run, trainer = start(tmp_path / "run")
    steps = run.steps(trainer)
    for _ in range(4):
        next(steps)
    steps.close()
    path = tmp_path / "run"
    (path / "checkpoints" / ".step-00000009").write_bytes(b"half")
    (path / ".model.77.partial").mkdir()
    (path / "samples").mkdir()
    (path / "samples" / ".000000000192.png.77.partial").write_bytes(b"half")
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"images": 2')
    run, trainer = start(path, resume=True)
    assert not [p for p in path.rglob("*") if p.name.startswith(".") and p.name != ".lock"]
    assert [json.loads(line)["images"] for line in (path / "metrics.jsonl").read_text().splitlines()] == [
        64, 128, 192,
    ]  # fmt: skip


def test_a_tracker_that_is_not_installed_is_named_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "find_spec", lambda name: None if name == "wandb" else object())
    run, trainer = start(tmp_path / "run", keys=["train.trackers=[wandb]"])
    with pytest.raises(UserError, match=r'wandb is not installed; pip install "consistune\[wandb\]"'):
        next(run.steps(trainer))
    assert trainer.step == 0


@pytest.mark.parametrize("name", ["model", "best", "snapshots/50%"])
def test_a_model_that_would_replace_another_file_is_refused_at_the_start(tmp_path: Path, name: str) -> None:
    run, trainer = start(tmp_path / "run", keys=["train.evaluate_images=128"])
    run.evaluate = lambda _: {"distance": 1.0}
    (tmp_path / "run" / name).mkdir(parents=True)
    (tmp_path / "run" / name / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is already there"):
        next(run.steps(trainer))
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_what_comes_into_the_best_models_folder_does_not_end_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, trainer = start(tmp_path / "run", keys=["train.evaluate_images=128"])
    run.evaluate = lambda _: {"distance": float(-trainer.images)}
    for report in run.steps(trainer):
        if report.images == 192:
            (tmp_path / "run" / "best" / "notes.txt").write_text("mine")
    assert (tmp_path / "run" / "model").is_dir()
    assert "the best model is not kept" in capsys.readouterr().err
    assert (tmp_path / "run" / "best" / "notes.txt").read_text() == "mine"
