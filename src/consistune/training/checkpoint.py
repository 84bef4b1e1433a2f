"""Checkpoint files, written atomically and verified when read.

The name holds the first 16 hexadecimal digits of the file's SHA-256: `step-00001200-9f86d081884c7d65.pt`. The
file gets its name by one rename when all of it is on the disk.
"""

import hashlib
import re
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any

import torch

from consistune.system.files import atomic_file, file_digest

NAME = re.compile(r"step-(\d{8,})-([0-9a-f]{16})\.pt")


class _HashingFile:
    """A file to write to, and the SHA-256 of what was written."""

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
    """Write a state with the key `step`, then remove all but the newest `keep` files → its path.

    Raises OSError, for example for a full disk; the older checkpoints then stay.
    """
    step = int(state["step"])
    unnamed = folder / f".step-{step:08d}"
    with atomic_file(unnamed) as file:
        hashing = _HashingFile(file)
        try:
            torch.save(state, hashing)  # type: ignore[arg-type]
        except RuntimeError as error:
            if not isinstance(error.__context__, OSError):
                raise
            # torch reports an archive that cannot be closed; its cause, mostly a full disk, is the context.
            raise OSError(error.__context__.errno, error.__context__.strerror, str(folder)) from None
    path = folder / f"step-{step:08d}-{hashing.digest()}.pt"
    unnamed.replace(path)
    for old in paths(folder):
        if old != path and step_of(old) == step:
            old.unlink()
    for old in paths(folder)[:-keep]:
        old.unlink()
    return path


def step_of(path: Path) -> int:
    """The step in a checkpoint's name. Raises ValueError for any other name."""
    match = NAME.fullmatch(path.name)
    if match is None:
        raise ValueError(f"{path.name} is not a checkpoint's name")
    return int(match[1])


def paths(folder: Path) -> list[Path]:
    """The checkpoint files in a folder, also links whose file is gone; oldest first."""
    found = (p for p in folder.glob("step-*.pt") if NAME.fullmatch(p.name))
    return sorted((p for p in found if p.is_file() or p.is_symlink()), key=step_of)


def load_newest(folder: Path) -> tuple[dict[str, Any] | None, list[Path]]:
    """The newest sound checkpoint, on the CPU (None: there is none), and the newer ones that are damaged."""
    damaged: list[Path] = []
    for path in reversed(paths(folder)):
        try:
            if path.stem.endswith(file_digest(path)[:16]):
                return torch.load(path, map_location="cpu", weights_only=True), damaged
        except FileNotFoundError:
            if not path.is_symlink():  # a trainer at work has deleted it, after it wrote a newer one
                return load_newest(folder)
        except (UnpicklingError, EOFError):  # its name is right, and it is no checkpoint
            pass
        damaged.append(path)
    return None, damaged
