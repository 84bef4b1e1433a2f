"""Hostile files against the whole program, with every side effect watched."""

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PARITY, REPOSITORY
from tests.support.hostile import HOSTILE

LOADED = "embedded_source"
"""How the name of a valid snapshot begins; the source code embedded in it is never read."""
GLOBAL = r"global '[\w.]+' is not allowed at byte \d+"
REFUSED = {
    "reduce_": GLOBAL,
    "torch_save": GLOBAL,
    "nested_storage": "not a plain torch storage",
    "giant_length": r"\d+ bytes announced",
    "truncated": "cut off",
}
"""How the names of the others begin, and why each is refused."""


def malicious() -> list[str]:
    """The files that are refused; a name that no file has where there is none, and then the test fails."""
    names = sorted(path.name for path in (PARITY / "malicious").glob("*"))
    return [name for name in names if not name.startswith(LOADED)] or ["none"]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", **more}


def watched(genuine: list[Path], files: list[Path]) -> list[dict[str, object]]:
    command = [sys.executable, "-m", "tests.support.watched", *map(str, genuine), "--", *map(str, files)]
    env = environment(PYTHONPATH=f"{REPOSITORY / 'src'}{os.pathsep}{REPOSITORY}")
    done = subprocess.run(
        command, capture_output=True, text=True, env=env, cwd=REPOSITORY, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def traces() -> set[Path]:
    return set(Path("/tmp").glob("pwned*"))


def test_reading_has_no_side_effect(parity_folder: Path, tmp_path: Path) -> None:
    genuine = sorted((parity_folder / "networks").glob("*.pkl"))
    assert genuine
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
        assert (outcome == "loaded") == file.name.startswith(LOADED), (file.name, outcome)
        assert result["seconds"] < 10, (file.name, result)  # type: ignore[operator]
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
    command, env = [sys.executable, "-c", code], environment(PYTHONPATH=str(REPOSITORY))
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
    for words in ("os.system", "pickle.find_class", "open for writing", "import this", "exec"):
        assert words in done.stdout


@pytest.mark.parametrize("name", malicious())
def test_the_command_refuses_in_one_line(name: str, parity_folder: Path, tmp_path: Path) -> None:
    path = parity_folder / "malicious" / name
    assert path.is_file()
    words = next((words for start, words in REFUSED.items() if name.startswith(start)), "")
    before = traces()
    command = [
        sys.executable,
        "-m",
        "consistune",
        "import",
        str(path),
        "out",
    ]
    told = {"capture_output": True, "text": True, "env": environment()}
    done = subprocess.run(command, cwd=tmp_path, check=False, preexec_fn=limit, **told)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("consistune: ")
    assert re.search(words, line)
    assert list(tmp_path.iterdir()) == []
    assert traces() == before


def limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (200 << 20, 200 << 20))
    resource.setrlimit(resource.RLIMIT_CPU, (10, 10))
