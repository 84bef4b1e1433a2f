"""Preparing: the same bytes with any number of workers and after interruptions."""

import contextlib
import errno
import hashlib
import io
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from consistune.data.images import load_data
from consistune.data.prepare import run as module
from consistune.data.prepare.run import PrepareOptions, Progress, prepare
from consistune.data.prepare.split import Split
from consistune.data.prepare.survey import ImageOptions
from consistune.data.prepared import read_meta
from consistune.data.sources.base import Source
from consistune.errors import UserError
from consistune.system import files
from tests.support.makers import class_folders, edm_zip, encoded, imagenet_batches, pixels
from tests.support.prepared import OPTIONS, mixed_folder


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


class Stop(Exception):
    """The power fails."""


class StopAfter(Progress):
    """Remembers how many images were done before, and stops after some calls."""

    def __init__(self, calls: int) -> None:
        self.calls, self.before, self.counts = calls, -1, []  # type: ignore[var-annotated]

    def started(self, source: Source, done: int) -> None:
        self.before = done

    def advanced(self, count: int) -> None:
        self.counts.append(count)
        self.calls -= 1
        if self.calls == 0:
            raise Stop


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of four images, each on the disk before the next."""
    monkeypatch.setattr(Source, "piece", 4)
    monkeypatch.setattr(module, "SYNC_SECONDS", 0.0)
    read = module.open_source
    monkeypatch.setattr(module, "open_source", lambda *a: replace_piece(read(*a)))


def replace_piece(source: Source) -> Source:
    source.piece = 4
    return source


@pytest.mark.parametrize("kind", ["folder", "zip", "batches"])
def test_a_stopped_preparation_goes_on_to_the_same_bytes(
    tmp_path: Path, small_pieces: None, kind: str
) -> None:
    options = OPTIONS
    if kind == "folder":
        source = mixed_folder(tmp_path / "set")
    elif kind == "zip":
        images = [b"bad" if k == 7 else pixels(1, 8, 8, 3, seed=k)[0] for k in range(40)]
        source = edm_zip(tmp_path / "set.zip", images, [k % 3 for k in range(40)])
    else:
        labels = [1 + k % 3 for k in range(40)]
        source = imagenet_batches(tmp_path / "set", pixels(40, 3, 16, 16), labels, npz=False, val=8)
        options = replace(OPTIONS, split=Split())
    whole = Progress()
    prepare(source, tmp_path / "whole", options, whole)
    done = 0
    for stop in (2, 1, 3):
        progress = StopAfter(stop)
        with pytest.raises(Stop):
            prepare(source, tmp_path / "again", options, progress)
        assert progress.before == done  # what was done is not done again
        done += sum(progress.counts)
        assert not (tmp_path / "again").exists()
    with (tmp_path / "again.part" / "work" / "journal").open("ab") as journal:
        journal.write(b'{"piece": 9, "ba')  # a line torn by the kill
    last = StopAfter(-1)
    prepare(source, tmp_path / "again", options, last)
    assert last.before == done
    assert last.before + sum(last.counts) == 40
    assert contents(tmp_path / "again") == contents(tmp_path / "whole")
    assert not (tmp_path / "again.part").exists()


class FailingDisk:
    """Fails at the n-th time that something is to be on the disk."""

    def __init__(self, calls: int) -> None:
        self.calls, self.sync = calls, files.sync

    def __call__(self, path: Path) -> None:
        self.calls -= 1
        if self.calls == 0:
            raise Stop
        self.sync(path)


def test_a_kill_between_any_two_steps_of_the_end_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = mixed_folder(tmp_path / "set")
    prepare(source, tmp_path / "whole", OPTIONS)
    stopped = 0
    while not (tmp_path / "again").exists():
        with monkeypatch.context() as patch, contextlib.suppress(Stop):
            patch.setattr(files, "sync", FailingDisk(stopped + 1))
            prepare(source, tmp_path / "again", OPTIONS)
        stopped += 1
    assert stopped > 6
    assert contents(tmp_path / "again") == contents(tmp_path / "whole")


def test_two_processes_write_what_one_writes(tmp_path: Path) -> None:
    source = mixed_folder(tmp_path / "set")
    prepare(source, tmp_path / "one", OPTIONS)
    prepare(source, tmp_path / "two", replace(OPTIONS, workers=2))
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


KILLED = """
import os, signal
from consistune.__main__ import main
from consistune.data.prepare import run

def killed(*given, commit=run._commit):
    commit(*given)
    os.kill(os.getpid(), signal.SIGKILL)

run._commit, run.SYNC_SECONDS = killed, 0.0
main()
"""


def test_a_killed_command_goes_on(tmp_path: Path) -> None:
    """SIGKILL of the whole command when its first piece is done; then the command again."""
    source, count = tmp_path / "set", Source.piece + 44
    class_folders(source, [*pixels(count, 8, 8, 3)], [f"c{k % 3}" for k in range(count)])
    words = ["data", "prepare", str(source), str(tmp_path / "dest"), "--size", "8", "--workers", "1"]
    first, second = (
        subprocess.run([sys.executable, *start, *words], capture_output=True, text=True, check=False)
        for start in (("-c", KILLED), ("-m", "consistune"))
    )
    assert first.returncode == -signal.SIGKILL, first.stderr
    assert second.returncode == 0, second.stderr
    assert f"continuing after {Source.piece} images" in second.stderr
    meta = prepare(source, tmp_path / "whole", PrepareOptions(images=ImageOptions(size=8)))
    assert meta.parts["train"].images == count
    assert contents(tmp_path / "dest") == contents(tmp_path / "whole")


def test_other_options_do_not_go_on_from_a_stopped_run(tmp_path: Path, small_pieces: None) -> None:
    source = mixed_folder(tmp_path / "set")
    with pytest.raises(Stop):
        prepare(source, tmp_path / "dest", OPTIONS, StopAfter(1))
    with pytest.raises(UserError, match="other options"):
        prepare(source, tmp_path / "dest", replace(OPTIONS, images=ImageOptions(size=7)))
    journal = next(tmp_path.rglob("*journal*"))
    whole = journal.read_bytes()
    for damage in (b"[]", b"\xff", b"{", b'{"piece": 1}', b"[" * 100_000):
        journal.write_bytes(whole + damage + b"\n")
        with pytest.raises(UserError, match="is damaged"):
            prepare(source, tmp_path / "dest", OPTIONS)
    journal.write_bytes(whole)
    (source / "class 0" / "new.png").write_bytes(encoded(pixels(1, 9, 9, 3)[0]))
    with pytest.raises(UserError, match="another source"):
        prepare(source, tmp_path / "dest", OPTIONS)


def test_two_runs_at_once_are_refused(tmp_path: Path) -> None:
    source = mixed_folder(tmp_path / "set")
    from consistune.data.prepare.journal import Journal

    with Journal(tmp_path / "dest.part" / "work" / "journal"), pytest.raises(UserError, match="another run"):
        prepare(source, tmp_path / "dest", OPTIONS)
    prepare(source, tmp_path / "dest", OPTIONS)
    with pytest.raises(UserError, match="already there"):
        prepare(source, tmp_path / "dest", OPTIONS)


def test_a_kill_before_the_journal_or_after_the_last_rename_is_no_obstacle(tmp_path: Path) -> None:
    source, part = mixed_folder(tmp_path / "set"), tmp_path / "out.part"
    whole = tmp_path / "whole"
    prepare(source, whole, OPTIONS)
    (part / "work").mkdir(parents=True)
    (part / "work" / "lock").touch()
    prepare(source, tmp_path / "out", OPTIONS)
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Stop):
        patch.setattr(module.shutil, "rmtree", lambda *_: (_ for _ in ()).throw(Stop))
        prepare(source, tmp_path / "other", OPTIONS)
    assert (tmp_path / "other.part").exists()
    shutil.rmtree(tmp_path / "other")  # as the message advises, or a user wishes
    prepare(source, tmp_path / "other", OPTIONS)
    assert contents(tmp_path / "out") == contents(tmp_path / "other") == contents(whole)


def test_a_file_that_changed_since_the_stop_is_seen_though_its_size_is_the_same(
    tmp_path: Path, small_pieces: None
) -> None:
    source = class_folders(tmp_path / "set", pixels(8, 8, 8), ["a", "b"] * 4)
    options = PrepareOptions(workers=1)
    with pytest.raises(Stop):
        prepare(source, tmp_path / "out", options, StopAfter(1))
    first = min(source.rglob("*.png"))
    os.utime(first, ns=(0, first.stat().st_mtime_ns + 10**9))
    with pytest.raises(UserError, match="or the source has changed since"):
        prepare(source, tmp_path / "out", options)


def test_what_a_killed_run_unpacked_of_another_archive_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between unpacking and the journal's first line; then the archive is replaced."""

    def archive(value: int) -> Path:
        with tarfile.open(tmp_path / "set.tar.gz", "w:gz") as file:
            for k in range(5):
                data = encoded(np.full((8, 8, 3), value, np.uint8))
                member = tarfile.TarInfo(f"a/{k}.png")
                member.size = len(data)
                file.addfile(member, io.BytesIO(data))
        return tmp_path / "set.tar.gz"

    with monkeypatch.context() as patch:
        patch.setattr(module, "_begin", lambda *_: os._exit(0))
        process = multiprocessing.get_context("fork").Process(
            target=prepare, args=(archive(10), tmp_path / "out", PrepareOptions(workers=1))
        )
        process.start()
        process.join()
    assert (tmp_path / "out.part" / "work" / "unpacked").exists()
    prepare(archive(200), tmp_path / "out", PrepareOptions(workers=1))
    assert bool((load_data(str(tmp_path / "out")).train.images == 200).all())


class Kill(BaseException):
    """Not an error: nothing cleans up."""


def test_a_kill_while_the_work_is_removed_is_no_obstacle(tmp_path: Path) -> None:
    """At any removal: the set is finished, so the same command says so and removes the rest."""
    source = mixed_folder(tmp_path / "set")
    prepare(source, tmp_path / "whole", OPTIONS)
    for advised in (False, True):
        for stopped in range(3):
            dest, calls = tmp_path / f"out-{advised}-{stopped}", [stopped]
            with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Kill):
                for owner, name in ((module.shutil, "rmtree"), (Path, "unlink")):
                    patch.setattr(owner, name, killing(getattr(owner, name), calls))
                prepare(source, dest, OPTIONS)
            assert dest.exists()
            if advised:
                shutil.rmtree(dest)
            elif dest.with_name(f"{dest.name}.part").exists():
                with pytest.raises(UserError, match="already there"):
                    prepare(source, dest, replace(OPTIONS, images=ImageOptions(size=7)))
                assert prepare(source, dest, OPTIONS) == read_meta(dest)
            if advised:
                prepare(source, dest, OPTIONS)
            assert contents(dest) == contents(tmp_path / "whole")
            assert not dest.with_name(f"{dest.name}.part").exists()


def killing(remove: Callable[..., object], calls: list[int]) -> Callable[..., object]:
    def call(path: Path, *given: object, **named: object) -> object:
        if ".part" in str(path) and "data" not in Path(path).parts:
            if calls[0] == 0:
                raise Kill
            calls[0] -= 1
        return remove(path, *given, **named)

    return call


@pytest.mark.parametrize("left", ["", "work", "work/unpacked", "work/digests/"])
def test_what_a_kill_leaves_without_a_journal_is_taken_over(tmp_path: Path, left: str) -> None:
    (tmp_path / "out.part" / left).mkdir(parents=True)
    if left.endswith("/"):
        (tmp_path / "out.part" / left).rmdir()
        (tmp_path / "out.part" / left).touch()
    prepare(mixed_folder(tmp_path / "set"), tmp_path / "out", OPTIONS)
    assert not (tmp_path / "out.part").exists()


def test_half_written_files_of_killed_runs_are_not_in_the_set(tmp_path: Path, small_pieces: None) -> None:
    source = mixed_folder(tmp_path / "set")
    with pytest.raises(Stop):
        prepare(source, tmp_path / "out", OPTIONS, StopAfter(1))
    for name in ("train/.labels.npy.7.partial", ".meta.json.7.partial"):
        (tmp_path / "out.part" / "data" / name).touch()
    prepare(source, tmp_path / "out", OPTIONS)
    assert not list((tmp_path / "out").rglob(".*"))


@pytest.mark.parametrize("name", ["link", "new/.."])
def test_a_name_that_cannot_be_given_is_refused_at_once(tmp_path: Path, name: str) -> None:
    (tmp_path / "link").symlink_to("/nowhere/x")
    source = mixed_folder(tmp_path / "set")
    with pytest.raises(UserError, match=r"is already there|is no name"):
        prepare(source, tmp_path / name, OPTIONS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "set"]


def test_a_prepared_set_is_no_source(tmp_path: Path) -> None:
    prepare(mixed_folder(tmp_path / "set"), tmp_path / "out", OPTIONS)
    with pytest.raises(UserError, match="is prepared already"):
        prepare(tmp_path / "out", tmp_path / "again", OPTIONS)
    assert not (tmp_path / "again.part").exists()


def test_a_full_disk_at_the_end_is_named_and_leaves_no_second_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, sync = mixed_folder(tmp_path / "set"), files.sync

    def full(path: Path) -> None:
        if path.suffix == ".partial":
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(path)

    with monkeypatch.context() as patch:
        patch.setattr(files, "sync", full)
        with pytest.raises(OSError, match=r"No space left.*images\.npy\.partial"):
            prepare(source, tmp_path / "out", OPTIONS)
    assert not list(tmp_path.rglob("*.partial"))
    prepare(source, tmp_path / "out", OPTIONS)


def test_room_for_a_second_copy_is_asked_where_images_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(files, "check_room", lambda _, size: asked.append(size // (3 * 8 * 8)))
    prepare(mixed_folder(tmp_path / "whole", bad=()), tmp_path / "0", OPTIONS)
    assert asked == [40]
    prepare(mixed_folder(tmp_path / "damaged"), tmp_path / "1", OPTIONS)
    assert asked[1] == 40
    assert len(asked) > 2
    assert max(asked[2:]) < 40


def test_a_file_system_without_locks_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    said: list[str] = []
    progress = Progress()
    monkeypatch.setattr(progress, "warned", said.append)
    monkeypatch.setattr("filelock.FileLock.acquire", no_locks)
    prepare(mixed_folder(tmp_path / "set"), tmp_path / "out", OPTIONS, progress)
    assert said == ["this file system has no locks; let no other program prepare here"]
