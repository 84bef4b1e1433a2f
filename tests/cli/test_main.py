"""What the program says of a mistake in its words, and what it does when nobody can read it."""

import contextlib
import errno
import io
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from consistune.cli import main as module
from consistune.cli.signals import release_signals
from consistune.cli.streams import Lasting
from consistune.training.interrupt import Interrupted
from consistune.training.run import RunFolder
from tests.support.command import run_main

TINY = [
    "network={kind: mlp, width: 8, blocks: 1}",
    "train={images: 128, batch: 64, log_images: 64, snapshots: [], trackers: []}",
]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("bogus", "No such command 'bogus'; see consistune --help"),
        ("trian", "Did you mean 'train'? see consistune --help"),
        ("sample", "Missing argument 'model'; see consistune sample --help"),
        ("data bogus", "see consistune data --help"),
        ("", "no command given; see consistune --help"),
    ],
)
def test_a_mistake_in_the_words_says_where_they_are_explained(words: str, said: str) -> None:
    done = run_main(*words.split())
    assert done.returncode == 2
    assert said in done.stderr


class Broken(io.RawIOBase):
    """The raw end of a stream that cannot be written."""

    def __init__(self, number: int, descriptor: int) -> None:
        self.number, self.descriptor = number, descriptor

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.descriptor

    def write(self, data: object) -> int:
        if self.number:
            raise OSError(self.number, "broken")
        return len(bytes(data))  # type: ignore[call-overload]


@pytest.mark.parametrize("number", [errno.EPIPE, errno.EIO, errno.ENOSPC])
def test_a_reader_who_left_ends_nothing_and_a_full_disk_ends_a_result(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    for descriptor in (1, 2):
        broken = Broken(number, descriptor)
        stream = Lasting(io.BufferedWriter(broken), encoding="utf-8", line_buffering=True)
        dropped: list[int] = []

        def drop(_: int, to: int, broken: Broken = broken, dropped: list[int] = dropped) -> None:
            dropped.append(to)
            broken.number = 0

        monkeypatch.setattr("os.dup2", drop)
        if (descriptor, number) == (1, errno.ENOSPC):
            with pytest.raises(OSError, match="broken"):
                stream.write("text\n")
            broken.number = 0
        else:
            stream.write("text\n")
            assert dropped == [descriptor]


def test_what_continues_a_run_of_a_name_with_a_dash_can_be_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def steps(*_: object) -> None:
        raise Interrupted(2)

    monkeypatch.setattr(RunFolder, "steps", steps)
    done = run_main("train", "digits-edm", *TINY, "--out=-a b", "--device", "cpu", cwd=tmp_path)
    assert "continue with: consistune train './-a b' --resume" in done.stderr


def fail(*_: object) -> None:
    raise ValueError("cannot build the literal validator: KeyboardInterrupt")


def stop_and_fail(*_: object) -> None:
    """As Pydantic does: its error has no context."""
    with contextlib.suppress(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    fail()


def stop_and_fail_later(*_: object) -> None:
    """A library took Ctrl-C, and the program went on."""
    with contextlib.suppress(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    raise ValueError("of its own")


def stop_and_fail_to_close(*_: object) -> None:
    try:
        signal.raise_signal(signal.SIGINT)
    finally:
        raise RuntimeError("unexpected pos 316672")


@pytest.mark.parametrize(
    ("command", "status", "said"),
    [
        (fail, 1, "failed"),
        (stop_and_fail, 130, "stopped"),
        (stop_and_fail_later, 1, "failed"),
        (stop_and_fail_to_close, 130, "stopped"),
    ],
)
def test_an_error_that_ctrl_c_made_is_no_failure(
    command: Callable[..., None], status: int, said: str, monkeypatch
) -> None:
    monkeypatch.setattr(module, "pick_device", command)
    done = run_main("--version")
    assert done.returncode == status
    assert done.stderr.startswith(f"consistune: {said}")


def test_a_second_ctrl_c_while_the_first_one_is_answered_is_the_same_line(monkeypatch) -> None:
    def again() -> None:
        signal.raise_signal(signal.SIGINT)
        release_signals()

    monkeypatch.setattr("consistune.cli.signals.BURST", 0)
    monkeypatch.setattr(module, "pick_device", lambda _: signal.raise_signal(signal.SIGINT))
    monkeypatch.setattr(module, "release_signals", again)
    done = run_main("--version")
    assert (done.returncode, done.stderr.strip()) == (130, "consistune: stopped")
