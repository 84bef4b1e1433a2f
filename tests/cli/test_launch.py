"""`consistune train` under torchrun: begun by two processes, stopped by a signal, finished by one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from consistune.training import checkpoint
from tests.support.command import run_main

KEYS = (
    "network={kind: mlp, width: 16, blocks: 1}",
    "train={images: 64_000, batch: 64, log_images: 640, checkpoint_images: 6_400}",
)


def consistune(*words: str, processes: int = 1) -> subprocess.Popen[str]:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [
        sys.executable,
        *(launch if processes > 1 else []),
        "-m",
        "consistune",
        *words,
        "--device",
        "cpu",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_two_processes_are_stopped_and_one_goes_on(tmp_path: Path) -> None:
    alone, both = tmp_path / "alone", tmp_path / "both"
    first = consistune("train", "digits-edm", *KEYS, "--out", str(alone))
    assert first.wait(120) == 0
    run = consistune("train", "digits-edm", *KEYS, "--out", str(both), processes=2)
    for _ in range(600):
        if checkpoint.paths(both / "checkpoints"):
            break
        time.sleep(0.1)
    run.send_signal(signal.SIGTERM)
    _, stderr = run.communicate(timeout=60)
    assert "stopped and saved" in stderr
    assert not (both / "model").exists()
    again = consistune("train", str(both), "--resume")
    assert again.wait(120) == 0
    losses = [
        [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (alone, both)
    ]
    assert len(losses[0]) == 100
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


@pytest.mark.parametrize("count", ["abc", "0", "-1", "2.5"])
def test_a_number_of_processes_that_is_none_is_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", count)
    done = run_main("train", "digits-edm", "--out", tmp_path / "run", "train.images=128", "--device", "cpu")
    assert done.returncode == 2
    assert f"WORLD_SIZE: '{count}' is no number of processes" in done.stderr
    assert not (tmp_path / "run").exists()
