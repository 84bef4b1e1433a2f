"""One process of two is killed: the other ends within a minute, with one line that says what happened."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import DistBackendError, DistNetworkError

from consistune.cli.main import LOST, explain
from consistune.training import checkpoint
from tests.support.ports import free_port

LONGEST = 60
"""Seconds in which the other process must have ended."""
STARTED = 300
"""Seconds in which a run must have begun, on a busy machine."""
KEYS = (
    "network={kind: mlp, width: 16, blocks: 1}",
    "train={images: 6_400_000, batch: 64, checkpoint_images: 640, trackers: []}",
)


def begin(folder: Path) -> list[subprocess.Popen[str]]:
    """Two processes that train together, without a launcher that would end one with the other."""
    port = free_port()
    command = [sys.executable, "-m", "consistune", "train", "digits-edm", *KEYS]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    environment = {**os.environ, **shared, "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [*command, "--device", "cpu", "--out", str(folder)],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


def kill_one(folder: Path, victim: int, delay: float) -> tuple[float, int, str]:
    """Seconds that the other process then took, its status, and its last line."""
    processes = begin(folder)
    try:
        for _ in range(10 * STARTED):
            newest = checkpoint.paths(folder / "checkpoints")[-1:]
            if newest and checkpoint.step_of(newest[0]) > 0:
                break
            time.sleep(0.1)
        time.sleep(delay)
        processes[victim].send_signal(signal.SIGKILL)
        began = time.monotonic()
        _, text = processes[1 - victim].communicate(timeout=2 * LONGEST)
        return time.monotonic() - began, processes[1 - victim].returncode, text.strip().splitlines()[-1]
    finally:
        for process in processes:
            process.kill()


@pytest.mark.parametrize("processes", ["1", "2"])
def test_what_the_transports_say_is_explained_where_there_are_several(
    monkeypatch: pytest.MonkeyPatch, processes: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", processes)
    gloo = RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:1")
    for error in (gloo, DistBackendError("NCCL error: remote process exited"), DistNetworkError("timeout")):
        assert (explain(error) == (1, LOST)) == (processes == "2")
    assert explain(RuntimeError("a shape is wrong"))[1].startswith("failed: RuntimeError: a shape")


@pytest.mark.slow
@pytest.mark.attack
def test_the_other_process_ends_with_a_line(
    tmp_path: Path, minutes: float, seed: int, keep_record: Callable[[str, dict[str, Any]], None]
) -> None:
    dice, began, seconds, lines = random.Random(seed), time.monotonic(), list[float](), set[str]()
    while len(seconds) < 1 or time.monotonic() - began < 60 * minutes:
        victim = 1 - len(seconds) % 2
        took, status, line = kill_one(tmp_path / str(len(seconds)), victim, dice.random())
        seconds.append(took)
        lines.add(line)
        assert (status, line) == (1, f"consistune: {LOST}")
        assert took < LONGEST
    keep_record("killed_processes", {"kills": len(seconds), "slowest_seconds": round(max(seconds), 1)})
