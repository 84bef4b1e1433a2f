"""Checkpoints: whole, atomic, and verified when read.

A file's name carries the first 16 hexadecimal digits of its SHA-256: `step-00001200-9f86d081884c7d65.pt`. It
gets that name by one rename when all of it is on the disk: a checkpoint is there with its hash or not at all.
"""

import hashlib
import re
from pathlib import Path
from typing import IO, Any

import torch

from consistune.system.files import atomic_file

NAME = re.compile(r"step-(\d{8,})-([0-9a-f]{16})\.pt")


class _Hashing:
    """A file to write to that hashes what passes through."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._hash = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def digest(self) -> str:
        return self._hash.hexdigest()[:16]


def save(folder: Path, state: dict[str, Any], keep: int = 2) -> Path:
    """Write the state of its `step`, and remove all but the newest `keep`. On an error the old ones stay."""
    step = int(state["step"])
    unnamed = folder / f".step-{step:08d}"
    with atomic_file(unnamed) as file:
        hashing = _Hashing(file)
        try:
            torch.save(state, hashing)  # type: ignore[arg-type]
        except RuntimeError as error:
            if not isinstance(error.__context__, OSError):
                raise
            # What really happened, a full disk mostly, is hidden behind the archive that could not be closed.
            raise OSError(error.__context__.errno, error.__context__.strerror, str(folder)) from None
    path = folder / f"step-{step:08d}-{hashing.digest()}.pt"
    unnamed.replace(path)
    for old in found(folder):
        if old != path and step_of(old) == step:
            old.unlink()
    for old in found(folder)[:-keep]:
        old.unlink()
    return path


def step_of(path: Path) -> int:
    """The step that a checkpoint's name says."""
    match = NAME.fullmatch(path.name)
    if match is None:
        raise ValueError(f"{path.name} is not a checkpoint's name")
    return int(match[1])


def found(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first."""
    return sorted((p for p in folder.glob("step-*.pt") if NAME.fullmatch(p.name)), key=step_of)


def load_newest(folder: Path) -> tuple[dict[str, Any] | None, list[Path]]:
    """The newest sound checkpoint, on the CPU (None: there is none), and the damaged ones passed over."""
    damaged: list[Path] = []
    for path in reversed(found(folder)):
        if path.stem.endswith(_digest(path)):
            return torch.load(path, map_location="cpu", weights_only=True), damaged
        damaged.append(path)
    return None, damaged


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
