"""The disk gets full in the middle of each kind of write: see `full_disk`."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SIZE = "size=32m"
MOUNT = 'mount -t tmpfs -o "$1" tmpfs "$2" && shift 2 && exec "$@"'


def may_mount(folder: Path) -> bool:
    """Whether a file system of a process's own can be made here, without being root."""
    if shutil.which("unshare") is None:
        return False
    command = ["unshare", "-Urm", "sh", "-c", MOUNT, "sh", SIZE, str(folder), "true"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.attack
def test_a_full_disk_is_a_line_and_the_same_write_goes_on_when_there_is_room(
    tmp_path: Path, minutes: float, seed: int, keep_record: Callable[[str, dict[str, Any]], None]
) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounts = may_mount(folder)
    own = ["unshare", "-Urm", "sh", "-c", MOUNT, "sh", SIZE, str(folder)] if mounts else []
    done = subprocess.run(
        [*own, sys.executable, "-m", "tests.attack.full_disk", str(folder), str(60 * minutes), str(seed)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    outcomes = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(outcomes, indent=1))
    keep_record("full_disk", {"own_file_system": mounts, "outcomes": outcomes})
    for name, counts in outcomes.items():
        assert set(counts) <= {"refused", "warned"}, name
