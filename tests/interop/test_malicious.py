"""Hostile files against the whole program, with every side effect watched."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.support.hostile import HOSTILE

LOADED = {"embedded_source.pkl"}
"""It is a valid snapshot; the source code embedded in it is never read."""
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def watched(genuine: list[Path], files: list[Path]) -> list[dict[str, object]]:
    command = [sys.executable, "-m", "tests.support.watched", *map(str, genuine), "--", *map(str, files)]
    environment = {**ENVIRONMENT, "PYTHONPATH": f"{REPOSITORY / 'src'}{os.pathsep}{REPOSITORY}"}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=REPOSITORY, check=False, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def traces() -> set[Path]:
    return set(Path("/tmp").glob("pwned*"))


def test_reading_has_no_side_effect(parity_folder: Path, tmp_path: Path) -> None:
    genuine = [parity_folder / "networks" / f"{name}.pkl" for name in ("edm-ddpmpp-uncond", "edm2-a")]
    files = sorted((parity_folder / "malicious").iterdir())
    for index, data in enumerate(HOSTILE.values()):
        files.append(tmp_path / f"{index}.pkl")
        files[-1].write_bytes(data)
    before = traces()
    results = watched(genuine, files)
    assert len(results) == len(files)
    for file, result in zip(files, results, strict=True):
        outcome = str(result["outcome"])
        assert not result["seen"], (file.name, result["seen"])
        assert not outcome.startswith("!"), (file.name, outcome)
        assert (outcome == "loaded") == (file.name in LOADED), (file.name, outcome)
        assert result["seconds"] < 2, (file.name, result)  # type: ignore[operator]
        assert result["mib"] < 200, (file.name, result)  # type: ignore[operator]
    assert traces() == before


def test_the_audit_hook_sees_side_effects(tmp_path: Path) -> None:
    """Python's own unpickler, on the same kind of file, does trip the hook."""
    path = tmp_path / "file.pkl"
    path.write_bytes(b"\x80\x04" + b"cposix\nsystem\n(X\x04\x00\x00\x00truetR.")
    code = (
        "import pickle, sys, tests.support.watched as w\n"
        "sys.addaudithook(w.hook)\n"
        "w.watching = True\n"
        f"pickle.load(open({str(path)!r}, 'rb'))\n"
        f"open({str(tmp_path / 'written')!r}, 'w')\n"
        "import this\n"
        "w.watching = False\n"
        "print(w.seen)\n"
    )
    environment = {**ENVIRONMENT, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    for words in ("os.system", "pickle.find_class", "open for writing", "import this", "exec"):
        assert words in done.stdout


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("reduce_system.pkl", "global 'posix.system' is not allowed at byte 36"),
        ("reduce_exec.pkl", "global 'builtins.exec' is not allowed at byte 37"),
        ("torch_save.pt", "global 'posix.system' is not allowed at byte 13"),
        ("nested_storage.pkl", "not a plain torch storage"),
        ("giant_length.pkl", "1099511627776 bytes announced"),
        ("truncated.pkl", "cut off"),
    ],
)
def test_the_command_refuses_in_one_line(name: str, words: str, parity_folder: Path, tmp_path: Path) -> None:
    before = traces()
    command = [
        sys.executable,
        "-m",
        "consistune",
        "import",
        str(parity_folder / "malicious" / name),
        "out",
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=ENVIRONMENT, check=False, preexec_fn=limit
    )
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("consistune: ")
    assert words in line
    assert list(tmp_path.iterdir()) == []
    assert traces() == before


def limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (200 << 20, 200 << 20))
    resource.setrlimit(resource.RLIMIT_CPU, (2, 2))
